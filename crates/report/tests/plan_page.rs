//! A plan as page and CSV: well-formed documents that hold hostile strings harmlessly, and say what the plan says.

use plimsoll_model::{Assume, catalogue, from_config};
use plimsoll_plan::{Engine, Grid, Load, Question, Settings, answer, grid};
use plimsoll_report::{
    Card, CardsReport, Look, ModelFacts, PlanReport, Planned, build, cards_csv, cards_html,
    cards_schema, cards_table, plan_csv, plan_html,
};
use plimsoll_units::Bytes;

/// What tries to break out of text, attributes, terminals and spreadsheets.
const HOSTILE: &str = "=\"'><script>alert(1)</script>&<!--]]>\u{1b}[31m\u{0}\u{202e}\n,";

fn question(device: Option<&str>) -> Question {
    Question {
        device: device.map(|d| plimsoll_device::find(d).expect("a device").clone()),
        devices: None,
        kinds: None,
        parallel: None,
        in_use: Bytes::ZERO,
        settings: Settings::new("vllm".parse::<Engine>().expect("an engine")),
        load: Load::plain(64, 8192),
    }
}

fn facts() -> ModelFacts {
    ModelFacts {
        name: "llama-3.1-70b".to_owned(),
        hub: None,
        read_from: "built-in".to_owned(),
        users_given: true,
    }
}

fn planned(device: Option<&str>) -> (PlanReport, Grid) {
    let entry = catalogue::find("llama-3.1-70b").expect("a built-in model");
    let spec = from_config(&entry.config, Assume::Nothing).expect("it lowers");
    let question = question(device);
    let answered = answer(&spec, &question).expect("an answer");
    let report = build(&facts(), &spec, &question, &answered).expect("a report");
    let grid = grid(&answered.evaluation, question.load.users).expect("a grid");
    (report, grid)
}

fn hostile(mut r: PlanReport) -> PlanReport {
    for text in [
        &mut r.model.name,
        &mut r.model.architecture,
        &mut r.model.read_from,
        &mut r.answer.text,
    ] {
        HOSTILE.clone_into(text);
    }
    r.notes.push(HOSTILE.to_owned());
    for rank in &mut r.ranks {
        HOSTILE.clone_into(&mut rank.budget_formula);
        for t in &mut rank.terms {
            HOSTILE.clone_into(&mut t.name);
            HOSTILE.clone_into(&mut t.formula);
            HOSTILE.clone_into(&mut t.source);
            t.inputs.push([HOSTILE.to_owned(), HOSTILE.to_owned()]);
        }
    }
    for f in &mut r.flags {
        HOSTILE.clone_into(&mut f.command);
    }
    r
}

fn well_formed(page: &str) -> roxmltree::Document<'_> {
    let body = page.strip_prefix("<!DOCTYPE html>").expect("a page");
    let parsed = roxmltree::Document::parse(body).expect("well-formed");
    for node in parsed.descendants().filter(roxmltree::Node::is_element) {
        assert_ne!(node.tag_name().name(), "script");
        for a in node.attributes() {
            assert!(!a.name().starts_with("on"), "{}", a.name());
            assert!(!["href", "src"].contains(&a.name()), "{}", a.name());
        }
    }
    assert!(!page.contains("://") && !page.contains("@import") && !page.contains("url("));
    parsed
}

#[test]
fn every_term_stands_on_the_page_with_its_formula() {
    let (report, grid) = planned(Some("h100"));
    let page = plan_html(Planned {
        report: &report,
        grid: Some(&grid),
    });
    let parsed = well_formed(&page);
    let tips: Vec<String> = parsed
        .descendants()
        .filter(|n| n.attribute("class") == Some("tip"))
        .map(|n| n.descendants().filter_map(|d| d.text()).collect())
        .collect();
    for t in report.ranks.iter().flat_map(|r| &r.terms) {
        let name = t.name.replace('_', " ");
        if t.bytes == 0 {
            continue;
        }
        assert!(
            tips.iter()
                .any(|tip| tip.starts_with(&format!("{name}: ")) && tip.contains(&t.formula)),
            "{name}: {}",
            t.formula
        );
    }
    for command in report.flags.iter().map(|f| &f.command) {
        assert!(page.contains(command.as_str()), "{command}");
    }
    let framed = parsed
        .descendants()
        .filter(|n| n.attribute("class").is_some_and(|c| c.ends_with(" asked")))
        .count();
    assert_eq!(framed, 1, "the load that was asked for");
}

