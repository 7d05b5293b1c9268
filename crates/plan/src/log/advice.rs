//! What to change: the nearest settings that start, what frees memory, and the longest length.
//!
//! Where the log prints the KV memory, lengths are solved for that; effects of other flags are
//! differences of two predictions, so what both get wrong cancels.

use plimsoll_units::{Bytes, DType};

use super::{StartFailure, StartLog};
use crate::engine::llamacpp::Run;
use crate::engine::{served_dtype, served_kv};
use crate::error::PlanError;
use crate::evaluate::{Evaluation, Verdict, evaluate};
use crate::measured::{Compute, EngineName, LlamaRun, Prediction};
use crate::settings::{KvType, Load, Settings};
use crate::solve::{changes_that_fit, max_context};

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The flag, ready to paste.
    pub flag: String,
    /// What it does here.
    pub effect: String,
}

/// Largest share of a card that is proposed: the rest is for what the engine does not count.
const MAX_UTILIZATION: f64 = 0.97;
/// Gains below this are noise.
const LEAST_GAIN_GIB: f64 = 0.05;
/// The same for llama.cpp's buffers.
const LEAST_GAIN_MIB: f64 = 16.0;

/// What to change, the gentlest first. Empty where the model or the device is unknown.
#[must_use]
pub fn advice(log: &StartLog, prediction: &mut Prediction) -> Vec<Advice> {
    // An overflow or a refused setting only means that there is nothing to propose.
    if let Some(run) = &prediction.llama {
        return llama_cpp(run).unwrap_or_default();
    }
    if prediction.engine == EngineName::SgLang {
        return sglang(log, prediction).unwrap_or_default();
    }
    // What its own flags would change is bounded too loosely to propose one.
    if prediction.engine == EngineName::TensorRtLlm {
        return Vec::new();
    }
    let (Some(e), Some(settings), Some(spec)) = (
        prediction.evaluation.as_mut(),
        prediction.settings.as_ref(),
        prediction.spec.as_ref(),
    ) else {
        return Vec::new();
    };
    let mut a = Advisor {
        log,
        e,
        settings,
        spec,
        out: Vec::new(),
    };
    let _ = a.vllm();
    a.out
}

struct Advisor<'a> {
    log: &'a StartLog,
    e: &'a mut Evaluation,
    settings: &'a Settings,
    spec: &'a plimsoll_model::ModelSpec,
    out: Vec<Advice>,
}

