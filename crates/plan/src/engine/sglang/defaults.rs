//! What an unset flag means, by release and card: chunk of a prefill, largest captured batch, and from both the
//! share of memory for weights and cache.
//!
//! Source: SGLang `srt/server_args.py` (`__post_init__`, from 0.5.3 on `_handle_gpu_memory_settings`), from 0.5.19 on
//! `srt/arg_groups/memory_hook.py`. Checked against these functions themselves (`tools/oracles/sglang_memory.py`).

use plimsoll_model::Mixer;

use super::super::{Context, Version};
use super::sparse;

/// Settings with every default filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// `--mem-fraction-static`: share of what is free before loading that weights and cache may take.
    pub fraction: f64,
    /// `--chunked-prefill-size`.
    pub chunk: u64,
    /// `--cuda-graph-max-bs`, where the release has a default for it.
    pub graph_batch: Option<u64>,
    /// `--page-size`.
    pub page: u64,
}

/// The share follows from the reserve's parts from here on; before, from a table.
const BY_PARTS: Version = v(0, 5, 3);
/// The reserve's table by card; before, shares by number of ranks.
const BY_CARD: Version = v(0, 4, 8);
/// Large cards have a larger share.
const LARGE_CARDS: Version = v(0, 4, 6);
/// A tenth less for a multimodal model; before, a twentieth.
const LESS_FOR_IMAGES: Version = v(0, 4, 5);
/// The largest cards have rules of their own.
const LARGEST_CARDS: Version = v(0, 4, 7);
/// The vision tower's size matters.
const BY_TOWER: Version = v(0, 4, 9);
/// Prefill is captured too.
const PREFILL_GRAPHS: Version = v(0, 5, 10);
/// Nothing is reserved for graphs that are off.
const NO_GRAPHS: Version = v(0, 5, 15);
/// 24 to 32 GB cards take longer chunks and larger batches: in 0.5.20, not in 0.5.18.
const LONGER_CHUNKS: Version = v(0, 5, 20);
/// The number of requests bounds the captured batch: in 0.5.23, not in 0.5.20.
const GRAPHS_BY_REQUESTS: Version = v(0, 5, 23);

const fn v(major: u32, minor: u32, patch: u32) -> Version {
    Version {
        major,
        minor,
        patch,
    }
}

/// What the rules look at.
struct Facts<'a> {
    context: &'a Context<'a>,
    version: Version,
    /// The card as `nvidia-smi` prints it, MiB.
    card: u64,
    tp: u64,
    ranks: u64,
    latent: bool,
}

const GIB: u64 = 1024;

impl Defaults {
    /// Whether a release's default share depends on the card (before 0.4.8 only on cards above 96 GB).
    #[must_use]
    pub fn depend_on_card(version: Version) -> bool {
        version >= BY_CARD
    }

    /// Fills in what the flags leave open, on this card.
    #[must_use]
    pub fn new(context: &Context<'_>, version: Version) -> Self {
        let p = &context.deployment.parallel;
        let f = Facts {
            context,
            version,
            card: context.deployment.device.driver_total.get() >> 20,
            tp: p.tp,
            ranks: p.tp.saturating_mul(p.pp),
            latent: context
                .spec
                .layers
                .iter()
                .any(|l| matches!(l.mixer, Mixer::Latent(_))),
        };
        let settings = context.settings;
        let chunk = settings.max_num_batched_tokens.unwrap_or_else(|| f.chunk());
        let graph_batch = f.graph_batch();
        let fraction = settings
            .gpu_memory_utilization
            .unwrap_or_else(|| f.fraction(chunk, graph_batch));
        Self {
            // A multimodal model's share is cut whoever chose it, until the cut became part of the default.
            fraction: if version < BY_TOWER {
                fraction * f.multimodal()
            } else {
                fraction
            },
            chunk,
            graph_batch,
            page: sparse::page(context, version)
                .unwrap_or_else(|| settings.block_size.unwrap_or(1).max(1)),
        }
    }
}

