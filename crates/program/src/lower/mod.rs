//! [`lower`]: a model as a [`Program`].
//!
//! One decoder (`decoder.rs`) serves every family; what differs is in the model's [`Arithmetic`], in its inventory
//! (biases), and in the names of its tensors (`names.rs`). Promises: every tensor that a model computes with is
//! used, or lowering fails; sizes are checked; buffers that are alive together never overlap.

mod build;
mod decoder;
mod latent;
mod names;
mod place;
mod quantised;
mod rope;
mod state;

use plimsoll_model::quant::QuantScheme;
use plimsoll_model::{Arithmetic, ModelSpec, NotRunnable, Role, ShardError, TensorSpec, quant};
use plimsoll_units::{SizeOverflow, Weights};

use crate::parallel::{Parallel, Rank};
use crate::pool::{KvRules, PoolGeometry};
use crate::program::Program;
use build::Builder;
use names::Names;

/// What a program is sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// T: query tokens of a step.
    pub tokens: u64,
    /// R: rows of a step whose logits are wanted.
    pub outputs: u64,
    /// The longest sequence. LongRoPE takes its divisors for long contexts where this exceeds the context first
    /// trained: by the request, as transformers does, logits would depend on who is served.
    pub context: u64,
    /// What matrices are kept as; those that choose experts are always bfloat16.
    pub weights: Weights,
}

/// Why a model does not lower.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// Its family has no lowering.
    #[error("{family} models can be planned but not run yet")]
    NotYet {
        /// The family.
        family: &'static str,
    },
    /// It has something that no lowering handles.
    #[error("this {family} model cannot be run: {what}")]
    Unsupported {
        /// The family.
        family: &'static str,
        /// What it has.
        what: String,
    },
    /// A tensor is missing, or has a shape that does not fit.
    #[error("the model's tensors do not fit its config: {0}")]
    Tensor(String),
    /// It runs, but not on several ranks like these.
    #[error("this model cannot be divided so: {0}")]
    Divided(String),
    /// Heads do not fit.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A size left 64 bits.
    #[error("the model is too large to lower: {0}")]
    Size(#[from] SizeOverflow),
}

/// Whether the layout that a checkpoint's weights are stored in can be read.
#[must_use]
pub fn is_read(spec: &ModelSpec) -> bool {
    let scheme = spec.quant.as_ref();
    scheme.is_none_or(|scheme| quantised::check(scheme).is_ok())
}

/// `spec` as one device carries it out, with the pool's geometry under the same rules as in a plan.
///
/// # Errors
/// [`LowerError`].
pub fn lower(spec: &ModelSpec, limits: &Limits, rules: &KvRules) -> Result<Program, LowerError> {
    lower_rank(spec, Rank::ALONE, limits, rules)
}

/// The part of `spec` that one rank carries out: heads, inner columns of feed-forwards and rows of the vocabulary are
/// shared, and what they give is added up or put together over all ranks. All ranks have the same buffers, weights of
/// the same sizes at the same places, and the same geometry.
///
/// # Errors
/// [`LowerError`].
pub fn lower_rank(
    spec: &ModelSpec,
    rank: Rank,
    limits: &Limits,
    rules: &KvRules,
) -> Result<Program, LowerError> {
    let family = spec.family;
    let unsupported = |what: String| LowerError::Unsupported { family, what };
    let arithmetic: &Arithmetic = match &spec.arithmetic {
        Ok(a) => a,
        Err(NotRunnable::Family) => return Err(LowerError::NotYet { family }),
        Err(NotRunnable::Config(e)) => return Err(unsupported(e.to_string())),
    };
    if let Some(scheme) = &spec.quant {
        quantised::check(scheme).map_err(unsupported)?;
    }
    // Scales that no matrix is known to have.
    let stray = |t: &&TensorSpec| t.role == Role::Other && quant::is_auxiliary(&t.name);
    let mut strays = spec.tensors.iter().filter(stray);
    if let Some(t) = strays.find(|t| !quantised::is_unread(&t.name)) {
        return Err(unsupported(format!(
            "`{}` belongs to a quantised matrix, and the config does not say how it is stored",
            t.name
        )));
    }
    let tensors = Inventory::new(spec);
    let Some(names) = Names::of(spec, &tensors) else {
        return Err(LowerError::NotYet { family });
    };
    let parallel = Parallel {
        tp: rank.of,
        ..Parallel::default()
    };
    let stages = parallel.stages(spec.layers.len() as u64);
    let stage = stages.first().ok_or(LowerError::NotYet { family })?;
    let geometry = PoolGeometry::new(spec, &parallel, stage, rules)?;
    let mut b = Builder::new(&tensors, limits, rank);
    let logits = decoder::decoder(&mut b, spec, arithmetic, &names, &geometry, rules)?;
    b.finish(spec, geometry, rules, logits)
}

/// The tensors that a decoder computes with, by layer.
struct Inventory<'a> {
    layers: Vec<Vec<&'a TensorSpec>>,
    outside: Vec<&'a TensorSpec>,
    quant: Option<&'a QuantScheme>,
}

impl<'a> Inventory<'a> {
    fn new(spec: &'a ModelSpec) -> Self {
        let mut all = Self {
            layers: vec![Vec::new(); spec.layers.len()],
            outside: Vec::new(),
            quant: spec.quant.as_ref(),
        };
        for t in &spec.tensors {
            let none = matches!(t.role, Role::Encoder | Role::Mtp | Role::Other);
            // A head that is stored beside the table it is tied to is not read.
            let unread = spec.quant.is_some() && quantised::is_unread(&t.name);
            if none || unread || (t.role == Role::Head && spec.tied_embeddings) {
                continue;
            }
            match t.layer.map(|l| all.layers.get_mut(l as usize)) {
                Some(Some(layer)) => layer.push(t),
                Some(None) => {}
                None => all.outside.push(t),
            }
        }
        all
    }

    /// The tensor whose name is `name` or ends with it, in a layer or outside.
    fn find(&self, layer: Option<usize>, name: &str) -> Option<&'a TensorSpec> {
        let list = match layer {
            Some(i) => self.layers.get(i)?,
            None => &self.outside,
        };
        let named = |t: &&&TensorSpec| {
            t.name
                .strip_suffix(name)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        list.iter().find(named).copied()
    }

    fn all(&self) -> impl Iterator<Item = &'a TensorSpec> {
        self.layers.iter().flatten().chain(&self.outside).copied()
    }
}