impl Advisor<'_> {
    fn say(&mut self, flag: impl Into<String>, effect: impl Into<String>) {
        self.out.push(Advice {
            flag: flag.into(),
            effect: effect.into(),
        });
    }

    fn vllm(&mut self) -> Result<(), PlanError> {
        if self.e.deployment.device.is_unlimited() && self.log.reported.kv_available_gib.is_none() {
            return Ok(());
        }
        // The printed pool is the truth; with several stages it is only one of theirs.
        if let (Some(gib), [stage]) = (
            self.log.reported.kv_available_gib,
            self.e.stages.as_mut_slice(),
        ) {
            stage.measured(Bytes::from_gib(gib.max(0.0))?);
        }
        let wanted = self.e.max_model_len;
        let one = Load::plain(1, wanted);
        self.e.load = one;
        let longest = max_context(self.e)?;
        if let Some(failure) = &self.log.failure {
            if let StartFailure::NotEnoughFree {
                free_gib: Some(free),
                ..
            } = failure
            {
                self.share_of_free(*free);
            }
            // The engine's own figure is more exact than the printed memory.
            let longest = match failure {
                StartFailure::TooLong { holds: Some(n), .. } => *n,
                _ => longest,
            };
            if longest > 0 && longest < wanted {
                self.say(
                    format!("--max-model-len {longest}"),
                    "the longest that this KV memory holds",
                );
            }
            self.more_memory(&one)?;
            self.changes(&one)?;
        } else if longest > wanted {
            let (flag, trained) = match self.spec.max_context {
                Some(n) if n < longest => (n, format!("; the model was trained for {n}")),
                _ => (longest, String::new()),
            };
            if flag > wanted {
                self.say(
                    format!("--max-model-len {flag}"),
                    format!("this KV memory holds one request of {longest} tokens{trained}"),
                );
            }
        }
        self.what_frees(&one)
    }

    /// The share of the card that was free when the engine looked.
    fn share_of_free(&mut self, free: f64) {
        let total = self
            .log
            .setup
            .total_gpu_memory_gib
            .unwrap_or(self.e.deployment.device.usable.gib());
        let share = (free / total * 100.0).floor() / 100.0;
        if share > 0.0 {
            self.say(
                format!("--gpu-memory-utilization {share:.2}"),
                "what was free at start; or end the other processes on the card",
            );
        }
    }

    /// The least share of the card that starts at the wanted length.
    fn more_memory(&mut self, one: &Load) -> Result<(), PlanError> {
        if self.e.deployment.device.is_unlimited() || self.settings.kv_memory.is_some() {
            return Ok(());
        }
        let total = self.e.deployment.device.usable.gib();
        let mut short = 0.0_f64;
        for s in &self.e.stages {
            let need = s.kv.need(one)?.pool.gib();
            // What is over budget is short of more than the pool.
            let has = self
                .log
                .reported
                .kv_available_gib
                .filter(|_| self.e.stages.len() == 1)
                .unwrap_or_else(|| {
                    let used: f64 = s.terms.iter().map(|t| t.bytes.gib()).sum();
                    s.budget.bytes.gib() - used
                });
            short = short.max(need - has);
        }
        if short <= 0.0 || total <= 0.0 {
            return Ok(());
        }
        let now = self.e.stages[0].budget.bytes.gib() / total;
        let share = ((now + short / total) * 100.0).ceil() / 100.0;
        if share <= MAX_UTILIZATION {
            self.say(
                format!("--gpu-memory-utilization {share:.2}"),
                format!(
                    "{short:.2} GiB more: the least that starts at {} tokens",
                    one.context
                ),
            );
            return Ok(());
        }
        // Not even that suffices: the longest length that it would allow.
        let more = (MAX_UTILIZATION - now).max(0.0) * total;
        let lacking = short - more;
        let [stage] = self.e.stages.as_mut_slice() else {
            return Ok(());
        };
        let pool = stage.kv.need(one)?.pool.gib() - lacking;
        let printed = stage.pool;
        stage.measured(Bytes::from_gib(pool.max(0.0))?);
        let longest = max_context(self.e)?;
        self.e.stages[0].measured(printed);
        if longest > 0 && longest < one.context && more > 0.0 {
            self.say(
                format!("--gpu-memory-utilization {MAX_UTILIZATION:.2} --max-model-len {longest}"),
                "both together start",
            );
        }
        Ok(())
    }

    /// Single changes after which the prediction starts.
    fn changes(&mut self, one: &Load) -> Result<(), PlanError> {
        for c in changes_that_fit(self.spec, self.e, self.settings, one)? {
            // The length was solved for above, with the printed memory.
            if c.flag.starts_with("--context") || c.flag.starts_with("--max-model-len") {
                continue;
            }
            // One proposal per flag, and more devices only once.
            let devices = |f: &str| f.starts_with("--tp") || f.starts_with("--pp");
            let word = c.flag.split(' ').next().unwrap_or_default().to_owned();
            let said = self
                .out
                .iter()
                .any(|a| a.flag.starts_with(&word) || (devices(&a.flag) && devices(&c.flag)));
            if said {
                continue;
            }
            let tight = if c.verdict == Verdict::Tight {
                ", tightly"
            } else {
                ""
            };
            self.say(
                c.flag,
                format!("starts at {} tokens{tight}; {}", one.context, c.cost),
            );
        }
        Ok(())
    }

    /// Flags that leave more for the KV cache, with the predicted gain.
    fn what_frees(&mut self, one: &Load) -> Result<(), PlanError> {
        let now = self.pool(self.settings, one)?;
        let mut tries: Vec<(String, Settings)> = Vec::new();
        if self
            .settings
            .max_num_batched_tokens
            .is_none_or(|t| t > 2048)
        {
            tries.push((
                "--max-num-batched-tokens 2048".to_owned(),
                Settings {
                    max_num_batched_tokens: Some(2048),
                    ..self.settings.clone()
                },
            ));
        }
        if self.settings.max_num_seqs.is_none_or(|r| r > 256) {
            tries.push((
                "--max-num-seqs 256".to_owned(),
                Settings {
                    max_num_seqs: Some(256),
                    ..self.settings.clone()
                },
            ));
        }
        for (flag, settings) in tries {
            let Ok(then) = self.pool(&settings, one) else {
                continue;
            };
            if then - now >= LEAST_GAIN_GIB && !self.out.iter().any(|a| a.flag == flag) {
                self.say(flag, format!("{:.2} GiB more for the KV cache", then - now));
            }
        }
        let narrow = matches!(served_kv(self.settings, self.spec), KvType::Auto)
            && matches!(
                served_dtype(self.settings, self.spec),
                DType::F16 | DType::Bf16
            );
        let flag = "--kv-cache-dtype fp8";
        if narrow && !self.out.iter().any(|a| a.flag == flag) {
            let settings = Settings {
                kv_type: KvType::Plain(DType::F8E4m3),
                ..self.settings.clone()
            };
            if let Ok(e) = evaluate(self.spec, &self.e.deployment, &settings, one) {
                let tokens = |e: &Evaluation, i: usize, pool: Bytes| {
                    Ok::<_, PlanError>(e.stages[i].kv.capacity(pool, e.max_model_len)?.tokens)
                };
                let pool = self.e.stages[0].pool;
                let (before, after) = (tokens(self.e, 0, pool)?, tokens(&e, 0, pool)?);
                if after > before && self.log.failure.is_none() {
                    #[allow(clippy::cast_precision_loss, reason = "a ratio, shown")]
                    let ratio = after as f64 / before.max(1) as f64;
                    self.say(flag, format!("{ratio:.2} times the tokens"));
                }
            }
        }
        Ok(())
    }

    /// The predicted pool of the tightest stage, GiB; negative where the rest exceeds the budget.
    fn pool(&self, settings: &Settings, one: &Load) -> Result<f64, PlanError> {
        let e = evaluate(self.spec, &self.e.deployment, settings, one)?;
        Ok(e.stages
            .iter()
            .map(|s| {
                let used: f64 = s.terms.iter().map(|t| t.bytes.gib()).sum();
                s.budget.bytes.gib() - used
            })
            .fold(f64::INFINITY, f64::min))
    }
}

