//! `plimsoll accuracy`: predictions judged against published start-up reports.
//!
//! Errors of memory terms are relative to max(reported, 1 GiB); those of `kv_tokens` and
//! `max_concurrency` to the reported figure.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use plimsoll_plan::engine::sglang;
use plimsoll_plan::engine::vllm::{Constant, constants};
use plimsoll_plan::measured::{
    Configs, EngineName, Figure, Fit, Judged, LineError, Metrics, Prediction, Record, StartOutcome,
    fit, graph_estimate, judge, metrics, parse_records, predict, tokens_given_pool,
};
use plimsoll_plan::{Verdict, Version};
use serde_json::{Map, Value, json};

use crate::args::AccuracyArgs;
use crate::error::{Exit, Failure};
use crate::output::Output;

/// Version of the JSON form.
const SCHEMA: &str = "plimsoll.accuracy/1";
/// Largest accepted file.
const MAX_FILE: u64 = 256 << 20;

pub(crate) fn run(args: &AccuracyArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let Some(data) = &args.data else {
        if args.constants {
            return list_constants(None, args.json, output);
        }
        return Err(
            Failure::new(Exit::Usage, "E-USAGE-006", "a file of reports is needed")
                .hint("give a file with one JSON object per line, and `--configs`"),
        );
    };
    let records = parse_records(&read(data)?).map_err(|e| bad_line(data, &e))?;
    let configs = match &args.configs {
        Some(path) => Configs::parse(&read(path)?).map_err(|e| bad_line(path, &e))?,
        None => Configs::default(),
    };
    let judged = Judgement::new(records, &configs, args.min_version);
    if args.constants {
        return list_constants(Some(&judged), args.json, output);
    }
    if args.json {
        let text = serde_json::to_string_pretty(&judged.json()).map_err(|e| {
            Failure::new(Exit::Failure, "E-IO-002", format!("cannot write JSON: {e}"))
        })?;
        output.line(&text)?;
    } else {
        output.line(&judged.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A text file of bounded size.
fn read(path: &Path) -> Result<String, Failure> {
    use std::io::Read as _;
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|e| {
        Failure::new(Exit::NotFound, "E-DATA-001", format!("{name}: {e}"))
            .hint("give a file that is there and may be read")
    })?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| {
            Failure::new(Exit::Failure, "E-DATA-001", format!("{name}: {e}"))
                .hint("give a file, not a folder")
        })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::new(
            Exit::Corrupt,
            "E-DATA-002",
            format!("{name}: larger than {} MiB", MAX_FILE >> 20),
        )
        .hint("split it by lines"));
    }
    String::from_utf8(bytes).map_err(|e| {
        Failure::new(
            Exit::Corrupt,
            "E-DATA-002",
            format!("{name}: byte {}: not UTF-8", e.utf8_error().valid_up_to()),
        )
        .hint("one JSON object per line is expected")
    })
}

fn bad_line(path: &Path, e: &LineError) -> Failure {
    Failure::new(
        Exit::Corrupt,
        "E-DATA-003",
        format!("{}: line {}: {}", path.display(), e.line, e.reason),
    )
    .hint("one JSON object per line is expected")
}

/// One record with its prediction and judgement.
struct Row {
    record: Record,
    prediction: Prediction,
    figures: Vec<Judged>,
    given_pool: Option<Judged>,
    graphs: Option<Judged>,
}

struct Judgement {
    rows: Vec<Row>,
    /// Records kept out by `--min-version`, with the reason.
    excluded: Vec<(String, String)>,
}

impl Judgement {
    fn new(records: Vec<Record>, configs: &Configs, min: Option<Version>) -> Self {
        let mut rows = Vec::with_capacity(records.len());
        let mut excluded = Vec::new();
        for record in records {
            let prediction = predict(&record.setup, configs);
            if let Some(reason) = min.and_then(|min| too_old(&record, &prediction, min)) {
                excluded.push((record.setup.id.clone(), reason));
                continue;
            }
            let figures = judge(&prediction, &record.reported);
            let given_pool = tokens_given_pool(&prediction, &record.reported);
            let graphs = graph_estimate(&prediction, &record.reported);
            rows.push(Row {
                record,
                prediction,
                figures,
                given_pool,
                graphs,
            });
        }
        Self { rows, excluded }
    }

    /// Metrics of every figure over the rows that `keep`.
    fn terms(&self, keep: impl Fn(&Row) -> bool) -> Vec<(Figure, Metrics)> {
        Figure::ALL
            .iter()
            .map(|&figure| {
                let items = self.rows.iter().filter(|r| keep(r)).flat_map(|r| {
                    r.figures
                        .iter()
                        .filter(move |j| j.figure == figure)
                        .map(|j| (r.record.setup.id.as_str(), j))
                });
                (figure, metrics(items))
            })
            .collect()
    }