#[test]
fn parts_of_a_bar_are_the_terms_and_what_is_unused() {
    let (report, _) = planned(Some("h100"));
    let page = plan_html(Planned {
        report: &report,
        grid: None,
    });
    let parsed = well_formed(&page);
    let stacks: Vec<u64> = parsed
        .descendants()
        .filter(|n| n.attribute("class") == Some("stack"))
        .map(|stack| {
            stack
                .children()
                .filter_map(|n| n.attribute("style")?.strip_prefix("flex-grow:"))
                .map(|n| n.parse::<u64>().expect("bytes"))
                .sum()
        })
        .collect();
    let usable = report.device.as_ref().expect("a device").usable_bytes;
    assert_eq!(stacks, vec![usable; report.ranks.len()]);
}

#[test]
fn strings_of_others_stay_text() {
    let (report, grid) = planned(Some("l40s"));
    let report = hostile(report);
    well_formed(&plan_html(Planned {
        report: &report,
        grid: Some(&grid),
    }));
    let csv = plan_csv(&report);
    assert!(!csv.contains(['\u{1b}', '\u{0}', '\u{202e}']));
    for line in csv.lines().skip(1) {
        assert!(line.contains(",\"'="), "{line}");
    }
    let cards = CardsReport::new(
        &ModelFacts {
            name: HOSTILE.to_owned(),
            ..facts()
        },
        &question(None),
        vec![
            Card {
                device: HOSTILE.to_owned(),
                price_per_hour: Some(1.5),
                plan: Some(report),
                refused: None,
            },
            Card {
                device: HOSTILE.to_owned(),
                price_per_hour: None,
                plan: None,
                refused: Some(HOSTILE.to_owned()),
            },
        ],
    );
    well_formed(&cards_html(&cards, &[Some(grid), None]));
    for line in cards_csv(&cards).lines().skip(1) {
        assert!(line.starts_with("\"'="), "{line}");
    }
    let look = Look {
        color: false,
        ascii: true,
        width: 100,
    };
    assert!(!cards_table(&cards, look).contains(['\u{1b}', '\u{0}', '\u{202e}']));
}

#[test]
fn csv_has_the_plan_s_bytes() {
    let (report, _) = planned(Some("a100"));
    let csv = plan_csv(&report);
    let rows: Vec<Vec<&str>> = csv
        .lines()
        .skip(1)
        .map(|l| l.split(',').collect())
        .collect();
    let terms: Vec<_> = report.ranks.iter().flat_map(|r| &r.terms).collect();
    assert_eq!(rows.len(), terms.len());
    for (row, t) in rows.iter().zip(terms) {
        assert_eq!(row[7], t.bytes.to_string(), "{row:?}");
    }
}

#[test]
fn without_a_device_there_is_a_page_too() {
    let (report, _) = planned(None);
    let page = plan_html(Planned {
        report: &report,
        grid: None,
    });
    well_formed(&page);
    assert!(!page.contains("class=\"heat\""));
}

#[test]
fn cards_are_what_their_schema_says() {
    let schema = cards_schema();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let (plan, _) = planned(Some("h100"));
    let report = CardsReport::new(
        &facts(),
        &question(None),
        vec![Card {
            device: "h100".to_owned(),
            price_per_hour: Some(2.99),
            plan: Some(plan),
            refused: None,
        }],
    );
    let value = serde_json::to_value(&report).expect("JSON");
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let back: CardsReport = serde_json::from_value(value).expect("a report");
    assert_eq!(back, report);
}
