//! `--beside`: other engines on the same devices, by their plans.

use std::path::Path;

use plimsoll_plan::Question;
use plimsoll_report::PlanReport;
use plimsoll_units::Bytes;

use super::usage;
use crate::args::PlanArgs;
use crate::error::{Exit, Failure};

/// The largest plan that is read: a rank has some dozen terms, and a deployment at most a thousand ranks.
const LARGEST: u64 = 64 << 20;

/// Adds what the other plans take to what is in use; returns what is to be said of it.
pub(super) fn add(args: &PlanArgs, question: &mut Question) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for path in &args.device.beside {
        let report = read(path)?;
        let Some(device) = &question.device else {
            return Err(usage("--beside says nothing without a device")
                .hint("name the one that both run on with `--gpu`"));
        };
        let place = path.display();
        let kinds: Vec<&str> = report
            .ranks
            .iter()
            .filter_map(|r| r.device.as_deref())
            .collect();
        if kinds.is_empty() || question.kinds.is_some() || kinds.iter().any(|k| *k != device.name) {
            return Err(usage(format!(
                "{place} is a plan for other devices than {}",
                device.name
            ))
            .hint("plan both for the same kind of device"));
        }
        let most = report.ranks.iter().map(|r| r.total_bytes).max();
        let taken = Bytes::new(most.unwrap_or(0));
        question.in_use = question
            .in_use
            .add(taken)
            .map_err(plimsoll_plan::PlanError::from)?;
        notes.push(format!(
            "{taken} of each device are of {}, planned in {place}",
            report.model.name
        ));
    }
    Ok(notes)
}

fn read(path: &Path) -> Result<PlanReport, Failure> {
    let bad = |exit, what: String| {
        Failure::new(exit, "E-PLAN-005", format!("{}: {what}", path.display()))
            .hint("write it with `plimsoll plan ... --json > PLAN.json`")
    };
    let size = std::fs::metadata(path)
        .map_err(|e| bad(Exit::NotFound, e.to_string()))?
        .len();
    if size > LARGEST {
        return Err(bad(Exit::Corrupt, format!("{size} bytes are no plan")));
    }
    let text = std::fs::read(path).map_err(|e| bad(Exit::NotFound, e.to_string()))?;
    let report: PlanReport =
        serde_json::from_slice(&text).map_err(|e| bad(Exit::Corrupt, format!("no plan: {e}")))?;
    Ok(report)
}
