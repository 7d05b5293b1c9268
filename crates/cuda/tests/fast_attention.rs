//! Attention on tensor cores, on fibers: against sums in binary64 of what it says that it multiplies, and against itself in
//! other company, to the bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_cuda::args::Kv;
use plimsoll_cuda::{Device, Fibers, Launch};
use support::*;

/// Attention over pages that hold NaN wherever no key and no value was written.
#[derive(Clone, Copy, Debug)]
struct Case {
    kept: Kept,
    slots: usize,
    q_heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    /// Tokens that were there before, and those of the step.
    before: usize,
    tokens: usize,
    /// 1: so many last keys, 2: chunks of so many.
    reach: (u32, u32),
    cap: Option<f32>,
    sinks: bool,
    split: u32,
}

const CASE: Case = Case {
    kept: Kept::Bf16,
    slots: 16,
    q_heads: 4,
    kv_heads: 2,
    k_dim: 16,
    v_dim: 16,
    before: 0,
    tokens: 1,
    reach: (0, 0),
    cap: None,
    sinks: false,
    split: 512,
};

struct Attention {
    case: Case,
    device: Fibers,
    kv: Kv,
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    sinks: Vec<f32>,
}

impl Attention {
    fn new(case: Case) -> Self {
        let c = case;
        let mut device = Fibers::new();
        let mut numbers = Numbers(5);
        let end = c.before + c.tokens;
        let mut some = |n: usize, by: f32| -> Vec<f32> {
            let all = numbers.floats(n).into_iter();
            all.map(|x| c.kept.query(x * by)).collect()
        };
        let mut keys = some(end * c.kv_heads * c.k_dim, 1.0);
        let mut values = some(end * c.kv_heads * c.v_dim, 1.0);
        // As they are multiplied.
        let q = some(c.tokens * c.q_heads * c.k_dim, 4.0);
        let sinks = some(c.q_heads, 2.0);
        let each = c.kept.bytes();
        // Two layers a page; ours is the second. Scales are behind keys and values.
        let elements = c.kv_heads * (c.k_dim + c.v_dim) * c.slots;
        let scales = if c.kept == Kept::Int8 {
            2 * c.kv_heads * c.slots * 4
        } else {
            0
        };
        let layer = elements + scales;
        let blocks = end.div_ceil(c.slots);
        let table: Vec<u32> = (0..blocks).map(|b| (blocks - b) as u32).collect();
        let mut pages = vec![0xff_u8; (blocks + 1) * 2 * layer * each];
        for position in 0..end {
            let page = table[position / c.slots] as usize * 2 * layer + layer;
            let slot = position % c.slots;
            for head in 0..c.kv_heads {
                let mut put = |at: usize, bytes: &[u8]| {
                    pages[at..at + bytes.len()].copy_from_slice(bytes);
                };
                let scale_at = |of: usize| page + elements + (of * c.slots + slot) * 4;
                let at = (position * c.kv_heads + head) * c.k_dim;
                let (bytes, kept, scale) = c.kept.keep(&keys[at..at + c.k_dim]);
                keys[at..at + c.k_dim].copy_from_slice(&kept);
                for (d, k) in bytes.iter().enumerate() {
                    put((page + (head * c.k_dim + d) * c.slots + slot) * each, k);
                }
                if scales > 0 {
                    put(scale_at(head), &scale.to_ne_bytes());
                }
                let from = page + (c.kv_heads * c.k_dim + head * c.v_dim) * c.slots;
                let at = (position * c.kv_heads + head) * c.v_dim;
                let (bytes, kept, scale) = c.kept.keep(&values[at..at + c.v_dim]);
                values[at..at + c.v_dim].copy_from_slice(&kept);
                for (d, v) in bytes.iter().enumerate() {
                    put((from + slot * c.v_dim + d) * each, v);
                }
                if scales > 0 {
                    put(scale_at(c.kv_heads + head), &scale.to_ne_bytes());
                }
            }
        }
        let parts = end.div_ceil(c.split as usize).max(1);
        let kv = Kv {
            pages: put(&mut device, &pages).0,
            seqs: put_words(&mut device, &[0, c.before as u32, c.tokens as u32, 0]).0,
            of: put_words(&mut device, &vec![0; c.tokens]).0,
            tables: put_words(&mut device, &table).0,
            q: put_floats(&mut device, &q).0,
            sinks: if c.sinks {
                put_floats(&mut device, &sinks).0
            } else {
                0
            },
            partials: {
                let words = c.tokens * c.q_heads * parts * (c.v_dim + 2);
                put_words(&mut device, &vec![u32::MAX; words]).0
            },
            page: 2 * layer as u64,
            layer: layer as u64,
            slots: c.slots as u32,
            q_heads: c.q_heads as u32,
            kv_heads: c.kv_heads as u32,
            k_dim: c.k_dim as u32,
            v_dim: c.v_dim as u32,
            q_stride: (c.q_heads * c.k_dim) as u32,
            reach: c.reach.0,
            reach_of: c.reach.1,
            capped: c.cap.is_some().into(),
            split: c.split,
            splits: parts as u32,
            scale: 1.0 / (c.k_dim as f32).sqrt(),
            cap: c.cap.unwrap_or(0.0),
            ..Kv::default()
        };
        Self {
            case,
            device,
            kv,
            q,
            keys,
            values,
            sinks,
        }
    }

