//! [`Program`]: a model lowered to operations over named buffers and packed weights.
//!
//! The planner sums it, the runtime walks it, kernels carry its operations out. Buffers hold f32, one row of
//! `width` elements for each token of a step ([`Rows::Tokens`]), for each of its experts ([`Rows::Routes`]) or for each
//! row whose logits are wanted ([`Rows::Outputs`]). Weights say where their elements come from in the checkpoint and how they lie here.

use std::sync::Arc;

use plimsoll_model::Role;
use plimsoll_units::{Bytes, DType, SizeOverflow, WeightType};

use crate::parallel::Rank;
use crate::pool::PoolGeometry;
use crate::quantised::Quantised;

/// A buffer, by its place in [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u16);

/// A weight, by its place in [`Program::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(pub u32);

/// What a buffer has a row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Each query token of the step: at most T.
    Tokens,
    /// Each query token of the step with each of so many experts that it takes: as many times T.
    Routes(u64),
    /// Each row whose logits are wanted: at most R.
    Outputs,
}

impl Rows {
    /// How many there are at most, for T and R.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn most(self, [tokens, outputs]: [u64; 2]) -> Result<u64, SizeOverflow> {
        match self {
            Self::Tokens => Ok(tokens),
            Self::Routes(experts) => tokens.checked_mul(experts).ok_or(SizeOverflow),
            Self::Outputs => Ok(outputs),
        }
    }
}

/// A buffer of f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What it holds.
    pub name: &'static str,
    /// What it has a row for.
    pub rows: Rows,
    /// Elements of a row.
    pub width: u64,
    /// Where it begins in the arena of activations, for the T and R that the program was lowered for. Buffers
    /// that are never alive together may overlap.
    pub offset: Bytes,
}

/// How a weight lies in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// A matrix of `n` output rows and `k` columns in panels of 32 rows (`plimsoll-kernels`, linear).
    Packed {
        /// What elements are kept as.
        form: WeightType,
        /// Output rows.
        n: u64,
        /// Columns.
        k: u64,
    },
    /// `n` f32 in a row: norms and biases, and small tables.
    F32 {
        /// Elements.
        n: u64,
    },
}

/// Where some output rows (or elements) of a weight come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The stored tensor.
    pub tensor: String,
    /// The rows of it that are taken, in order; elements for a vector.
    pub rows: std::ops::Range<u64>,
    /// Set where it is stored with inputs first (GPT-2): rows are then its columns.
    pub transposed: bool,
    /// Where only some of its inputs are taken, the first; there are as many as the weight has columns.
    pub input: Option<u64>,
    /// Where it is quantised, what its elements come of; the stored tensor is that of the codes.
    pub quantised: Option<Arc<Quantised>>,
    /// Added to every element (norms whose gain is stored as 1 + w).
    pub plus: i8,
}

/// A weight in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// What it is: `layers.3.qkv`.
    pub name: String,
    /// What it counts as in a plan.
    pub role: Role,
    /// How it lies.
    pub layout: WeightLayout,
    /// Its parts, one below the other.
    pub sources: Vec<Source>,
    /// Rows below them that nobody reads: where a vocabulary does not divide, so that all ranks are alike.
    pub padding: u64,
    /// Where it begins in the arena of weights: a multiple of 64.
    pub offset: Bytes,
}

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// x / sqrt(mean(x²) + eps).
    Rms {
        /// Added to the mean.
        eps: f32,
    },
    /// (x − mean) / sqrt(variance + eps).
    Layer {
        /// Added to the variance.
        eps: f32,
    },
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationKind {
    /// x / (1 + e^−x).
    Silu,
    /// x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
    /// x (1 + erf(x / sqrt(2))) / 2.
    Gelu,
    /// max(x, 0).
    Relu,
    /// 1 / (1 + e^−x).
    Sigmoid,
}

/// Angles of a rotary embedding, made once in a step for all layers that share it: `width` cosines, then
/// `width` sines, for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    /// Where they go: `2 × frequencies` elements.
    pub out: BufferId,
    /// Angle per position of each pair of elements, after scaling, as f32 (models multiply in f32).
    pub frequencies: Vec<f32>,
    /// What each of them is divided by at load, where the file has such a tensor (GGUF).
    pub divisors: Option<WeightId>,
    /// What cosines and sines are multiplied by (YaRN's attention factor); 1 for most.
    pub scale: f32,
}

