//! [`Arithmetic`]: what a decoder computes around its matrices, as its config says.
//!
//! Sizes are in [`crate::LayerSpec`] and the inventory; this is the rest: norms, positions, activation, scales and
//! caps. A config that asks for something we do not know still gives a plan, only no arithmetic: the reason is
//! kept for whoever wants to run the model. Fields and defaults: transformers' configuration classes; rotary
//! scaling: `modeling_rope_utils.py`.

use crate::{Config, ModelError};

/// What a decoder computes around its matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Arithmetic {
    /// Every norm of the model.
    pub norm: Norm,
    /// How the halves of a layer meet the residual stream.
    pub residual: Residual,
    /// How positions enter.
    pub positions: Positions,
    /// The feed-forward's function.
    pub activation: Activation,
    /// Whether each query and key head is normalised.
    pub qk_norm: bool,
    /// Whether the weights of a token's experts are shares of the softmax over these, not over all.
    pub renormalise: bool,
    /// How a token's experts are chosen.
    pub router: Router,
    /// The clamped SwiGLU of experts, where they have that instead of `activation`.
    pub clamped: Option<ClampedSwiglu>,
    /// Whether a norm stands before the head.
    pub final_norm: bool,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What scores are multiplied by.
    pub attention_scale: f64,
    /// Scores s become c · tanh(s / c).
    pub attention_softcap: Option<f64>,
    /// What each half of a layer is multiplied by before it is added.
    pub residual_scale: f64,
    /// What logits are multiplied by.
    pub logit_scale: f64,
    /// Logits s become c · tanh(s / c).
    pub final_softcap: Option<f64>,
    /// The steps of a selective state space are kept between these.
    pub step_limits: [f64; 2],
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / sqrt(mean(x²) + eps) times a gain.
    Rms {
        /// Added to the mean.
        eps: f64,
        /// Whether gains are stored less one.
        plus_one: bool,
    },
    /// (x − mean) / sqrt(variance + eps).
    Layer {
        /// Added to the variance.
        eps: f64,
        /// Whether there are gains.
        affine: bool,
    },
}

/// How the halves of a layer meet the residual stream x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x += attention(norm(x)); x += mlp(norm(x)).
    Serial,
    /// As [`Residual::Serial`], and each half is normalised before it is added.
    Sandwich,
    /// x += attention(norm(x)) + mlp(norm(x)), both of the same x.
    Parallel,
}

/// How positions enter.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Not at all: only by the order in which states take tokens in.
    None,
    /// A table with a row for each position, added to the embeddings.
    Learned {
        /// Rows before that of the first position.
        offset: u64,
    },
    /// Queries and keys are rotated.
    Rotary {
        /// In layers that see everything.
        full: Rope,
        /// In layers with a window.
        window: Rope,
        /// Pairs are neighbours (GPT-J, and llama.cpp's order of LLaMA's rows), not half a rotation apart.
        interleaved: bool,
    },
}

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// Elements of a head that are rotated: the first ones.
    pub dim: u64,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How a context longer than the one first trained changes rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than the trained context; up to there nothing changes.
    Dynamic {
        /// The trained context.
        trained: u64,
    },
    /// Low frequencies are divided, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original / high` are high ones.
        high: f64,
        /// The context first trained.
        original: u64,
    },
    /// Frequencies are blended by how often they turn in the context first trained (Peng et al., 2023).
    Yarn {
        /// What those that hardly turn are divided by.
        factor: f64,
        /// Turns from which on nothing is divided.
        fast: f64,
        /// Turns up to which everything is.
        slow: f64,
        /// The context first trained.
        original: u64,
        /// Whether the ends of the blend are whole numbers.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention: f64,
    },
    /// Each frequency has a divisor of its own, one set up to the context first trained and one beyond.
    LongRope {
        /// Divisors up to the context first trained, and beyond; `None` where a GGUF file has them as tensors.
        divisors: Option<[Vec<f64>; 2]>,
        /// The context first trained.
        original: u64,
        /// What cosines and sines are multiplied by.
        attention: f64,
    },
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^−x).
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
    /// max(x, 0).
    Relu,
}

