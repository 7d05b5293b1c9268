//! One solver for every question: it asks [`evaluate`] and searches.
//!
//! Searches over users and tokens are binary, since needs are monotone; searches over devices and
//! degrees are exhaustive up to [`MAX_DEVICES`], in a fixed order of preference, with deployments
//! whose weights alone cannot fit skipped by arithmetic.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use plimsoll_device::{Device, find};
use plimsoll_model::quant::QuantFormat;
use plimsoll_model::{Mixer, ModelSpec, Role};
use plimsoll_program::{Parallel, WeightRules, rank_tensors};
use plimsoll_units::{Bytes, DType, WeightType, Weights};

use crate::engine::{Engine, cast_to, served_dtype, served_kv};
use crate::error::PlanError;
use crate::evaluate::{
    Evaluation, Stop, Verdict, evaluate, evaluate_prepared, has_experts, prepared,
};
use crate::settings::{Deployment, KvType, Load, Settings};

/// Most devices that a search tries.
pub const MAX_DEVICES: u64 = 64;
/// Most users that a search answers with.
const MAX_USERS: u64 = 1 << 32;
/// Longest context that a search answers with, in tokens.
const MAX_CONTEXT: u64 = 1 << 32;
/// Devices of one node, beyond which TP is not proposed: links between nodes are far slower.
const NODE: u64 = 8;

/// Most pipeline stages that a search proposes: more add latency and bubbles that nobody serves with.
const STAGES: u64 = 16;

/// A search that found a tight fit goes on up to this many times its devices.
const TIGHT_MULTIPLE: u64 = 2;

/// The largest `n` in `0..=max` for which `fits(n)`, where `fits` is monotone and `fits(0)` holds.
fn largest(
    max: u64,
    mut fits: impl FnMut(u64) -> Result<bool, PlanError>,
) -> Result<u64, PlanError> {
    let (mut low, mut high) = (0_u64, 1_u64);
    while high <= max && fits(high)? {
        low = high;
        high = high.saturating_mul(2);
    }
    if high > max {
        if fits(max)? {
            return Ok(max);
        }
        high = max;
    }
    while high - low > 1 {
        let mid = low + (high - low) / 2;
        if fits(mid)? {
            low = mid;
        } else {
            high = mid;
        }
    }
    Ok(low)
}

/// Sizes past 64 bits do not fit anywhere: for a search that is a plain no.
fn no_if_too_large(r: Result<bool, PlanError>) -> Result<bool, PlanError> {
    match r {
        Err(PlanError::Size(_)) => Ok(false),
        other => other,
    }
}

/// The most users for which `fits`.
pub(crate) fn largest_users(
    mut fits: impl FnMut(u64) -> Result<bool, PlanError>,
) -> Result<u64, PlanError> {
    largest(MAX_USERS, |n| no_if_too_large(fits(n)))
}

/// How many users an evaluated deployment carries at its load's context, over all replicas.
///
/// # Errors
/// [`PlanError`].
pub fn max_users(e: &Evaluation) -> Result<u64, PlanError> {
    let one = largest(MAX_USERS, |n| {
        no_if_too_large(e.carries(&e.load.with_users(n)))
    })?;
    Ok(one.saturating_mul(e.deployment.parallel.dp))
}

/// The longest context that an evaluated deployment carries for its load's users; at least one.
///
/// # Errors
/// [`PlanError`].
pub fn max_context(e: &Evaluation) -> Result<u64, PlanError> {
    let load = e.load.with_users(e.load.users.max(1));
    largest(MAX_CONTEXT, |n| {
        no_if_too_large(e.carries(&load.with_context(n)))
    })
}

