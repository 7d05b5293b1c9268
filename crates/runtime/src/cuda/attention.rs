//! Attention on a device, over keys and values or latents: on tensor cores or as the processors do.

use plimsoll_cuda::{Launch, args};
use plimsoll_program::{ATTENTION_PART, AttentionOp, GroupKind, LATENT_ROWS, LatentOp, Parted};
use plimsoll_units::{Bytes, DType};

use super::ops::{Step, THREADS};
use super::{Cuda, elements, word};
use crate::backend::BackendError;

/// Rows of attention on tensor cores: tokens with a head each.
const QUERIES: u64 = 64;
/// Keys that attention multiplies side by side, tiles of them, and lanes of a tile (`attention.cu`).
const CHUNK: u64 = 128;
const TILES: u64 = 8;
const LANES: u64 = 16;
/// Rows of latents on tensor cores, and as many keys of a tile; values and dimensions at most.
const LATENT_VALUES: u64 = 512;
const LATENT_DIMS: u64 = 640;
/// The kernel for a type of cached elements.
fn of_type(dtype: DType, names: [&'static str; 5]) -> &'static str {
    match dtype {
        DType::F32 => names[0],
        DType::F16 => names[2],
        DType::F8E4m3 => names[3],
        DType::I8 => names[4],
        _ => names[1],
    }
}

/// Bytes of a cached element; others than these are refused at the start.
const fn element_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 4,
        DType::F8E4m3 | DType::I8 => 1,
        _ => 2,
    }
}

/// In place of a kernel of latents in whole numbers.
const NO_SCALES: &str = "latents have no scales";

/// A kernel of attention.
pub(super) struct Attend {
    pub(super) name: &'static str,
    /// Bytes that its blocks share.
    pub(super) shared: u64,
    /// Whether it is one of tensor cores.
    fast: bool,
}

impl Cuda {
    pub(super) fn attention(&mut self, step: Step, a: &AttentionOp) -> Result<(), BackendError> {
        let group = self.program.geometry.groups[elements(a.group)].clone();
        let dtype = self.program.kv_dtype;
        let each = element_bytes(dtype);
        let strides = [a.q, a.k, a.v].map(|b| self.width(b));
        let at = [(a.q, a.at[0]), (a.k, a.at[1]), (a.v, a.at[2])];
        let [q, k, v] = at.map(|(b, from)| self.buffer(b, step) + 4 * from);
        let (reach, reach_of) = match group.kind {
            GroupKind::Window(n) => (1, word(n)),
            GroupKind::Chunk(n) => (2, word(n)),
            _ => (0, 0),
        };
        let part = self.layer(a.group, a.index);
        let [seqs, tables] = self.seqs(a.group, step);
        let kv = args::Kv {
            pages: self.pages(a.group, part.clone()),
            seqs,
            of: self.told(self.lists.of, step.tokens),
            tables,
            q,
            k,
            v,
            out: self.buffer(a.out, step),
            sinks: self.vector(a.sinks),
            page: self.program.geometry.page.get() / each,
            layer: part.start / each,
            slots: word(group.slots),
            q_heads: word(a.q_heads),
            kv_heads: word(a.kv_heads),
            k_dim: word(a.k_dim),
            v_dim: word(a.v_dim),
            q_stride: strides[0],
            k_stride: strides[1],
            v_stride: strides[2],
            reach,
            reach_of,
            capped: a.softcap.is_some().into(),
            scale: a.scale,
            cap: a.softcap.unwrap_or(0.0),
            ..args::Kv::default()
        };
        let write = [
            "write_kv_f32",
            "write_kv_bf16",
            "write_kv_f16",
            "write_kv_fp8",
            "write_kv_int8",
        ];
        self.each(of_type(dtype, write), step.tokens, kv.bytes())?;
        let kernel = self.attend(a);
        if kernel.fast {
            return self.attend_fast(step, a, kv, kernel);
        }
        let how = Launch {
            grid: [word(step.tokens), word(a.kv_heads), 1],
            threads: THREADS,
            shared: word(kernel.shared),
        };
        self.launch(kernel.name, how, kv.bytes())
    }

