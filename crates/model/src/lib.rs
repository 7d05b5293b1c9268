//! What a model is, as far as memory and serving are concerned.
//!
//! Reads a Hugging Face `config.json`, safetensors headers, a GGUF header or the built-in
//! catalogue into one [`ModelSpec`]: layers with their attention or state kind, and the
//! inventory of stored tensors. Promises:
//!
//! - pure: bytes and JSON values in, values out; it opens no file and no socket;
//! - an architecture it does not know is refused, naming the missing fact, never guessed;
//! - nothing depends on a model's name: two configs that differ only there give equal specs;
//! - every size is checked; a hostile config gives an error, not a panic or a wrapped number.
//!
//! It does not know engines, devices or what is allocated: that is `plimsoll-program` (our own
//! layouts) and `plimsoll-plan` (everybody else's).

mod arithmetic;
mod builder;
pub mod catalogue;
mod config;
mod error;
pub mod families;
pub mod gguf;
pub mod json;
pub mod quant;
pub mod read_at;
pub mod safetensors;
mod spec;
mod tensor;
mod tower;

pub use arithmetic::{
    Activation, Arithmetic, ClampedSwiglu, ExpertGroups, Norm, NotRunnable, Positions, Residual,
    Rope, RopeScaling, Router, RouterScore,
};
pub use builder::SpecBuilder;
pub use builder::{Conv1dSplit, attention_layer, columns, heads};
pub use config::Config;
pub use error::ModelError;
pub use spec::{
    Attention, Compressed, CrossAttention, Encoder, Ffn, Indexer, LatentAttention, LayerSpec,
    Mixer, ModelSpec, Moe, Reach, Rotary, StateKind, StateSpace,
};
pub use tensor::{Axis, Linear, Role, Shard, ShardError, TensorSpec, local_kv_heads};

/// How far the caller lets us go where a config does not say what we need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assume {
    /// Refuse what is unknown.
    #[default]
    Nothing,
    /// Take an unknown architecture for a LLaMA-like dense decoder: grouped-query attention in
    /// every layer over the full context, and a gated MLP.
    Gqa,
}

/// Reads a parsed `config.json`.
///
/// # Errors
/// [`ModelError`] names the field at fault, or the missing fact of an unknown architecture.
pub fn from_config(json: &serde_json::Value, assume: Assume) -> Result<ModelSpec, ModelError> {
    let config = Config::root(json)?;
    let family = families::find(&config, assume)?;
    let mut builder = SpecBuilder::new(&config, family.name)?;
    if assume == Assume::Gqa && families::find(&config, Assume::Nothing).is_err() {
        builder.spec().notes.push(
            "the architecture is unknown and taken for a LLaMA-like decoder, as asked; a vision or \
             audio tower is not counted"
                .to_owned(),
        );
    }
    (family.lower)(&config, &mut builder)?;
    builder.finish(&config)
}
