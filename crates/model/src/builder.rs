//! [`SpecBuilder`]: the vocabulary in which a family file describes a model.
//!
//! A family file says, in checkpoint order, which tensors there are and what each layer does; the
//! builder gives them types, layers, experts and, at the end, the checkpoint's quantisation.

use plimsoll_units::{Bytes, DType, SizeOverflow};

use crate::arithmetic::{Arithmetic, NotRunnable};
use crate::config::Config;
use crate::quant::{Pattern, QuantFormat, QuantScheme};
use crate::spec::{Attention, Encoder, Ffn, LayerSpec, Mixer, ModelSpec, Reach, Rotary};
use crate::tensor::{Axis, Linear, Role, Shard, TensorSpec};
use crate::{ModelError, quant};

/// Collects a [`ModelSpec`] while a family file describes it.
#[derive(Clone, Debug)]
pub struct SpecBuilder {
    spec: ModelSpec,
    prefix: String,
    layer: Option<u32>,
    experts: Option<u64>,
    /// Set while multi-token-prediction layers are described: whatever they hold counts as theirs.
    mtp: bool,
    rotary_share: f64,
    rotary_local: bool,
    /// Names of modules that have another format where linear layers are 8-bit floats in blocks.
    beside_blocks: Vec<(&'static str, QuantFormat)>,
}

const HEADS: &str = "attention heads";

impl SpecBuilder {
    /// A builder that knows only the type and the name.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where the config names no usable type.
    pub fn new(config: &Config<'_>, family: &'static str) -> Result<Self, ModelError> {
        let text = config.text()?;
        let stated = match config.dtype()? {
            Some(d) => Some(d),
            None => text.dtype()?,
        };
        let mut notes = Vec::new();
        if stated.is_none() {
            notes.push(
                "the config states no dtype: 16-bit weights are assumed, as engines load unstated ones"
                    .to_owned(),
            );
        }
        let spec = ModelSpec {
            architecture: config
                .architecture()
                .or_else(|| config.str("model_type"))
                .unwrap_or(family)
                .to_owned(),
            family,
            hidden: 0,
            vocab: 0,
            max_context: None,
            dtype: stated.unwrap_or(DType::F16),
            tied_embeddings: false,
            layers: Vec::new(),
            tensors: Vec::new(),
            quant: None,
            encoder: None,
            mtp_layers: 0,
            rotary: Vec::new(),
            final_softcap: false,
            arithmetic: Err(NotRunnable::Family),
            from_headers: false,
            notes,
        };
        Ok(Self {
            spec,
            prefix: String::new(),
            layer: None,
            experts: None,
            mtp: false,
            rotary_share: 1.0,
            rotary_local: false,
            beside_blocks: Vec::new(),
        })
    }

    /// The spec so far, to set the facts that are no tensors.
    pub fn spec(&mut self) -> &mut ModelSpec {
        &mut self.spec
    }

    /// Everything named inside `f` gets `prefix` before its name; prefixes nest.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn scope<T>(
        &mut self,
        prefix: &str,
        f: impl FnOnce(&mut Self) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let outer = self.prefix.len();
        self.prefix.push_str(prefix);
        let result = f(self);
        self.prefix.truncate(outer);
        result
    }

