//! A strict reader of Prometheus' text format, version 0.0.4: what it takes, any other takes too.

use std::collections::{BTreeMap, BTreeSet};

/// Labels, in the order of their names.
pub(crate) type Labels = BTreeMap<String, String>;

/// One family: its kind, and its samples by name and labels.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) samples: Vec<(String, Labels, f64)>,
}

/// Everything that a scrape tells.
#[derive(Debug, Default)]
pub(crate) struct Exposition(pub(crate) BTreeMap<String, Family>);

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !text.is_empty() && text.chars().all(plain) && !text.starts_with(|c: char| c.is_ascii_digit())
}

/// `{a="b",c="d"}` and what follows.
fn labels(text: &str) -> (Labels, &str) {
    let mut all = Labels::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return (all, text);
    };
    loop {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(is_name(name) && !name.contains(':'), "label {name:?}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            let (at, c) = chars.next().unwrap();
            match c {
                '"' => break at,
                '\\' => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('"' | '\\') => value.push(c),
                    c => panic!("no escape: \\{c}"),
                },
                '\n' => panic!("a line ends in a value"),
                c => value.push(c),
            }
        };
        let twice = all.insert(name.to_owned(), value);
        assert!(twice.is_none(), "label {name} twice: {text}");
        rest = &after[end + 1..];
        if let Some(after) = rest.strip_prefix('}') {
            return (all, after);
        }
        rest = rest.strip_prefix(',').unwrap();
    }
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        text => {
            let value: f64 = text.parse().unwrap();
            assert!(value.is_finite(), "{text}");
            value
        }
    }
}

impl Exposition {
    pub(crate) fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has its end");
        let mut all = Self::default();
        let mut seen = BTreeSet::new();
        let mut lines = text.lines();
        let mut current: Option<String> = None;
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(is_name(name) && !help.is_empty(), "{line}");
                let kind = lines.next().and_then(|l| l.strip_prefix("# TYPE "));
                let (again, kind) = kind.unwrap().split_once(' ').unwrap();
                assert_eq!(again, name, "TYPE follows HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
                if kind == "counter" {
                    assert!(name.ends_with("_total"), "{name} is a counter");
                }
                let family = Family {
                    kind: kind.to_owned(),
                    samples: Vec::new(),
                };
                let twice = all.0.insert(name.to_owned(), family);
                assert!(twice.is_none(), "{name} is told twice");
                current = Some(name.to_owned());
                continue;
            }
            let end = line.find(['{', ' ']).unwrap();
            let (name, rest) = line.split_at(end);
            let (labels, rest) = labels(rest);
            let value = number(rest.strip_prefix(' ').unwrap());
            let family = current.as_ref().unwrap();
            let suffix = name.strip_prefix(family.as_str()).unwrap();
            let family = all.0.get_mut(family).unwrap();
            let fits = match family.kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            assert!(fits, "{name} stands among samples of another");
            if family.kind == "counter" {
                assert!(value >= 0.0, "{line}");
            }
            assert!(seen.insert((name.to_owned(), labels.clone())), "{line}");
            family.samples.push((name.to_owned(), labels, value));
        }
        for (name, family) in &all.0 {
            if family.kind == "histogram" {
                family.check(name);
            }
        }
        all
    }

    /// The samples of this name that have these labels, added up.
    pub(crate) fn sum(&self, name: &str, with: &[(&str, &str)]) -> f64 {
        let samples = self.0.values().flat_map(|f| &f.samples);
        let has = |l: &Labels| with.iter().all(|(k, v)| l.get(*k).is_some_and(|x| x == v));
        let all = samples.filter(|s| s.0 == name && has(&s.1)).map(|s| s.2);
        let all: Vec<f64> = all.collect();
        assert!(!all.is_empty(), "there is no {name} with {with:?}");
        all.iter().sum()
    }

    /// The same, nothing where there is none.
    pub(crate) fn or_zero(&self, name: &str, with: &[(&str, &str)]) -> f64 {
        let samples = self.0.values().flat_map(|f| &f.samples);
        let has = |l: &Labels| with.iter().all(|(k, v)| l.get(*k).is_some_and(|x| x == v));
        samples
            .filter(|s| s.0 == name && has(&s.1))
            .map(|s| s.2)
            .sum()
    }

    /// No counter and no bucket is below what it was.
    pub(crate) fn follows(&self, before: &Self) {
        for (name, family) in &before.0 {
            if family.kind == "gauge" {
                continue;
            }
            let now = &self.0[name].samples;
            for (name, labels, value) in &family.samples {
                let same = now.iter().find(|s| s.0 == *name && s.1 == *labels);
                let now = same.unwrap_or_else(|| panic!("{name}{labels:?} is gone")).2;
                assert!(now >= *value, "{name}{labels:?} fell from {value} to {now}");
            }
        }
    }
}

impl Family {
    /// Buckets rise, the last one is +Inf and holds everything.
    fn check(&self, name: &str) {
        let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for (sample, labels, value) in &self.samples {
            if sample.ends_with("_bucket") {
                let mut labels = labels.clone();
                let le = number(&labels.remove("le").unwrap());
                series.entry(labels).or_default().push((le, *value));
            }
        }
        assert!(!series.is_empty(), "{name} has buckets");
        for (labels, buckets) in series {
            let rise = |w: &[(f64, f64)]| w[0].0 < w[1].0 && w[0].1 <= w[1].1;
            assert!(buckets.windows(2).all(rise), "{name}: {buckets:?}");
            let of = |suffix: &str| {
                let wanted = format!("{name}{suffix}");
                let all = self.samples.iter();
                let same = all.filter(|s| s.0 == wanted && s.1 == labels);
                let all: Vec<f64> = same.map(|s| s.2).collect();
                assert_eq!(all.len(), 1, "{wanted}{labels:?}");
                all[0]
            };
            let (last, count) = (buckets[buckets.len() - 1], of("_count"));
            assert_eq!(last, (f64::INFINITY, count), "{name}");
            assert!(of("_sum") >= 0.0 && (count > 0.0 || of("_sum") == 0.0));
        }
    }
}

#[test]
fn the_reader_is_strict() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"b\\\"\\\\\\n\"} 1\n\
                # HELP h H.\n# TYPE h histogram\nh_sum 2\nh_count 2\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n";
    let read = Exposition::read(good);
    assert_eq!(read.sum("a_total", &[("x", "b\"\\\n")]), 1.0);
    for (from, to) in [
        ("counter\na_total", "counter\nb_total"),
        ("\\n\"}", "\\t\"}"),
        ("le=\"+Inf\"} 2", "le=\"+Inf\"} 3"),
        ("le=\"1\"} 1", "le=\"1\"} 3"),
        ("# TYPE h histogram\n", ""),
        (
            "# HELP h H.\n# TYPE h histogram",
            "# HELP a_total H.\n# TYPE a_total counter",
        ),
        ("h_count 2\n", "h_count 2\nh_count 2\n"),
        (" 1\n# HELP", " one\n# HELP"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        let read = std::panic::catch_unwind(|| Exposition::read(&bad));
        assert!(read.is_err(), "{bad}");
    }
}
