//! Attention parts of the graph: over cached keys and values, and over cached latent vectors
//! (`build_attn`, `build_attn_mha`, `models/deepseek2.cpp`).

use plimsoll_model::{Attention, LatentAttention};
use plimsoll_units::{DType, SizeOverflow};

use super::super::net::Arch;
use super::build::{Builder, quantised};
use super::graph::{Id, Type};

/// Heads whose size is a multiple of this are rotated before they are quantised.
const ROTATION: u64 = 64;

/// Query, key and value of one layer, before they are stored.
struct Projected {
    q: Id,
    k: Id,
    v: Id,
}

impl Builder<'_> {
    /// Projections, cache writes and attention; not the output projection.
    pub(super) fn attention(
        &mut self,
        h: Id,
        a: &Attention,
        window: Option<u64>,
    ) -> Result<Id, SizeOverflow> {
        if self.arch == Arch::Qwen3Next {
            return self.gated_attention(h, a);
        }
        let p = if self.arch.fused_qkv() {
            self.fused(h, a)
        } else {
            self.separate(h, a, window)
        };
        let y = self.attend(&p, a, window)?;
        // GPT-NeoX visits its feed-forward before this.
        if self.arch == Arch::GptNeoX {
            return Ok(y);
        }
        Ok(self.rotate_back(y, a, window.is_some()))
    }

    /// What was attended over rotated values, rotated back.
    pub(super) fn rotate_back(&mut self, y: Id, a: &Attention, windowed: bool) -> Id {
        if !self.rotates(self.run.type_v, true) {
            return y;
        }
        let wide = a.q_heads.saturating_mul(a.v_dim);
        let t = self.rotated(y, ROTATION, wide, windowed, true);
        self.g.view(t, &[wide, self.s.tokens])
    }

    fn rope(&mut self, t: Id) -> Id {
        match self.pos {
            Some(pos) => self.g.like("rotated", &[t, pos]),
            None => t,
        }
    }

    fn fused(&mut self, h: Id, a: &Attention) -> Projected {
        let n = self.s.tokens;
        let heads = a.q_heads.saturating_add(a.kv_heads.saturating_mul(2));
        let w = self.g.op("qkv", &[heads.saturating_mul(a.k_dim), n], &[h]);
        let part = |b: &mut Self, count: u64| {
            if b.run.rules.qkv_copies {
                let wide = a.k_dim.saturating_mul(count);
                let v = b.g.part(w, &[wide, n]);
                let c = b.g.op("qkv copy", &[wide, n], &[v]);
                b.g.view(c, &[a.k_dim, count, n])
            } else {
                b.g.part(w, &[a.k_dim, count, n])
            }
        };
        let mut q = part(self, a.q_heads);
        q = self.rope(q);
        if self.run.rules.qkv_copies {
            let k = part(self, a.kv_heads);
            let k = self.rope(k);
            let v = part(self, a.kv_heads);
            return Projected { q, k, v };
        }
        let (ty_k, ty_v) = (self.run.type_k, self.run.type_v);
        q = self.rotate_heads(q, ty_k, [a.k_dim, a.q_heads], false, false);
        let v = part(self, a.kv_heads);
        let v = self.rotate_heads(v, ty_v, [a.v_dim, a.kv_heads], false, true);
        let k = part(self, a.kv_heads);
        let k = self.rope(k);
        let k = self.rotate_heads(k, ty_k, [a.k_dim, a.kv_heads], false, false);
        Projected { q, k, v }
    }

    fn separate(&mut self, h: Id, a: &Attention, window: Option<u64>) -> Projected {
        let windowed = window.is_some();
        let (_, mut q) = self.project("Q", h, a.q_heads, a.k_dim);
        q = self.rope(q);
        q = self.rotate_heads(q, self.run.type_k, [a.k_dim, a.q_heads], windowed, false);
        let values = |b: &mut Self| {
            let (raw, v) = b.project("V", h, a.kv_heads, a.v_dim);
            let v = if b.arch == Arch::Gemma4 {
                // Normalised without a weight; on a reshaped view, so a new tensor.
                b.g.like("V", &[raw])
            } else {
                v
            };
            b.rotate_heads(v, b.run.type_v, [a.v_dim, a.kv_heads], windowed, true)
        };
        let keys = |b: &mut Self| {
            let (raw, k) = b.project("K", h, a.kv_heads, a.k_dim);
            let k = b.rope(k);
            let k = b.rotate_heads(k, b.run.type_k, [a.k_dim, a.kv_heads], windowed, false);
            (raw, k)
        };
        if self.arch.value_before_key() {
            let v = values(self);
            let (_, k) = keys(self);
            return Projected { q, k, v };
        }
        let (raw, k) = keys(self);
        let v = if self.net.values_from_keys && !windowed {
            let v = self.g.like("V", &[raw]);
            self.rotate_heads(v, self.run.type_v, [a.v_dim, a.kv_heads], windowed, true)
        } else {
            values(self)
        };
        Projected { q, k, v }
    }

    /// The projection as heads, and the same after the heads' norm where there is one.
    fn project(&mut self, name: &'static str, h: Id, heads: u64, dim: u64) -> (Id, Id) {
        let n = self.s.tokens;
        let t = self.g.op(name, &[heads.saturating_mul(dim), n], &[h]);
        let raw = self.g.view(t, &[dim, heads, n]);
        if name != "V" && self.arch.norms_qk() {
            (raw, self.g.norm(raw, self.norm))
        } else {
            (raw, raw)
        }
    }

    fn rotates(&self, ty: DType, value: bool) -> bool {
        let (k, v) = self.net.first_heads;
        let dim = if value { v } else { k };
        self.run.rules.rotation && quantised(ty) && dim.is_multiple_of(ROTATION) && dim > 0
    }

    /// Rotated heads, where the cache's type asks for it. Keys are rotated in blocks of the largest
    /// power of two that divides the head, values in blocks of 64.
    fn rotate_heads(
        &mut self,
        t: Id,
        ty: DType,
        [dim, heads]: [u64; 2],
        windowed: bool,
        value: bool,
    ) -> Id {
        if !self.rotates(ty, value) {
            return t;
        }
        let block = if value {
            ROTATION
        } else {
            ROTATION.max(1 << dim.trailing_zeros().min(32))
        };
        let wide = dim.saturating_mul(heads);
        let n = self.s.tokens;
        let whole = if self.g.get(t).strided {
            self.g.op("copy", &[dim, heads, n], &[t])
        } else {
            t
        };
        let r = self.rotated(whole, block, wide, windowed, value);
        self.g.view(r, &[dim, heads, n])
    }

    fn rotated(&mut self, t: Id, block: u64, wide: u64, windowed: bool, value: bool) -> Id {
        let rows = (wide / block).saturating_mul(self.s.tokens);
        let matrix = self.rotation(windowed, value, block);
        let v = self.g.view(t, &[block, rows]);
        self.g.op("rotated", &[block, rows], &[matrix, v])
    }

    /// Bytes of the f16 copies of a quantised cache behind a result of `base` bytes: each begins
    /// at a 128-byte boundary.
    fn f16_copies(&mut self, base: u64, k: u64, v: u64) -> Result<u64, SizeOverflow> {
        if !(self.run.f16_copies && self.run.rules.copies_in_buffer && self.gpu) {
            return Ok(0);
        }
        let mut end = base;
        for (ty, elements) in [(self.run.type_k, k), (self.run.type_v, v)] {
            if ty != DType::F16 && elements > 0 {
                end = end
                    .checked_next_multiple_of(128)
                    .and_then(|at| at.checked_add(elements.checked_mul(2)?))
                    .ok_or(SizeOverflow)?;
            }
        }
        Ok(end - base)
    }

    fn attend(
        &mut self,
        p: &Projected,
        a: &Attention,
        window: Option<u64>,
    ) -> Result<Id, SizeOverflow> {
        let cells = self.cells(window)?;
        let (n, streams, flash) = (self.s.tokens, self.s.streams, self.run.flash_attention);
        let (heads, rows) = (a.q_heads, n / streams.max(1));
        let wide_k = a.k_dim.saturating_mul(a.kv_heads);
        let wide_v = a.v_dim.saturating_mul(a.kv_heads);
        let c = self.cache_inputs(window, false)?;

        let k = self.g.view(p.k, &[wide_k, n]);
        self.store("keys", k, c.k_rows);
        let mut v = p.v;
        let mut strided = self.g.get(v).strided;
        if !flash {
            if strided {
                v = self.g.op("V copy", &[wide_v, n], &[v]);
                strided = false;
            }
            v = self.g.view_with(v, &[wide_v, n], &[], strided);
            if self.net.value_row_max > wide_v {
                // Padded to the widest layer before it is transposed into the cache.
                v = self.g.op("V padded", &[self.net.value_row_max, n], &[v]);
            }
            let all = self.net.value_row_max.max(wide_v).saturating_mul(n);
            v = self.g.view_with(v, &[1, all], &[], strided);
        } else {
            v = self.g.view_with(v, &[wide_v, n], &[], strided);
        }
        self.store("values", v, c.v_rows);

        let q = self.g.view(p.q, &[a.k_dim, heads, rows, streams]);
        let q = self.g.part(q, &[a.k_dim, rows, heads, streams]);
        let wide = a.v_dim.saturating_mul(heads);
        if flash {
            let base = mul(&[wide, n, 4])?;
            let extra = self.f16_copies(
                base,
                mul(&[wide_k, cells, streams])?,
                mul(&[wide_v, cells, streams])?,
            )?;
            let y = self
                .g
                .op_with("attention", &[a.v_dim, heads, n], &[q, c.mask], extra);
            return Ok(self.g.view(y, &[wide, n]));
        }
        let scores = self.g.op("scores", &[cells, rows, heads, streams], &[q]);
        let scores = self.g.like("scores", &[scores, c.mask]);
        let y = self
            .g
            .op("attention", &[a.v_dim, rows, heads, streams], &[scores]);
        let y = self.g.part(y, &[a.v_dim, heads, rows, streams]);
        Ok(self.g.op("attention", &[wide, n], &[y]))
    }

    fn store(&mut self, name: &'static str, t: Id, rows: Option<Id>) {
        let outside = self.outside;
        match rows {
            Some(rows) => self.g.store(name, &[t, rows], outside),
            None => self.g.store(name, &[t], outside),
        };
    }

    /// Qwen3-Next: queries and their gate in one projection; the gate is applied to the result.
    fn gated_attention(&mut self, h: Id, a: &Attention) -> Result<Id, SizeOverflow> {
        let n = self.s.tokens;
        let wide = a.q_heads.saturating_mul(a.k_dim);
        let both = self.g.op("Q and gate", &[wide.saturating_mul(2), n], &[h]);
        let both = self
            .g
            .view(both, &[a.k_dim.saturating_mul(2), a.q_heads, n]);
        let q = self.g.part(both, &[a.k_dim, a.q_heads, n]);
        let q = self.g.op("Q", &[a.k_dim, a.q_heads, n], &[q]);
        let q = self.rope(q);
        let (ty_k, ty_v) = (self.run.type_k, self.run.type_v);
        let q = self.rotate_heads(q, ty_k, [a.k_dim, a.q_heads], false, false);
        let (_, v) = self.project("V", h, a.kv_heads, a.v_dim);
        let v = self.rotate_heads(v, ty_v, [a.v_dim, a.kv_heads], false, true);
        let (_, k) = self.project("K", h, a.kv_heads, a.k_dim);
        let k = self.g.norm(k, self.norm);
        let k = self.rope(k);
        let k = self.rotate_heads(k, ty_k, [a.k_dim, a.kv_heads], false, false);
        let y = self.attend(&Projected { q, k, v }, a, None)?;
        let y = self.rotate_back(y, a, false);
        let gate = self.g.part(both, &[a.k_dim, a.q_heads, n]);
        let gate = self.g.op("gate", &[wide, n], &[gate]);
        Ok(self.g.like("gated", &[y, gate]))
    }

    /// Multi-head latent attention with absorbed projections: one cached vector per token.
    pub(super) fn latent(&mut self, h: Id, a: &LatentAttention) -> Result<Id, SizeOverflow> {
        let n = self.s.tokens;
        let (heads, rank, rope) = (a.q_heads, a.rank, a.rope_dim);
        let row = rank.saturating_add(rope);
        let key = a.nope_dim.saturating_add(rope);
        let mut q = h;
        if let Some(q_rank) = a.q_rank {
            let t = self.g.op("q compressed", &[q_rank, n], &[h]);
            q = self.g.norm(t, self.norm);
        }
        let q = self.g.op("Q", &[key.saturating_mul(heads), n], &[q]);
        let q = self.g.view(q, &[key, heads, n]);
        let plain = self.g.part(q, &[a.nope_dim, heads, n]);
        let plain = self.g.part(plain, &[a.nope_dim, n, heads]);
        let absorbed = self.g.op("q absorbed", &[rank, n, heads], &[plain]);
        let absorbed = self.g.part(absorbed, &[rank, heads, n]);
        let turned = self.g.part(q, &[rope, heads, n]);
        let turned = self.rope(turned);
        let q = self.g.op("Q", &[row, heads, n], &[absorbed, turned]);
        let both = self.g.op("kv compressed", &[row, n], &[h]);
        let kv = self.g.part(both, &[rank, n]);
        let kv = self.g.norm(kv, self.norm);
        let kv = self.g.view(kv, &[rank, 1, n]);
        let turned = self.g.part(both, &[rope, 1, n]);
        let turned = self.rope(turned);
        let k = self.g.op("K", &[row, 1, n], &[kv, turned]);
        let c = self.cache_inputs(None, true)?;
        let k = self.g.view(k, &[row, n]);
        self.store("latents", k, c.k_rows);

        let (cells, streams) = (self.s.cells, self.s.streams);
        let wide = a.v_dim.saturating_mul(heads);
        let q = self.g.view(q, &[row, heads, n]);
        let q = self.g.part(q, &[row, n, heads]);
        let y = if self.run.flash_attention {
            let base = mul(&[rank, heads, n, 4])?;
            let extra = self.f16_copies(base, mul(&[row, cells, streams])?, 0)?;
            let y = self
                .g
                .op_with("attention", &[rank, heads, n], &[q, c.mask], extra);
            let y = self.g.part(y, &[rank, n, heads]);
            let y = self.g.op("values", &[a.v_dim, n, heads], &[y]);
            let y = self.g.part(y, &[a.v_dim, heads, n]);
            let y = self.g.op("values", &[a.v_dim, heads, n], &[y]);
            self.g.view(y, &[wide, n])
        } else {
            let v = self
                .g
                .op_typed("latent copy", &[cells, rank, 1, streams], Type::F16, &[]);
            let scores = self.g.op("scores", &[cells, n, heads], &[q]);
            let scores = self.g.like("scores", &[scores, c.mask]);
            let y = self.g.op("attention", &[rank, n, heads], &[v, scores]);
            let y = self.g.op("values", &[a.v_dim, n, heads], &[y]);
            let y = self.g.part(y, &[a.v_dim, heads, n]);
            self.g.op("attention", &[wide, n], &[y])
        };
        Ok(self.g.op("attention output", &[self.net.width, n], &[y]))
    }
}

fn mul(factors: &[u64]) -> Result<u64, SizeOverflow> {
    factors
        .iter()
        .try_fold(1_u64, |acc, f| acc.checked_mul(*f))
        .ok_or(SizeOverflow)
}
