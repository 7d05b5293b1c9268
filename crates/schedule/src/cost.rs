//! [`CostModel`]: how long steps, swaps and recomputation take, in whole nanoseconds.
//!
//! One type, two uses: what the scheduler believes, and what the simulator's world charges. It is a
//! roofline with fixed costs: linear layers take the larger of streaming the weights and computing,
//! attention reads each row's keys and values and computes its pairs, and everything else is per
//! step, per row or per transfer. Integers only, so that equal inputs give equal decisions on any
//! machine.

use plimsoll_device::Device;
use plimsoll_model::{Ffn, Mixer, ModelSpec, Reach, Role};
use plimsoll_program::{GroupKind, PoolGeometry};
use plimsoll_units::{Bytes, Nanos, SizeOverflow};

use crate::step::{Output, Step};

/// One billion: nanoseconds in a second.
const NANOS: u128 = 1_000_000_000;

/// What a model asks of a device, on one rank. From the model's shapes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights that a step streams.
    pub weight_bytes: u64,
    /// Operations of the linear layers for one token (2 per active parameter).
    pub token_flops: u64,
    /// Operations of the output head for one row that samples.
    pub head_flops: u64,
    /// Attention, one entry per kind of layer.
    pub attention: Vec<AttentionWork>,
}

/// Attention of the layers that reach equally far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWork {
    /// Context that a query sees at most; `None` for all of it.
    pub reach: Option<u64>,
    /// Bytes of keys and values per token of context, all these layers together.
    pub token_bytes: u64,
    /// Operations per pair of query and context token, all these layers together.
    pub pair_flops: u64,
}

/// How fast a device is. Every rate is what is reached, not what the datasheet promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Operations per second.
    pub flops_per_s: u64,
    /// Bytes per second from device memory.
    pub memory_bytes_per_s: u64,
    /// Bytes per second to and from host memory, each way.
    pub link_bytes_per_s: u64,
    /// Fixed time of one transfer over the link.
    pub transfer_ns: u64,
    /// Transfers that one block takes: 1 where blocks are staged or contiguous, 2 × layers in the
    /// paper's layout (section 7.3).
    pub transfers_per_block: u64,
    /// Fixed time of a step: scheduling, launch, sampling.
    pub step_ns: u64,
    /// Time per row of a step.
    pub row_ns: u64,
}

/// How long things take on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostModel {
    /// What the model asks.
    pub work: Work,
    /// What the device gives.
    pub rates: Rates,
}

/// The work of one step, added up row by row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepLoad {
    /// Rows.
    pub rows: u64,
    /// Query tokens of all rows.
    pub tokens: u64,
    /// Rows (or draws) that need logits.
    pub sampled: u64,
    /// Bytes of keys and values read.
    pub kv_bytes: u64,
    /// Operations of attention.
    pub attention_flops: u128,
    /// Bytes copied on the device (copy-on-write, snapshots).
    pub copied_bytes: u64,
    /// Bytes and blocks swapped, out and in.
    pub swapped_bytes: u64,
    /// Blocks swapped, out and in.
    pub swapped_blocks: u64,
}

fn nanos(work: u128, per_s: u64) -> u64 {
    let t = (work * NANOS).div_ceil(u128::from(per_s.max(1)));
    u64::try_from(t).unwrap_or(u64::MAX)
}

