//! The memory of a run: planned before anything is read, and compared with what was used in the end.

use std::fmt::Write as _;
use std::path::Path;

use plimsoll_host::memory::resident;
use plimsoll_model::ModelSpec;
use plimsoll_plan::{
    Deployment, Engine, Evaluation, KvType, Load, MemoryMap, PlanError, Region, Settings, Term,
    Verdict, evaluate,
};
use plimsoll_program::Parallel;
use plimsoll_report::{short_bytes, thousands};
use plimsoll_runtime::Usage;
use plimsoll_units::{Bytes, SizeOverflow};
use serde_json::{Value, json};

use super::Start;
use super::device::Place;
use crate::error::{Exit, Failure};

/// What maps are written as.
const SCHEMA: &str = "plimsoll.memory-map/1";
/// Shortest sequence and fewest tokens of a step that a refusal offers.
const LEAST_TOKENS: u64 = 64;

/// The map of each rank of a server.
#[derive(Clone)]
pub(crate) struct Map {
    /// What a rank has, and once what ranks share.
    pub(crate) rank: MemoryMap,
    /// How many ranks there are.
    pub(crate) ranks: u64,
}

impl Map {
    /// What all ranks have together, region by region.
    pub(crate) fn regions(&self) -> Result<Vec<(Region, Bytes)>, SizeOverflow> {
        self.rank.together(self.ranks)
    }

    fn of(&self) -> String {
        match self.ranks {
            1 => String::new(),
            n => format!(" of {n} ranks together"),
        }
    }
}

/// T, R and the longest sequence.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: u64,
    sequences: u64,
    context: u64,
}

/// The map of a server with these settings, as `plan --engine plimsoll` prints it.
pub(crate) fn plan(
    what: &Start<'_>,
    spec: &ModelSpec,
    context: u64,
    threads: u64,
    place: &Place,
) -> Result<Map, Failure> {
    let args = what.engine;
    let deployment = Deployment {
        device: place.device.clone(),
        kinds: None,
        parallel: Parallel {
            tp: args.tp,
            ..Parallel::default()
        },
        in_use: place.in_use,
    };
    let judge = |s: Sizes, kv_memory: Option<Bytes>| -> Result<Evaluation, PlanError> {
        let settings = Settings {
            weights: args.weights,
            kv_type: KvType::Plain(args.kv_cache_dtype),
            block_size: Some(args.block_size),
            max_model_len: Some(s.context),
            max_num_seqs: Some(s.sequences),
            max_num_batched_tokens: Some(s.tokens),
            kv_memory,
            enforce_eager: args.enforce_eager,
            swap: args.swap_space,
            swap_file: args.swap_dir.is_some(),
            threads: Some(threads),
            logprobs: what.logprobs.map(u64::from),
            http: what.http,
            ..Settings::new(Engine::Plimsoll)
        };
        evaluate(spec, &deployment, &settings, &Load::plain(1, s.context))
    };
    let asked = Sizes {
        tokens: args.max_num_batched_tokens,
        sequences: u64::from(what.sequences),
        context,
    };
    let evaluation = judge(asked, args.kv_memory)?;
    let Some(rank) = evaluation.stages.first() else {
        return Err(Failure::new(
            Exit::Failure,
            "E-FIT-001",
            "the plan is empty",
        ));
    };
    let map = Map {
        rank: MemoryMap::of(rank).map_err(PlanError::from)?,
        ranks: args.tp,
    };
    if evaluation.verdict != Verdict::No {
        return Ok(map);
    }
    // Ranks on processors share a budget; on GPUs each has its own.
    let together = place.gpus.is_empty();
    let (regions, ranks, each) = if together {
        (
            map.regions().map_err(PlanError::from)?,
            args.tp,
            String::new(),
        )
    } else {
        let each = (args.tp > 1).then(|| format!(" on each of {} GPUs", args.tp));
        let of_one = map.rank.regions().to_vec();
        (of_one, 1, each.unwrap_or_default())
    };
    let mut parts = String::new();
    for (region, bytes) in regions.iter().filter(|r| r.0 != Region::KvCache) {
        let _ = write!(parts, "{} {bytes}, ", region.name().replace('_', " "));
    }
    let need = args.kv_memory.unwrap_or(rank.need.pool);
    let need = need.times(ranks).map_err(PlanError::from)?;
    let fits = |s: Sizes, kv| judge(s, kv).is_ok_and(|e| e.verdict != Verdict::No);
    Err(Failure::new(
        Exit::DoesNotFit,
        "E-FIT-001",
        format!(
            "{parts}and KV cache of {need} for one sequence of {} tokens do not fit into {}{each}",
            thousands(context),
            deployment.device.usable
        ),
    )
    .why(format!("the budget is {}", deployment.device.memory_source))
    .hint(nearest(asked, args.kv_memory, &fits)))
}