    /// What attends for such heads.
    pub(super) fn attend(&self, a: &AttentionOp) -> Attend {
        if let Some((name, keys, tiles)) = self.attend_mma(a) {
            let [k_dim, v_dim] = [a.k_dim, a.v_dim].map(|d| d.next_multiple_of(16));
            // Scales of keys and of values are whole numbers of halves too.
            let scales = if self.program.kv_dtype == DType::I8 {
                2 * 2 * keys
            } else {
                0
            };
            let halves =
                QUERIES * (k_dim + 8) + tiles * (k_dim * (keys + 8) + keys * (v_dim + 8) + scales);
            return Attend {
                name,
                shared: 2 * halves,
                fast: true,
            };
        }
        let queries = a.q_heads / a.kv_heads.max(1);
        let floats = queries * (a.k_dim + a.v_dim + CHUNK + 1 + LANES + TILES) + CHUNK;
        let names = [
            "attend_f32",
            "attend_bf16",
            "attend_f16",
            "attend_fp8",
            "attend_int8",
        ];
        Attend {
            name: of_type(self.program.kv_dtype, names),
            shared: 4 * floats,
            fast: false,
        }
    }

    /// The kernel of attention on tensor cores for such heads: with it keys of a tile, tiles at once.
    fn attend_mma(&self, a: &AttentionOp) -> Option<(&'static str, u64, u64)> {
        let names = match self.program.kv_dtype {
            _ if !self.fast => return None,
            DType::Bf16 => [
                "attend_mma_bf16_64",
                "attend_mma_bf16_128",
                "attend_mma_bf16_256",
            ],
            DType::F16 => [
                "attend_mma_f16_64",
                "attend_mma_f16_128",
                "attend_mma_f16_256",
            ],
            DType::F8E4m3 => [
                "attend_mma_fp8_64",
                "attend_mma_fp8_128",
                "attend_mma_fp8_256",
            ],
            DType::I8 => [
                "attend_mma_int8_64",
                "attend_mma_int8_128",
                "attend_mma_int8_256",
            ],
            _ => return None,
        };
        match a.k_dim.max(a.v_dim) {
            0..=64 => Some((names[0], 64, 2)),
            65..=128 => Some((names[1], 64, 2)),
            129..=256 => Some((names[2], 32, 1)),
            _ => None,
        }
    }

    fn attend_fast(
        &mut self,
        step: Step,
        a: &AttentionOp,
        mut kv: args::Kv,
        kernel: Attend,
    ) -> Result<(), BackendError> {
        let partials = self.parts_apart(step, a.parted());
        kv.split = word(ATTENTION_PART);
        (kv.splits, kv.partials) = (word(self.lists.parts), partials.unwrap_or(0));
        let how = Launch {
            grid: [
                word(step.tokens),
                word(a.kv_heads),
                if partials.is_some() { kv.splits } else { 1 },
            ],
            threads: THREADS,
            shared: word(kernel.shared),
        };
        self.launch(kernel.name, how, kv.bytes())?;
        match partials {
            Some(_) => self.combine(step, &kv),
            None => Ok(()),
        }
    }

    /// Where the parts of the longest sequence are kept apart: long sequences of few tokens are treated in parts, so that enough
    /// blocks run, as far as there is room for them.
    fn parts_apart(&mut self, step: Step, of: Parted) -> Option<u64> {
        let words = self.sizes.apart(of, step.tokens, self.lists.parts)?;
        let from = self.sizes.before_partials();
        self.inputs.mark(Bytes::new(4 * (from + words)));
        Some(self.told(from, words))
    }

    /// Puts parts together that were kept apart.
    fn combine(&mut self, step: Step, kv: &args::Kv) -> Result<(), BackendError> {
        let how = Launch {
            grid: [word(step.tokens), kv.q_heads, 1],
            threads: THREADS,
            shared: 0,
        };
        self.launch("combine", how, kv.bytes())
    }

