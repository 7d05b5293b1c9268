//! How a model is divided: TP × PP × DP, experts over EP, and which layers a stage runs.

use std::fmt;
use std::ops::Range;

use plimsoll_model::{Ffn, ModelSpec, ShardError, local_kv_heads};

/// Degrees of parallelism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parallel {
    /// Tensor parallel: every matrix split.
    pub tp: u64,
    /// Pipeline parallel: layers in consecutive stages.
    pub pp: u64,
    /// Data parallel: whole replicas, each with its own share of the users.
    pub dp: u64,
    /// Whether routed experts are dealt out whole over the TP × DP ranks instead of being split.
    pub expert_parallel: bool,
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
            expert_parallel: false,
        }
    }
}

impl fmt::Display for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (name, n) in [("TP", self.tp), ("PP", self.pp), ("DP", self.dp)] {
            if n > 1 {
                parts.push(format!("{name}{n}"));
            }
        }
        if self.expert_parallel {
            parts.push(format!("EP{}", self.ep()));
        }
        if parts.is_empty() {
            parts.push("TP1".to_owned());
        }
        f.pad(&parts.join(" x "))
    }
}

/// One of the ranks that divide a model's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Which, from 0.
    pub index: u64,
    /// How many there are: the tensor-parallel degree.
    pub of: u64,
}

impl Rank {
    /// The only one.
    pub const ALONE: Self = Self { index: 0, of: 1 };

    /// All ranks of a degree.
    pub fn all(of: u64) -> impl Iterator<Item = Self> {
        (0..of).map(move |index| Self { index, of })
    }

    /// Its share of `units` equal parts.
    ///
    /// # Errors
    /// [`ShardError::NotDivisible`].
    pub fn share(self, units: u64, what: &'static str) -> Result<Range<u64>, ShardError> {
        if self.of == 0 || !units.is_multiple_of(self.of) {
            return Err(ShardError::NotDivisible {
                units,
                what,
                degree: self.of,
            });
        }
        let each = units / self.of;
        Ok(self.index * each..(self.index + 1) * each)
    }

    /// The KV heads that it holds: its share, or the one that its query heads read, where there are more ranks than
    /// heads.
    ///
    /// # Errors
    /// [`ShardError::KvHeads`].
    pub fn kv_heads(self, heads: u64) -> Result<Range<u64>, ShardError> {
        let each = local_kv_heads(heads, self.of)?;
        // Neighbouring ranks hold the same one where there are fewer heads than ranks.
        let first = self.index / (self.of / heads).max(1) * each;
        Ok(first..first + each)
    }

    /// Rows of a vocabulary that every rank has room for, and those that this one holds: the last ones may hold fewer.
    #[must_use]
    pub fn vocabulary(self, rows: u64) -> (u64, Range<u64>) {
        let each = rows.div_ceil(self.of.max(1));
        let at = |rank: u64| rank.saturating_mul(each).min(rows);
        (each, at(self.index)..at(self.index + 1))
    }
}

/// Why degrees are not legal for a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParallelError {
    /// A degree is zero or absurd.
    #[error("{name} {degree} is out of range: use 1 to {max}")]
    OutOfRange {
        /// Which degree.
        name: &'static str,
        /// As given.
        degree: u64,
        /// The largest accepted.
        max: u64,
    },
    /// More stages than layers.
    #[error("PP {pp} needs at least {pp} layers; the model has {layers}")]
    TooFewLayers {
        /// Stages.
        pp: u64,
        /// Layers.
        layers: u64,
    },
    /// Experts cannot be dealt out.
    #[error("expert parallelism needs routed experts; this model has none")]
    NoExperts,
    /// More ranks than experts.
    #[error("EP {ep} exceeds the {experts} routed experts")]
    TooFewExperts {
        /// Ranks.
        ep: u64,
        /// Routed experts.
        experts: u64,
    },
}

/// Largest accepted degree of one kind.
const MAX_DEGREE: u64 = 1024;

impl Parallel {
    /// Devices of the whole deployment.
    #[must_use]
    pub const fn devices(&self) -> u64 {
        self.tp.saturating_mul(self.pp).saturating_mul(self.dp)
    }

