//! [`Case`]: a server as values; [`Prepared`]: with its pool planned and its times known.

use std::num::NonZeroU32;

use plimsoll_device::Device;
use plimsoll_kv::Layout;
use plimsoll_model::ModelSpec;
use plimsoll_plan::{Deployment, Engine, KvType, Load, PlanError, Settings, evaluate};
use plimsoll_program::{GroupKind, KvRules, Parallel, PoolGeometry};
use plimsoll_report::thousands;
use plimsoll_schedule::{Admission, CostModel, Preempt, Rates, Work};
use plimsoll_simulate::log::PAGES_MAX;
use plimsoll_simulate::paged::{Branching, Fleet, Router};
use plimsoll_units::Bytes;

use super::{Measured, RateChanges};
use crate::error::{Exit, Failure};

/// The longest sequence whose block table is kept account of: 16 million tokens, beyond any published model.
const MODEL_LEN_MAX: u64 = 1 << 24;

/// Tokens of a sequence where neither the model nor the user says.
pub(crate) const MODEL_LEN_UNKNOWN: u64 = 8192;

/// A server. Fields are named as the flags are.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) device: Device,
    pub(crate) tp: u64,
    /// How often there is such a server, and who divides the requests.
    pub(crate) fleet: Fleet,
    /// KV memory per device; `None` for what the plan leaves.
    pub(crate) kv_memory: Option<Bytes>,
    /// Host memory for swapped blocks, per device.
    pub(crate) swap_space: Bytes,
    pub(crate) block_size: u64,
    /// `None` for the trained context.
    pub(crate) max_model_len: Option<u64>,
    pub(crate) max_num_seqs: u32,
    pub(crate) max_num_batched_tokens: u64,
    pub(crate) admission: Admission,
    pub(crate) preempt: Preempt,
    /// `None` for the type of the weights.
    pub(crate) kv_cache_dtype: Option<KvType>,
    pub(crate) prefix_cache: bool,
    /// What each tenant of the paged pool is sure of, and what it never exceeds; empty for neither.
    pub(crate) tenants: Vec<TenantShare>,
    /// Rates in place of the device's published ones.
    pub(crate) profile: Option<Measured>,
    /// What is true in place of that.
    pub(crate) rates: RateChanges,
    /// What the scheduler believes in place of published or measured rates; `None` for the truth.
    pub(crate) belief: Option<RateChanges>,
    /// How much beams branch.
    pub(crate) branching: Branching,
}

/// A tenant's rights, as shares of the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TenantShare {
    pub(crate) floor: f64,
    pub(crate) cap: f64,
}