/// Attention of one layer over its paged keys and values. The keys and values of the step's tokens are
/// written first, in the cache's type, and read back from there.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOp {
    /// Queries: `q_heads × k_dim`.
    pub q: BufferId,
    /// Keys: `kv_heads × k_dim`.
    pub k: BufferId,
    /// Values: `kv_heads × v_dim`.
    pub v: BufferId,
    /// First element of the queries, keys and values in a row of their buffers (they may be one buffer).
    pub at: [u64; 3],
    /// Result: `q_heads × v_dim`.
    pub out: BufferId,
    /// Query heads.
    pub q_heads: u64,
    /// KV heads.
    pub kv_heads: u64,
    /// Elements of a key head.
    pub k_dim: u64,
    /// Elements of a value head.
    pub v_dim: u64,
    /// The layer group in [`PoolGeometry::groups`], whose kind says how far queries see.
    pub group: u64,
    /// The layer's place in its group.
    pub index: u64,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores s become c · tanh(s / c).
    pub softcap: Option<f32>,
    /// One logit per query head that takes part in the softmax and has no value.
    pub sinks: Option<WeightId>,
}

/// Attention of one layer over latents, one per token, which all query heads share (MLA). Query heads were taken to the
/// latents' space before, and their results are latents still. Latents and shared keys of the step's tokens are
/// written first, in the cache's type, and read back from there.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentOp {
    /// Queries in the latents' space: `heads × rank`.
    pub q: BufferId,
    /// Rotated parts of queries: `heads × rope_dim`.
    pub q_rope: BufferId,
    /// Latents, then shared rotated keys: `rank + rope_dim`.
    pub latent: BufferId,
    /// Result: `heads × rank`.
    pub out: BufferId,
    /// Query heads.
    pub heads: u64,
    /// Elements of a latent.
    pub rank: u64,
    /// Elements of the shared rotated key.
    pub rope_dim: u64,
    /// The layer group in [`PoolGeometry::groups`].
    pub group: u64,
    /// The layer's place in its group.
    pub index: u64,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// Experts in groups: a token takes `taken` groups of `count`, those whose `best` best experts count most together,
/// and experts of these only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many there are, of as many experts each.
    pub count: u64,
    /// How many a token takes.
    pub taken: u64,
    /// How many of its experts a group is judged by.
    pub best: u64,
}

/// Where a layer keeps a part of its recurrent state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatePlace {
    /// The layer group in [`PoolGeometry::groups`]: one of states.
    pub group: u64,
    /// The part's first element, in f32, in what the group keeps of a sequence, page after page.
    pub from: u64,
}

/// Each channel's convolution with its own past: `out = bias + Σ weight · x` over a token and those before it, the
/// oldest first; before the first one there are zeros.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvolveOp {
    /// Inputs.
    pub x: BufferId,
    /// First channel in a row of the inputs.
    pub from: u64,
    /// Result: as wide as there are channels.
    pub out: BufferId,
    /// Tokens that a sum goes over.
    pub taps: u64,
    /// `taps` for each channel.
    pub weight: WeightId,
    /// One for each channel.
    pub bias: Option<WeightId>,
    /// The last `taps − 1` inputs of all channels, oldest first.
    pub state: StatePlace,
}

/// A selective state space, token by token. Of each head's state `h`, `rows × cols`, with the head's step and what it
/// keeps: `h = keep · h + step · x Bᵀ`, and `out = h C + skip · x`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanOp {
    /// `x` of all heads, then B of all groups, then C.
    pub x: BufferId,
    /// What [`Op::Steps`] wrote.
    pub steps: BufferId,
    /// One for each head.
    pub skip: WeightId,
    /// Result: `heads × rows`.
    pub out: BufferId,
    /// Heads.
    pub heads: u64,
    /// Elements of a head.
    pub rows: u64,
    /// Elements of B and C.
    pub cols: u64,
    /// Groups of neighbouring heads that share B and C.
    pub groups: u64,
    /// `heads × rows × cols`; the kernel orders them.
    pub state: StatePlace,
}

