//! The simulation report from outside: its JSON against its schema, its page and pictures as
//! well-formed documents that hold hostile strings harmlessly, its table as golden text.
//!
//! `UPDATE_GOLDEN=1 cargo test -p plimsoll-report --test simulation` rewrites the table.

mod fake;

use std::path::Path;

use plimsoll_report::Look;
use plimsoll_report::simulation::{
    Axis, Chart, Latency, Named, Point, PointRun, SWEEP_SCHEMA, SimulationReport, SweepReport,
    TimeSeries, charts, find_schema, series_csv, simulation_html, simulation_schema,
    simulation_table, sweep_charts, sweep_csv, sweep_html, sweep_schema, sweep_table,
};

const PLAIN: Look = Look {
    color: false,
    ascii: true,
    width: 100,
};

/// What tries to break out of text, attributes, terminals and spreadsheets.
const HOSTILE: &str = "=\"'><script>alert(1)</script>&<!--]]>\u{1b}[31m\u{0}\u{202e}\n,";

fn hostile() -> SimulationReport {
    let mut r = fake::report();
    let s = &mut r.setup;
    for text in [&mut s.model, &mut s.device, &mut s.workload, &mut r.schema] {
        HOSTILE.clone_into(text);
    }
    s.modelled.push(HOSTILE.to_owned());
    s.not_modelled.push(HOSTILE.to_owned());
    s.costs[0].name = HOSTILE.to_owned();
    s.costs[0].value = HOSTILE.to_owned();
    r.notes.push(HOSTILE.to_owned());
    for run in &mut r.runs {
        run.label = HOSTILE.to_owned();
        run.policies[0].name = HOSTILE.to_owned();
        run.policies[0].value = HOSTILE.to_owned();
        run.decision_hash = Some(HOSTILE.to_owned());
    }
    r
}

/// Reports with little or nothing in them, or with absurd figures.
fn odd() -> Vec<SimulationReport> {
    let mut none = fake::report();
    none.runs.clear();
    let mut empty = fake::report();
    for run in &mut empty.runs {
        run.series = TimeSeries::default();
        run.latency = Latency::default();
        run.duration_s = 0.0;
        run.busy_share = 0.0;
        run.kv.saturated = None;
        run.kv.live_share_at_saturation = None;
    }
    let mut absurd = fake::report();
    for run in &mut absurd.runs {
        run.running_mean = f64::NAN;
        run.output_tokens_per_s = f64::INFINITY;
        run.duration_s = f64::NAN;
        run.kv.busy.free = f64::INFINITY;
        run.series.width_s = f64::NAN;
        run.series.running.mean[3] = f64::NEG_INFINITY;
        run.series.waiting.mean.pop();
        run.series.free.mean.truncate(7);
        run.preemptions.swap_time_s = f64::NAN;
        for p in [&mut run.latency.ttft, &mut run.latency.e2e]
            .into_iter()
            .flatten()
        {
            p.p50_s = f64::NAN;
            p.p99_s = f64::INFINITY;
        }
    }
    let mut one = fake::report();
    one.runs.truncate(1);
    let mut many = fake::report();
    for i in 0..3 {
        for mut run in fake::report().runs {
            run.label = format!("{} {i}", run.label);
            many.runs.push(run);
        }
    }
    vec![none, empty, absurd, one, many]
}

fn well_formed(name: &str, document: &str) {
    let body = document.strip_prefix("<!DOCTYPE html>").unwrap_or(document);
    let parsed = roxmltree::Document::parse(body).unwrap_or_else(|e| panic!("{name}: {e}"));
    for node in parsed.descendants().filter(roxmltree::Node::is_element) {
        assert_ne!(node.tag_name().name(), "script", "{name}");
        for a in node.attributes() {
            assert!(!a.name().starts_with("on"), "{name}: {}", a.name());
            assert!(!["href", "src"].contains(&a.name()), "{name}: {}", a.name());
            let value = a.value().to_ascii_lowercase();
            assert!(
                a.name() == "aria-label" || !(value.contains("nan") || value.contains("inf")),
                "{name}: {}={value}",
                a.name()
            );
        }
    }
}

fn pictures(report: &SimulationReport) -> Vec<Chart> {
    let drawn = charts(report);
    for c in &drawn {
        well_formed(&c.name, &c.inline);
        well_formed(&c.name, &c.standalone);
        assert!(
            c.name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-')
        );
    }
    let mut names: Vec<&str> = drawn.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), drawn.len(), "names are file names");
    drawn
}

#[test]
fn json_is_what_the_schema_says() {
    let schema = simulation_schema();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for report in [fake::report(), hostile()] {
        let value = serde_json::to_value(&report).expect("JSON");
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
        let back: SimulationReport = serde_json::from_value(value).expect("a report");
        assert_eq!(back, report);
    }
    let mut more = serde_json::to_value(fake::report()).expect("JSON");
    more["surprise"] = 1.into();
    assert!(!validator.is_valid(&more));
}