    /// `tokens` of the step as if they were all, in one go or in parts that are put together.
    fn run(&mut self, tokens: std::ops::Range<usize>, apart: bool) -> Vec<f32> {
        let c = self.case;
        let (dim, keys, tiles) = match c.k_dim.max(c.v_dim) {
            0..=64 => (64, 64, 2),
            65..=128 => (128, 64, 2),
            _ => (256, 32, 1),
        };
        let name = match (c.kept, dim) {
            (Kept::Bf16, 64) => "attend_mma_bf16_64",
            (Kept::Bf16, 128) => "attend_mma_bf16_128",
            (Kept::Bf16, _) => "attend_mma_bf16_256",
            (Kept::F16, 64) => "attend_mma_f16_64",
            (Kept::F16, 128) => "attend_mma_f16_128",
            (Kept::F16, _) => "attend_mma_f16_256",
            (Kept::Fp8, 64) => "attend_mma_fp8_64",
            (Kept::Fp8, 128) => "attend_mma_fp8_128",
            (Kept::Fp8, _) => "attend_mma_fp8_256",
            (Kept::Int8, 64) => "attend_mma_int8_64",
            (Kept::Int8, 128) => "attend_mma_int8_128",
            (Kept::Int8, _) => "attend_mma_int8_256",
        };
        assert!(c.v_dim <= dim);
        let n = tokens.len() * c.q_heads * c.v_dim;
        let out = put_floats(&mut self.device, &vec![f32::NAN; n]);
        let seq = [0, (c.before + tokens.start) as u32, tokens.len() as u32, 0];
        let kv = Kv {
            seqs: put_words(&mut self.device, &seq).0,
            q: self.kv.q + 4 * (tokens.start * c.q_heads * c.k_dim) as u64,
            out: out.0,
            ..self.kv
        };
        let [k_dim, v_dim] = [c.k_dim, c.v_dim].map(|d| d.next_multiple_of(16));
        let scales = if c.kept == Kept::Int8 { 4 * keys } else { 0 };
        let halves = 64 * (k_dim + 8) + tiles * (k_dim * (keys + 8) + keys * (v_dim + 8) + scales);
        let how = Launch {
            grid: [
                tokens.len() as u32,
                c.kv_heads as u32,
                if apart { kv.splits } else { 1 },
            ],
            threads: 128,
            shared: 2 * halves as u32,
        };
        self.device.launch(name, how, kv.bytes()).unwrap();
        if apart {
            let how = Launch {
                grid: [tokens.len() as u32, c.q_heads as u32, 1],
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
        let mut all = Vec::new();
        for token in 0..c.tokens {
            let position = c.before + token;
            let first = match c.reach {
                (1, n) => (position + 1).saturating_sub(n as usize),
                (2, n) => position - position % n as usize,
                _ => 0,
            };
            for head in 0..c.q_heads {
                let kv_head = head / (c.q_heads / c.kv_heads);
                let score = |key: usize| {
                    let product = |d: usize| {
                        f64::from(self.q[(token * c.q_heads + head) * c.k_dim + d])
                            * f64::from(self.keys[(key * c.kv_heads + kv_head) * c.k_dim + d])
                    };
                    let s = (0..c.k_dim).map(product).sum::<f64>() * f64::from(self.kv.scale);
                    c.cap
                        .map_or(s, |cap| (s / f64::from(cap)).tanh() * f64::from(cap))
                };
                let weights: Vec<f64> = (first..=position).map(|k| score(k).exp()).collect();
                let sink = if c.sinks {
                    f64::from(self.sinks[head]).exp()
                } else {
                    0.0
                };
                let total = weights.iter().sum::<f64>() + sink;
                for d in 0..c.v_dim {
                    let of = |(i, w): (usize, &f64)| {
                        w * f64::from(
                            self.values[((first + i) * c.kv_heads + kv_head) * c.v_dim + d],
                        )
                    };
                    all.push(weights.iter().enumerate().map(of).sum::<f64>() / total);
                }
            }
        }
        all
    }
}

fn cases() -> Vec<Case> {
    let all = [
        CASE,
        Case {
            before: 37,
            tokens: 50,
            ..CASE
        },
        // Pages that eight keys do not divide, odd sizes.
        Case {
            slots: 5,
            k_dim: 24,
            v_dim: 12,
            before: 11,
            tokens: 40,
            ..CASE
        },
        // A group that does not divide the rows of a block; heads alone.
        Case {
            q_heads: 7,
            kv_heads: 1,
            before: 90,
            tokens: 21,
            ..CASE
        },
        Case {
            q_heads: 2,
            kv_heads: 2,
            before: 3,
            tokens: 70,
            cap: Some(3.0),
            ..CASE
        },
        // Windows and chunks that end inside tiles, and whole tiles that some rows do not see.
        Case {
            reach: (1, 20),
            before: 150,
            tokens: 40,
            sinks: true,
            ..CASE
        },
        Case {
            reach: (2, 48),
            before: 100,
            tokens: 60,
            ..CASE
        },
        // Many parts.
        Case {
            reach: (1, 150),
            before: 400,
            tokens: 40,
            split: 128,
            ..CASE
        },
        Case {
            before: 300,
            tokens: 20,
            split: 64,
            ..CASE
        },
        Case {
            reach: (1, 100),
            before: 290,
            tokens: 40,
            split: 64,
            sinks: true,
            ..CASE
        },
        Case {
            slots: 8,
            q_heads: 32,
            kv_heads: 1,
            before: 130,
            tokens: 3,
            split: 64,
            ..CASE
        },
        Case {
            k_dim: 96,
            v_dim: 128,
            q_heads: 2,
            kv_heads: 1,
            before: 60,
            tokens: 9,
            split: 64,
            ..CASE
        },
        Case {
            k_dim: 256,
            v_dim: 256,
            q_heads: 2,
            kv_heads: 1,
            before: 60,
            tokens: 9,
            split: 64,
            ..CASE
        },
        Case {
            k_dim: 80,
            v_dim: 80,
            q_heads: 2,
            kv_heads: 1,
            before: 60,
            tokens: 9,
            ..CASE
        },
    ];
    let kept = |kept| all.iter().map(move |c| Case { kept, ..*c });
    Kept::ALL.into_iter().flat_map(kept).collect()
}

#[test]
fn attention_is_near_its_sums_in_binary64() {
    for case in cases() {
        let mut attention = Attention::new(case);
        let out = attention.run(0..case.tokens, false);
        // Weights of values are rounded to 16 bits, which makes each of them wrong by half of its last place, and again
        // with a scale; values are at most 1.
        let most = match case.kept {
            Kept::F16 => 2.0_f64.powi(-12),
            Kept::Bf16 | Kept::Fp8 => 2.0_f64.powi(-9),
            Kept::Int8 => 2.0_f64.powi(-8),
        } + 2e-5;
        let mut worst = 0.0_f64;
        for (y, expected) in out.iter().zip(attention.expected()) {
            let off = (f64::from(*y) - expected).abs();
            assert!(off <= 2.0 * most, "{case:?}: {y} for {expected}");
            worst = worst.max(off);
        }
        assert!(worst > 0.0);
    }
}

#[test]
fn attention_depends_neither_on_its_company_nor_on_who_has_which_part() {
    let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
    for case in cases() {
        let mut attention = Attention::new(case);
        let together = bits(&attention.run(0..case.tokens, false));
        // One part is treated by one block.
        let ways = if attention.kv.splits > 1 { 2 } else { 1 };
        for apart in &[false, true][..ways] {
            assert_eq!(
                together,
                bits(&attention.run(0..case.tokens, *apart)),
                "{case:?}"
            );
        }
        let row = case.q_heads * case.v_dim;
        for token in [0, case.tokens / 2, case.tokens - 1] {
            for apart in &[false, true][..ways] {
                let alone = bits(&attention.run(token..token + 1, *apart));
                assert_eq!(
                    together[token * row..(token + 1) * row],
                    alone,
                    "{case:?}, {token}"
                );
            }
        }
    }
}
