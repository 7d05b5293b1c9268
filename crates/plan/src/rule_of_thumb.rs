//! The classic hand calculation: weights, plus KV, plus a tenth of both.
//!
//! Kept because everybody has read it; `docs/article.md` says what is wrong in it. Decimal units,
//! as there.

use plimsoll_model::{Mixer, ModelSpec};
use plimsoll_units::{Bytes, SizeOverflow, Tokens};

/// The hand calculation's three lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleOfThumb {
    /// Parameters × bytes of the type.
    pub weights: Bytes,
    /// 2 × layers × width × bytes per token, times tokens, times users.
    pub kv: Bytes,
    /// Bytes of one token.
    pub kv_per_token: Bytes,
    /// A tenth of the two above.
    pub overhead: Bytes,
}

impl RuleOfThumb {
    /// The sum.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn total(&self) -> Result<Bytes, SizeOverflow> {
        Bytes::sum([self.weights, self.kv, self.overhead])
    }
}

/// Applies the rule to `users` sequences of `context` tokens.
///
/// # Errors
/// [`SizeOverflow`].
pub fn rule_of_thumb(
    spec: &ModelSpec,
    users: u64,
    context: Tokens,
) -> Result<RuleOfThumb, SizeOverflow> {
    let weights = spec.dtype.bytes(spec.parameters()?)?;
    let mut kv_per_token = Bytes::ZERO;
    for layer in &spec.layers {
        let elements = match layer.mixer {
            Mixer::Attention(a) => a.elements_per_token(a.kv_heads),
            Mixer::Latent(a) => a.rank + a.rope_dim,
            Mixer::State(_) | Mixer::None => 0,
        };
        kv_per_token = kv_per_token.add(spec.dtype.bytes(elements)?)?;
    }
    let kv = context.of(kv_per_token)?.times(users)?;
    let overhead = Bytes::new(weights.add(kv)?.get() / 10);
    Ok(RuleOfThumb {
        weights,
        kv,
        kv_per_token,
        overhead,
    })
}