impl Facts<'_> {
    fn chunk(&self) -> u64 {
        let card = self.card;
        if self.version < BY_CARD {
            return match card {
                0..25_000 => 2048,
                180_001.. if self.version >= LARGEST_CARDS => 16_384,
                _ => 8192,
            };
        }
        if self.version < BY_PARTS {
            return match card {
                n if n < 35 * GIB => 2048,
                n if n < 160 * GIB => 8192,
                _ => 16_384,
            };
        }
        match card {
            n if n < 20 * GIB => 2048,
            n if n < 35 * GIB && self.version < LONGER_CHUNKS => 2048,
            n if n < 60 * GIB => 4096,
            n if n < 160 * GIB => 8192,
            _ => 16_384,
        }
    }

    fn graph_batch(&self) -> Option<u64> {
        if let Some(given) = self.context.settings.graph_batch {
            return Some(given);
        }
        let few = self.tp < 4;
        let by = |few_ranks: u64, many: u64| Some(if few { few_ranks } else { many });
        if self.version < BY_PARTS {
            let small = if self.version < BY_CARD {
                self.card < 25_000
            } else {
                self.card < 35 * GIB
            };
            return match small {
                true => by(8, 80),
                false if self.version < LARGE_CARDS => Some(160),
                false => None,
            };
        }
        let batch = match self.card {
            n if n < 20 * GIB => Some(8),
            n if n < 35 * GIB && self.version >= LONGER_CHUNKS => by(48, 160),
            n if n < 35 * GIB && self.version < v(0, 5, 4) => by(16, 80),
            n if n < 35 * GIB => by(24, 80),
            n if n < 60 * GIB => by(32, 160),
            n if n < 160 * GIB => by(256, 512),
            _ => Some(512),
        };
        match self.context.settings.max_num_seqs {
            Some(requests) if self.version >= GRAPHS_BY_REQUESTS => batch.map(|b| b.min(requests)),
            _ => batch,
        }
    }

    fn fraction(&self, chunk: u64, graph_batch: Option<u64>) -> f64 {
        let card = to_f64(self.card.max(1));
        if self.version < BY_CARD {
            return self.fraction_by_ranks(card);
        }
        let reserved = if self.version < BY_PARTS {
            self.reserved_by_card()
        } else {
            self.reserved_by_parts(chunk, graph_batch.unwrap_or(0))
        };
        let share = three_decimals((card - reserved) / card);
        if self.version < BY_TOWER {
            share
        } else {
            share * self.multimodal()
        }
    }

    /// Up to 0.4.7: from the number of ranks, more of a large card.
    fn fraction_by_ranks(&self, card: f64) -> f64 {
        let ranks = if self.version < LARGE_CARDS {
            self.tp
        } else {
            self.ranks
        };
        let by_ranks = match ranks {
            16.. => 0.79,
            8.. => 0.81,
            4.. => 0.85,
            2.. => 0.87,
            _ => 0.88,
        };
        if self.version < LARGE_CARDS {
            return by_ranks;
        }
        let share = if self.card <= 80 * GIB {
            by_ranks
        } else {
            0.88
        };
        let very_large = self.card > 180_000 && self.version >= LARGEST_CARDS;
        if very_large {
            0.79
        } else if self.card > 96 * GIB {
            let more = share + to_f64(48 * GIB) * (1.0 - share) / card;
            more.min((card - to_f64(18 * GIB)) / card)
        } else {
            share
        }
    }

    /// 0.4.8 to 0.5.2, MiB.
    fn reserved_by_card(&self) -> f64 {
        let ranks = to_f64(self.ranks);
        let gib = match self.card {
            n if n < 35 * GIB => 2.8 + ranks / 10.0,
            n if n < 90 * GIB => 9.5 + ranks / 2.0,
            n if n < 160 * GIB => 12.0 + ranks / 2.0,
            _ => 32.0,
        };
        gib * to_f64(GIB)
    }

    /// From 0.5.3 on: a constant, activations of a prefill's chunk, ranks, graphs; MiB.
    fn reserved_by_parts(&self, chunk: u64, graph_batch: u64) -> f64 {
        let off = self.context.settings.enforce_eager;
        let mut reserved =
            512.0 + to_f64(chunk.max(2048)) * 1.5 + to_f64(self.ranks) / 8.0 * to_f64(GIB);
        if !(off && self.version >= NO_GRAPHS) {
            reserved += to_f64(graph_batch) * 2.0;
        }
        // Not with pipeline stages or images: capture of prefill is off there.
        let pp = self.context.deployment.parallel.pp > 1;
        let prefill = !off && !pp && self.context.spec.encoder.is_none();
        if prefill && self.version >= PREFILL_GRAPHS {
            reserved += if self.latent {
                1.5 * to_f64(GIB)
            } else {
                8.0 * to_f64(prefill_sizes(chunk))
            };
        }
        if self.card > 60 * GIB {
            reserved = reserved.max(to_f64(10 * GIB));
        }
        reserved
    }

    /// What is left of the share for a model with a vision tower; less for a larger tower from 0.4.9 on.
    fn multimodal(&self) -> f64 {
        let Some(tower) = self.context.spec.encoder else {
            return 1.0;
        };
        if self.version < LESS_FOR_IMAGES {
            return 0.95;
        }
        if self.version < BY_TOWER {
            return 0.9;
        }
        // Relative to ViT-L/14: 24 layers of 1024.
        let size = to_f64(tower.layers) * to_f64(tower.hidden).powi(2);
        let grown = size / (24.0 * 1024.0_f64.powi(2));
        0.95 * (1.0 - 0.1 * (grown - 1.0)).clamp(0.8, 1.05)
    }
}

/// How many sizes of a prefill are captured up to `chunk` tokens.
fn prefill_sizes(chunk: u64) -> u64 {
    // First, last and step of each run of sizes.
    [
        (4, 32, 4),
        (48, 256, 16),
        (288, 512, 32),
        (576, 1024, 64),
        (1280, 4096, 256),
        (4608, u64::MAX, 512),
    ]
    .iter()
    .map(|&(first, last, step)| {
        let end = chunk.min(last);
        if end < first {
            0
        } else {
            (end - first) / step + 1
        }
    })
    .sum()
}

/// Rounded as Python rounds: by the number's exact decimal form.
fn three_decimals(x: f64) -> f64 {
    format!("{x:.3}").parse().unwrap_or(x)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "MiB of a card and flags; SGLang computes them so too"
)]
const fn to_f64(n: u64) -> f64 {
    n as f64
}