/// The divisions of `n` devices that are worth trying, best first: tensor parallel inside a node,
/// then pipeline stages, then replicas. Of slices of a card only replicas.
fn divisions(n: u64, spec: &ModelSpec, device: &Device) -> Vec<Parallel> {
    if device.slice_of.is_some() {
        let replicas = Parallel {
            dp: n,
            ..Parallel::default()
        };
        return vec![replicas];
    }
    let divides = |a: u64| n.is_multiple_of(a);
    let mut all = Vec::new();
    for dp in (1..=n).filter(|d| divides(*d)) {
        for pp in (1..=n / dp).filter(|p| (n / dp).is_multiple_of(*p)) {
            let tp = n / dp / pp;
            if tp > NODE || pp > STAGES {
                continue;
            }
            all.push(Parallel {
                tp,
                pp,
                dp,
                expert_parallel: false,
            });
            if dp > 1 && pp == 1 && has_experts(spec) {
                all.push(Parallel {
                    tp,
                    pp,
                    dp,
                    expert_parallel: true,
                });
            }
        }
    }
    all
}

/// By TP degree and number of expert ranks: bytes of all layers before each layer.
type LayerSums = BTreeMap<(u64, u64), Option<Vec<u64>>>;

/// A model and a load, with what a search needs to know of them beforehand.
struct Search<'a> {
    spec: Cow<'a, ModelSpec>,
    settings: &'a Settings,
    load: &'a Load,
    /// Weights that every replica must hold, where the type they are loaded in is the stored one.
    weights: Bytes,
    /// Keys, values and states of the whole load, nothing wasted.
    kv: Bytes,
    /// Whether every layer's cache is whole on each tensor-parallel rank.
    latent: bool,
    /// Whether every layer keeps the same, so that a stage's share of the cache is its share of layers.
    uniform: bool,
    /// For a TP degree and number of expert ranks: bytes of all layers before each layer on one rank;
    /// `None` where the degree is not legal.
    before: RefCell<LayerSums>,
}

impl<'a> Search<'a> {
    fn new(spec: &'a ModelSpec, settings: &'a Settings, load: &'a Load) -> Result<Self, PlanError> {
        let spec = prepared(spec, settings)?;
        let unlimited = Deployment {
            device: Device::unlimited(),
            kinds: None,
            parallel: Parallel::default(),
            in_use: Bytes::ZERO,
        };
        let ideal = Settings {
            kv_type: served_kv(settings, &spec),
            dtype: cast_to(settings, &spec),
            ..Settings::new(Engine::Ideal)
        };
        // A cache type that only one engine knows gives no bound, and none is needed.
        let kv = evaluate_prepared(&spec, &unlimited, &ideal, load, Stop::Never)
            .ok()
            .and_then(|e| e.stages.first().map(|s| s.need.pool))
            .unwrap_or(Bytes::ZERO);
        let cast = cast_to(settings, &spec).is_some();
        let mut draft = spec.tensors.iter().filter(|t| t.role == Role::Mtp);
        let draft = draft.try_fold(Bytes::ZERO, |acc, t| acc.add(t.bytes()?))?;
        let weights = if cast {
            Bytes::ZERO
        } else {
            spec.stored_bytes()?.saturating_sub(draft)
        };
        let uniform = spec.layers.windows(2).all(|w| w[0].mixer == w[1].mixer);
        let latent = spec
            .layers
            .iter()
            .all(|l| matches!(l.mixer, Mixer::Latent(_)));
        Ok(Self {
            spec,
            settings,
            load,
            weights,
            kv,
            latent,
            uniform,
            before: RefCell::default(),
        })
    }

    /// Whether plain arithmetic rules a division out: some rank must hold at least its even share.
    fn hopeless(&self, p: &Parallel, device: &Device) -> bool {
        let ranks = p.tp.saturating_mul(p.pp).max(1);
        let weight_ranks = if p.expert_parallel {
            p.devices().max(1)
        } else {
            ranks
        };
        let kv_ranks = if self.latent { p.pp.max(1) } else { ranks };
        let least = self.weights.get() / weight_ranks
            + self.kv.get() / kv_ranks.saturating_mul(p.dp.max(1)).max(1);
        least > device.usable.get() || self.fullest_stage(p) > device.usable.get()
    }