    /// Of what is described inside `f`, names that begin with `from` begin with `to`: wrappers keep a text model's
    /// tensors under other names than the model itself does.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn renamed(
        &mut self,
        [from, to]: [&str; 2],
        f: impl FnOnce(&mut Self) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let before = self.spec.tensors.len();
        f(self)?;
        for t in self.spec.tensors.iter_mut().skip(before) {
            if let Some(rest) = t.name.strip_prefix(from) {
                t.name = format!("{to}{rest}");
            }
        }
        Ok(())
    }

    /// Describes the next decoder layer; its tensors are those added inside `f`, under `prefix`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn layer(
        &mut self,
        prefix: &str,
        layer: LayerSpec,
        f: impl FnOnce(&mut Self) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let index = u32::try_from(self.spec.layers.len()).unwrap_or(u32::MAX);
        self.spec.layers.push(layer);
        self.layer = Some(index);
        let result = self.scope(prefix, f);
        self.layer = None;
        result
    }

    /// Every tensor added inside `f` exists once per expert; its name holds `{e}`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn experts(
        &mut self,
        count: u64,
        f: impl FnOnce(&mut Self) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        self.experts = Some(count);
        let result = f(self);
        self.experts = None;
        result
    }

    /// Every tensor added inside `f` belongs to the multi-token-prediction layers, whatever its own
    /// role would be: they are loaded only for speculative decoding.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn mtp(
        &mut self,
        prefix: &str,
        f: impl FnOnce(&mut Self) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        self.mtp = true;
        let result = self.scope(prefix, f);
        self.mtp = false;
        result
    }

    /// The share of a head that is rotated where the config does not say; 0 for a model without positions.
    pub fn rotary_share(&mut self, share: f64) {
        self.rotary_share = share;
    }

    /// Window layers have a rotary table of their own unless the config gives equal bases.
    pub fn rotary_local(&mut self) {
        self.rotary_local = true;
    }

    /// A tensor of any shape, in the model's type.
    pub fn tensor(&mut self, role: Role, name: &str, shape: &[u64], shard: Shard) {
        let dtype = self.spec.dtype;
        self.tensor_typed(role, name, shape, shard, dtype);
    }

    /// A tensor of any shape and type.
    pub fn tensor_typed(
        &mut self,
        role: Role,
        name: &str,
        shape: &[u64],
        shard: Shard,
        dtype: DType,
    ) {
        self.spec.tensors.push(TensorSpec {
            name: format!("{}{name}", self.prefix),
            shape: shape.to_vec(),
            dtype,
            role: if self.mtp { Role::Mtp } else { role },
            layer: self.layer,
            shard,
            experts: self.experts,
            linear: None,
        });
    }

    /// The weight `[out, inp]` of a linear layer, which formats may quantise.
    fn matrix(&mut self, role: Role, module: &str, [out, inp]: [u64; 2], axis: Axis, shard: Shard) {
        self.tensor(role, &format!("{module}.weight"), &[out, inp], shard);
        if let Some(t) = self.spec.tensors.last_mut() {
            t.linear = Some(Linear { out, inp, axis });
        }
    }

    /// The weight of a linear layer under a name and in a shape of its own, for what is not stored
    /// as `module.weight` in `[out, inp]`.
    pub fn matrix_as(
        &mut self,
        role: Role,
        name: &str,
        shape: &[u64],
        linear: Linear,
        shard: Shard,
    ) {
        self.tensor(role, name, shape, shard);
        if let Some(t) = self.spec.tensors.last_mut() {
            t.linear = Some(linear);
        }
    }

    /// A linear layer whose outputs are split (column-parallel): the bias splits with them.
    pub fn out_split(
        &mut self,
        role: Role,
        module: &str,
        [out, inp]: [u64; 2],
        bias: bool,
        shard: Shard,
    ) {
        self.matrix(role, module, [out, inp], Axis::Out, shard);
        if bias {
            self.tensor(role, &format!("{module}.bias"), &[out], shard);
        }
    }

    /// A linear layer whose inputs are split (row-parallel): every rank keeps the whole bias.
    pub fn in_split(
        &mut self,
        role: Role,
        module: &str,
        [out, inp]: [u64; 2],
        bias: bool,
        shard: Shard,
    ) {
        self.matrix(role, module, [out, inp], Axis::In, shard);
        if bias {
            self.tensor(role, &format!("{module}.bias"), &[out], Shard::Replicated);
        }
    }

    /// A linear layer of which every rank keeps all.
    pub fn whole(&mut self, role: Role, module: &str, [out, inp]: [u64; 2], bias: bool) {
        self.out_split(role, module, [out, inp], bias, Shard::Replicated);
    }

    /// A GPT-2 `Conv1D`: a linear layer stored transposed, `[inp, out]`, always with a bias.
    pub fn conv1d(&mut self, role: Role, module: &str, [inp, out]: [u64; 2], split: Conv1dSplit) {
        let (axis, weight, bias) = match split {
            Conv1dSplit::Out(s) => (Axis::Out, s, s),
            Conv1dSplit::In(s) => (Axis::In, s, Shard::Replicated),
        };
        self.matrix(role, module, [out, inp], axis, weight);
        if let Some(t) = self.spec.tensors.last_mut() {
            t.shape = vec![inp, out];
        }
        self.tensor(role, &format!("{module}.bias"), &[out], bias);
    }

    /// The token embedding `name`, `[rows, width]`.
    pub fn embedding(&mut self, name: &str, rows: u64, width: u64) {
        self.tensor(Role::Embedding, name, &[rows, width], Shard::Vocab { rows });
    }

    /// The output head `module`, unless it is tied to the embedding.
    pub fn head(&mut self, module: &str, rows: u64, width: u64) {
        if !self.spec.tied_embeddings {
            self.matrix(
                Role::Head,
                module,
                [rows, width],
                Axis::Out,
                Shard::Vocab { rows },
            );
        }
    }

    /// A normalisation gain.
    pub fn norm(&mut self, module: &str, width: u64) {
        self.tensor(
            Role::Norm,
            &format!("{module}.weight"),
            &[width],
            Shard::Replicated,
        );
    }

    /// A normalisation gain and bias.
    pub fn norm_bias(&mut self, module: &str, width: u64) {
        self.norm(module, width);
        self.tensor(
            Role::Norm,
            &format!("{module}.bias"),
            &[width],
            Shard::Replicated,
        );
    }

    /// Separate query, key, value and output projections of grouped-query attention, under the
    /// names `self_attn.{q,k,v,o}_proj` that most families use.
    pub fn qkvo(&mut self, hidden: u64, a: &Attention, qkv_bias: bool, o_bias: bool) {
        self.qkvo_as("self_attn", hidden, a, [qkv_bias, o_bias]);
    }

    /// [`SpecBuilder::qkvo`] under another module's name.
    pub fn qkvo_as(
        &mut self,
        module: &str,
        hidden: u64,
        a: &Attention,
        [qkv_bias, o_bias]: [bool; 2],
    ) {
        let name = |part: &str| format!("{module}.{part}_proj");
        let q = Shard::Split {
            units: a.q_heads,
            what: HEADS,
        };
        let kv = Shard::KvHeads { heads: a.kv_heads };
        let at = Role::Attention;
        let (q_out, k_out) = (a.q_heads * a.k_dim, a.kv_heads * a.k_dim);
        self.out_split(at, &name("q"), [q_out, hidden], qkv_bias, q);
        self.out_split(at, &name("k"), [k_out, hidden], qkv_bias, kv);
        self.out_split(at, &name("v"), [a.kv_heads * a.v_dim, hidden], qkv_bias, kv);
        self.in_split(at, &name("o"), [hidden, a.q_heads * a.v_dim], o_bias, q);
    }

    /// `gate_proj`, `up_proj` and `down_proj` under `prefix`.
    pub fn gated_mlp(&mut self, role: Role, prefix: &str, hidden: u64, inner: u64, bias: bool) {
        let cols = columns(inner);
        self.out_split(
            role,
            &format!("{prefix}gate_proj"),
            [inner, hidden],
            bias,
            cols,
        );
        self.out_split(
            role,
            &format!("{prefix}up_proj"),
            [inner, hidden],
            bias,
            cols,
        );
        self.in_split(
            role,
            &format!("{prefix}down_proj"),
            [hidden, inner],
            bias,
            cols,
        );
    }

    /// Sets what is computed around the matrices, or keeps why that is not known.
    pub(crate) fn arithmetic(&mut self, read: Result<Arithmetic, ModelError>) {
        self.spec.arithmetic = read.map_err(NotRunnable::Config);
    }

    /// Modules whose name has this in it have this format where the checkpoint's linear layers are 8-bit floats in blocks.
    pub(crate) fn beside_blocks(&mut self, name: &'static str, format: QuantFormat) {
        self.beside_blocks.push((name, format));
    }

    /// Sets the vision or audio tower.
    pub fn encoder(&mut self, encoder: Encoder) {
        self.spec.encoder = Some(encoder);
    }

    /// Applies the checkpoint's quantisation, checks the whole, and returns it.
    ///
    /// # Errors
    /// [`ModelError`] for an unusable `quantization_config`, a model without layers, or sizes
    /// past 64 bits.
    pub fn finish(mut self, config: &Config<'_>) -> Result<ModelSpec, ModelError> {
        if self.spec.rotary.is_empty() {
            self.spec.rotary = rotary(&config.text()?, &self)?;
        }
        if let Some(mut scheme) = QuantScheme::from_config(config)? {
            if matches!(scheme.format, QuantFormat::Fp8Block { .. }) {
                for (name, format) in self.beside_blocks {
                    scheme.others.push((Pattern::Name(name.to_owned()), format));
                }
            }
            quant::apply(&mut self.spec, scheme)?;
        }
        let spec = self.spec;
        if spec.layers.is_empty() || spec.hidden == 0 || spec.vocab == 0 {
            return Err(ModelError::Contradiction(
                "the model has no layers".to_owned(),
            ));
        }
        for layer in &spec.layers {
            check_layer(layer)?;
        }
        let too_large = |source: SizeOverflow| ModelError::TooLarge {
            what: "the sum of all tensors".to_owned(),
            source,
        };
        let total = spec.stored_bytes().map_err(too_large)?;
        spec.parameters().map_err(too_large)?;
        if total > Bytes::new(LARGEST_MODEL) {
            return Err(ModelError::Contradiction(format!(
                "the config describes {total} of weights, above the limit of {}: check its sizes",
                Bytes::new(LARGEST_MODEL)
            )));
        }
        Ok(spec)
    }
}

