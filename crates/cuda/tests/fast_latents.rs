//! Attention over latents on tensor cores, on fibers, as `fast_attention.rs` has that over keys and values.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_cuda::args::{Kv, Latents};
use plimsoll_cuda::{Device, Fibers, Launch};
use support::*;

/// Attention over latents, of a page's second layer.
#[derive(Clone, Copy, Debug)]
struct Latent {
    kept: Kept,
    slots: usize,
    heads: usize,
    values: usize,
    rope: usize,
    before: usize,
    tokens: usize,
    split: u32,
}

struct OverLatents {
    case: Latent,
    device: Fibers,
    args: Latents,
    q: Vec<f32>,
    rotated: Vec<f32>,
    rows: Vec<f32>,
}

impl OverLatents {
    fn new(case: Latent) -> Self {
        let c = case;
        let (mut device, mut numbers) = (Fibers::new(), Numbers(6));
        let (end, dim, each) = (c.before + c.tokens, c.values + c.rope, c.kept.bytes());
        let mut some = |n: usize, by: f32| -> Vec<f32> {
            let all = numbers.floats(n).into_iter();
            all.map(|x| c.kept.query(x * by)).collect()
        };
        let mut rows = some(end * dim, 1.0);
        let q = some(c.tokens * c.heads * c.values, 3.0);
        let rotated = some(c.tokens * c.heads * c.rope, 3.0);
        let layer = dim * c.slots;
        let blocks = end.div_ceil(c.slots);
        let table: Vec<u32> = (0..blocks).map(|b| (blocks - b) as u32).collect();
        let mut pages = vec![0xff_u8; (blocks + 1) * 2 * layer * each];
        for (position, row) in rows.chunks_mut(dim).enumerate() {
            let (bytes, kept, _) = c.kept.keep(row);
            row.copy_from_slice(&kept);
            let at = table[position / c.slots] as usize * 2 * layer + layer;
            let at = (at + position % c.slots * dim) * each;
            pages[at..at + dim * each].copy_from_slice(&bytes.concat());
        }
        let parts = end.div_ceil(c.split as usize).max(1);
        let args = Latents {
            pages: put(&mut device, &pages).0,
            of: put_words(&mut device, &vec![0; c.tokens]).0,
            tables: put_words(&mut device, &table).0,
            q: put_floats(&mut device, &q).0,
            q_rope: put_floats(&mut device, &rotated).0,
            partials: {
                let words = c.tokens * c.heads * parts * (c.values + 2);
                put_words(&mut device, &vec![u32::MAX; words]).0
            },
            page: 2 * layer as u64,
            layer: layer as u64,
            slots: c.slots as u32,
            heads: c.heads as u32,
            k_dim: dim as u32,
            v_dim: c.values as u32,
            q_stride: (c.heads * c.values) as u32,
            rope_stride: (c.heads * c.rope) as u32,
            out_stride: (c.heads * c.values) as u32,
            split: c.split,
            splits: parts as u32,
            scale: 0.2,
            ..Latents::default()
        };
        Self {
            case,
            device,
            args,
            q,
            rotated,
            rows,
        }
    }