/// Largest share that is proposed to SGLang: activations and graphs must do with the rest.
const MAX_STATIC: f64 = 0.92;

/// Flags of SGLang that make its pool larger, with what they would make of it.
fn sglang(log: &StartLog, p: &Prediction) -> Result<Vec<Advice>, PlanError> {
    let (Some(e), Some(settings), Some(spec)) = (&p.evaluation, &p.settings, &p.spec) else {
        return Ok(Vec::new());
    };
    // Where nobody knows what was free, no pool is worth a word.
    if e.deployment.device.is_unlimited() && settings.free_before_loading.is_none() {
        return Ok(Vec::new());
    }
    let tokens = |s: &Settings| -> Result<u64, PlanError> {
        let e = evaluate(spec, &e.deployment, s, &e.load)?;
        Ok(e.stages
            .iter()
            .map(|s| s.capacity.tokens)
            .min()
            .unwrap_or(0))
    };
    let now = tokens(settings)?;
    let mut tries: Vec<(String, Settings)> = Vec::new();
    if settings
        .gpu_memory_utilization
        .is_none_or(|f| f < MAX_STATIC)
    {
        tries.push((
            format!("--mem-fraction-static {MAX_STATIC}"),
            Settings {
                gpu_memory_utilization: Some(MAX_STATIC),
                ..settings.clone()
            },
        ));
    }
    if settings.max_total_tokens.is_some() {
        tries.push((
            "without --max-total-tokens".to_owned(),
            Settings {
                max_total_tokens: None,
                ..settings.clone()
            },
        ));
    }
    if settings.kv_type == KvType::Auto {
        tries.push((
            "--kv-cache-dtype fp8_e4m3".to_owned(),
            Settings {
                kv_type: KvType::Plain(DType::F8E4m3),
                ..settings.clone()
            },
        ));
    }
    let mut out = Vec::new();
    for (flag, settings) in tries {
        let Ok(then) = tokens(&settings) else {
            continue;
        };
        if then > now {
            let started = if log.failure.is_some() && now == 0 {
                "starts, with"
            } else {
                "by the prediction,"
            };
            out.push(Advice {
                flag,
                effect: format!("{started} {then} tokens instead of {now}"),
            });
        }
    }
    Ok(out)
}

/// Smaller buffers, with the difference that each flag makes.
fn llama_cpp(now: &LlamaRun) -> Result<Vec<Advice>, PlanError> {
    let mut out = Vec::new();
    // The difference of two bounds says nothing.
    let compute = |r: &LlamaRun| -> Result<Option<f64>, PlanError> {
        Ok(match r.compute()? {
            Compute::Exact { mib, .. } => Some(mib),
            Compute::Bound(..) => None,
        })
    };
    let (kv, own) = (now.kv_mib()?, compute(now)?);
    let run = &now.run;
    let mut tries: Vec<(String, Run)> = Vec::new();
    if matches!(run.type_k, DType::F16 | DType::F32) {
        // A quantised V needs flash attention.
        let flash = if run.flash_attention { "" } else { " -fa on" };
        tries.push((
            format!("-ctk q8_0 -ctv q8_0{flash}"),
            Run {
                type_k: DType::Q8_0,
                type_v: DType::Q8_0,
                flash_attention: true,
                ..*run
            },
        ));
    }
    if !run.flash_attention {
        tries.push((
            "-fa on".to_owned(),
            Run {
                flash_attention: true,
                ..*run
            },
        ));
    }
    if run.n_ubatch > 256 {
        tries.push((
            "-ub 256".to_owned(),
            Run {
                n_ubatch: 256,
                ..*run
            },
        ));
    }
    let half = run.n_ctx / 2;
    if half >= 1024 {
        tries.push((
            format!("-c {half}"),
            Run {
                n_ctx: half,
                ..*run
            },
        ));
    }
    for (flag, run) in tries {
        let then = LlamaRun { run, ..now.clone() };
        let mut parts = Vec::new();
        for (what, a, b) in [
            ("KV buffer", Some(kv), Some(then.kv_mib()?)),
            ("compute buffer", own, compute(&then)?),
        ] {
            if let (Some(a), Some(b)) = (a, b)
                && a - b >= LEAST_GAIN_MIB
            {
                parts.push(format!("{what} {b:.0} MiB instead of {a:.0}"));
            }
        }
        if !parts.is_empty() {
            out.push(Advice {
                flag,
                effect: parts.join(", "),
            });
        }
    }
    Ok(out)
}