/// The rotary tables that a config implies: none beside learned positions; a second one where window
/// layers rotate at their own base; stretched where the context was. YaRN scales the original
/// context, linear and dynamic scaling the stated one, and `longrope` keeps a short and a long table in one.
fn rotary(text: &Config<'_>, builder: &SpecBuilder) -> Result<Vec<Rotary>, ModelError> {
    let spec = &builder.spec;
    if spec.tensors.iter().any(|t| t.role == Role::Position) {
        return Ok(Vec::new());
    }
    let head = spec.layers.iter().find_map(|l| match l.mixer {
        Mixer::Attention(a) => Some((a.k_dim, false)),
        Mixer::Latent(a) => Some((a.rope_dim, true)),
        Mixer::State(_) | Mixer::None => None,
    });
    let (Some((head, latent)), Some(positions)) = (head, spec.max_context) else {
        return Ok(Vec::new());
    };
    // transformers 5 moved everything into `rope_parameters`, one object per attention kind where
    // there are two.
    let parameters = text.object("rope_parameters")?;
    let full = match &parameters {
        Some(p) => p.object("full_attention")?,
        None => None,
    };
    let window = match &parameters {
        Some(p) => p.object("sliding_attention")?,
        None => None,
    };
    let scaling = match text.object("rope_scaling")? {
        Some(s) => Some(s),
        None => full.clone().or_else(|| parameters.clone()),
    };
    let share = ["partial_rotary_factor", "rotary_pct"]
        .iter()
        .find_map(|k| text.float(k))
        .or_else(|| parameters.as_ref()?.float("partial_rotary_factor"))
        .unwrap_or(builder.rotary_share);
    let dim = match text.opt("rotary_dim")? {
        // Kimi Linear has the part of a key that others rotate, and does not.
        _ if latent && builder.rotary_share > 0.0 => head,
        Some(n) => n,
        None if (0.0..=1.0).contains(&share) => scaled(head, share),
        None => head,
    };
    if dim == 0 {
        return Ok(Vec::new());
    }
    let positions = match &scaling {
        Some(s) => stretched(text, s, positions)?,
        None => positions,
    };
    let table = Rotary { dim, positions };
    let bases_differ = match (&full, &window) {
        (Some(f), Some(w)) => f.float("rope_theta") != w.float("rope_theta"),
        _ => match text.float("rope_local_base_freq") {
            Some(local) => text.float("rope_theta") != Some(local),
            None => builder.rotary_local,
        },
    };
    let windowed = |l: &LayerSpec| matches!(l.mixer, Mixer::Attention(a) if a.reach != Reach::Full);
    Ok(match spec.max_context {
        // The table of the window layers is never scaled.
        Some(positions) if bases_differ && spec.layers.iter().any(windowed) => {
            vec![table, Rotary { positions, ..table }]
        }
        _ => vec![table],
    })
}

