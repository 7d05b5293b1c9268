//! `--gpu a,b,c`: the same question asked of several kinds of device.

use std::process::ExitCode;

use plimsoll_device::Device;
use plimsoll_plan::{Grid, PlanError, Question, answer, grid};
use plimsoll_report::{Card, CardsReport, ModelFacts, build, cards_csv, cards_html, cards_table};

use super::{device_named, usage};
use crate::args::PlanArgs;
use crate::commands::simulate::write_file;
use crate::error::{Exit, Failure};
use crate::exit;
use crate::load::Loaded;
use crate::output::Output;

/// The names to compare, where there are several.
pub(super) fn names(args: &PlanArgs) -> Result<Option<Vec<String>>, Failure> {
    let Some(list) = args.device.gpu.as_deref().filter(|g| g.contains(',')) else {
        return Ok(None);
    };
    let mut names: Vec<String> = Vec::new();
    for name in list.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        if name == "any" {
            return Err(usage("`--gpu any` looks at every card, so it stands alone")
                .hint("name the cards to compare, or give `--gpu any`"));
        }
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        return Err(usage("--gpu names no card").hint("write it as `--gpu a100,h100,l40s`"));
    }
    for (flag, given) in [
        ("--explain", args.explain.is_some()),
        ("--emit", args.emit.is_some()),
        ("--beside", !args.device.beside.is_empty()),
        ("--workload", args.workload.workload.is_some()),
        ("--trace", args.workload.trace.is_some()),
        ("--slo", args.workload.slo.is_some()),
    ] {
        if given {
            return Err(usage(format!(
                "{flag} is about one kind of device, and --gpu names several"
            ))
            .hint("name one card, or leave it out"));
        }
    }
    Ok(Some(names))
}

/// Asks `question` of each of them, and prints what they answer.
pub(super) fn run(
    args: &PlanArgs,
    names: &[String],
    model: &Loaded,
    facts: &ModelFacts,
    question: &Question,
    priced: &[(&Device, f64)],
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    let mut cards = Vec::new();
    let mut grids = Vec::new();
    for name in names {
        let device = device_named(name)?;
        if cards.iter().any(|c: &Card| c.device == device.name) {
            continue;
        }
        let price = priced.iter().find(|(d, _)| d.name == device.name);
        let (card, full) = card(model, facts, question, device, price.map(|p| p.1))?;
        cards.push(card);
        grids.push(full);
    }
    let report = CardsReport::new(facts, question, cards);
    if let Some(path) = &args.html {
        write_file(path, &cards_html(&report, &grids))?;
    }
    if let Some(path) = &args.csv {
        write_file(path, &cards_csv(&report))?;
    }
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| {
            Failure::new(
                Exit::Failure,
                "E-IO-002",
                format!("cannot write the plans as JSON: {e}"),
            )
        })?;
        output.line(&text)?;
    } else {
        let look = output.look();
        output.line(&cards_table(&report, look))?;
    }
    Ok(if report.cards.iter().any(Card::fits) {
        ExitCode::SUCCESS
    } else {
        exit(Exit::DoesNotFit)
    })
}

/// One card, with its loads by users and context where it has a plan.
fn card(
    model: &Loaded,
    facts: &ModelFacts,
    question: &Question,
    device: Device,
    price: Option<f64>,
) -> Result<(Card, Option<Grid>), Failure> {
    let name = device.name.clone();
    let question = Question {
        device: Some(device),
        ..question.clone()
    };
    let refused = |why: String| Card {
        device: name.clone(),
        price_per_hour: None,
        plan: None,
        refused: Some(why),
    };
    let answered = match answer(&model.spec, &question) {
        Ok(answered) => answered,
        Err(e @ PlanError::Size(_)) => return Err(e.into()),
        Err(e) => return Ok((refused(e.to_string()), None)),
    };
    let plan = build(facts, &model.spec, &question, &answered)?;
    #[allow(clippy::cast_precision_loss, reason = "a price")]
    let total = price.map(|p| (p * plan.answer.devices as f64 * 1e6).round() / 1e6);
    let full = grid(&answered.evaluation, question.load.users)?;
    Ok((
        Card {
            device: name,
            price_per_hour: total,
            plan: Some(plan),
            refused: None,
        },
        Some(full),
    ))
}