/// One operation. Buffers may be read and written by the same operation only where it says so.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Rows of a table, one per token, times `scale`; zeros for a token whose row is another rank's.
    Embed {
        /// The table, packed.
        table: WeightId,
        /// The token of its first row.
        from: u64,
        /// Where they go.
        out: BufferId,
        /// What they are multiplied by.
        scale: f32,
    },
    /// Adds rows of a table, one per token's position + `offset`.
    AddPosition {
        /// The table, packed.
        table: WeightId,
        /// What they are added to.
        x: BufferId,
        /// Added to positions (OPT's 2).
        offset: u64,
    },
    /// Cosines and sines of the tokens' positions.
    Rotary(RotaryTable),
    /// Normalises rows, or each head of `head` elements by itself; `out` may be `x`.
    Norm {
        /// How.
        kind: NormKind,
        /// Gains.
        weight: Option<WeightId>,
        /// Added after.
        bias: Option<WeightId>,
        /// Input.
        x: BufferId,
        /// Result.
        out: BufferId,
        /// Elements `from..from + heads * head` of each row are normalised, `head` at a time with the same
        /// gains; the whole row is one head where it is as wide.
        from: u64,
        /// How many.
        heads: u64,
        /// Elements of one.
        head: u64,
    },
    /// `out = x Wᵀ + bias`, or `out += x Wᵀ` where `add` is set (then without bias).
    Linear {
        /// The matrix, packed.
        weight: WeightId,
        /// Added to each output.
        bias: Option<WeightId>,
        /// Input.
        x: BufferId,
        /// Result.
        out: BufferId,
        /// Whether it is added to what lies there.
        add: bool,
    },
    /// Turns the first `2 × frequencies` elements of each of `heads` heads by a table's angles, in place.
    Rotate {
        /// The angles.
        table: BufferId,
        /// What is turned.
        x: BufferId,
        /// First element of the first head in a row.
        from: u64,
        /// How many heads.
        heads: u64,
        /// Elements of one.
        head: u64,
        /// Pairs are neighbours (GPT-J), not half a rotation apart.
        interleaved: bool,
    },
    /// Attention.
    Attention(AttentionOp),
    /// Attention over latents.
    Latent(LatentOp),
    /// `out = x Wᵀ`, each of a row's heads with a matrix of its own.
    Heads {
        /// Their matrices, packed and of one size.
        weights: Vec<WeightId>,
        /// Input: the heads' elements one after the other.
        x: BufferId,
        /// Result: likewise.
        out: BufferId,
    },
    /// `out = f(gate) · up`: `x` holds `width` gates, then `width` ups; or `out = f(x)` where not gated.
    Activate {
        /// The function.
        kind: ActivationKind,
        /// Input.
        x: BufferId,
        /// Result.
        out: BufferId,
        /// Whether `x` holds gates and ups.
        gated: bool,
    },
    /// `out = (u + 1) · g · sigmoid(alpha · g)`: `x` has pairs of a gate g, at most `limit`, and an u, between −`limit` and
    /// `limit`.
    ClampedSwiglu {
        /// Input.
        x: BufferId,
        /// Result.
        out: BufferId,
        /// The limit.
        limit: f32,
        /// What the sigmoid's argument is multiplied by.
        alpha: f32,
    },
    /// `out = f(gate) · x`.
    Gate {
        /// The function.
        kind: ActivationKind,
        /// Gates.
        gate: BufferId,
        /// The first gate's place in its row.
        from: u64,
        /// What they multiply.
        x: BufferId,
        /// Result.
        out: BufferId,
    },
    /// Convolution.
    Convolve(ConvolveOp),
    /// What each head of a selective state space does with a token: its step ln(1 + e^(x + bias)), kept between
    /// `limits`; after the steps of all heads what each keeps of its state, e^(−step · e^decay).
    Steps {
        /// One number for each head.
        x: BufferId,
        /// The first one's place in its row.
        from: u64,
        /// One for each head.
        bias: WeightId,
        /// One for each head.
        decay: WeightId,
        /// The smallest step and the largest.
        limits: [f32; 2],
        /// Result: twice as wide as there are heads.
        out: BufferId,
    },
    /// A selective state space.
    Scan(ScanOp),
    /// `out += x · scale`.
    Add {
        /// What is added.
        x: BufferId,
        /// To what.
        out: BufferId,
        /// What it is multiplied by first.
        scale: f32,
    },
    /// The experts that each token takes: those of the largest logits, or of the largest scores and biases together,
    /// of equal ones the first.
    Route {
        /// A logit for each expert.
        logits: BufferId,
        /// Twice as wide as a token takes experts: their numbers, ascending, then their weights.
        out: BufferId,
        /// Whether weights are shares of the scores of the experts that are taken, not the scores themselves.
        renormalise: bool,
        /// Scores are 1 / (1 + e^−x), not the softmax.
        sigmoid: bool,
        /// Added to scores for the choice.
        bias: Option<WeightId>,
        /// The groups that a token is limited to.
        groups: Option<ExpertGroups>,
    },
    /// `out = x Wᵀ + bias`, each row of `out` with the matrix and the bias of its expert.
    Experts {
        /// Their matrices, packed and of one size.
        weights: Vec<WeightId>,
        /// Their biases, one after the other.
        biases: Option<WeightId>,
        /// Which expert each row has: what [`Op::Route`] wrote.
        routes: BufferId,
        /// Input: a row for each token, or one for each of its experts.
        x: BufferId,
        /// Result: a row for each expert of each token.
        out: BufferId,
    },
    /// `out += scale · Σ weight · x` over the rows of `x` that a row of `out` has, in their order, or `out =` where
    /// `add` is not set.
    AddWeighted {
        /// What is added.
        x: BufferId,
        /// A row for each row of `out`, with a weight for each of its rows of `x`.
        weights: BufferId,
        /// The first weight's place in its row.
        from: u64,
        /// To what.
        out: BufferId,
        /// What the sum is multiplied by first.
        scale: f32,
        /// Whether it is added to what lies there.
        add: bool,
    },
    /// `x` becomes the sum of what all ranks have there: that of the first and the second, and so on in their order.
    AllReduce {
        /// What is added up, in place.
        x: BufferId,
    },
    /// Each row of `out` is that of the first rank's `x`, then that of the second, and so on, as far as `out` is wide.
    AllGather {
        /// This rank's part.
        x: BufferId,
        /// Result.
        out: BufferId,
    },
    /// The rows whose logits are wanted: from a buffer of tokens to a buffer of outputs.
    Gather {
        /// Input.
        x: BufferId,
        /// Result.
        out: BufferId,
    },
    /// Logits s become c · tanh(s / c) · scale, in place; without a cap s · scale.
    Cap {
        /// What is capped.
        x: BufferId,
        /// The cap.
        cap: Option<f32>,
        /// What they are multiplied by after.
        scale: f32,
    },
}