/// Positions in a table whose context `scaling` stretches.
fn stretched(text: &Config<'_>, scaling: &Config<'_>, positions: u64) -> Result<u64, ModelError> {
    let kind = scaling.str("rope_type").or_else(|| scaling.str("type"));
    let original = match scaling.opt("original_max_position_embeddings")? {
        Some(n) => Some(n),
        None => text.opt("original_max_position_embeddings")?,
    };
    Ok(match (kind, scaling.float("factor"), original) {
        (Some("yarn"), Some(factor), original) => {
            scaled(original.unwrap_or(positions), factor).max(1)
        }
        (Some("linear" | "dynamic"), Some(factor), _) => scaled(positions, factor).max(1),
        (Some("longrope" | "su"), _, Some(original)) => positions.saturating_add(original),
        _ => positions,
    })
}

/// `n` times a ratio, cut off, as Python's `int(n * ratio)`; nonsense is clamped to 32 bits.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "both factors are below 2^32, and the result is clamped there"
)]
pub(crate) fn scaled(n: u64, ratio: f64) -> u64 {
    (n as f64 * ratio).clamp(0.0, f64::from(u32::MAX)) as u64
}

/// Models above this are refused as nonsense: 1 PiB, some 500 times the largest published one.
const LARGEST_MODEL: u64 = 1 << 50;
/// Largest KV cache of one token in one layer, in elements, above which a config is nonsense.
const LARGEST_ROW: u64 = 1 << 32;