/// How a router's logits become a token's experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// What a logit becomes.
    pub score: RouterScore,
    /// The groups of experts that a token is limited to, where it is.
    pub groups: Option<ExpertGroups>,
    /// What the experts' sum is multiplied by.
    pub scale: f64,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            score: RouterScore::Softmax,
            groups: None,
            scale: 1.0,
        }
    }
}

/// What a router's logit becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// Its share of the softmax.
    Softmax,
    /// 1 / (1 + e^−x), and a bias is added for the choice alone.
    Sigmoid,
}

/// Experts in groups, of which a token takes some and their experts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many there are, of as many experts each.
    pub count: u64,
    /// How many a token takes.
    pub taken: u64,
    /// A group counts as much as so many of its experts, the best ones, together.
    pub best: u64,
}

/// out = (u + 1) · g · sigmoid(alpha · g), of a gate g of at most `limit` and an u between −`limit` and `limit`, which
/// lie side by side (gpt-oss).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClampedSwiglu {
    /// The limit.
    pub limit: f64,
    /// What the sigmoid's argument is multiplied by.
    pub alpha: f64,
}

/// Why a model has no [`Arithmetic`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRunnable {
    /// Its family is only known by its sizes.
    #[error("models of this family can be planned but not run yet")]
    Family,
    /// The config asks for something that we do not compute.
    #[error(transparent)]
    Config(#[from] ModelError),
}

/// What a family's class takes where a config is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    pub(crate) theta: f64,
    /// Share of a head that is rotated.
    pub(crate) share: f64,
    /// The base in window layers, where it is another one.
    pub(crate) window_theta: Option<f64>,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self {
            theta: 10_000.0,
            share: 1.0,
            window_theta: None,
        }
    }
}

impl Arithmetic {
    /// LLaMA's, with the figures of this config: what other families differ from.
    pub(crate) fn llama(text: &Config<'_>, head_dim: u64) -> Result<Self, ModelError> {
        Ok(Self {
            norm: Norm::Rms {
                eps: text.positive("rms_norm_eps")?.unwrap_or(1e-6),
                plus_one: false,
            },
            residual: Residual::Serial,
            positions: Positions::rotary(text, head_dim, RopeDefaults::default())?,
            activation: Activation::read(text, "hidden_act", Activation::Silu)?,
            qk_norm: false,
            renormalise: true,
            router: Router::default(),
            clamped: None,
            final_norm: true,
            embedding_scale: 1.0,
            attention_scale: inverse_root(head_dim),
            attention_softcap: None,
            residual_scale: 1.0,
            logit_scale: 1.0,
            final_softcap: None,
            step_limits: [0.0, f64::INFINITY],
        })
    }
}

/// 1 / sqrt(n).
#[allow(
    clippy::cast_precision_loss,
    reason = "head sizes and widths are below 2^31"
)]
pub(crate) fn inverse_root(n: u64) -> f64 {
    1.0 / (n as f64).sqrt()
}

impl Activation {
    /// The function that `key` names.
    pub(crate) fn read(text: &Config<'_>, key: &str, default: Self) -> Result<Self, ModelError> {
        if !text.has(key) {
            return Ok(default);
        }
        match text.str(key) {
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh") => {
                Ok(Self::GeluTanh)
            }
            Some("gelu" | "gelu_python") => Ok(Self::Gelu),
            Some("relu") => Ok(Self::Relu),
            _ => Err(text.reject(key, "expected silu, gelu, gelu_new or relu")),
        }
    }
}