    /// Bytes of the layers of the fullest stage on one rank, cache included: a bound from below, found from sums that
    /// all divisions with the same TP share.
    fn fullest_stage(&self, p: &Parallel) -> u64 {
        if self.weights == Bytes::ZERO {
            return 0;
        }
        let mut memo = self.before.borrow_mut();
        let before = memo.entry((p.tp, p.ep())).or_insert_with(|| self.sums(p));
        let Some(before) = before else { return 0 };
        let at = |i: u64| {
            usize::try_from(i)
                .ok()
                .and_then(|i| before.get(i))
                .copied()
                .unwrap_or(0)
        };
        p.stages(self.spec.layers.len() as u64)
            .iter()
            .map(|s| {
                let layers = s.layers.end - s.layers.start;
                let kv = if self.uniform {
                    self.kv_share(p, layers)
                } else {
                    0
                };
                at(s.layers.end)
                    .saturating_sub(at(s.layers.start))
                    .saturating_add(kv)
            })
            .max()
            .unwrap_or(0)
    }

    /// The least that `layers` layers keep on one rank of one replica.
    fn kv_share(&self, p: &Parallel, layers: u64) -> u64 {
        let ranks =
            p.dp.max(1)
                .saturating_mul(if self.latent { 1 } else { p.tp.max(1) });
        let all = u128::from(self.kv.get()) * u128::from(layers);
        let share = all / (self.spec.layers.len().max(1) as u128) / u128::from(ranks.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    fn sums(&self, p: &Parallel) -> Option<Vec<u64>> {
        let layers = self.spec.layers.len();
        let one = Parallel { pp: 1, ..*p };
        let whole = one.stages(layers as u64).into_iter().next()?;
        let parts = rank_tensors(&self.spec, &one, &whole, &WeightRules::stored()).ok()?;
        let mut before = vec![0_u64; layers + 1];
        for part in parts.iter().filter(|part| part.role != Role::Mtp) {
            if let Some(layer) = part.tensor.layer.and_then(|l| usize::try_from(l).ok())
                && layer < layers
            {
                let bytes = part.each.times(part.copies).ok()?.get();
                before[layer + 1] = before[layer + 1].checked_add(bytes)?;
            }
        }
        for i in 1..before.len() {
            before[i] = before[i].checked_add(before[i - 1])?;
        }
        Some(before)
    }

    /// See [`smallest`].
    fn smallest(
        &self,
        device: &Device,
        in_use: Bytes,
        max_devices: u64,
    ) -> Result<Option<Evaluation>, PlanError> {
        let mut tight: Option<Deployment> = None;
        let mut first_error: Option<PlanError> = None;
        let mut legal = false;
        let whole = |d: &Deployment| {
            evaluate_prepared(&self.spec, d, self.settings, self.load, Stop::Never)
        };
        for n in 1..=max_devices.min(MAX_DEVICES) {
            // Where several times as many still fit only tightly, more will not help.
            let tried = tight.as_ref().map_or(u64::MAX, |d| d.parallel.devices());
            if n > tried.saturating_mul(TIGHT_MULTIPLE) {
                break;
            }
            for parallel in divisions(n, &self.spec, device) {
                if self.hopeless(&parallel, device) {
                    legal = true;
                    continue;
                }
                let d = Deployment {
                    device: device.clone(),
                    kinds: None,
                    parallel,
                    in_use,
                };
                match evaluate_prepared(&self.spec, &d, self.settings, self.load, Stop::AtNo) {
                    Ok(e) if e.verdict == Verdict::Yes => return Ok(Some(e)),
                    Ok(e) => {
                        legal = true;
                        if e.verdict == Verdict::Tight && tight.is_none() {
                            tight = Some(d);
                        }
                    }
                    Err(e) => {
                        first_error.get_or_insert(e);
                    }
                }
            }
        }
        match (tight, first_error) {
            (Some(d), _) => whole(&d).map(Some),
            (None, Some(e)) if !legal => Err(e),
            (None, _) => Ok(None),
        }
    }
}

/// The fewest devices of one kind that carry `load`, with the division chosen.
///
/// Prefers a deployment that fits by the upper ends of all intervals; where `n` devices only fit
/// tightly, more are tried, and the tight one is the answer if nothing better is found.
///
/// # Errors
/// [`PlanError`] where no division is legal at all; the reason is that of one device.
pub fn smallest(
    spec: &ModelSpec,
    device: &Device,
    in_use: Bytes,
    settings: &Settings,
    load: &Load,
    max_devices: u64,
) -> Result<Option<Evaluation>, PlanError> {
    Search::new(spec, settings, load)?.smallest(device, in_use, max_devices)
}

/// The best legal division of exactly `n` devices: the best verdict, and in the order of preference
/// among equals.
///
/// # Errors
/// [`PlanError`] where no division of `n` is legal: the reason of the first.
pub fn best_division(
    spec: &ModelSpec,
    device: &Device,
    in_use: Bytes,
    settings: &Settings,
    load: &Load,
    n: u64,
) -> Result<Evaluation, PlanError> {
    let mut best: Option<Evaluation> = None;
    let mut first_error = None;
    for parallel in divisions(n, spec, device) {
        let deployment = Deployment {
            device: device.clone(),
            kinds: None,
            parallel,
            in_use,
        };
        match evaluate(spec, &deployment, settings, load) {
            Ok(e) if e.verdict == Verdict::Yes => return Ok(e),
            Ok(e) => {
                if best.as_ref().is_none_or(|b| e.verdict > b.verdict) {
                    best = Some(e);
                }
            }
            Err(e) => {
                first_error.get_or_insert(e);
            }
        }
    }
    best.ok_or_else(|| {
        first_error.unwrap_or_else(|| PlanError::Load(format!("{n} devices cannot be divided")))
    })
}

/// One replica of `load` at every tensor-parallel degree inside a node that is legal, lowest first, fit or not.
///
/// # Errors
/// [`PlanError`] where sizes overflow or no degree is legal: the reason of the first.
pub fn tensor_parallel(
    spec: &ModelSpec,
    device: &Device,
    in_use: Bytes,
    settings: &Settings,
    load: &Load,
) -> Result<Vec<Evaluation>, PlanError> {
    let mut legal = Vec::new();
    let mut first_error = None;
    for tp in 1..=NODE {
        let deployment = Deployment {
            device: device.clone(),
            kinds: None,
            parallel: Parallel {
                tp,
                ..Parallel::default()
            },
            in_use,
        };
        match evaluate(spec, &deployment, settings, load) {
            Ok(e) => legal.push(e),
            Err(e @ PlanError::Size(_)) => return Err(e),
            Err(e) => {
                first_error.get_or_insert(e);
            }
        }
    }
    match first_error {
        Some(e) if legal.is_empty() => Err(e),
        _ => Ok(legal),
    }
}

/// For each priced device the fewest that carry the load, cheapest first: device, evaluation, price
/// per hour of all.
///
/// # Errors
/// [`PlanError`] only where sizes overflow; devices on which nothing is legal are left out.
pub fn cheapest<'d>(
    spec: &ModelSpec,
    priced: &[(&'d Device, f64)],
    in_use: Bytes,
    settings: &Settings,
    load: &Load,
    max_devices: u64,
) -> Result<Vec<(&'d Device, Evaluation, f64)>, PlanError> {
    let search = Search::new(spec, settings, load)?;
    let mut out = Vec::new();
    for &(device, price) in priced {
        match search.smallest(device, in_use, max_devices) {
            Ok(Some(e)) => {
                #[allow(clippy::cast_precision_loss, reason = "a price")]
                let total = price * e.deployment.parallel.devices() as f64;
                out.push((device, e, total));
            }
            Ok(None) => {}
            Err(e @ PlanError::Size(_)) => return Err(e),
            Err(_) => {}
        }
    }
    out.sort_by(|a, b| a.2.total_cmp(&b.2));
    Ok(out)
}

/// For every device the fewest that carry the load, the least memory bought first: among equals the
/// fewer devices.
///
/// # Errors
/// [`PlanError`] only where sizes overflow; devices on which nothing is legal are left out.
pub fn least_memory<'d>(
    spec: &ModelSpec,
    devices: &'d [Device],
    in_use: Bytes,
    settings: &Settings,
    load: &Load,
    max_devices: u64,
) -> Result<Vec<(&'d Device, Evaluation)>, PlanError> {
    let search = Search::new(spec, settings, load)?;
    let mut out = Vec::new();
    for device in devices {
        match search.smallest(device, in_use, max_devices) {
            Ok(Some(e)) => out.push((device, e)),
            Ok(None) => {}
            Err(e @ PlanError::Size(_)) => return Err(e),
            Err(_) => {}
        }
    }
    out.sort_by_key(|(device, e)| {
        let n = e.deployment.parallel.devices();
        (device.usable.get().saturating_mul(n), n)
    });
    Ok(out)
}

/// A single change to a deployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What to change, as a flag.
    pub flag: String,
    /// What it costs, in a few words.
    pub cost: &'static str,
    /// Users carried after it.
    pub users: u64,
    /// Whether it still depends on the intervals.
    pub verdict: Verdict,
}

/// Which single change would make a deployment carry its load, the gentlest first.
///
/// # Errors
/// [`PlanError`] where sizes overflow.
pub fn changes_that_fit(
    spec: &ModelSpec,
    e: &Evaluation,
    settings: &Settings,
    load: &Load,
) -> Result<Vec<Change>, PlanError> {
    let mut candidates: Vec<(String, &'static str, Settings, Deployment, Load)> = Vec::new();
    let here = &e.deployment;
    let mut push = |flag: String, cost, s: Settings, d: Deployment, l: Load| {
        candidates.push((flag, cost, s, d, l));
    };
    let p = here.parallel;
    if served_kv(settings, spec) == KvType::Auto
        && matches!(served_dtype(settings, spec), DType::F16 | DType::Bf16)
    {
        let kv = KvType::Plain(DType::F8E4m3);
        let s = Settings {
            kv_type: kv,
            ..settings.clone()
        };
        push(
            "--kv-cache-dtype fp8".to_owned(),
            "halves the KV cache; some accuracy",
            s,
            here.clone(),
            *load,
        );
    }
    for t in [4096_u64, 2048, 1024] {
        if settings.max_num_batched_tokens.is_none_or(|now| now > t) {
            let s = Settings {
                max_num_batched_tokens: Some(t),
                ..settings.clone()
            };
            push(
                format!("--max-num-batched-tokens {t}"),
                "smaller activations; slower prefill",
                s,
                here.clone(),
                *load,
            );
        }
    }
    if settings.max_num_seqs.is_none_or(|r| r > load.users) && load.users > 0 {
        let s = Settings {
            max_num_seqs: Some(load.users),
            ..settings.clone()
        };
        push(
            format!("--max-num-seqs {}", load.users),
            "smaller sampling buffers; no more requests at once",
            s,
            here.clone(),
            *load,
        );
    }
    if !settings.enforce_eager {
        let s = Settings {
            enforce_eager: true,
            ..settings.clone()
        };
        push(
            "--enforce-eager".to_owned(),
            "no graphs; slower decode",
            s,
            here.clone(),
            *load,
        );
    }
    let bf16 = Weights::As(WeightType::Bf16);
    if settings.engine == Engine::Plimsoll && [bf16, Weights::Stored].contains(&settings.weights) {
        let (weights, cost) = if spec.quant.is_some() && settings.weights == bf16 {
            (
                Weights::Stored,
                "weights as they are stored, where that is fp8 or 4 bits",
            )
        } else {
            let fp8 = Weights::As(WeightType::Fp8);
            (fp8, "8-bit weights; little accuracy lost")
        };
        let s = Settings {
            weights,
            ..settings.clone()
        };
        let flag = format!("--weights {weights}");
        push(flag, cost, s, here.clone(), *load);
    }
    if spec.quant.is_none() && settings.quantization.is_none() {
        let formats = [
            (
                "--quantization fp8",
                QuantFormat::Fp8Tensor {
                    static_input: false,
                },
                "8-bit weights; little accuracy lost",
            ),
            (
                "--quantization int4",
                QuantFormat::Packed {
                    bits: 4,
                    group: Some(128),
                    zero_points: false,
                    g_idx: false,
                },
                "4-bit weights; needs a quantised checkpoint, some accuracy lost",
            ),
        ];
        for (flag, format, cost) in formats {
            let s = Settings {
                quantization: Some(format),
                ..settings.clone()
            };
            push(flag.to_owned(), cost, s, here.clone(), *load);
        }
    }
    // Devices of several kinds are what there is.
    let more_devices = here.kinds.is_none();
    for more in [2_u64, 4, 8].into_iter().filter(|_| more_devices) {
        let tp = p.tp.saturating_mul(more);
        if tp <= NODE {
            let d = Deployment {
                parallel: Parallel { tp, ..p },
                ..here.clone()
            };
            push(
                format!("--tp {tp}"),
                "more devices",
                settings.clone(),
                d,
                *load,
            );
        }
    }
    if p.pp == 1 && more_devices {
        let d = Deployment {
            parallel: Parallel { pp: 2, ..p },
            ..here.clone()
        };
        push(
            "--pp 2".to_owned(),
            "more devices; longer latency",
            settings.clone(),
            d,
            *load,
        );
    }
    if let Some(card) = here.device.slice_of.as_deref().and_then(find) {
        let between = |s: &&Device| s.usable > here.device.usable && s.usable < card.usable;
        let mut larger: Vec<&Device> = card.slices.iter().filter(between).collect();
        larger.sort_by_key(|s| s.usable);
        // Of slices with the same memory one stands for all.
        larger.dedup_by_key(|s| s.usable);
        larger.push(card);
        for device in larger {
            let d = Deployment {
                device: device.clone(),
                ..here.clone()
            };
            push(
                format!("--gpu {}", device.name),
                if device.slice_of.is_some() {
                    "a larger slice"
                } else {
                    "the whole card"
                },
                settings.clone(),
                d,
                *load,
            );
        }
    }
    let shorter = max_context(e)?;
    if shorter > 0 && shorter < load.context {
        let s = Settings {
            max_model_len: settings.max_model_len.map(|m| m.min(shorter)),
            ..settings.clone()
        };
        push(
            format!("--context {shorter}"),
            "shorter requests",
            s,
            here.clone(),
            load.with_context(shorter),
        );
    }
    let mut fits = Vec::new();
    for (flag, cost, s, d, l) in candidates {
        // An illegal change is no proposal.
        let Ok(changed) = evaluate(spec, &d, &s, &l) else {
            continue;
        };
        if changed.verdict > Verdict::No {
            let users = max_users(&changed)?;
            fits.push(Change {
                flag,
                cost,
                users,
                verdict: changed.verdict,
            });
        }
    }
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_finds_the_edge() {
        for edge in [0_u64, 1, 2, 3, 7, 8, 9, 1000, 12345] {
            assert_eq!(largest(1 << 20, |n| Ok(n <= edge)).unwrap(), edge);
        }
        assert_eq!(largest(100, |_| Ok(true)).unwrap(), 100);
    }
}
