//! Choosing a card: the least memory, or the lowest price.

use plimsoll_device::Device;
use plimsoll_plan::{Load, MAX_DEVICES, Question, Settings, cheapest, least_memory};
use plimsoll_report::PlanReport;
use plimsoll_units::Bytes;

use crate::args::PlanArgs;
use crate::error::{Exit, Failure};
use crate::load::Loaded;

/// How many runners-up `--gpu any` names.
const RUNNERS_UP: usize = 5;

/// The card of the catalogue with which the least memory is bought, and notes on the next ones.
pub(super) fn smallest_card(
    model: &Loaded,
    in_use: Bytes,
    settings: &Settings,
    load: &Load,
) -> Result<(Device, Vec<String>), Failure> {
    // One memory for CPU and GPU is a machine, not a card, and several of them are a network.
    let cards = plimsoll_device::devices().iter().filter(|d| !d.unified);
    let cards: Vec<Device> = cards.cloned().collect();
    let ranked = least_memory(&model.spec, &cards, in_use, settings, load, MAX_DEVICES)?;
    let mut ranked = ranked.into_iter();
    let Some((best, _)) = ranked.next() else {
        return Err(Failure::new(
            Exit::DoesNotFit,
            "E-FIT-001",
            format!(
                "{} does not fit on up to {MAX_DEVICES} of any known device",
                model.name
            ),
        )
        .hint("shorten the context, or quantise weights or KV cache"));
    };
    let notes = ranked
        .take(RUNNERS_UP)
        .map(|(d, e)| {
            let p = e.deployment.parallel;
            format!("next larger: {} x {} ({p})", p.devices(), d.name)
        })
        .collect();
    Ok((best.clone(), notes))
}

/// The devices that have a price per hour.
pub(super) fn the_prices(args: &PlanArgs) -> Result<Vec<(&'static Device, f64)>, Failure> {
    let prices = args.device.price.iter();
    prices
        .map(|(name, price)| match plimsoll_device::find(name) {
            Some(device) => Ok((device, *price)),
            None => Err(Failure::new(
                Exit::Usage,
                "E-DEVICE-001",
                format!("no device is called `{name}`"),
            )
            .hint("`plimsoll devices` lists them")),
        })
        .collect()
}

/// With prices: the cheapest deployments, as notes.
pub(super) fn cheapest_notes(
    priced: &[(&Device, f64)],
    model: &Loaded,
    question: &Question,
    report: &mut PlanReport,
) -> Result<(), Failure> {
    if priced.is_empty() {
        return Ok(());
    }
    let ranked = cheapest(
        &model.spec,
        priced,
        question.in_use,
        &question.settings,
        &question.load,
        MAX_DEVICES,
    )?;
    if ranked.is_empty() {
        report
            .notes
            .push("none of the priced devices carries this load with up to 64 of them".to_owned());
    }
    for (i, (device, e, total)) in ranked.iter().enumerate() {
        let p = e.deployment.parallel;
        report.notes.push(format!(
            "{}: {} x {} ({p}) at {total:.2} per hour",
            if i == 0 { "cheapest" } else { "then" },
            p.devices(),
            device.name
        ));
    }
    Ok(())
}