    fn run(&mut self, tokens: std::ops::Range<usize>, apart: bool) -> Vec<f32> {
        let c = self.case;
        let n = tokens.len() * c.heads * c.values;
        let out = put_floats(&mut self.device, &vec![f32::NAN; n]);
        let seq = [0, (c.before + tokens.start) as u32, tokens.len() as u32, 0];
        let a = Latents {
            seqs: put_words(&mut self.device, &seq).0,
            q: self.args.q + 4 * (tokens.start * c.heads * c.values) as u64,
            q_rope: self.args.q_rope + 4 * (tokens.start * c.heads * c.rope) as u64,
            out: out.0,
            ..self.args
        };
        let kernel = match c.kept {
            Kept::Bf16 => "attend_latents_mma_bf16",
            Kept::F16 => "attend_latents_mma_f16",
            Kept::Fp8 => "attend_latents_mma_fp8",
            Kept::Int8 => unreachable!("latents have no scales"),
        };
        let wide = (c.values + c.rope).next_multiple_of(16) + 8;
        let how = Launch {
            grid: [
                tokens.len() as u32,
                c.heads.div_ceil(32) as u32,
                if apart { a.splits } else { 1 },
            ],
            threads: 128,
            shared: (2 * 2 * 32 * wide) as u32,
        };
        self.device.launch(kernel, how, a.bytes()).unwrap();
        if apart {
            let kv = Kv {
                seqs: a.seqs,
                of: a.of,
                out: a.out,
                partials: a.partials,
                q_heads: a.heads,
                v_dim: a.v_dim,
                split: a.split,
                splits: a.splits,
                ..Kv::default()
            };
            let how = Launch {
                grid: [tokens.len() as u32, a.heads, 1],
                threads: 32,
                shared: 0,
            };
            self.device.launch("combine", how, kv.bytes()).unwrap();
        }
        floats(&mut self.device, out, n)
    }

    /// Attention in binary64.
    fn expected(&self) -> Vec<f64> {
        let c = self.case;
        let dim = c.values + c.rope;
        let mut all = Vec::new();
        for (token, head) in (0..c.tokens).flat_map(|t| (0..c.heads).map(move |h| (t, h))) {
            let at = token * c.heads + head;
            let query = self.q[at * c.values..][..c.values]
                .iter()
                .chain(&self.rotated[at * c.rope..][..c.rope]);
            let keys = self.rows.chunks(dim).take(c.before + token + 1);
            let weight = |key: &[f32]| {
                let pairs = key.iter().zip(query.clone());
                let s: f64 = pairs.map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                (s * f64::from(self.args.scale)).exp()
            };
            let weights: Vec<f64> = keys.clone().map(weight).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..c.values {
                let of = keys.clone().zip(&weights).map(|(k, w)| w * f64::from(k[d]));
                all.push(of.sum::<f64>() / total);
            }
        }
        all
    }
}

#[test]
fn latents_are_near_their_sums_and_depend_on_nobody() {
    let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
    for kept in [Kept::Bf16, Kept::F16, Kept::Fp8] {
        // Heads that fill a block, a part of one, several; sizes that are not whole; both halves of values; many parts.
        for (slots, heads, values, rope, before, tokens, split) in [
            (16, 4, 32, 16, 0, 1, 512),
            (16, 4, 32, 16, 20, 30, 64),
            (5, 20, 40, 6, 50, 9, 32),
            (8, 40, 48, 8, 90, 3, 64),
            (16, 32, 272, 32, 33, 2, 32),
            (16, 16, 512, 64, 70, 3, 64),
        ] {
            let case = Latent {
                kept,
                slots,
                heads,
                values,
                rope,
                before,
                tokens,
                split,
            };
            let mut latents = OverLatents::new(case);
            let together = latents.run(0..tokens, false);
            let most = match kept {
                Kept::F16 => 2.0_f64.powi(-12),
                _ => 2.0_f64.powi(-9),
            } + 2e-5;
            for (y, expected) in together.iter().zip(latents.expected()) {
                let off = (f64::from(*y) - expected).abs();
                assert!(off <= 2.0 * most, "{case:?}: {y} for {expected}");
            }
            let ways = if latents.args.splits > 1 { 2 } else { 1 };
            for apart in &[false, true][..ways] {
                assert_eq!(
                    bits(&together),
                    bits(&latents.run(0..tokens, *apart)),
                    "{case:?}"
                );
                let row = heads * values;
                for token in [0, tokens - 1] {
                    assert_eq!(
                        bits(&together[token * row..][..row]),
                        bits(&latents.run(token..token + 1, *apart)),
                        "{case:?}, {token}"
                    );
                }
            }
        }
    }
}
