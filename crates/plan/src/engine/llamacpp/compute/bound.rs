//! A bound for the compute buffer of models whose graph is not modelled.
//!
//! The widest layer with every intermediate result alive at once, which no allocator exceeds by
//! much, beside inputs and logits. A test holds it against every golden row of the modelled graphs.

use plimsoll_model::{Ffn, LayerSpec, Mixer};
use plimsoll_units::{Bytes, SizeOverflow};

use super::super::net::Net;
use super::super::run::{Run, Sizes};

/// A buffer on one device that the true one should not exceed.
///
/// # Errors
/// [`SizeOverflow`].
pub fn upper_bound(net: &Net, run: &Run) -> Result<Bytes, SizeOverflow> {
    let s = run.sizes()?;
    let f32s = |rows: u64, wide: u64| Bytes::product([rows, wide, 4]);
    let mut widest = Bytes::ZERO;
    for layer in &net.layers {
        widest = widest.max(mixer(layer, run, &s)?.add(feed_forward(layer, net, &s)?)?);
    }
    // Residual stream, its norm, a copy of the embedding and one more row for holes.
    let stream = f32s(s.tokens, net.width)?.times(6)?;
    let mask = Bytes::product([s.cells, s.tokens, 4])?.times(2)?;
    let head = f32s(s.outputs, net.vocab.saturating_add(net.width))?;
    Bytes::sum([widest, stream, mask, head])
}

fn mixer(layer: &LayerSpec, run: &Run, s: &Sizes) -> Result<Bytes, SizeOverflow> {
    let mul = |a: u64, b: u64| a.checked_mul(b).ok_or(SizeOverflow);
    let n = s.tokens;
    let scores = |heads: u64| {
        if run.flash_attention {
            Ok(Bytes::ZERO)
        } else {
            Bytes::product([heads, s.cells, n, 4])
        }
    };
    let first = match layer.mixer {
        Mixer::Attention(a) => {
            let q = mul(a.q_heads, a.k_dim)?;
            let o = mul(a.q_heads, a.v_dim)?;
            let kv = mul(a.kv_heads, a.k_dim.max(a.v_dim))?;
            let wide = mul(q, 4)?
                .checked_add(mul(o, 4)?)
                .and_then(|w| w.checked_add(kv.checked_mul(8)?))
                .ok_or(SizeOverflow)?;
            let copies = Bytes::product([s.cells, s.streams, kv, 4])?;
            Bytes::product([n, wide, 4])?
                .add(scores(a.q_heads)?)?
                .add(if run.f16_copies { copies } else { Bytes::ZERO })?
        }
        Mixer::Latent(a) => {
            let row = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
            let key = a.nope_dim.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
            let each = row
                .checked_mul(4)
                .and_then(|r| r.checked_add(key.checked_mul(3)?))
                .and_then(|r| r.checked_add(a.v_dim.checked_mul(3)?))
                .ok_or(SizeOverflow)?;
            let wide = mul(a.q_heads, each)?
                .checked_add(mul(row, 4)?)
                .and_then(|w| w.checked_add(a.q_rank.unwrap_or(0).checked_mul(2)?))
                .ok_or(SizeOverflow)?;
            // Builds that do not absorb the projections decompress one layer's cache: to f32, and
            // from there to f16.
            let plain = key.checked_add(a.v_dim).ok_or(SizeOverflow)?;
            let decompressed = if run.rules.fused_norm || !run.rules.latent {
                Bytes::product([s.cells, s.streams, a.q_heads, plain, 6])?
            } else {
                Bytes::ZERO
            };
            Bytes::sum([
                Bytes::product([n, wide, 4])?,
                scores(a.q_heads)?,
                Bytes::product([s.cells, s.streams, row, 4])?,
                decompressed,
            ])?
        }
        Mixer::State(st) => state(&st, s)?,
        Mixer::None => Bytes::ZERO,
    };
    match layer.parallel {
        Some(st) => first.add(state(&st, s)?),
        None => Ok(first),
    }
}

fn state(st: &plimsoll_model::StateSpace, s: &Sizes) -> Result<Bytes, SizeOverflow> {
    let inner = st.heads.checked_mul(st.rows).ok_or(SizeOverflow)?;
    let wide = st
        .conv_channels
        .checked_mul(6)
        .and_then(|w| w.checked_add(inner.checked_mul(10)?))
        .ok_or(SizeOverflow)?;
    let rows = Bytes::product([inner, st.cols, s.slots, 12])?;
    let tail = Bytes::product([st.conv_channels, st.conv_taps, s.slots, 12])?;
    Bytes::sum([Bytes::product([s.tokens, wide, 4])?, rows, tail])
}

fn feed_forward(layer: &LayerSpec, net: &Net, s: &Sizes) -> Result<Bytes, SizeOverflow> {
    let n = s.tokens;
    let wide = match layer.ffn {
        Ffn::Dense { intermediate, .. } => intermediate.checked_mul(3).ok_or(SizeOverflow)?,
        Ffn::Moe(m) => {
            let routed = m
                .intermediate
                .checked_mul(3)
                .and_then(|w| w.checked_add(net.width.checked_mul(2)?))
                .and_then(|w| w.checked_mul(m.top_k))
                .ok_or(SizeOverflow)?;
            m.experts
                .checked_mul(4)
                .and_then(|w| w.checked_add(routed))
                .and_then(|w| w.checked_add(m.shared.checked_mul(3)?))
                .and_then(|w| w.checked_add(net.width.checked_mul(3)?))
                .ok_or(SizeOverflow)?
        }
        Ffn::None => 0,
    };
    Bytes::product([n, wide, 4])
}