impl Case {
    /// A server with every flag of `simulate` at its default.
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            tp: 1,
            fleet: Fleet {
                replicas: NonZeroU32::MIN,
                router: Router::default(),
            },
            kv_memory: None,
            swap_space: Bytes::new(16 << 30),
            block_size: 16,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            admission: Admission::Optimistic,
            preempt: Preempt::Auto,
            kv_cache_dtype: None,
            prefix_cache: true,
            tenants: Vec::new(),
            profile: None,
            rates: RateChanges::default(),
            belief: None,
            branching: Branching::default(),
        }
    }

    /// Plans the pool and makes the cost model.
    ///
    /// # Errors
    /// Exit code 3 where no two blocks fit, 2 where the values make no sense.
    pub(crate) fn prepare(self, spec: &ModelSpec) -> Result<Prepared, Failure> {
        let known = self.known_rates()?;
        let max_model_len = self.max_model_len(spec)?;
        let parallel = Parallel {
            tp: self.tp,
            ..Parallel::default()
        };
        let dtype = match self.kv_cache_dtype {
            None | Some(KvType::Auto) => spec.dtype,
            Some(KvType::Plain(d)) => d,
            Some(other) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "E-SIM-006",
                    format!("--kv-cache-dtype {other} is a format of vLLM's kernels"),
                )
                .hint("use bf16, f16, f32, fp8 or int8"));
            }
        };
        let settings = Settings {
            kv_type: KvType::Plain(dtype),
            block_size: Some(self.block_size),
            max_model_len: Some(u64::from(max_model_len)),
            max_num_seqs: Some(u64::from(self.max_num_seqs)),
            max_num_batched_tokens: Some(self.max_num_batched_tokens),
            kv_memory: self.kv_memory,
            swap: self.swap_space,
            ..Settings::new(Engine::Plimsoll)
        };
        let deployment = Deployment {
            device: self.device.clone(),
            kinds: None,
            parallel,
            in_use: Bytes::ZERO,
        };
        let plan = evaluate(spec, &deployment, &settings, &Load::plain(1, 1))?;
        let stage = plan
            .stages
            .first()
            .ok_or_else(|| self.no_room(Bytes::ZERO))?;
        let pool = match self.kv_memory {
            Some(given) => given,
            None if stage.over_budget => Bytes::ZERO,
            None => stage.pool,
        };
        let rules = KvRules::plimsoll(dtype, self.block_size);
        let geometry =
            PoolGeometry::new(spec, &parallel, &stage.stage, &rules).map_err(PlanError::from)?;
        let layout = Layout::new(&geometry).map_err(|e| {
            Failure::new(Exit::Usage, "E-SIM-007", e.to_string())
                .hint("choose another `--block-size`")
        })?;
        let pages = self.pages(pool, layout.page)?;
        let swap_pages = self.swap_space.whole(layout.page).min(u64::from(PAGES_MAX));
        let work = Work::new(spec, &geometry, self.tp).map_err(PlanError::from)?;
        let truth = self.rates.over(known);
        let cost = |rates| CostModel {
            work: work.clone(),
            rates,
        };
        Ok(Prepared {
            pool: layout
                .page
                .times(u64::from(pages))
                .map_err(PlanError::from)?,
            pages,
            swap_pages: u32::try_from(swap_pages).unwrap_or(PAGES_MAX),
            belief: cost(self.belief.map_or(truth, |b| b.over(known))),
            truth: cost(truth),
            layout,
            max_model_len,
            vocab: u32::try_from(spec.vocab).unwrap_or(u32::MAX).max(1),
            case: self,
        })
    }

    /// The devices in words, all replicas' together.
    pub(super) fn devices(&self) -> String {
        let (name, tp) = (&self.device.name, self.tp);
        match u64::from(self.fleet.replicas.get()) {
            1 if tp == 1 => name.clone(),
            1 => format!("{tp} x {name}"),
            n => format!(
                "{} x {name} ({n} replicas of TP {tp})",
                n.saturating_mul(tp)
            ),
        }
    }

    /// Rates as measured or published.
    fn known_rates(&self) -> Result<Rates, Failure> {
        if let Some(measured) = &self.profile {
            return measured.of(&self.device);
        }
        Rates::of(&self.device).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "E-SIM-005",
                format!(
                    "no rates are known of {}: its time cannot be modelled",
                    self.device.name
                ),
            )
            .hint("choose a device with published rates, such as a100-80g or h100, or give a `--profile`")
        })
    }

    fn max_model_len(&self, spec: &ModelSpec) -> Result<u32, Failure> {
        if let Some(n @ (0..2 | MODEL_LEN_MAX..)) = self.max_model_len {
            return Err(Failure::new(
                Exit::Usage,
                "E-SIM-012",
                format!("--max-model-len {n} cannot be simulated"),
            )
            .why("a request has at least a token of prompt and one of output")
            .hint(format!(
                "give from 2 to {} tokens",
                thousands(MODEL_LEN_MAX - 1)
            )));
        }
        let longest = self.max_model_len.or(spec.max_context);
        let longest = longest
            .unwrap_or(MODEL_LEN_UNKNOWN)
            .clamp(2, MODEL_LEN_MAX - 1);
        Ok(u32::try_from(longest).unwrap_or(u32::MAX))
    }

    /// Whole pages of the pool, the null page among them.
    fn pages(&self, pool: Bytes, page: Bytes) -> Result<u32, Failure> {
        let pages = pool.whole(page);
        match u32::try_from(pages) {
            // One page is the null page.
            Ok(0 | 1) => Err(self.no_room(page)),
            Ok(p) if p <= PAGES_MAX => Ok(p),
            _ => Err(Failure::new(
                Exit::Usage,
                "E-SIM-008",
                format!("{} blocks are too many to simulate", thousands(pages)),
            )
            .hint(format!(
                "choose a larger `--block-size`: at most {} blocks are kept account of",
                thousands(u64::from(PAGES_MAX))
            ))),
        }
    }

    fn no_room(&self, page: Bytes) -> Failure {
        if let Some(given) = self.kv_memory {
            return Failure::new(
                Exit::DoesNotFit,
                "E-FIT-001",
                format!("--kv-memory {given} has no room for two KV blocks of {page}, one of which is the null block"),
            )
            .hint("give more, or choose a smaller `--block-size`");
        }
        Failure::new(
            Exit::DoesNotFit,
            "E-FIT-001",
            format!(
                "{} has no room for two KV blocks of {page} (one is the null block) beside the model and a step of {} tokens and {} sequences",
                self.device.name,
                thousands(self.max_num_batched_tokens),
                thousands(u64::from(self.max_num_seqs))
            ),
        )
        .hint("choose a larger device, a higher `--tp`, a smaller `--block-size`, or a smaller step by `--max-num-batched-tokens` and `--max-num-seqs`")
    }
}

/// A server that is ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) case: Case,
    pub(crate) layout: Layout,
    /// Bytes of the pool on each device, whole pages.
    pub(crate) pool: Bytes,
    /// Pages of the pool, the null page among them.
    pub(crate) pages: u32,
    pub(crate) swap_pages: u32,
    /// What times are.
    pub(crate) truth: CostModel,
    /// What the scheduler believes of them.
    pub(crate) belief: CostModel,
    /// Longest sequence accepted, in tokens.
    pub(crate) max_model_len: u32,
    pub(crate) vocab: u32,
}

impl Prepared {
    /// Slots of the paged pool: one token's place in the group whose blocks hold the fewest.
    pub(super) fn slots(&self) -> u64 {
        let slots = self
            .layout
            .groups
            .iter()
            .map(|g| g.slots)
            .filter(|s| *s > 0)
            .min();
        u64::from(self.pages) * u64::from(slots.unwrap_or(1))
    }

    /// Slots of the same memory where every layer keeps every token, windows or not, as contiguous servers
    /// did: their sequences are one run of memory. States, which do not grow, are left out.
    pub(super) fn contiguous_slots(&self) -> u64 {
        let token: u64 = self
            .layout
            .groups
            .iter()
            .filter(|g| g.kind != GroupKind::State)
            .map(|g| g.row.get())
            .sum();
        self.pool.get().checked_div(token).unwrap_or(0)
    }
}
