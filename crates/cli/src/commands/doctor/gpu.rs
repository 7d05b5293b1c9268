//! `plimsoll doctor --gpu`: whether a GPU computes what the processors do, operation by operation, and how fast it is.

use std::fmt::Write as _;
use std::process::ExitCode;

use plimsoll_device::Device;
use plimsoll_kernels::Pool;
use plimsoll_report::thousands;
use plimsoll_runtime::StartError;
use plimsoll_runtime::cuda::{Arithmetic, Cuda, Sizes, Speed, Unit, speeds};
use plimsoll_runtime::optests::{self, Made, Outcome, on_device, on_processors};
use plimsoll_units::WeightType;
use serde_json::{Value, json};

use crate::args::doctor::GpuArg;
use crate::commands::engine::device;
use crate::error::{Exit, Failure};
use crate::output::Output;
use crate::progress::Progress;

/// What was found out.
struct Found {
    device: String,
    /// The card, where the catalogue has it.
    card: Option<&'static Device>,
    operations: Vec<Outcome>,
    /// In each arithmetic, or why nothing could be timed.
    speeds: Result<Vec<(Arithmetic, Vec<Speed>)>, String>,
}

pub(super) fn run(gpu: GpuArg, json: bool, output: &mut Output) -> Result<ExitCode, Failure> {
    let first = device::open(gpu)?;
    let name = first.name();
    let card = plimsoll_device::find(&name);
    drop(first);
    let failed = |e: StartError| {
        Failure::new(Exit::Failure, "E-DEVICE-007", format!("{name}: {e}"))
            .hint("free its memory, or try another GPU with `--gpu N`")
    };
    let threads = usize::try_from(crate::commands::processors()).unwrap_or(1);
    let mut pool = Pool::new(threads)
        .map_err(|e| Failure::new(Exit::Failure, "E-DEVICE-007", e.to_string()))?;
    let progress = Progress::new();
    let tell = |op: &str| progress.show(|| format!("trying: {op}"));
    // Each suite has a device of its own, whose memory goes with it.
    let made = |arithmetic, made: Made| -> Result<Cuda, StartError> {
        let device = device::open(gpu).map_err(|e| gone(&e))?;
        on_device(device, arithmetic, made)
    };
    // Tensor cores round what processors do not.
    let exact = |m| made(Arithmetic::Exact, m);
    let operations = optests::run(&mut pool, on_processors, exact, tell).map_err(failed)?;
    let sizes = match gpu {
        GpuArg::Number(_) => Sizes::GPU,
        GpuArg::Fibers => Sizes::LEAST,
    };
    progress.show(|| "timing".to_owned());
    let mut timed = |arithmetic| -> Result<_, StartError> {
        let all = speeds(&mut pool, sizes, |m| made(arithmetic, m))?;
        Ok((arithmetic, all))
    };
    let speeds = [Arithmetic::Fast, Arithmetic::Exact].map(&mut timed);
    let speeds: Result<Vec<_>, _> = speeds.into_iter().collect();
    let speeds = speeds.map_err(|e| e.to_string());
    drop(progress);
    let found = Found {
        device: name,
        card,
        operations,
        speeds,
    };
    let text = if json {
        format!("{:#}", found.json())
    } else {
        found.text()
    };
    output.line(&text)?;
    let right = found.operations.iter().all(|o| o.wrong.is_empty());
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        crate::exit(Exit::Failure)
    })
}

/// What chooses an arithmetic.
const fn flag(arithmetic: Arithmetic) -> &'static str {
    match arithmetic {
        Arithmetic::Exact => ", --batch-invariant",
        Arithmetic::Fast => "",
    }
}

/// A device that was there a moment ago.
fn gone(e: &Failure) -> StartError {
    StartError::Device(plimsoll_runtime::BackendError::Step(e.what.clone()))
}

impl Found {
    /// The catalogue's figure for a measure, where there is one.
    fn most(&self, unit: Unit) -> Option<f64> {
        let card = self.card?;
        match unit {
            Unit::DeviceBytes => card.bandwidth,
            Unit::HostBytes => None,
            Unit::Flops(form) => {
                let of = match form {
                    WeightType::Bf16 | WeightType::Fp8 => "bf16",
                    _ => "int8",
                };
                let rates = card.dense_flops.iter();
                rates.clone().find(|(name, _)| name == of).map(|r| r.1)
            }
        }
    }

    fn share(&self, speed: &Speed) -> Option<f64> {
        Some(speed.per_s as f64 / self.most(speed.unit)?)
    }

    fn text(&self) -> String {
        let card = self.card.map_or("not in the catalogue", |d| &d.name);
        let mut text = format!(
            "{} ({card})\n\n{:<18} {:>6} {:>12}  results, beside the processors'\n",
            self.device, "operation", "cases", "elements"
        );
        for o in &self.operations {
            let result = match o.wrong.len() {
                0 => "equal to the bit".to_owned(),
                n => format!("different {n} times"),
            };
            let _ = writeln!(
                text,
                "{:<18} {:>6} {:>12}  {result}",
                o.op,
                o.cases,
                thousands(o.elements)
            );
            // A kernel that is wrong is wrong in many ways.
            for wrong in o.wrong.iter().take(3) {
                let _ = writeln!(text, "  {wrong}");
            }
        }
        match &self.speeds {
            Err(e) => {
                let _ = write!(text, "\nnothing was timed: {e}");
            }
            Ok(speeds) => {
                for (arithmetic, speeds) in speeds {
                    let title = format!("speed{}", flag(*arithmetic));
                    let _ = write!(text, "\n{title:<46} {:>16}  of the card's most", "measured");
                    for s in speeds {
                        let unit = match s.unit {
                            Unit::DeviceBytes | Unit::HostBytes => "GB/s",
                            Unit::Flops(_) => "GFLOP/s",
                        };
                        let measured = format!("{:.1} {unit}", s.per_s as f64 / 1e9);
                        let _ = write!(text, "\n{:<46} {measured:>16}", s.what);
                        if let Some(share) = self.share(s) {
                            let _ = write!(text, "  {:.0} %", share * 100.0);
                        }
                    }
                    text.push('\n');
                }
                text.truncate(text.trim_end().len());
            }
        }
        text
    }

    fn json(&self) -> Value {
        let operations = self.operations.iter().map(|o| {
            json!({
                "operation": o.op,
                "cases": o.cases,
                "elements": o.elements,
                "equal": o.wrong.is_empty(),
                "wrong": o.wrong,
            })
        });
        let speed = |arithmetic: Arithmetic, s: &Speed| {
            let unit = match s.unit {
                Unit::DeviceBytes | Unit::HostBytes => "bytes_per_s",
                Unit::Flops(_) => "flops_per_s",
            };
            let exact = arithmetic == Arithmetic::Exact;
            let mut one = json!({ "what": s.what, "batch_invariant": exact });
            one[unit] = s.per_s.into();
            one["share_of_catalogue"] = json!(self.share(s));
            one
        };
        let speeds = self.speeds.as_ref();
        json!({
            "schema": "plimsoll.doctor_gpu/1",
            "device": self.device,
            "catalogue": self.card.map(|d| &d.name),
            "operations": operations.collect::<Vec<_>>(),
            "speeds": speeds.map(|all| {
                let each = all.iter().flat_map(|(a, all)| all.iter().map(|s| speed(*a, s)));
                each.collect::<Vec<_>>()
            }).unwrap_or_default(),
            "speeds_error": speeds.err(),
        })
    }
}