    /// Metrics by a property of the rows, in order of its first appearance sorted by name.
    fn by(&self, property: impl Fn(&Row) -> String) -> Vec<(String, Vec<(Figure, Metrics)>)> {
        let names: std::collections::BTreeSet<String> = self.rows.iter().map(&property).collect();
        names
            .into_iter()
            .map(|name| {
                let terms = self.terms(|r| property(r) == name);
                (name, terms)
            })
            .collect()
    }

    fn by_engine(&self) -> Vec<(String, Vec<(Figure, Metrics)>)> {
        self.by(|r| r.prediction.engine.name().to_owned())
    }

    fn by_version(&self) -> Vec<(String, Vec<(Figure, Metrics)>)> {
        self.by(|r| band(&r.prediction))
    }

    fn by_attention(&self) -> Vec<(String, Vec<(Figure, Metrics)>)> {
        self.by(|r| r.prediction.attention.to_owned())
    }

    fn given_pool(&self) -> Metrics {
        metrics(
            self.rows
                .iter()
                .filter_map(|r| Some((r.record.setup.id.as_str(), r.given_pool.as_ref()?))),
        )
    }

    fn graphs(&self) -> Metrics {
        metrics(
            self.rows
                .iter()
                .filter_map(|r| Some((r.record.setup.id.as_str(), r.graphs.as_ref()?))),
        )
    }

    fn json(&self) -> Value {
        let groups = |all: Vec<(String, Vec<(Figure, Metrics)>)>| -> Value {
            all.into_iter()
                .map(|(name, terms)| (name, terms_json(&terms)))
                .collect::<Map<_, _>>()
                .into()
        };
        json!({
            "schema": SCHEMA,
            "terms": terms_json(&self.terms(|_| true)),
            "by_engine": groups(self.by_engine()),
            "by_version": groups(self.by_version()),
            "by_attention": groups(self.by_attention()),
            "starts": self.starts_json(),
            "diagnostics": {
                "kv_tokens_given_pool": metrics_json(&self.given_pool()),
                "graph_estimate": metrics_json(&self.graphs()),
            },
            "records": self.rows.iter().map(row_json).collect::<Vec<_>>(),
            "excluded": self.excluded.iter().map(|(id, reason)| json!({"id": id, "reason": reason})).collect::<Vec<_>>(),
        })
    }

    /// Starts, judged fits or does not fit.
    fn starts(&self) -> Vec<(&Row, &'static str, Result<&'static str, &str>)> {
        self.rows
            .iter()
            .filter(|r| r.prediction.engine == EngineName::Vllm)
            .map(|r| {
                let reported = match r.record.reported.start {
                    StartOutcome::OutOfMemory => "does not fit",
                    StartOutcome::Started | StartOutcome::FailedOtherwise => "fits",
                };
                let predicted = match &r.prediction.start {
                    Ok(Verdict::Yes) => Ok("fits"),
                    Ok(Verdict::Tight) => Ok("tight"),
                    Ok(Verdict::No) => Ok("does not fit"),
                    Err(reason) => Err(reason.as_str()),
                };
                (r, reported, predicted)
            })
            .collect()
    }