impl Work {
    /// The work of one rank that holds a `1 / tp` share of every layer.
    ///
    /// Linear layers: 2 operations per parameter that a token passes (routed experts: the `top_k`
    /// of them). Attention: 2 per key element and 2 per value element and pair.
    ///
    /// # Errors
    /// [`SizeOverflow`] for absurd shapes.
    pub fn new(spec: &ModelSpec, geometry: &PoolGeometry, tp: u64) -> Result<Self, SizeOverflow> {
        let tp = tp.max(1);
        let mut active = 0_u64;
        let mut head = 0_u64;
        let mut weight_bytes = 0_u64;
        for t in &spec.tensors {
            if matches!(t.role, Role::Mtp | Role::Encoder | Role::Position) {
                continue;
            }
            let embedding = t.role == Role::Embedding;
            if !embedding {
                weight_bytes = weight_bytes
                    .checked_add(t.bytes()?.get())
                    .ok_or(SizeOverflow)?;
            }
            let Some(l) = t.linear else { continue };
            let one = l.out.checked_mul(l.inp).ok_or(SizeOverflow)?;
            let layer = t.layer.and_then(|i| spec.layers.get(i as usize));
            let passed = match (t.experts, layer.map(|l| l.ffn)) {
                (Some(_), Some(Ffn::Moe(m))) => m.top_k.min(t.copies()),
                _ => t.copies(),
            };
            let all = one.checked_mul(passed).ok_or(SizeOverflow)?;
            match t.role {
                Role::Head => head = head.checked_add(all).ok_or(SizeOverflow)?,
                Role::Embedding => {}
                _ => active = active.checked_add(all).ok_or(SizeOverflow)?,
            }
        }
        if spec.tied_embeddings {
            head = spec.vocab.checked_mul(spec.hidden).ok_or(SizeOverflow)?;
            weight_bytes = weight_bytes
                .checked_add(spec.dtype.bytes(head)?.get())
                .ok_or(SizeOverflow)?;
        }
        let mut attention: Vec<AttentionWork> = Vec::new();
        for group in &geometry.groups {
            let reach = match group.kind {
                GroupKind::Full | GroupKind::Latent => None,
                GroupKind::Window(n) | GroupKind::Chunk(n) => Some(n),
                GroupKind::State => continue,
            };
            attention.push(AttentionWork {
                reach,
                token_bytes: group.rate.times(group.layers)?.get(),
                pair_flops: 0,
            });
        }
        for layer in &spec.layers {
            let (reach, flops) = match layer.mixer {
                Mixer::Attention(a) => {
                    let reach = match a.reach {
                        Reach::Full => None,
                        Reach::Window(n) | Reach::Chunk(n) => Some(n),
                    };
                    (reach, a.q_heads.saturating_mul(2 * (a.k_dim + a.v_dim)))
                }
                Mixer::Latent(a) => (
                    None,
                    a.q_heads.saturating_mul(2 * (a.rank + a.rope_dim + a.rank)),
                ),
                Mixer::State(_) | Mixer::None => continue,
            };
            if let Some(w) = attention.iter_mut().find(|w| w.reach == reach) {
                w.pair_flops = w.pair_flops.saturating_add(flops / tp);
            }
        }
        Ok(Self {
            weight_bytes: weight_bytes / tp,
            token_flops: active.checked_mul(2).ok_or(SizeOverflow)? / tp,
            head_flops: head.checked_mul(2).ok_or(SizeOverflow)? / tp,
            attention,
        })
    }
}

impl Rates {
    /// Rates that a device of the catalogue reaches; `None` where it prints no rates.
    ///
    /// Shares of the datasheet that served models reach: 55 % of dense 16-bit operations, 80 % of
    /// memory bandwidth. The link is PCIe at 16 lanes, generation 4, 25 GB/s of its 31.5.
    /// Assumptions, named as such in every report that uses them; a measured profile replaces them.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are positive and below 2^60"
    )]
    pub fn of(device: &Device) -> Option<Self> {
        let dense = device
            .dense_flops
            .iter()
            .filter(|(k, _)| k == "bf16" || k == "f16")
            .map(|(_, f)| *f)
            .fold(0.0, f64::max);
        let bandwidth = device.bandwidth?;
        (dense > 0.0).then_some(Self {
            flops_per_s: (dense * 0.55) as u64,
            memory_bytes_per_s: (bandwidth * 0.80) as u64,
            link_bytes_per_s: 25_000_000_000,
            transfer_ns: 10_000,
            transfers_per_block: 1,
            step_ns: 2_000_000,
            row_ns: 5_000,
        })
    }
}

