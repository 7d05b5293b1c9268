//! `--emit`: the plan as what starts it, a command or a manifest.

use plimsoll_plan::{Answer, Engine, Question, Verdict};
use plimsoll_program::Parallel;
use plimsoll_report::{ModelFacts, PlanReport, Pod, launch, manifest, online};

use super::usage;
use crate::args::{EmitArg, PlanArgs};
use crate::error::{Exit, Failure};
use crate::output::Output;

/// The engine that is to be planned because it is to be started.
pub(super) fn engine(args: &PlanArgs) -> Result<Option<Engine>, Failure> {
    let asked = args.engine.engine;
    let Some(emit) = args.emit else {
        return Ok(asked);
    };
    for (flag, given) in [
        ("--json", args.json),
        ("--explain", args.explain.is_some()),
        ("--workload", args.workload.workload.is_some()),
        ("--trace", args.workload.trace.is_some()),
    ] {
        if given {
            return Err(usage(format!(
                "`--emit` prints what starts the plan, and {flag} the plan"
            ))
            .hint("leave one of them out"));
        }
    }
    let Some(name) = emit.engine() else {
        return Ok(asked);
    };
    let emitted: Engine = name.parse().map_err(usage)?;
    match asked {
        Some(e) if std::mem::discriminant(&e) != std::mem::discriminant(&emitted) => Err(usage(
            format!("--engine {e} plans by other rules than those of `--emit {name}`"),
        )
        .hint("leave `--engine` out, or give it the engine that is to be started")),
        Some(e) => Ok(Some(e)),
        None => Ok(Some(emitted)),
    }
}

/// Refuses what the plan rests on and no flag says.
fn sayable(question: &Question) -> Result<(), Failure> {
    let settings = &question.settings;
    if settings.draft.is_some() || settings.mtp {
        let flag = if settings.mtp {
            "--mtp"
        } else {
            "--speculative-model"
        };
        return Err(usage(format!(
            "`--emit` writes no flags of speculation, and {flag} plans with it"
        ))
        .hint("leave it out, and add the engine's own flags of speculation to what is written"));
    }
    let loads = matches!(settings.engine, Engine::Vllm(_) | Engine::Sglang(_));
    if let Some(format) = settings
        .quantization
        .filter(|f| loads && online(*f).is_none())
    {
        return Err(usage(format!(
            "{} quantises nothing to {} while it loads",
            settings.engine,
            format.name()
        ))
        .hint("plan a checkpoint that is stored so, or use `--quantization fp8` or bitsandbytes"));
    }
    Ok(())
}

/// Prints it; a plan that does not fit starts nothing.
pub(super) fn print(
    emit: EmitArg,
    args: &PlanArgs,
    facts: &ModelFacts,
    question: &Question,
    answered: &Answer,
    report: &PlanReport,
    output: &mut Output,
) -> Result<(), Failure> {
    sayable(question)?;
    let evaluation = &answered.evaluation;
    match evaluation.verdict {
        Verdict::No => {
            return Err(
                Failure::new(Exit::DoesNotFit, "E-FIT-001", report.answer.text.clone())
                    .hint("leave `--emit` out to see what is missing and what would make it fit"),
            );
        }
        Verdict::Tight => output.talk(&format!("note: {}", report.answer.text)),
        Verdict::Yes => {}
    }
    let parallel = evaluation.deployment.parallel;
    let one = Parallel { dp: 1, ..parallel };
    // Pods are replicas, and our own server is one.
    let divided = match question.settings.engine {
        _ if emit == EmitArg::Kubernetes => one,
        Engine::Plimsoll => one,
        _ => parallel,
    };
    let engine = question.settings.engine;
    let cannot = || {
        usage(format!(
            "{engine} is no server that can be started as {parallel}"
        ))
        .hint("choose `--engine vllm`, llama.cpp or plimsoll, the last without pipeline stages")
    };
    let launch = launch(facts, question, answered, divided).ok_or_else(cannot)?;
    if emit != EmitArg::Kubernetes {
        if divided != parallel {
            output.talk(&format!(
                "note: the plan has {} replicas, and this starts one",
                parallel.dp
            ));
        }
        return output.line(&launch.command());
    }
    let pod = Pod {
        launch: &launch,
        device: &evaluation.deployment.device,
        image: args.image.as_deref(),
    };
    let text = manifest(report, &pod).map_err(usage)?;
    output.line(&text)
}