    fn starts_json(&self) -> Value {
        let all = self.starts();
        let count = |reported: &str, predicted: &str| {
            all.iter()
                .filter(|(_, r, p)| *r == reported && *p == Ok(predicted))
                .count()
        };
        let side = |reported: &str| {
            json!({
                "n": all.iter().filter(|(_, r, p)| *r == reported && p.is_ok()).count(),
                "unpredicted": all.iter().filter(|(_, r, p)| *r == reported && p.is_err()).count(),
                "predicted_fits": count(reported, "fits"),
                "predicted_tight": count(reported, "tight"),
                "predicted_does_not_fit": count(reported, "does not fit"),
            })
        };
        // Those that came up and are predicted to are only counted.
        let listed: Vec<Value> = all
            .iter()
            .filter(|(r, reported, predicted)| {
                r.record.reported.start != StartOutcome::Started
                    || predicted
                        .is_ok_and(|p| (p == "does not fit") != (*reported == "does not fit"))
            })
            .map(|(r, reported, predicted)| {
                let mut o = Map::new();
                o.insert("id".to_owned(), json!(r.record.setup.id));
                o.insert("reported".to_owned(), json!(reported));
                match predicted {
                    Ok(p) => {
                        o.insert("predicted".to_owned(), json!(p));
                        let right = (*p == "does not fit") == (*reported == "does not fit");
                        o.insert("right".to_owned(), json!(right));
                    }
                    Err(reason) => {
                        o.insert("unpredicted".to_owned(), json!(reason));
                    }
                }
                if r.record.reported.start == StartOutcome::FailedOtherwise {
                    o.insert(
                        "note".to_owned(),
                        json!("the run failed although its memory sufficed"),
                    );
                }
                Value::Object(o)
            })
            .collect();
        json!({"fits": side("fits"), "does_not_fit": side("does not fit"), "records": listed})
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let title = |out: &mut String, text: &str| {
            let _ = writeln!(
                out,
                "{text:<46}{:>5}{:>6}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}  worst",
                "n", "none", "bounds", "mean %", "median %", "p95 %", "bias %", "inside %"
            );
        };
        title(&mut out, "term");
        terms_lines(&mut out, "", &self.terms(|_| true));
        let given = self.given_pool();
        if given.n > 0 {
            line(&mut out, "(kv_tokens given the printed pool)", &given);
        }
        let graphs = self.graphs();
        if graphs.n > 0 {
            line(&mut out, "(vLLM's own graph estimate)", &graphs);
        }
        for (heading, groups) in [
            ("by engine", self.by_engine()),
            ("by version", self.by_version()),
            ("by attention", self.by_attention()),
        ] {
            let _ = writeln!(out);
            title(&mut out, heading);
            for (name, terms) in &groups {
                terms_lines(&mut out, name, terms);
            }
        }
        self.starts_lines(&mut out);
        self.unpredicted_lines(&mut out);
        if !self.excluded.is_empty() {
            let _ = writeln!(out, "\nkept out by --min-version:");
            for (id, reason) in &self.excluded {
                let _ = writeln!(out, "  {id}: {reason}");
            }
        }
        let _ = writeln!(
            out,
            "\nn: reported and predicted; none: reported, not predicted; bounds: those that the report keeps, of those for\nwhich only a bound is known. Errors of memory terms are relative to max(reported, 1 GiB), those of kv_tokens and\nmax_concurrency to the reported figure."
        );
        out
    }

    fn starts_lines(&self, out: &mut String) {
        let all = self.starts();
        let predicted = all.iter().filter(|(_, _, p)| p.is_ok()).count();
        let right = all
            .iter()
            .filter(|(_, r, p)| p.is_ok_and(|p| (p == "does not fit") == (*r == "does not fit")))
            .count();
        let _ = writeln!(
            out,
            "\nstarts: {predicted} judged (fits or does not), {right} right, {} not predicted",
            all.len() - predicted
        );
        for (r, reported, p) in all {
            let shown = match p {
                Ok(p) if (p == "does not fit") != (reported == "does not fit") => p,
                Ok(p) if reported == "does not fit" => p,
                _ => continue,
            };
            let _ = writeln!(
                out,
                "  {}: reported {reported}, predicted {shown}",
                r.record.setup.id
            );
        }
    }

    fn unpredicted_lines(&self, out: &mut String) {
        // One line per reason: which figures of which records it stands in the way of.
        let mut reasons: std::collections::BTreeMap<&str, (Vec<&str>, Vec<Figure>)> =
            std::collections::BTreeMap::new();
        for r in &self.rows {
            for j in &r.figures {
                let (Err(reason), Some(_)) = (&j.predicted, j.reported) else {
                    continue;
                };
                let (ids, figures) = reasons.entry(reason).or_default();
                let id = r.record.setup.id.as_str();
                if ids.last() != Some(&id) {
                    ids.push(id);
                }
                if !figures.contains(&j.figure) {
                    figures.push(j.figure);
                }
            }
        }
        if reasons.is_empty() {
            return;
        }
        let _ = writeln!(out, "\nnot predicted:");
        for (reason, (ids, figures)) in reasons {
            let figures: Vec<&str> = figures.iter().map(|f| f.name()).collect();
            let shown: Vec<&str> = ids.iter().take(4).copied().collect();
            let more = match ids.len().saturating_sub(shown.len()) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            let _ = writeln!(
                out,
                "  {}\n    {} of {} record{}: {}{more}",
                short(reason),
                figures.join(", "),
                ids.len(),
                if ids.len() == 1 { "" } else { "s" },
                shown.join(", ")
            );
        }
    }
}