impl Positions {
    /// Rotation as the config says: `rope_theta` and `rope_scaling` beside the other fields, or all of it in
    /// `rope_parameters`, which may hold one set for each kind of layer.
    pub(crate) fn rotary(
        text: &Config<'_>,
        head_dim: u64,
        or: RopeDefaults,
    ) -> Result<Self, ModelError> {
        let parameters = text.object("rope_parameters")?;
        let kind = |key: &str| match &parameters {
            Some(p) => p.object(key),
            None => Ok(None),
        };
        let (full, window) = (kind("full_attention")?, kind("sliding_attention")?);
        let scaling = text.object("rope_scaling")?;
        let common = parameters.filter(|_| full.is_none() && window.is_none());
        let theta = ["rope_theta", "rotary_emb_base"];
        let rope = |sets: &[&Option<Config<'_>>], theta: &[&str], default: f64| {
            let sets: Vec<&Config<'_>> = sets.iter().filter_map(|s| s.as_ref()).collect();
            Rope::read(text, &sets, head_dim, theta, default, or.share)
        };
        let full_rope = rope(&[&scaling, &full, &common], &theta, or.theta)?;
        let window_rope = match or.window_theta {
            // The windows of a family with a base of their own are never stretched from outside.
            Some(default) => rope(&[&window], &["rope_local_base_freq"], default)?,
            None if window.is_some() => rope(&[&window], &theta, or.theta)?,
            None => full_rope.clone(),
        };
        Ok(Self::Rotary {
            full: full_rope,
            window: window_rope,
            interleaved: false,
        })
    }
}

impl Rope {
    /// `sets` in order of precedence, then the fields of `text` itself.
    fn read(
        text: &Config<'_>,
        sets: &[&Config<'_>],
        head_dim: u64,
        theta_keys: &[&str],
        default_theta: f64,
        default_share: f64,
    ) -> Result<Self, ModelError> {
        let first = |own: &[&str], outer: &[&str]| -> Result<Option<f64>, ModelError> {
            let own = sets.iter().flat_map(|s| own.iter().map(move |k| (*s, k)));
            for (config, key) in own.chain(outer.iter().map(|k| (text, k))) {
                if let Some(n) = config.positive(key)? {
                    return Ok(Some(n));
                }
            }
            Ok(None)
        };
        let theta = first(&["rope_theta"], theta_keys)?.unwrap_or(default_theta);
        let share = first(
            &["partial_rotary_factor"],
            &["partial_rotary_factor", "rotary_pct"],
        )?;
        let dim = match text.opt("rotary_dim")? {
            Some(n) => n,
            None => part(head_dim, share.unwrap_or(default_share)),
        };
        if dim < 2 || dim > head_dim || !dim.is_multiple_of(2) {
            return Err(ModelError::Contradiction(format!(
                "{dim} elements of a head of {head_dim} are to be rotated: expected an even number of them"
            )));
        }
        let scaling = match sets.first() {
            Some(set) => RopeScaling::read(text, set, dim)?,
            None => RopeScaling::None,
        };
        Ok(Self {
            theta,
            dim,
            scaling,
        })
    }
}

/// Python's `int(n * share)`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "head sizes are below 2^31, and the result is clamped there"
)]
fn part(n: u64, share: f64) -> u64 {
    (n as f64 * share).clamp(0.0, f64::from(u32::MAX)) as u64
}