    /// The kernel of latents on tensor cores.
    fn latents_mma(&self, a: &LatentOp) -> Option<&'static str> {
        let fits = a.rank <= LATENT_VALUES && a.rank + a.rope_dim <= LATENT_DIMS;
        match self.program.kv_dtype {
            _ if !self.fast || !fits => None,
            DType::Bf16 => Some("attend_latents_mma_bf16"),
            DType::F16 => Some("attend_latents_mma_f16"),
            DType::F8E4m3 => Some("attend_latents_mma_fp8"),
            _ => None,
        }
    }

    fn latents_fast(
        &mut self,
        step: Step,
        a: &LatentOp,
        mut latents: args::Latents,
        kernel: Attend,
    ) -> Result<(), BackendError> {
        let heads = a.heads.div_ceil(LATENT_ROWS);
        let partials = self.parts_apart(step, a.parted());
        latents.split = word(ATTENTION_PART);
        (latents.splits, latents.partials) = (word(self.lists.parts), partials.unwrap_or(0));
        let how = Launch {
            grid: [
                word(step.tokens),
                word(heads),
                if partials.is_some() {
                    latents.splits
                } else {
                    1
                },
            ],
            threads: THREADS,
            shared: word(kernel.shared),
        };
        self.launch(kernel.name, how, latents.bytes())?;
        if partials.is_none() {
            return Ok(());
        }
        let kv = args::Kv {
            seqs: latents.seqs,
            of: latents.of,
            out: latents.out,
            partials: latents.partials,
            q_heads: latents.heads,
            v_dim: latents.v_dim,
            split: latents.split,
            splits: latents.splits,
            ..args::Kv::default()
        };
        self.combine(step, &kv)
    }

    pub(super) fn latent(&mut self, step: Step, a: &LatentOp) -> Result<(), BackendError> {
        let group = self.program.geometry.groups[elements(a.group)].clone();
        let dtype = self.program.kv_dtype;
        let each = element_bytes(dtype);
        let part = self.layer(a.group, a.index);
        let [seqs, tables] = self.seqs(a.group, step);
        let latents = args::Latents {
            pages: self.pages(a.group, part.clone()),
            seqs,
            of: self.told(self.lists.of, step.tokens),
            tables,
            q: self.buffer(a.q, step),
            q_rope: self.buffer(a.q_rope, step),
            latent: self.buffer(a.latent, step),
            out: self.buffer(a.out, step),
            page: self.program.geometry.page.get() / each,
            layer: part.start / each,
            slots: word(group.slots),
            heads: word(a.heads),
            k_dim: word(a.rank + a.rope_dim),
            v_dim: word(a.rank),
            q_stride: self.width(a.q),
            rope_stride: self.width(a.q_rope),
            latent_stride: self.width(a.latent),
            out_stride: self.width(a.out),
            scale: a.scale,
            ..args::Latents::default()
        };
        let write = [
            "write_latents_f32",
            "write_latents_bf16",
            "write_latents_f16",
            "write_latents_fp8",
            NO_SCALES,
        ];
        self.each(of_type(dtype, write), step.tokens, latents.bytes())?;
        let kernel = self.attend_latents(a);
        if kernel.fast {
            return self.latents_fast(step, a, latents, kernel);
        }
        let how = Launch {
            grid: [word(step.tokens), word(a.heads), 1],
            threads: THREADS,
            shared: word(kernel.shared),
        };
        self.launch(kernel.name, how, latents.bytes())
    }

    /// What attends over such latents.
    pub(super) fn attend_latents(&self, a: &LatentOp) -> Attend {
        if let Some(name) = self.latents_mma(a) {
            let wide = (a.rank + a.rope_dim).next_multiple_of(16) + 8;
            return Attend {
                name,
                // Queries and a tile of keys.
                shared: 2 * 2 * LATENT_ROWS * wide,
                fast: true,
            };
        }
        let names = [
            "attend_latents_f32",
            "attend_latents_bf16",
            "attend_latents_f16",
            "attend_latents_fp8",
            NO_SCALES,
        ];
        Attend {
            name: of_type(self.program.kv_dtype, names),
            shared: 4 * (2 * a.rank + a.rope_dim + 1),
            fast: false,
        }
    }
}
