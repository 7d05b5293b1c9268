//! Model families: one file each, found by the build script.
//!
//! A family file has a `FAMILY` constant, which says for which `architectures` and `model_type`
//! values it speaks, and a lowering, which reads the config and describes the model to a
//! [`SpecBuilder`]. It states every tensor of the checkpoint; nothing is inferred from a name.

use crate::Assume;
use crate::builder::SpecBuilder;
use crate::config::{Config, MAX_LAYERS, shorten};
use crate::error::ModelError;
use crate::spec::{Attention, Ffn, LayerSpec, Moe, Reach};

include!(concat!(env!("OUT_DIR"), "/families.rs"));

/// What a family file offers.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Short name, as in reports.
    pub name: &'static str,
    /// Values of `architectures[0]` that it reads.
    pub architectures: &'static [&'static str],
    /// Values of `model_type` that it reads, where no architecture is given.
    pub model_types: &'static [&'static str],
    /// Whether it knows the vision tower of its models; those of the others have none.
    pub towers: bool,
    /// Describes the model.
    pub lower: fn(&Config<'_>, &mut SpecBuilder) -> Result<(), ModelError>,
}

/// Fields under which wrappers keep a tower's config.
const TOWERS: &[&str] = &[
    "vision_config",
    "audio_config",
    "vision_tower_config",
    "mm_vision_tower",
];

/// The family of a config, by `architectures[0]` and, failing that, `model_type`.
///
/// A family without towers does not speak for a config that has one: the text model alone would
/// be a wrong answer that looks right.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], or [`ModelError::Missing`] where neither field is there.
pub(crate) fn find(config: &Config<'_>, assume: Assume) -> Result<Family, ModelError> {
    let architecture = config.architecture();
    let model_type = config.str("model_type");
    let tower = TOWERS.iter().find(|k| config.has(k));
    let wrapped = tower.is_some() || config.has("text_config");
    let speaks = |f: &&Family| f.towers || !wrapped;
    let by_architecture =
        architecture.and_then(|a| FAMILIES.iter().find(|f| f.architectures.contains(&a)));
    let by_type = model_type.and_then(|t| FAMILIES.iter().find(|f| f.model_types.contains(&t)));
    if let Some(family) = by_architecture.or(by_type).filter(speaks) {
        return Ok(*family);
    }
    if assume == Assume::Gqa {
        return Ok(llama::FAMILY);
    }
    if architecture.is_none() && model_type.is_none() {
        return Err(ModelError::Missing {
            field: config.path_of("model_type"),
            why: "neither `architectures` nor `model_type` says which architecture this is \
                  (`--assume gqa` takes it for a LLaMA-like decoder)",
        });
    }
    Err(ModelError::UnknownArchitecture {
        architecture: match (architecture, model_type) {
            (Some(a), Some(t)) => format!("{} (model_type {})", shorten(a), shorten(t)),
            (Some(a), None) => shorten(a),
            (None, t) => format!("with model_type {}", shorten(t.unwrap_or_default())),
        },
        missing: if wrapped {
            format!(
                "the tensors of its vision or audio tower and projector (`{}`) are not in a config, only in \
                 the architecture's code",
                tower.copied().unwrap_or("text_config")
            )
        } else {
            "which layers keep keys and values, windows or states is not in a config, only in the \
             architecture's code"
                .to_owned()
        },
    })
}

/// Describes the text model that a wrapper nests in `text_config`, by that config's own
/// `model_type`, or `default` where it has none. A wrapper inside a wrapper is refused.
pub(crate) fn nested(
    config: &Config<'_>,
    b: &mut SpecBuilder,
    default: Family,
) -> Result<(), ModelError> {
    if !["text_config", "language_config", "llm_config"]
        .iter()
        .any(|k| config.has(k))
    {
        return Err(ModelError::Missing {
            field: config.path_of("text_config"),
            why: "it describes the text model",
        });
    }
    let text = config.text()?;
    let family = if text.has("architectures") || text.has("model_type") {
        find(&text, Assume::Nothing)?
    } else {
        default
    };
    if family.towers {
        return Err(text.reject(
            "model_type",
            "expected a text model without a tower of its own",
        ));
    }
    (family.lower)(config, b)
}

