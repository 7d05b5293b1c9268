//! [`TensorSpec`]: one stored tensor, what it is for and how it splits over ranks.

use std::fmt;

use plimsoll_units::{Bytes, DType, SizeOverflow};

/// What a tensor is for: the rows of the weight table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Token embedding table.
    Embedding,
    /// Learned position embeddings.
    Position,
    /// Projections and biases of attention, latent attention included.
    Attention,
    /// Projections, convolutions and decay terms of a recurrent or linear-attention layer.
    State,
    /// Dense feed-forward.
    Mlp,
    /// Expert choice.
    Router,
    /// Routed experts.
    Experts,
    /// Experts that every token passes.
    SharedExperts,
    /// Normalisation gains and biases.
    Norm,
    /// Output head (absent where tied to the embedding).
    Head,
    /// Vision or audio tower with its projector.
    Encoder,
    /// Multi-token-prediction layers.
    Mtp,
    /// A tensor found in a header that the family does not name.
    Other,
}

impl Role {
    /// Every role, in the order of a report.
    pub const ALL: &'static [Self] = &[
        Self::Embedding,
        Self::Position,
        Self::Attention,
        Self::State,
        Self::Mlp,
        Self::Router,
        Self::Experts,
        Self::SharedExperts,
        Self::Norm,
        Self::Head,
        Self::Encoder,
        Self::Mtp,
        Self::Other,
    ];

    /// The name in reports and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Position => "position",
            Self::Attention => "attention",
            Self::State => "state",
            Self::Mlp => "mlp",
            Self::Router => "router",
            Self::Experts => "experts",
            Self::SharedExperts => "shared_experts",
            Self::Norm => "norm",
            Self::Head => "head",
            Self::Encoder => "encoder",
            Self::Mtp => "mtp",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a tensor is divided among tensor-parallel ranks.
///
/// Sources: Megatron-LM (Shoeybi et al., 2019) for column and row splits; vLLM
/// `model_executor/layers/linear.py` for the replication of KV heads and
/// `vocab_parallel_embedding.py` for the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shard {
    /// A full copy on every rank.
    Replicated,
    /// `units` equal parts (heads, columns or rows), dealt out evenly; the degree must divide them.
    Split {
        /// Number of parts.
        units: u64,
        /// What a part is, for error messages: `"attention heads"`, `"MLP columns"`.
        what: &'static str,
    },
    /// KV heads: dealt out where the degree divides them, replicated where it exceeds them.
    KvHeads {
        /// Number of KV heads.
        heads: u64,
    },
    /// A fused projection of `q` query units and 2 × `kv` key and value units of equal size.
    Qkv {
        /// Query units; 2 × heads where the query projection carries a gate.
        q: u64,
        /// KV heads.
        kv: u64,
    },
    /// Rows of a state's heads, dealt out evenly, fused with those of the groups that heads share (Mamba 2's B and C),
    /// of which every rank holds those of its heads.
    StateGroups {
        /// Heads, over which `rows` are dealt out.
        heads: u64,
        /// Rows of all heads together.
        rows: u64,
        /// Groups.
        groups: u64,
        /// Rows of one group.
        each: u64,
    },
    /// Rows of the vocabulary, padded as the engine pads before the split.
    Vocab {
        /// Rows as stored.
        rows: u64,
    },
}

/// Why a tensor cannot be split over a tensor-parallel degree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The parts do not divide.
    #[error("{units} {what} cannot be split over TP {degree}: {degree} does not divide {units}")]
    NotDivisible {
        /// Number of parts.
        units: u64,
        /// What a part is.
        what: &'static str,
        /// The tensor-parallel degree.
        degree: u64,
    },
    /// Neither number divides the other.
    #[error("{heads} KV heads cannot be split over TP {degree}: neither divides the other")]
    KvHeads {
        /// Number of KV heads.
        heads: u64,
        /// The tensor-parallel degree.
        degree: u64,
    },
    /// A size left 64 bits.
    #[error(transparent)]
    Size(#[from] SizeOverflow),
}

/// KV heads that one rank holds: `max(1, heads / degree)`.
///
/// # Errors
/// [`ShardError::KvHeads`] unless one of the two divides the other.
pub fn local_kv_heads(heads: u64, degree: u64) -> Result<u64, ShardError> {
    if heads == 0 || degree == 0 || (!heads.is_multiple_of(degree) && !degree.is_multiple_of(heads))
    {
        return Err(ShardError::KvHeads { heads, degree });
    }
    Ok((heads / degree).max(1))
}