/// A model lowered for one rank, for T tokens and R rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// What is carried out, in order.
    pub ops: Vec<Op>,
    /// Where each operation quantises its input, if it does: a buffer that is alive during that operation alone.
    pub scratch: Vec<Option<BufferId>>,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena of activations.
    pub activation_bytes: Bytes,
    /// Weights.
    pub weights: Vec<Weight>,
    /// Bytes of the arena of weights.
    pub weight_bytes: Bytes,
    /// Logits: a buffer of outputs, `vocab` wide.
    pub logits: BufferId,
    /// The pool.
    pub geometry: PoolGeometry,
    /// Type of cached keys and values.
    pub kv_dtype: DType,
    /// Rows of the vocabulary.
    pub vocab: u64,
    /// T.
    pub tokens: u64,
    /// R.
    pub outputs: u64,
    /// Whose it is.
    pub rank: Rank,
}

impl WeightLayout {
    /// Bytes that it takes.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes(&self) -> Result<Bytes, SizeOverflow> {
        match *self {
            Self::Packed { form, n, k } => form.bytes(n, k),
            Self::F32 { n } => Bytes::product([n, 4]),
        }
    }
}

impl Op {
    /// The buffers that it reads, and the one that it writes. One that is read as well keeps what it held: it is
    /// changed in place, or in part.
    #[must_use]
    pub fn buffers(&self) -> (Vec<BufferId>, BufferId) {
        match self {
            Self::Embed { out, .. } => (vec![], *out),
            Self::Rotary(table) => (vec![], table.out),
            Self::AddPosition { x, .. } | Self::Cap { x, .. } => (vec![*x], *x),
            Self::Norm { x, out, .. } | Self::Activate { x, out, .. } | Self::Gather { x, out } => {
                (vec![*x], *out)
            }
            Self::Linear { x, out, add, .. } if *add => (vec![*x, *out], *out),
            Self::Linear { x, out, .. } => (vec![*x], *out),
            Self::Rotate { table, x, .. } => (vec![*table, *x], *x),
            Self::Attention(a) => (vec![a.q, a.k, a.v], a.out),
            Self::Latent(a) => (vec![a.q, a.q_rope, a.latent], a.out),
            Self::Heads { x, out, .. } | Self::ClampedSwiglu { x, out, .. } => (vec![*x], *out),
            Self::Gate { gate, x, out, .. } => (vec![*gate, *x], *out),
            Self::Convolve(c) => (vec![c.x], c.out),
            Self::Steps { x, out, .. } => (vec![*x], *out),
            Self::Scan(s) => (vec![s.x, s.steps], s.out),
            Self::Add { x, out, .. } => (vec![*x, *out], *out),
            Self::Route { logits, out, .. } => (vec![*logits], *out),
            Self::Experts { routes, x, out, .. } => (vec![*routes, *x], *out),
            Self::AddWeighted {
                x,
                weights,
                out,
                add,
                ..
            } => {
                let kept = add.then_some(*out);
                ([*x, *weights].into_iter().chain(kept).collect(), *out)
            }
            Self::AllReduce { x } => (vec![*x], *x),
            Self::AllGather { x, out } => (vec![*x], *out),
        }
    }
}