/// The fields that most decoders share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder {
    pub(crate) hidden: u64,
    pub(crate) layers: u64,
    pub(crate) vocab: u64,
    pub(crate) q_heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
}

/// What transformers puts in place of fields that a config leaves out; `save_pretrained` of older
/// versions left out whatever equalled the class's default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defaults {
    /// Layers where their number follows from another field.
    pub(crate) layers: Option<u64>,
    pub(crate) vocab: Option<u64>,
    pub(crate) q_heads: Option<u64>,
    pub(crate) kv_heads: Option<u64>,
    pub(crate) head_dim: Option<u64>,
    pub(crate) max_context: Option<u64>,
}

/// Reads the shared fields under their usual names, and sets them on the spec.
pub(crate) fn decoder(text: &Config<'_>, b: &mut SpecBuilder) -> Result<Decoder, ModelError> {
    decoder_or(text, b, Defaults::default())
}

/// [`decoder`] for families whose class has defaults for what a config may leave out.
///
/// Head size: `head_dim` where given, never hidden / heads first (Qwen3, Gemma and Mistral-Nemo
/// break that). KV heads: the field where given; one per query head where it is `null`.
pub(crate) fn decoder_or(
    text: &Config<'_>,
    b: &mut SpecBuilder,
    or: Defaults,
) -> Result<Decoder, ModelError> {
    let stated = |keys: &[&str], why: &'static str, default: Option<u64>| match default {
        Some(n) => text.dim_or(keys, n),
        None => text.dim(keys, why),
    };
    let hidden = text.dim(
        &["hidden_size", "n_embd", "d_model"],
        "it is the width of every matrix",
    )?;
    let layer_keys = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
    let layers = match or.layers {
        Some(n) if !layer_keys.iter().any(|k| text.has(k)) => n.min(MAX_LAYERS),
        _ => text.layers(&layer_keys)?,
    };
    let vocab = stated(
        &["vocab_size"],
        "it sizes the embedding and the output head",
        or.vocab,
    )?;
    let q_heads = stated(
        &["num_attention_heads", "n_head", "n_heads"],
        "it decides head size and how far TP can split",
        or.q_heads,
    )?;
    let kv_keys = ["num_key_value_heads", "num_kv_heads", "n_head_kv"];
    let kv_default = match or.kv_heads {
        Some(n) if !kv_keys.iter().any(|k| text.is_null(k)) => n,
        _ => q_heads,
    };
    let kv_heads = text.dim_or(&kv_keys, kv_default)?;
    let head_dim = match or.head_dim {
        Some(n) if !text.has("head_dim") && !text.is_null("head_dim") => n,
        _ => head_dim(text, hidden, q_heads)?,
    };
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(text.reject(
            "num_key_value_heads",
            format!(
                "expected a divisor of the {q_heads} attention heads ({kv_heads} KV heads do not divide them)"
            ),
        ));
    }
    let spec = b.spec();
    spec.hidden = hidden;
    spec.vocab = vocab;
    spec.max_context = max_context(text)?.or(or.max_context);
    Ok(Decoder {
        hidden,
        layers,
        vocab,
        q_heads,
        kv_heads,
        head_dim,
    })
}

/// `head_dim` where given and not 0, else hidden / heads, which must then be whole.
pub(crate) fn head_dim(text: &Config<'_>, hidden: u64, q_heads: u64) -> Result<u64, ModelError> {
    match text.opt_any(&["head_dim", "hidden_size_per_head"])? {
        Some(n) if n > 0 => Ok(n),
        _ if hidden.is_multiple_of(q_heads) => Ok(hidden / q_heads),
        _ => Err(text.reject(
            "hidden_size",
            format!(
                "expected a multiple of the {q_heads} attention heads where `head_dim` is absent"
            ),
        )),
    }
}