impl Shard {
    /// Elements of a tensor of `elements` that one of `degree` ranks holds, where the vocabulary
    /// is padded to `padded_vocab` rows.
    ///
    /// # Errors
    /// [`ShardError`] where the degree is not legal.
    pub fn local_elements(
        self,
        elements: u64,
        degree: u64,
        padded_vocab: impl Fn(u64) -> u64,
    ) -> Result<u64, ShardError> {
        let part = |units: u64| elements / units.max(1);
        let times = |a: u64, b: u64| a.checked_mul(b).ok_or(ShardError::Size(SizeOverflow));
        match self {
            Self::Replicated => Ok(elements),
            Self::Split { units, what } => {
                if degree == 0 || !units.is_multiple_of(degree) {
                    return Err(ShardError::NotDivisible {
                        units,
                        what,
                        degree,
                    });
                }
                Ok(elements / degree)
            }
            Self::KvHeads { heads } => times(part(heads), local_kv_heads(heads, degree)?),
            Self::Qkv { q, kv } => {
                if degree == 0 || !q.is_multiple_of(degree) {
                    return Err(ShardError::NotDivisible {
                        units: q,
                        what: "attention heads",
                        degree,
                    });
                }
                let local = q / degree + 2 * local_kv_heads(kv, degree)?;
                times(part(q + 2 * kv), local)
            }
            Self::StateGroups {
                heads,
                rows,
                groups,
                each,
            } => {
                if degree == 0 || !heads.is_multiple_of(degree) {
                    return Err(ShardError::NotDivisible {
                        units: heads,
                        what: "state heads",
                        degree,
                    });
                }
                let all = times(groups, each)?
                    .checked_add(rows)
                    .ok_or(ShardError::Size(SizeOverflow))?;
                // A rank has at least one group.
                let local = rows / degree + times(groups.div_ceil(degree), each)?;
                times(part(all), local)
            }
            Self::Vocab { rows } => {
                let padded = padded_vocab(rows);
                times(part(rows), padded.div_ceil(degree.max(1)))
            }
        }
    }
}

/// Which features of a linear layer a tensor-parallel split divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Outputs: column-parallel in Megatron's words.
    Out,
    /// Inputs: row-parallel.
    In,
}

/// The matrix that a tensor is the weight of, where it is one that formats quantise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Output features.
    pub out: u64,
    /// Input features.
    pub inp: u64,
    /// What a split divides.
    pub axis: Axis,
}

/// One stored tensor, or `copies` of them with equal shape (the experts of a layer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the checkpoint. Where `experts` is set, `{e}` stands for the expert's number; a
    /// name without it is one tensor that holds all experts along a leading dimension.
    pub name: String,
    /// The shape of one copy as stored: without the experts' dimension.
    pub shape: Vec<u64>,
    /// The type as stored.
    pub dtype: DType,
    /// What it is for.
    pub role: Role,
    /// The decoder layer that it belongs to.
    pub layer: Option<u32>,
    /// How it splits.
    pub shard: Shard,
    /// The number of experts that each have one of these; `None` outside routed experts.
    pub experts: Option<u64>,
    /// Set for the weight matrix of a linear layer.
    pub linear: Option<Linear>,
}

impl TensorSpec {
    /// Elements of one copy.
    ///
    /// # Errors
    /// [`SizeOverflow`] where the product of the shape leaves 64 bits.
    pub fn elements(&self) -> Result<u64, SizeOverflow> {
        Bytes::product(self.shape.iter().copied()).map(Bytes::get)
    }

    /// How many copies there are: the number of experts, or 1.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.experts.unwrap_or(1)
    }

    /// The tensors in the checkpoint that this stands for, with their names and shapes.
    pub fn stored(&self) -> impl Iterator<Item = (String, Vec<u64>)> + '_ {
        let numbered = self.name.contains("{e}");
        let leading = self.experts.filter(|_| !numbered);
        let files = if numbered { self.copies() } else { 1 };
        (0..files).map(move |e| {
            let name = if numbered {
                self.name.replace("{e}", &e.to_string())
            } else {
                self.name.clone()
            };
            (
                name,
                leading
                    .into_iter()
                    .chain(self.shape.iter().copied())
                    .collect(),
            )
        })
    }

    /// Bytes of all copies as stored.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes(&self) -> Result<Bytes, SizeOverflow> {
        self.row_bytes(self.elements()?)?.times(self.copies())
    }

    /// Bytes of `elements` elements in this tensor's type.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn row_bytes(&self, elements: u64) -> Result<Bytes, SizeOverflow> {
        self.dtype.bytes(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(s: Shard, elements: u64, degree: u64) -> Result<u64, ShardError> {
        s.local_elements(elements, degree, |v| v.next_multiple_of(64))
    }

    #[test]
    fn kv_heads_replicate_above_their_number() {
        let kv = Shard::KvHeads { heads: 8 };
        assert_eq!(local(kv, 8 * 128, 4), Ok(2 * 128));
        assert_eq!(local(kv, 8 * 128, 16), Ok(128));
        assert!(matches!(
            local(kv, 8 * 128, 3),
            Err(ShardError::KvHeads { .. })
        ));
    }

    #[test]
    fn forty_heads_do_not_split_three_ways() {
        let q = Shard::Split {
            units: 40,
            what: "attention heads",
        };
        let err = local(q, 40 * 128, 3).unwrap_err();
        assert_eq!(
            err.to_string(),
            "40 attention heads cannot be split over TP 3: 3 does not divide 40"
        );
    }

    #[test]
    fn vocabulary_is_padded_before_the_split() {
        // 49,155 rows pad to 49,216: 24,608 per rank of two, not 24,578.
        assert_eq!(
            local(Shard::Vocab { rows: 49_155 }, 49_155 * 10, 2),
            Ok(24_608 * 10)
        );
    }
}