/// Why `--min-version` keeps a record out. It concerns vLLM's releases only: other engines number
/// theirs differently, so their records stay.
fn too_old(record: &Record, p: &Prediction, min: Version) -> Option<String> {
    if p.engine != EngineName::Vllm {
        return None;
    }
    match p.said.number() {
        Some(v) if v >= min => None,
        Some(v) => Some(format!("vLLM {v} is older than {min}")),
        None => Some(match &record.setup.engine_version {
            Some(t) => format!("`{t}` names no release"),
            None => "no engine version is given".to_owned(),
        }),
    }
}

/// Releases that measure alike.
fn band(p: &Prediction) -> String {
    let name = p.engine.name();
    if p.engine != EngineName::Vllm {
        return name.to_owned();
    }
    let exact = if p.said.number().is_some() {
        ""
    } else {
        " (by date)"
    };
    match p.release {
        Some(v) if v >= Version::new(0, 17) => format!("vllm 0.17+{exact}"),
        Some(v) if v >= Version::new(0, 11) => format!("vllm 0.11-0.16{exact}"),
        Some(v) if v >= Version::new(0, 8) => format!("vllm 0.8-0.10{exact}"),
        Some(_) => format!("vllm before 0.8{exact}"),
        None => "vllm ?".to_owned(),
    }
}

fn terms_lines(out: &mut String, group: &str, terms: &[(Figure, Metrics)]) {
    for (figure, m) in terms {
        if m.n == 0 && m.unpredicted == 0 && m.bounds == 0 {
            continue;
        }
        let name = if group.is_empty() {
            figure.name().to_owned()
        } else {
            format!("{group}: {figure}")
        };
        line(out, &name, m);
    }
}

/// A reason's first statement; JSON has it whole.
pub(super) fn short(reason: &str) -> &str {
    match reason.split_once(": ") {
        Some((head, _)) if reason.len() > 120 => head,
        _ => reason,
    }
}

fn line(out: &mut String, name: &str, m: &Metrics) {
    let f = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.2}"));
    let worst = m
        .worst
        .as_ref()
        .map(|(id, e)| format!("{e:+.1} {id}"))
        .unwrap_or_default();
    let _ = writeln!(
        out,
        "{name:<46}{:>5}{:>6}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}  {worst}",
        m.n,
        m.unpredicted,
        match m.bounds {
            0 => "-".to_owned(),
            n => format!("{}/{n}", m.bounds_kept),
        },
        f(m.mean_abs_pct),
        f(m.median_abs_pct),
        f(m.p95_abs_pct),
        f(m.mean_pct),
        m.interval_coverage_pct
            .map_or_else(|| "-".to_owned(), |x| format!("{x:.1}")),
    );
}

/// Enough digits for any use, and no noise of binary fractions.
fn rounded(x: f64, digits: i32) -> Value {
    let p = 10_f64.powi(digits);
    let r = (x * p).round() / p;
    json!(if r == 0.0 { 0.0 } else { r })
}

fn percent(x: Option<f64>) -> Value {
    x.map_or(Value::Null, |x| rounded(x, 4))
}

fn metrics_json(m: &Metrics) -> Value {
    json!({
        "n": m.n,
        "unpredicted": m.unpredicted,
        "bounds": m.bounds,
        "bounds_kept": m.bounds_kept,
        "mean_abs_pct": percent(m.mean_abs_pct),
        "median_abs_pct": percent(m.median_abs_pct),
        "p95_abs_pct": percent(m.p95_abs_pct),
        "mean_pct": percent(m.mean_pct),
        "worst": m.worst.as_ref().map(|(id, e)| json!({"id": id, "error_pct": rounded(*e, 4)})),
        "interval_coverage_pct": percent(m.interval_coverage_pct),
        "same_print": m.same_print,
    })
}

fn terms_json(terms: &[(Figure, Metrics)]) -> Value {
    terms
        .iter()
        .map(|(f, m)| (f.name().to_owned(), metrics_json(m)))
        .collect::<Map<_, _>>()
        .into()
}

pub(super) fn judged_json(j: &Judged) -> Value {
    let mut o = Map::new();
    o.insert("unit".to_owned(), json!(j.figure.unit().name()));
    match &j.predicted {
        Ok(e) => {
            o.insert("predicted".to_owned(), rounded(e.value, 6));
            o.insert("low".to_owned(), rounded(e.low, 6));
            o.insert("high".to_owned(), rounded(e.high, 6));
            o.insert("kind".to_owned(), json!(e.kind));
        }
        Err(reason) => {
            o.insert("unpredicted".to_owned(), json!(reason));
        }
    }
    if let Some(r) = j.reported {
        o.insert("reported".to_owned(), json!(r));
    }
    if let Some(e) = j.error_pct {
        o.insert("error_pct".to_owned(), rounded(e, 4));
    }
    if let Some(i) = j.inside {
        o.insert("inside".to_owned(), json!(i));
    }
    Value::Object(o)
}