impl RopeScaling {
    fn read(text: &Config<'_>, set: &Config<'_>, dim: u64) -> Result<Self, ModelError> {
        let key = if set.has("rope_type") {
            "rope_type"
        } else {
            "type"
        };
        let kind = match (set.has(key), set.str(key)) {
            (false, _) => "default",
            // The first Phi-3 configs call their two sets of divisors so.
            (true, Some("su" | "yarn")) if set.has("long_factor") => "longrope",
            (true, Some(kind)) => kind,
            (true, None) => return Err(set.reject(key, "expected a name")),
        };
        let needed = |key: &str| -> Result<f64, ModelError> {
            set.positive(key)?
                .ok_or_else(|| set.reject(key, format!("`{kind}` scaling needs it")))
        };
        let context = || -> Result<u64, ModelError> {
            crate::families::max_context(text)?.ok_or_else(|| ModelError::Missing {
                field: text.path_of("max_position_embeddings"),
                why: "rotary scaling depends on it",
            })
        };
        let original = || -> Result<u64, ModelError> {
            let key = "original_max_position_embeddings";
            match (text.opt(key)?, set.opt(key)?) {
                (Some(n), _) | (None, Some(n)) if n > 1 => Ok(n),
                (None, None) => context(),
                _ => Err(set.reject(key, "expected 2 or more")),
            }
        };
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear {
                factor: needed("factor")?,
            }),
            "dynamic" => Ok(Self::Dynamic {
                trained: context()?,
            }),
            "llama3" => Self::llama3(set, original()?, &needed),
            "yarn" => Self::yarn(set, original()?, &context),
            "longrope" => Self::longrope(set, original()?, dim, &context),
            _ => Err(set.reject(
                key,
                "expected default, linear, dynamic, llama3, yarn or longrope",
            )),
        }
    }

    fn llama3(
        set: &Config<'_>,
        original: u64,
        needed: &impl Fn(&str) -> Result<f64, ModelError>,
    ) -> Result<Self, ModelError> {
        let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
        if low >= high {
            return Err(set.reject("low_freq_factor", "expected less than `high_freq_factor`"));
        }
        Ok(Self::Llama3 {
            factor: needed("factor")?,
            low,
            high,
            original,
        })
    }

    fn yarn(
        set: &Config<'_>,
        original: u64,
        context: &impl Fn() -> Result<u64, ModelError>,
    ) -> Result<Self, ModelError> {
        let factor = match set.positive("factor")? {
            Some(f) => f,
            None => ratio(context()?, original),
        };
        let magnitude = |m: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * m * libm::log(factor) + 1.0
            }
        };
        let attention = match (
            set.positive("attention_factor")?,
            set.positive("mscale")?,
            set.positive("mscale_all_dim")?,
        ) {
            (Some(a), _, _) => a,
            (None, Some(m), Some(all)) => magnitude(m) / magnitude(all),
            _ => magnitude(1.0),
        };
        Ok(Self::Yarn {
            factor,
            fast: set.positive("beta_fast")?.unwrap_or(32.0),
            slow: set.positive("beta_slow")?.unwrap_or(1.0),
            original,
            truncate: set.flag("truncate", true)?,
            attention,
        })
    }

    fn longrope(
        set: &Config<'_>,
        original: u64,
        dim: u64,
        context: &impl Fn() -> Result<u64, ModelError>,
    ) -> Result<Self, ModelError> {
        let factor = match set.positive("factor")? {
            Some(f) => f,
            None => ratio(context()?, original),
        };
        let attention = match set.positive("attention_factor")? {
            Some(a) => a,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + libm::log(factor) / log(original)).sqrt(),
        };
        let divisors = |key: &str| -> Result<Option<Vec<f64>>, ModelError> {
            let list = set.floats(key)?;
            let fits = |l: &Vec<f64>| l.len() as u64 == dim / 2 && l.iter().all(|f| *f > 0.0);
            match list {
                Some(l) if !fits(&l) => Err(set.reject(
                    key,
                    format!("expected {} numbers above 0, one per rotation", dim / 2),
                )),
                list => Ok(list),
            }
        };
        let divisors = match (divisors("short_factor")?, divisors("long_factor")?) {
            (Some(short), Some(long)) => Some([short, long]),
            (None, None) => None,
            _ => return Err(set.reject("long_factor", "expected with `short_factor`")),
        };
        Ok(Self::LongRope {
            divisors,
            original,
            attention,
        })
    }
}

#[allow(clippy::cast_precision_loss, reason = "contexts are below 2^31")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[allow(clippy::cast_precision_loss, reason = "contexts are below 2^31")]
fn log(n: u64) -> f64 {
    libm::log(n as f64)
}