fn check_layer(layer: &LayerSpec) -> Result<(), ModelError> {
    let elements = match layer.mixer {
        Mixer::Attention(a) => a.elements_per_token(a.kv_heads),
        Mixer::Latent(a) => {
            let key = a.indexer.map_or(0, |i| i.key_bytes().get());
            a.rank.saturating_add(a.rope_dim).saturating_add(key)
        }
        Mixer::State(s) => s
            .heads
            .saturating_mul(s.rows)
            .saturating_mul(s.cols)
            .saturating_add(s.conv_channels.saturating_mul(s.conv_taps)),
        Mixer::None => 0,
    };
    let crossed = layer.cross.map_or(0, |c| {
        [2, c.kv_heads, c.head_dim, c.positions]
            .into_iter()
            .fold(1, u64::saturating_mul)
    });
    let elements = elements.saturating_add(crossed);
    if elements > LARGEST_ROW {
        return Err(ModelError::Contradiction(format!(
            "one layer would cache {elements} elements: check the head counts and sizes"
        )));
    }
    Ok(())
}

/// How a [`SpecBuilder::conv1d`] splits.
#[derive(Clone, Copy, Debug)]
pub enum Conv1dSplit {
    /// By outputs; the bias too.
    Out(Shard),
    /// By inputs; the bias is whole.
    In(Shard),
}

/// The columns of a feed-forward's inner dimension.
#[must_use]
pub const fn columns(inner: u64) -> Shard {
    Shard::Split {
        units: inner,
        what: "MLP columns",
    }
}

/// Query heads.
#[must_use]
pub const fn heads(n: u64) -> Shard {
    Shard::Split {
        units: n,
        what: HEADS,
    }
}

/// A layer of attention and a feed-forward.
#[must_use]
pub const fn attention_layer(a: Attention, ffn: Ffn) -> LayerSpec {
    LayerSpec {
        mixer: Mixer::Attention(a),
        parallel: None,
        cross: None,
        ffn,
    }
}