fn row_json(r: &Row) -> Value {
    let s = &r.record.setup;
    let mut o = Map::new();
    o.insert("id".to_owned(), json!(s.id));
    o.insert("model".to_owned(), json!(s.model));
    o.insert("engine".to_owned(), json!(r.prediction.engine.name()));
    o.insert("engine_version".to_owned(), json!(s.engine_version));
    o.insert(
        "predicted_with".to_owned(),
        json!(r.prediction.release.map(|v| v.to_string())),
    );
    o.insert("attention".to_owned(), json!(r.prediction.attention));
    if s.model_inferred {
        o.insert("model_inferred".to_owned(), json!(true));
    }
    o.insert("assumed".to_owned(), json!(r.prediction.assumed));
    let terms: Map<String, Value> = r
        .figures
        .iter()
        .map(|j| (j.figure.name().to_owned(), judged_json(j)))
        .collect();
    o.insert("terms".to_owned(), Value::Object(terms));
    let diagnostics: Map<String, Value> = [
        ("kv_tokens_given_pool", &r.given_pool),
        ("graph_estimate", &r.graphs),
    ]
    .into_iter()
    .filter_map(|(name, j)| Some((name.to_owned(), judged_json(j.as_ref()?))))
    .collect();
    if !diagnostics.is_empty() {
        o.insert("diagnostics".to_owned(), Value::Object(diagnostics));
    }
    Value::Object(o)
}

/// Constants as shipped and, with reports at hand, how well they hold on those.
fn list_constants(
    judged: Option<&Judgement>,
    json: bool,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    let all: Vec<(Constant, Option<Fit>)> = constants()
        .into_iter()
        .chain(sglang::constants::constants())
        .map(|c| {
            let found = judged.and_then(|j| {
                fit(
                    &c,
                    j.rows.iter().map(|r| {
                        (
                            r.record.setup.id.as_str(),
                            &r.prediction,
                            r.figures
                                .iter()
                                .chain(&r.graphs)
                                .cloned()
                                .collect::<Vec<_>>(),
                        )
                    }),
                )
            });
            (c, found)
        })
        .collect();
    if json {
        let list: Vec<Value> = all
            .iter()
            .map(|(c, f)| constant_json(c, f.as_ref()))
            .collect();
        let text = serde_json::to_string_pretty(&json!({"schema": SCHEMA, "constants": list}))
            .map_err(|e| {
                Failure::new(Exit::Failure, "E-IO-002", format!("cannot write JSON: {e}"))
            })?;
        output.line(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        output.line("no fitted constants")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = String::new();
    for (c, f) in &all {
        let _ = writeln!(
            out,
            "{} = {} {} ({})\n  cause: {}",
            c.name, c.value, c.unit, c.versions, c.cause
        );
        let pct = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.2} %"));
        let (records, models, in_sample, left_out) = match f {
            Some(f) => (
                f.records.join(", "),
                f.models.to_string(),
                Some(f.in_sample_error_pct),
                f.leave_one_out_error_pct,
            ),
            None => (
                c.records.join(", "),
                "?".to_owned(),
                c.in_sample_error_pct,
                c.leave_one_out_error_pct,
            ),
        };
        if !records.is_empty() {
            let _ = writeln!(
                out,
                "  error on its records {}, with each of {models} models left out {}",
                pct(in_sample),
                pct(left_out)
            );
            let _ = writeln!(out, "  records: {records}");
        } else if judged.is_some() {
            let _ = writeln!(out, "  records: none of these reports shows its term");
        }
    }
    if judged.is_none() {
        let _ = writeln!(
            out,
            "\nGive a file of reports and --configs to see the records behind each and their errors."
        );
    }
    output.line(&out)?;
    Ok(ExitCode::SUCCESS)
}

fn constant_json(c: &Constant, f: Option<&Fit>) -> Value {
    json!({
        "name": c.name,
        "value": c.value,
        "unit": c.unit,
        "cause": c.cause,
        "versions": c.versions,
        "records": f.map_or_else(
            || c.records.iter().map(|r| (*r).to_owned()).collect(),
            |f| f.records.clone(),
        ),
        "models": f.map(|f| f.models),
        "refitted": f.map(|f| rounded(f.refitted, 6)),
        "in_sample_error_pct": percent(f.map_or(c.in_sample_error_pct, |f| Some(f.in_sample_error_pct))),
        "leave_one_out_error_pct": percent(f.map_or(c.leave_one_out_error_pct, |f| f.leave_one_out_error_pct)),
    })
}
