//! `--gpu 2xh100+4xl40s`: devices of several kinds under one model, a kind to each pipeline stage.

use plimsoll_model::ModelSpec;
use plimsoll_plan::{Engine, Question};
use plimsoll_program::Parallel;

use super::{device_named, usage};
use crate::args::PlanArgs;
use crate::error::Failure;

/// Most devices together.
const MOST: u64 = 64;

/// So many of a kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) count: u64,
    pub(super) name: String,
}

/// The kinds, where several are joined.
pub(super) fn read(args: &PlanArgs) -> Result<Option<Vec<Part>>, Failure> {
    let d = &args.device;
    let Some(text) = d.gpu.as_deref().filter(|g| g.contains('+')) else {
        return Ok(None);
    };
    for (flag, given) in [
        ("--gpus", d.gpus.is_some()),
        ("--pp", d.pp.is_some()),
        ("--dp", d.dp.is_some()),
        ("--ep", d.ep),
        ("--slo", args.workload.slo.is_some()),
        ("a list of cards to compare", text.contains(',')),
    ] {
        if given {
            return Err(usage(format!(
                "`--gpu {text}` says how many devices there are and how they are divided, and {flag} says it too"
            ))
            .hint("leave one of them out; `--tp` may fix the ranks of a stage"));
        }
    }
    parts(text).map(Some)
}

fn parts(text: &str) -> Result<Vec<Part>, Failure> {
    let bad = || {
        usage(format!("`--gpu {text}` is no sum of devices"))
            .hint("write it as `--gpu 2xh100+4xl40s`")
    };
    let all: Vec<Part> = text
        .split('+')
        .map(|part| {
            let part = part.trim();
            // A number before an x counts; names like x-100 have none.
            let (count, name) = match part.split_once('x') {
                Some((n, name)) if !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()) => {
                    (n.parse().ok()?, name)
                }
                _ => (1, part),
            };
            (count > 0 && !name.trim().is_empty()).then(|| Part {
                count,
                name: name.trim().to_owned(),
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    let sum = all
        .iter()
        .try_fold(0_u64, |sum, p| sum.checked_add(p.count));
    if sum.is_none_or(|n| n > MOST) {
        return Err(
            usage(format!("`--gpu {text}` has more than {MOST} devices")).hint("plan for fewer"),
        );
    }
    Ok(all)
}

/// Makes `question` one about these devices.
pub(super) fn ask(
    args: &PlanArgs,
    parts: &[Part],
    spec: &ModelSpec,
    question: &mut Question,
) -> Result<(), Failure> {
    let engine = question.settings.engine;
    if !matches!(
        engine,
        Engine::Vllm(_) | Engine::LlamaCpp(_) | Engine::Ideal
    ) {
        return Err(cannot_mix(engine));
    }
    let common = parts.iter().map(|p| p.count).fold(0, gcd);
    // llama.cpp splits by layer alone.
    let tp = match (args.device.tp, engine) {
        (Some(tp), _) => tp,
        (None, Engine::LlamaCpp(_)) => 1,
        (None, _) => (1..=common)
            .rev()
            .filter(|tp| common.is_multiple_of(*tp))
            .find(|tp| legal(*tp, spec))
            .unwrap_or(1),
    };
    if tp == 0 || !common.is_multiple_of(tp) {
        return Err(usage(format!(
            "--tp {tp} does not divide the devices of every kind, and ranks of a stage are alike"
        ))
        .hint(format!("use a divisor of {common}")));
    }
    let mut kinds = Vec::new();
    for part in parts {
        let device = device_named(&part.name)?;
        for _ in 0..part.count / tp {
            kinds.push(device.clone());
        }
    }
    question.parallel = Some(Parallel {
        tp,
        pp: kinds.len() as u64,
        ..Parallel::default()
    });
    question.kinds = Some(kinds);
    Ok(())
}

/// Why an engine has no plan on devices of several kinds.
///
/// SGLang can be told each stage's layers (`SGLANG_PP_LAYER_PARTITION`), but what is free is the least of all ranks
/// (`get_available_gpu_memory` over the world group), before loading and for the pool; ranks that share layers have to have
/// as much free as each other, within a tenth (`init_torch_distributed`, from 0.5.10 on `bootstrap.py`).
fn cannot_mix(engine: Engine) -> Failure {
    let (why, instead) = match engine {
        Engine::Sglang(_) => (
            "every rank's pool follows from the device that has least free, so the others' memory is not used",
            "choose `--engine vllm` or `--engine llama.cpp`, or plan as if all were of the smallest kind: `--gpu l40s --gpus N`",
        ),
        _ => (
            "each kind needs pipeline stages whose layers can be chosen",
            "choose `--engine vllm` or `--engine llama.cpp`",
        ),
    };
    usage(format!(
        "for {engine}, devices of several kinds cannot be planned: {why}"
    ))
    .hint(instead)
}

fn legal(tp: u64, spec: &ModelSpec) -> bool {
    let parallel = Parallel {
        tp,
        ..Parallel::default()
    };
    parallel.check(spec).is_ok()
        && plimsoll_program::rank_tensors(
            spec,
            &parallel,
            &parallel.stages(spec.layers.len() as u64)[0],
            &plimsoll_program::WeightRules::stored(),
        )
        .is_ok()
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_devices_are_read() {
        let of = |text: &str| -> Vec<(u64, String)> {
            parts(text)
                .unwrap()
                .into_iter()
                .map(|p| (p.count, p.name))
                .collect()
        };
        assert_eq!(
            of("2xh100+4xl40s"),
            [(2, "h100".to_owned()), (4, "l40s".to_owned())]
        );
        assert_eq!(
            of("rtx-4090 + 2x rtx-3090"),
            [(1, "rtx-4090".to_owned()), (2, "rtx-3090".to_owned())]
        );
        for bad in [
            "+",
            "h100+",
            "0xh100+l4",
            "65xh100+l4",
            "99999999999999999999xh100+l4",
        ] {
            assert!(parts(bad).is_err(), "{bad}");
        }
        assert_eq!(gcd(4, 6), 2);
    }
}