impl CostModel {
    /// Adds a row of `query` tokens that starts after `context` tokens; `draws` samples at its end.
    pub fn add_row(&self, load: &mut StepLoad, context: u64, query: u64, draws: u64) {
        load.rows += 1;
        load.tokens += query;
        load.sampled += draws;
        for a in &self.work.attention {
            let end = context + query;
            let reach = a.reach.unwrap_or(u64::MAX);
            // Each chunk reads what its first query sees and everything after it, once.
            let read = end.min(reach.saturating_add(query));
            load.kv_bytes = load
                .kv_bytes
                .saturating_add(read.saturating_mul(a.token_bytes));
            load.attention_flops += pairs(context, query, reach) * u128::from(a.pair_flops);
        }
    }

    /// How long a step takes. Parts follow one another, as a Step lists them.
    #[must_use]
    pub fn step(&self, load: &StepLoad) -> Nanos {
        let r = &self.rates;
        let mut t = r.step_ns.saturating_add(load.rows.saturating_mul(r.row_ns));
        t = t.saturating_add(
            self.swap(Bytes::new(load.swapped_bytes), load.swapped_blocks)
                .0,
        );
        // A copy on the device reads and writes.
        t = t.saturating_add(nanos(
            2 * u128::from(load.copied_bytes),
            r.memory_bytes_per_s,
        ));
        if load.tokens > 0 {
            let flops = u128::from(load.tokens) * u128::from(self.work.token_flops)
                + u128::from(load.sampled) * u128::from(self.work.head_flops);
            let linear = nanos(flops, r.flops_per_s).max(nanos(
                u128::from(self.work.weight_bytes),
                r.memory_bytes_per_s,
            ));
            t = t.saturating_add(linear);
            t = t.saturating_add(nanos(u128::from(load.kv_bytes), r.memory_bytes_per_s));
            t = t.saturating_add(nanos(load.attention_flops, r.flops_per_s));
        }
        Nanos(t)
    }

    /// What `step` asks for; its blocks have `page` bytes.
    #[must_use]
    pub fn load(&self, step: &Step, page: Bytes) -> StepLoad {
        let moved = (step.kv.swaps_out.len() + step.kv.swaps_in.len()) as u64;
        let mut load = StepLoad {
            copied_bytes: page.get().saturating_mul(step.kv.copies.len() as u64),
            swapped_bytes: page.get().saturating_mul(moved),
            swapped_blocks: moved,
            ..StepLoad::default()
        };
        for r in &step.rows {
            let n = u64::from(r.tokens.end - r.tokens.start);
            let draws = match r.output {
                Output::None => 0,
                Output::Sample { .. } | Output::Candidates { .. } => 1,
            };
            self.add_row(&mut load, u64::from(r.start), n, draws);
        }
        load
    }

    /// The operations of a step, without what it waits for.
    #[must_use]
    pub fn computing(&self, load: &StepLoad) -> Nanos {
        let flops = u128::from(load.tokens) * u128::from(self.work.token_flops)
            + u128::from(load.sampled) * u128::from(self.work.head_flops);
        let linear = nanos(flops, self.rates.flops_per_s);
        let attention = nanos(load.attention_flops, self.rates.flops_per_s);
        Nanos(linear.saturating_add(attention))
    }

    /// Streaming the weights once.
    #[must_use]
    pub fn streaming(&self) -> Nanos {
        let bytes = u128::from(self.work.weight_bytes);
        Nanos(nanos(bytes, self.rates.memory_bytes_per_s))
    }

    /// Moving `blocks` blocks of `bytes` in all over the link, one way.
    #[must_use]
    pub fn swap(&self, bytes: Bytes, blocks: u64) -> Nanos {
        let r = &self.rates;
        let fixed = blocks
            .saturating_mul(r.transfers_per_block)
            .saturating_mul(r.transfer_ns);
        Nanos(fixed.saturating_add(nanos(u128::from(bytes.get()), r.link_bytes_per_s)))
    }