/// The trained context, under the names in use.
pub(crate) fn max_context(text: &Config<'_>) -> Result<Option<u64>, ModelError> {
    text.opt_any(&[
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
    ])
}

impl Decoder {
    /// Attention of this decoder with the given reach.
    pub(crate) const fn attention(&self, reach: Reach) -> Attention {
        Attention {
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            k_dim: self.head_dim,
            v_dim: self.head_dim,
            reach,
            shared: false,
        }
    }
}

/// The tensors that most decoders share: `{prefix}embed_tokens`, those of `{prefix}layers.{i}`, which `each` names,
/// and `{prefix}norm`. The head is the caller's.
///
/// # Errors
/// Those of `each`.
pub(crate) fn stack(
    b: &mut SpecBuilder,
    prefix: &str,
    d: &Decoder,
    layers: impl IntoIterator<Item = LayerSpec>,
    each: impl Fn(&mut SpecBuilder, u64, &LayerSpec) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    b.embedding(&format!("{prefix}embed_tokens.weight"), d.vocab, d.hidden);
    for (i, layer) in (0..).zip(layers) {
        b.layer(&format!("{prefix}layers.{i}."), layer, |b| {
            each(b, i, &layer)
        })?;
    }
    b.norm(&format!("{prefix}norm"), d.hidden);
    Ok(())
}

/// The two norms of a layer, before its mixer and before its feed-forward, under LLaMA's names.
pub(crate) fn norms(b: &mut SpecBuilder, hidden: u64) {
    b.norm("input_layernorm", hidden);
    b.norm("post_attention_layernorm", hidden);
}

/// A dense feed-forward with a gate.
pub(crate) const fn gated(intermediate: u64) -> Ffn {
    Ffn::Dense {
        intermediate,
        gated: true,
    }
}

/// Sets whether the output head is tied, from the field or the family's default.
pub(crate) fn tie(
    config: &Config<'_>,
    text: &Config<'_>,
    b: &mut SpecBuilder,
    default: bool,
) -> Result<(), ModelError> {
    // A wrapper's own field wins over the nested one, as in transformers.
    let tied = if config.has("tie_word_embeddings") {
        config.flag("tie_word_embeddings", default)?
    } else {
        text.flag("tie_word_embeddings", default)?
    };
    b.spec().tied_embeddings = tied;
    Ok(())
}

/// What one entry of `layer_types` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerKind {
    Full,
    Window,
    Linear,
}