#[test]
fn every_field_is_described() {
    fn walk(v: &serde_json::Value, path: &str) {
        if let Some(properties) = v.get("properties").and_then(|p| p.as_object()) {
            for (name, p) in properties {
                assert!(p.get("description").is_some(), "{path}/{name}");
            }
        }
        if let Some(defs) = v.get("$defs").and_then(|d| d.as_object()) {
            defs.iter().for_each(|(name, d)| walk(d, name));
        }
    }
    walk(&simulation_schema(), "report");
    walk(&sweep_schema(), "sweep");
    walk(&find_schema(), "find");
}

#[test]
fn the_page_and_its_pictures_are_well_formed() {
    let report = fake::report();
    let page = simulation_html(&report);
    well_formed("page", &page);
    for c in pictures(&report) {
        assert!(page.contains(&c.inline), "{}", c.name);
    }
    assert!(
        !page.contains("http://")
            || page.matches("http://").count()
                == page.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(!page.contains("https://") && !page.contains("@import") && !page.contains("url("));
    assert_eq!(
        page,
        simulation_html(&report),
        "the same report, the same page"
    );
}

#[test]
fn strings_of_users_stay_text() {
    let report = hostile();
    well_formed("page", &simulation_html(&report));
    pictures(&report);
    let table = simulation_table(&report, PLAIN);
    assert!(!table.contains(['\u{1b}', '\u{0}', '\u{202e}']));
    for line in series_csv(&report).lines().skip(1) {
        assert!(line.starts_with("\"'="), "{line}");
    }
}

#[test]
fn odd_reports_are_drawn() {
    for report in odd() {
        well_formed("page", &simulation_html(&report));
        pictures(&report);
        assert!(!simulation_table(&report, PLAIN).is_empty());
        assert!(series_csv(&report).starts_with("run,"));
    }
}

#[test]
fn csv_has_a_line_per_bucket_and_as_many_fields_as_its_head() {
    let report = fake::report();
    let csv = series_csv(&report);
    let fields = csv.lines().next().expect("a head").split(',').count();
    assert!(csv.lines().all(|l| l.split(',').count() == fields));
    let buckets: usize = report.runs.iter().map(|r| r.series.start_s.len()).sum();
    assert_eq!(csv.lines().count(), 1 + buckets);
}

#[test]
fn the_table_is_as_it_was() {
    let table = simulation_table(&fake::report(), PLAIN);
    assert!(table.lines().all(|l| l.chars().count() <= 100), "{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/simulation.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &table).expect("a writable file");
    }
    let golden = std::fs::read_to_string(&path).expect("a golden file");
    assert!(
        golden == table,
        "review, then UPDATE_GOLDEN=1 rewrites it:\n{table}"
    );
}

/// A sweep over these values whose points are the runs of `report`.
fn swept(report: SimulationReport, values: &[&str], numbers: Option<Vec<f64>>) -> SweepReport {
    let point = |value: &&str| Point {
        settings: vec![Named {
            name: "rate".to_owned(),
            value: (*value).to_owned(),
        }],
        kv_bytes: Some(1 << 30),
        reason: None,
        runs: report.runs.iter().cloned().map(PointRun::from).collect(),
    };
    let mut points: Vec<Point> = values.iter().map(point).collect();
    points.push(Point {
        reason: Some(HOSTILE.to_owned()),
        runs: Vec::new(),
        ..point(&HOSTILE)
    });
    SweepReport {
        schema: SWEEP_SCHEMA.to_owned(),
        swept: vec![Axis {
            name: HOSTILE.to_owned(),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
            numbers,
        }],
        points,
        notes: report.notes.clone(),
        setup: report.setup,
    }
}

#[test]
fn sweeps_are_drawn_whatever_is_in_them() {
    let validator = jsonschema::validator_for(&sweep_schema()).expect("a schema");
    let numbers = || Some(vec![1.0, f64::NAN, 3.0]);
    let mut reports = vec![
        swept(fake::report(), &["1", "2", "3"], Some(vec![1.0, 2.0, 3.0])),
        swept(hostile(), &["a", HOSTILE], None),
        swept(fake::report(), &[], None),
    ];
    reports.extend(
        odd()
            .into_iter()
            .map(|r| swept(r, &["1", "2", "3"], numbers())),
    );
    let mut bare = swept(fake::report(), &["1"], None);
    bare.swept.clear();
    bare.points.clear();
    reports.push(bare);
    for report in &reports {
        well_formed("page", &sweep_html(report));
        for chart in sweep_charts(report) {
            well_formed(&chart.name, &chart.standalone);
        }
        let table = sweep_table(report, PLAIN);
        assert!(!table.contains(['\u{1b}', '\u{0}', '\u{202e}']), "{table}");
        assert!(sweep_csv(report).contains("server,kv_bytes,"));
    }
    assert_eq!(sweep_charts(&reports[0]).len(), 8);
    let value = serde_json::to_value(&reports[0]).expect("JSON");
    assert!(validator.is_valid(&value));
    let back: SweepReport = serde_json::from_value(value).expect("a report");
    assert_eq!(back, reports[0]);
    let csv = sweep_csv(&reports[0]);
    assert_eq!(csv.lines().count(), 1 + 3 * 5 + 1);
}