/// The settings nearest to those asked for that fit.
fn nearest(
    asked: Sizes,
    kv_memory: Option<Bytes>,
    fits: &dyn Fn(Sizes, Option<Bytes>) -> bool,
) -> String {
    if kv_memory.is_some() && fits(asked, None) {
        return "leave `--kv-memory` out: then this fits".to_owned();
    }
    let with = |s: Sizes| fits(s, kv_memory);
    // The largest value that fits, where the least does.
    let most = |least: u64, asked: u64, fits: &dyn Fn(u64) -> bool| {
        let (mut low, mut high) = (least.min(asked), asked);
        if !fits(low) {
            return None;
        }
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    };
    let context = |context| Sizes { context, ..asked };
    if let Some(n) = most(LEAST_TOKENS, asked.context, &|n| with(context(n))) {
        return format!("`--max-model-len {n}` is the longest that fits");
    }
    let sequences = |n| Sizes {
        sequences: n,
        ..asked
    };
    if let Some(n) = most(1, asked.sequences, &|n| with(sequences(n))) {
        return format!("`--max-num-seqs {n}` is the most that fit");
    }
    let small = |context| Sizes {
        tokens: asked.tokens.min(LEAST_TOKENS),
        sequences: 1,
        context,
    };
    let flags = format!(
        "`--max-num-seqs 1 --max-num-batched-tokens {}",
        small(1).tokens
    );
    if with(small(asked.context)) {
        return format!("{flags}` fits");
    }
    if let Some(n) = most(LEAST_TOKENS, asked.context, &|n| with(small(n))) {
        return format!("{flags} --max-model-len {n}` fits");
    }
    "no setting makes it fit: raise `--memory`, or choose a smaller model".to_owned()
}

/// What is planned, where nothing is committed yet.
pub(crate) fn planned_text(map: &Map) -> Result<String, Failure> {
    let mut text = format!("memory{}: planned", map.of());
    for (region, planned) in map.regions().map_err(PlanError::from)? {
        let name = region.name().replace('_', " ");
        let _ = write!(text, "\n  {name:<12} {:>10}", short_bytes(planned.get()));
    }
    Ok(text)
}

/// The same for a program.
pub(crate) fn planned_json(map: &Map) -> Result<Value, Failure> {
    let region = |(region, planned): (Region, Bytes)| json!({ "region": region.name(), "planned_bytes": planned.get() });
    let regions = map.regions().map_err(PlanError::from)?;
    Ok(json!({
        "schema": SCHEMA,
        "ranks": map.ranks,
        "regions": regions.into_iter().map(region).collect::<Vec<_>>(),
        "terms": terms(&map.rank),
    }))
}

fn terms(map: &MemoryMap) -> Vec<Value> {
    let term = |t: &Term| {
        json!({
            "region": t.region.name(),
            "name": t.name,
            "bytes": t.bytes.get(),
            "kind": t.kind.name(),
        })
    };
    map.terms().iter().map(term).collect()
}

/// What was planned, committed and used, by all ranks together.
pub(crate) struct Report<'a> {
    pub(crate) map: &'a Map,
    pub(crate) regions: &'a [(Region, Bytes)],
    pub(crate) usage: Vec<Usage>,
    pub(crate) ready: Option<Bytes>,
}

impl Report<'_> {
    /// Of the reserve nothing is committed; what it took is what the process had beside its arenas, at most.
    fn reserve_used(&self) -> Option<Bytes> {
        let in_memory = self.usage.iter().filter(|u| u.region != Region::SwapFile);
        let committed = in_memory.map(|u| u.committed.get()).sum();
        let (_, peak) = resident()?;
        Some(peak.saturating_sub(Bytes::new(committed)))
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("memory{}: planned, committed, used at most", self.map.of());
        for &(region, planned) in self.regions {
            let name = region.name().replace('_', " ");
            let used = self.usage.iter().find(|u| u.region == region);
            let (committed, high) = match used {
                Some(u) => (Some(u.committed), Some(u.high_water)),
                None if region == Region::Reserve => (None, self.reserve_used()),
                // What a driver takes is not ours to count.
                None => (None, None),
            };
            let size =
                |b: Option<Bytes>| b.map_or_else(|| "-".to_owned(), |b| short_bytes(b.get()));
            let _ = write!(
                text,
                "\n  {name:<12} {:>10} {:>10} {:>10}",
                short_bytes(planned.get()),
                size(committed),
                size(high)
            );
        }
        text
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let regions: Vec<_> = self
            .regions
            .iter()
            .map(|&(region, planned)| {
                let used = self.usage.iter().find(|u| u.region == region);
                let high_water = match used {
                    Some(u) => Some(u.high_water),
                    None if region == Region::Reserve => self.reserve_used(),
                    None => None,
                };
                json!({
                    "region": region.name(),
                    "planned_bytes": planned.get(),
                    "committed_bytes": used.map(|u| u.committed.get()),
                    "high_water_bytes": high_water.map(Bytes::get),
                })
            })
            .collect();
        let value = json!({
            "schema": SCHEMA,
            "ranks": self.map.ranks,
            "regions": regions,
            "terms": terms(&self.map.rank),
            "resident_bytes_at_ready": self.ready.map(Bytes::get),
        });
        std::fs::write(path, format!("{value:#}\n")).map_err(|e| {
            let what = format!("cannot write {}: {e}", path.display());
            Failure::new(Exit::Failure, "E-IO-002", what)
        })
    }
}
