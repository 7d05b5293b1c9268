//! Attention on a device, over keys and values or latents: on tensor cores or as the processors do.

use plimsoll_cuda::{Launch, args};
use plimsoll_program::{ATTENTION_PART, AttentionOp, GroupKind, LatentOp};
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
/// The kernel for a type of cached elements.
fn of_type(dtype: DType, names: [&'static str; 4]) -> &'static str {
    match dtype {
        DType::F32 => names[0],
        DType::F16 => names[2],
        DType::I8 => names[3],
        _ => names[1],
    }
}

/// Bytes of a cached element; others than these are refused at the start.
const fn element_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 4,
        DType::I8 => 1,
        _ => 2,
    }
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
            "write_kv_int8",
        ];
        self.each(of_type(dtype, write), step.tokens, kv.bytes())?;
        if let Some(names) = self.attend_mma(a) {
            return self.attend_fast(step, a, kv, names);
        }
        let queries = a.q_heads / a.kv_heads.max(1);
        let floats = queries * (a.k_dim + a.v_dim + CHUNK + 1 + LANES + TILES) + CHUNK;
        let how = Launch {
            grid: [word(step.tokens), word(a.kv_heads), 1],
            threads: THREADS,
            shared: word(4 * floats),
        };
        let attend = ["attend_f32", "attend_bf16", "attend_f16", "attend_int8"];
        self.launch(of_type(dtype, attend), how, kv.bytes())
    }

    /// The kernel of attention on tensor cores for such heads: with it keys of a tile, tiles at once.
    fn attend_mma(&self, a: &AttentionOp) -> Option<(&'static str, u64, u64)> {
        let half = match self.program.kv_dtype {
            _ if !self.fast => return None,
            DType::Bf16 => 0,
            DType::F16 => 1,
            _ => return None,
        };
        let (names, keys, tiles) = match a.k_dim.max(a.v_dim) {
            0..=64 => (["attend_mma_bf16_64", "attend_mma_f16_64"], 64, 2),
            65..=128 => (["attend_mma_bf16_128", "attend_mma_f16_128"], 64, 2),
            129..=256 => (["attend_mma_bf16_256", "attend_mma_f16_256"], 32, 1),
            _ => return None,
        };
        Some((names[half], keys, tiles))
    }

    fn attend_fast(
        &mut self,
        step: Step,
        a: &AttentionOp,
        mut kv: args::Kv,
        (name, keys, tiles): (&'static str, u64, u64),
    ) -> Result<(), BackendError> {
        let [k_dim, v_dim] = [a.k_dim, a.v_dim].map(|d| d.next_multiple_of(16));
        let halves = QUERIES * (k_dim + 8) + tiles * (k_dim * (keys + 8) + keys * (v_dim + 8));
        // Long sequences of few tokens are treated in parts, so that enough blocks run: as far as there is room for them.
        let parts = self.lists.parts;
        let apart = self.sizes.apart(a, step.tokens, parts);
        kv.split = word(ATTENTION_PART);
        kv.splits = word(parts);
        if let Some(words) = apart {
            let from = self.sizes.before_partials();
            self.inputs.mark(Bytes::new(4 * (from + words)));
            kv.partials = self.told(from, words);
        }
        let how = Launch {
            grid: [
                word(step.tokens),
                word(a.kv_heads),
                if apart.is_some() { kv.splits } else { 1 },
            ],
            threads: THREADS,
            shared: word(2 * halves),
        };
        self.launch(name, how, kv.bytes())?;
        if apart.is_none() {
            return Ok(());
        }
        let how = Launch {
            grid: [word(step.tokens), word(a.q_heads), 1],
            threads: THREADS,
            shared: 0,
        };
        self.launch("combine", how, kv.bytes())
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
            k_dim: word(a.rank + a.rope_dim),
            v_dim: word(a.rank),
            q_stride: self.width(a.q),
            rope_stride: self.width(a.q_rope),
            latent_stride: self.width(a.latent),
            out_stride: self.width(a.out),
            scale: a.scale,
        };
        let none = "latents have no scales";
        let write = [
            "write_latents_f32",
            "write_latents_bf16",
            "write_latents_f16",
            none,
        ];
        self.each(of_type(dtype, write), step.tokens, latents.bytes())?;
        let how = Launch {
            grid: [word(step.tokens), word(a.heads), 1],
            threads: THREADS,
            shared: word(4 * (2 * a.rank + a.rope_dim + 1)),
        };
        let attend = [
            "attend_latents_f32",
            "attend_latents_bf16",
            "attend_latents_f16",
            none,
        ];
        self.launch(of_type(dtype, attend), how, latents.bytes())
    }
}