/// `layer_types`, where the config has it: one entry per layer.
pub(crate) fn layer_types(
    text: &Config<'_>,
    layers: u64,
) -> Result<Option<Vec<LayerKind>>, ModelError> {
    let Some(names) = text.strings("layer_types")? else {
        return Ok(None);
    };
    if u64::try_from(names.len()) != Ok(layers) {
        return Err(text.reject(
            "layer_types",
            format!(
                "expected one entry for each of the {layers} layers, found {}",
                names.len()
            ),
        ));
    }
    names
        .into_iter()
        .map(|name| match name {
            "full_attention" | "attention" => Ok(LayerKind::Full),
            "sliding_attention" => Ok(LayerKind::Window),
            "linear_attention" | "mamba" | "conv" => Ok(LayerKind::Linear),
            other => Err(text.reject(
                "layer_types",
                format!(
                    "`{}` is not full_attention, sliding_attention or linear_attention",
                    shorten(other)
                ),
            )),
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
}

/// The window: `sliding_window` where given, none where it is 0 or `null`, else the default.
pub(crate) fn window(text: &Config<'_>, default: Option<u64>) -> Result<Option<u64>, ModelError> {
    if text.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(text.opt("sliding_window")?.or(default).filter(|w| *w > 0))
}

/// The reach of every layer: by `layer_types` where given, else the window in those layers for
/// which `windowed` holds.
pub(crate) fn reaches(
    text: &Config<'_>,
    layers: u64,
    window: Option<u64>,
    windowed: impl Fn(u64) -> bool,
) -> Result<Vec<Reach>, ModelError> {
    let types = layer_types(text, layers)?;
    let Some(window) = window else {
        return Ok((0..layers).map(|_| Reach::Full).collect());
    };
    let reach = |yes: bool| {
        if yes {
            Reach::Window(window)
        } else {
            Reach::Full
        }
    };
    Ok(match types {
        Some(types) => types
            .iter()
            .map(|t| reach(*t == LayerKind::Window))
            .collect(),
        None => (0..layers).map(|i| reach(windowed(i))).collect(),
    })
}

/// The experts of Qwen's MoE models, and which layers have them.
#[derive(Clone, Debug)]
pub(crate) struct SparseLayers {
    pub(crate) moe: Moe,
    step: u64,
    dense: Vec<u64>,
}

impl SparseLayers {
    /// Reads `num_experts`, `decoder_sparse_step` and `mlp_only_layers`; `shared` is the inner size
    /// of the shared expert.
    pub(crate) fn read(text: &Config<'_>, shared: u64) -> Result<Self, ModelError> {
        Ok(Self {
            moe: moe(
                text,
                &["num_experts", "num_local_experts"],
                &["moe_intermediate_size"],
                shared,
            )?,
            step: text.dim_or(&["decoder_sparse_step"], 1)?,
            dense: text.numbers("mlp_only_layers")?.unwrap_or_default(),
        })
    }

    /// Whether layer `i` routes to experts.
    pub(crate) fn has(&self, i: u64) -> bool {
        !self.dense.contains(&i) && (i + 1).is_multiple_of(self.step)
    }

    /// `intermediate_size`, which some configs write as 0 where no layer is dense.
    pub(crate) fn dense_inner(
        &self,
        text: &Config<'_>,
        layers: u64,
        default: u64,
    ) -> Result<u64, ModelError> {
        let key = "intermediate_size";
        if (0..layers).all(|i| self.has(i)) {
            return Ok(text.opt(key)?.unwrap_or(default));
        }
        text.dim_or(&[key], default)
    }

    /// The feed-forward of layer `i`, where dense ones have inner size `dense`.
    pub(crate) fn ffn(&self, i: u64, dense: u64) -> Ffn {
        if self.has(i) {
            Ffn::Moe(self.moe)
        } else {
            Ffn::Dense {
                intermediate: dense,
                gated: true,
            }
        }
    }
}

/// Routed experts: their number, how many a token takes, and their inner size.
pub(crate) fn moe(
    text: &Config<'_>,
    experts: &[&'static str],
    intermediate: &[&'static str],
    shared: u64,
) -> Result<Moe, ModelError> {
    let count = text.dim(experts, "it is the number of routed experts")?;
    if count > MAX_EXPERTS {
        return Err(text.reject(
            experts
                .iter()
                .find(|k| text.has(k))
                .copied()
                .unwrap_or_default(),
            format!("expected at most {MAX_EXPERTS} experts"),
        ));
    }
    let top_k = text.dim(
        &[
            "num_experts_per_tok",
            "experts_per_token",
            "top_k_experts",
            "moe_top_k",
        ],
        "it is the number of experts that a token takes",
    )?;
    if top_k > count {
        return Err(text.reject(
            "num_experts_per_tok",
            format!("expected at most the {count} experts"),
        ));
    }
    Ok(Moe {
        experts: count,
        top_k,
        intermediate: text.dim(intermediate, "it sizes a routed expert")?,
        shared,
    })
}

/// Far above any model (512 in use); keeps an inventory that lists every expert small.
const MAX_EXPERTS: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_families_claim_one_name() {
        let mut names: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|f| f.architectures.iter().chain(f.model_types))
            .copied()
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