    /// What the rows of `load`, cut into chunks, add to steps in which `beside` rows decode and which have
    /// room for `chunk` tokens.
    ///
    /// A step takes the larger of streaming the weights and computing, so while few rows decode, computing
    /// some hundred tokens more takes no time at all (on an H100 and 16 GB of weights: some 200 tokens a
    /// step). What waits beside them for the same gap is not known here: the true price lies between this
    /// and [`CostModel::recompute`].
    #[must_use]
    pub fn added(&self, load: &StepLoad, beside: u64, chunk: u64) -> Nanos {
        let r = &self.rates;
        let steps = load.tokens.div_ceil(chunk.saturating_sub(beside).max(1));
        let stream = nanos(
            u128::from(steps) * u128::from(self.work.weight_bytes),
            r.memory_bytes_per_s,
        );
        let compute = |tokens: u128| {
            let flops = tokens.saturating_mul(u128::from(self.work.token_flops));
            nanos(flops, r.flops_per_s)
        };
        let decode = u128::from(steps) * u128::from(beside);
        let with = stream.max(compute(decode + u128::from(load.tokens)));
        let linear = with.saturating_sub(stream.max(compute(decode)));
        let read = nanos(u128::from(load.kv_bytes), r.memory_bytes_per_s);
        let attention = nanos(load.attention_flops, r.flops_per_s);
        Nanos(linear.saturating_add(read).saturating_add(attention))
    }

    /// Computing tokens `from..to` of a sequence again: its share of steps that run anyway.
    #[must_use]
    pub fn recompute(&self, from: u64, to: u64) -> Nanos {
        let mut load = StepLoad::default();
        self.add_row(&mut load, from, to.saturating_sub(from), 0);
        let flops =
            u128::from(load.tokens) * u128::from(self.work.token_flops) + load.attention_flops;
        Nanos(nanos(flops, self.rates.flops_per_s).saturating_add(nanos(
            u128::from(load.kv_bytes),
            self.rates.memory_bytes_per_s,
        )))
    }
}

/// Pairs of query and context tokens: query `i` of `query` sees `context + i + 1` tokens, at most
/// `reach` of them.
fn pairs(context: u64, query: u64, reach: u64) -> u128 {
    let (c, q, w) = (u128::from(context), u128::from(query), u128::from(reach));
    // Queries before `full` see fewer than `reach` tokens.
    let full = w.saturating_sub(c).min(q);
    full * c + full * (full + 1) / 2 + (q - full) * w
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_free_until_the_weights_are_there() {
        let cost = CostModel {
            work: Work {
                weight_bytes: 1000,
                token_flops: 10,
                head_flops: 0,
                attention: Vec::new(),
            },
            // Weights take 1000 ns, a token 10 ns.
            rates: Rates {
                flops_per_s: 1_000_000_000,
                memory_bytes_per_s: 1_000_000_000,
                link_bytes_per_s: 1,
                transfer_ns: 0,
                transfers_per_block: 1,
                step_ns: 0,
                row_ns: 0,
            },
        };
        let added = |tokens, beside, chunk| {
            let mut load = StepLoad::default();
            cost.add_row(&mut load, 0, tokens, 0);
            cost.added(&load, beside, chunk).0
        };
        assert_eq!(added(60, 40, 2048), 0);
        assert_eq!(added(61, 40, 2048), 10);
        assert_eq!(added(300, 100, 2048), 3000);
        // Each of two steps has a gap of 60 tokens.
        assert_eq!(added(200, 40, 140), 800);
        // No room beside those that decode.
        assert_eq!(added(2, 40, 40), 0);
        assert_eq!(added(0, 40, 2048), 0);
        // Never more than the whole.
        for (tokens, beside) in [(1, 0), (50, 70), (500, 3), (5000, 99)] {
            assert!(added(tokens, beside, 256) <= cost.recompute(0, tokens).0);
        }
    }

    #[test]
    fn pairs_count_the_causal_triangle() {
        let slow = |c: u64, q: u64, w: u64| -> u128 {
            (0..q).map(|i| u128::from((c + i + 1).min(w))).sum()
        };
        for c in 0..20 {
            for q in 0..20 {
                for w in [1, 2, 7, 16, 1000] {
                    assert_eq!(pairs(c, q, w), slow(c, q, w), "{c} {q} {w}");
                }
            }
        }
    }
}
