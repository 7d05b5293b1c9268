//! Latent attention (MLA), in the one form that this workspace has: queries are taken to the latents' space, so a cached
//! latent is read as it lies, for all heads, whatever the batch. DeepSeek-V2 (2024), section 2.1.3.

use std::ops::Range;

use plimsoll_model::{LatentAttention, Positions};

use super::LowerError;
use super::build::{Builder, Part};
use super::decoder::{Decoder, HEADS, product, single, sum};
use crate::pool::latent_group;
use crate::program::{BufferId, LatentOp, NormKind, Op, Rows};

/// Of the norms of both latents, whatever the others have: transformers' and DeepSeek's code give them no other.
const EPS: f32 = 1e-6;

impl Decoder<'_> {
    /// Projects, rotates and attends; returns where the heads' results are.
    pub(super) fn attend_latent(
        &mut self,
        b: &mut Builder<'_>,
        i: usize,
        at: &LatentAttention,
        normed: BufferId,
    ) -> Result<BufferId, LowerError> {
        let unsupported = |what: &str| LowerError::Unsupported {
            family: self.spec.family,
            what: what.to_owned(),
        };
        let Some(names) = self.names.latent else {
            return Err(unsupported(
                "latent attention of GGUF files does not run yet: use the checkpoint in safetensors",
            ));
        };
        let Positions::Rotary {
            full, interleaved, ..
        } = &self.a.positions
        else {
            return Err(unsupported("its latent attention has no rotation"));
        };
        let Some(table) = self.table(full) else {
            return Err(unsupported("its latent attention has no rotation"));
        };
        let mine = b.rank().share(at.q_heads, HEADS)?;
        let (heads, hidden) = (mine.end - mine.start, self.spec.hidden);
        let (nope, rope) = (product(heads, at.nope_dim)?, product(heads, at.rope_dim)?);

        let q = b.buffer("q", Rows::Tokens, nope)?;
        let q_rope = b.buffer("q_rope", Rows::Tokens, rope)?;
        let (module, columns, from) = match at.q_rank {
            None => (names.q, hidden, normed),
            Some(rank) => {
                let low = b.buffer("q_latent", Rows::Tokens, rank)?;
                let down = [Part::whole(names.q_down, rank)];
                self.project(b, i, "q_down", &down, hidden, [normed, low])?;
                latent_norm(b, i, ["q_norm", names.q_norm], low, rank)?;
                (names.q_up, rank, low)
            }
        };
        for (name, out, skip, len) in [
            ("q", q, 0, at.nope_dim),
            ("q_rope", q_rope, at.nope_dim, at.rope_dim),
        ] {
            let parts = [of_heads(module, at, &mine, skip, len)?];
            self.project(b, i, name, &parts, columns, [from, out])?;
        }

        let width = sum(at.rank, at.rope_dim)?;
        let latent = b.buffer("latent", Rows::Tokens, width)?;
        let down = [Part::whole(names.kv_down, width)];
        self.project(b, i, "kv_down", &down, hidden, [normed, latent])?;
        latent_norm(b, i, ["kv_norm", names.kv_norm], latent, at.rank)?;
        for (x, from, heads) in [(q_rope, 0, heads), (latent, at.rank, 1)] {
            b.op(Op::Rotate {
                table,
                x,
                from,
                heads,
                head: at.rope_dim,
                interleaved: *interleaved,
            });
        }

        let sizes = [at.q_heads, at.nope_dim, at.v_dim, at.rank];
        let [absorb, values] = b.latent_heads(i, names.kv_up, mine, sizes)?;
        let each = product(heads, at.rank)?;
        let absorbed = b.buffer("absorbed", Rows::Tokens, each)?;
        b.op(Op::Heads {
            weights: absorb,
            x: q,
            out: absorbed,
        });
        let seen = b.buffer("attended_latents", Rows::Tokens, each)?;
        let (group, index) = self.place(latent_group(at, self.rules.dtype)?)?;
        b.op(Op::Latent(LatentOp {
            q: absorbed,
            q_rope,
            latent,
            out: seen,
            heads,
            rank: at.rank,
            rope_dim: at.rope_dim,
            group,
            index,
            scale: single(self.a.attention_scale),
        }));
        let out = b.buffer("attended", Rows::Tokens, product(heads, at.v_dim)?)?;
        b.op(Op::Heads {
            weights: values,
            x: seen,
            out,
        });
        Ok(out)
    }
}

/// `len` rows of each head that is taken of a module, after its first `skip`.
fn of_heads(
    module: &'static str,
    at: &LatentAttention,
    taken: &Range<u64>,
    skip: u64,
    len: u64,
) -> Result<Part, LowerError> {
    let each = sum(at.nope_dim, at.rope_dim)?;
    let rows = product(at.q_heads, each)?;
    let head = |h: u64| h * each + skip..h * each + skip + len;
    let taken = taken.clone().map(head).collect();
    Ok(Part::some(module, rows, taken))
}

/// Normalises the first `rank` elements of each row, in place.
fn latent_norm(
    b: &mut Builder<'_>,
    i: usize,
    [name, module]: [&str; 2],
    x: BufferId,
    rank: u64,
) -> Result<(), LowerError> {
    let weight = b.vector(Some(i), name, &format!("{module}.weight"), rank, 0)?;
    b.op(Op::Norm {
        kind: NormKind::Rms { eps: EPS },
        weight: Some(weight),
        bias: None,
        x,
        out: x,
        from: 0,
        heads: 1,
        head: rank,
    });
    Ok(())
}