impl Program {
    /// Where the head's operations begin, those over rows whose logits are wanted. What they read stays until the last
    /// of them, so they can be carried out several times.
    #[must_use]
    pub fn head(&self) -> usize {
        let head = self
            .ops
            .iter()
            .position(|op| matches!(op, Op::Gather { .. }));
        head.unwrap_or(self.ops.len())
    }

    /// A buffer.
    #[must_use]
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[usize::from(id.0)]
    }

    /// What its matrices are kept as, each once.
    #[must_use]
    pub fn forms(&self) -> Vec<WeightType> {
        let mut forms = Vec::new();
        for weight in &self.weights {
            if let WeightLayout::Packed { form, .. } = weight.layout
                && !forms.contains(&form)
            {
                forms.push(form);
            }
        }
        forms
    }

    /// Bytes of the arena of weights by role, in report order, what lies between them counted to the one before; roles
    /// with nothing are left out.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes_by_role(&self) -> Result<Vec<(Role, Bytes)>, SizeOverflow> {
        let ends = self.weights.iter().skip(1).map(|w| w.offset);
        let ends = ends.chain([self.weight_bytes]);
        let mut rows: Vec<(Role, Bytes)> = Role::ALL.iter().map(|&r| (r, Bytes::ZERO)).collect();
        for (weight, end) in self.weights.iter().zip(ends) {
            if let Some((_, bytes)) = rows.iter_mut().find(|(r, _)| *r == weight.role) {
                *bytes = bytes.add(end.saturating_sub(weight.offset))?;
            }
        }
        rows.retain(|(_, bytes)| *bytes > Bytes::ZERO);
        Ok(rows)
    }

    /// Bytes of weights that a step of one token reads: every matrix and vector that it is multiplied with, and
    /// of experts those that it takes.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn read_by_one_token(&self) -> Result<Bytes, SizeOverflow> {
        let of = |id: WeightId| self.weight(id).layout.bytes();
        let mut all = Bytes::ZERO;
        for op in &self.ops {
            match op {
                Op::Linear { weight, bias, .. } => {
                    all = all.add(of(*weight)?)?;
                    if let Some(bias) = bias {
                        all = all.add(of(*bias)?)?;
                    }
                }
                Op::Heads { weights, .. } => {
                    for &head in weights {
                        all = all.add(of(head)?)?;
                    }
                }
                Op::Experts { weights, out, .. } => {
                    let taken = self.buffer(*out).rows.most([1, 1])?;
                    if let Some(&one) = weights.first() {
                        all = all.add(of(one)?.times(taken)?)?;
                    }
                }
                _ => {}
            }
        }
        Ok(all)
    }

    /// Bytes of the largest weight, and what lies between it and the next one.
    #[must_use]
    pub fn largest_weight(&self) -> Bytes {
        let ends = self.weights.iter().skip(1).map(|w| w.offset);
        let ends = ends.chain([self.weight_bytes]);
        let sizes = self.weights.iter().zip(ends);
        let sizes = sizes.map(|(w, end)| end.saturating_sub(w.offset));
        sizes.max().unwrap_or(Bytes::ZERO)
    }

    /// A weight.
    #[must_use]
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0 as usize]
    }
}