    /// Ranks over which whole experts are dealt out (1 without expert parallelism).
    #[must_use]
    pub const fn ep(&self) -> u64 {
        if self.expert_parallel {
            self.tp.saturating_mul(self.dp)
        } else {
            1
        }
    }

    /// Checks the degrees that do not depend on single tensors; those are checked as they split.
    ///
    /// # Errors
    /// [`ParallelError`].
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ParallelError> {
        for (name, degree) in [("TP", self.tp), ("PP", self.pp), ("DP", self.dp)] {
            if degree == 0 || degree > MAX_DEGREE {
                return Err(ParallelError::OutOfRange {
                    name,
                    degree,
                    max: MAX_DEGREE,
                });
            }
        }
        let layers = spec.layers.len() as u64;
        if self.pp > layers {
            return Err(ParallelError::TooFewLayers {
                pp: self.pp,
                layers,
            });
        }
        if self.expert_parallel {
            let experts = spec
                .layers
                .iter()
                .filter_map(|l| match l.ffn {
                    Ffn::Moe(m) => Some(m.experts),
                    Ffn::Dense { .. } | Ffn::None => None,
                })
                .min()
                .ok_or(ParallelError::NoExperts)?;
            if self.ep() > experts {
                return Err(ParallelError::TooFewExperts {
                    ep: self.ep(),
                    experts,
                });
            }
        }
        Ok(())
    }

    /// The stages, first to last.
    ///
    /// Layers are dealt out evenly; where they do not divide, the extra ones go one each to the
    /// stages before the last, from its left neighbour backwards, so that the stage with the
    /// output head gets none (vLLM `distributed/utils.py: get_pp_indices`).
    #[must_use]
    pub fn stages(&self, layers: u64) -> Vec<Stage> {
        let pp = self.pp.max(1);
        let base = layers / pp;
        let extra = layers % pp;
        let mut start = 0;
        (0..pp)
            .map(|i| {
                // Extra layers go to positions pp−2, pp−3, ..., never to the last stage.
                let more = u64::from(i + 1 < pp && i + 1 + extra >= pp);
                let end = start + base + more;
                let stage = Stage {
                    index: i,
                    count: pp,
                    layers: start..end,
                };
                start = end;
                stage
            })
            .collect()
    }
}

/// One pipeline stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its place, from 0.
    pub index: u64,
    /// Number of stages.
    pub count: u64,
    /// The decoder layers that it runs.
    pub layers: Range<u64>,
}

impl Stage {
    /// Whether it holds the embedding.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Whether it holds the final norm and the output head.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_heads_and_a_vocabulary() {
        let kv = |heads, of| -> Vec<Range<u64>> {
            Rank::all(of).map(|r| r.kv_heads(heads).unwrap()).collect()
        };
        assert_eq!(kv(8, 2), [0..4, 4..8]);
        assert_eq!(kv(2, 4), [0..1, 0..1, 1..2, 1..2]);
        assert_eq!(kv(1, 2), [0..1, 0..1]);
        let three = Rank { index: 1, of: 3 };
        assert!(three.kv_heads(2).is_err());
        assert!(three.share(8, "attention heads").is_err());
        assert_eq!(three.share(9, "attention heads"), Ok(3..6));
        let rows: Vec<_> = Rank::all(4).map(|r| r.vocabulary(5)).collect();
        assert_eq!(rows, [(2, 0..2), (2, 2..4), (2, 4..5), (2, 5..5)]);
        assert_eq!(Rank::ALONE.vocabulary(5), (5, 0..5));
    }

    #[test]
    fn stages_cover_all_layers_and_spare_the_last() {
        let split = |layers, pp| -> Vec<u64> {
            Parallel {
                pp,
                ..Parallel::default()
            }
            .stages(layers)
            .into_iter()
            .map(|s| s.layers.end - s.layers.start)
            .collect()
        };
        assert_eq!(split(40, 3), [13, 14, 13]);
        assert_eq!(split(61, 4), [15, 15, 16, 15]);
        assert_eq!(split(62, 4), [15, 16, 16, 15]);
        assert_eq!(split(7, 4), [2, 2, 2, 1]);
        assert_eq!(split(32, 1), [32]);
    }
}
