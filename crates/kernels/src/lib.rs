//! CPU kernels whose results depend on nothing but their inputs.
//!
//! Every output element is one fixed chain of f32 fused multiply-adds over k; partial sums may be stored and
//! loaded again as f32, but are never added to each other in an order that depends on batch, threads or
//! instructions. So the bits of a row are the same alone and in any batch, on any number of threads and at any
//! [`Level`], the scalar one included, which is the oracle of the others.

mod attention;
mod bf16;
mod cached;
mod cpu;
mod f16;
mod f8;
mod lanes;
mod latent;
mod linear;
mod math;
mod peaks;
mod pool;
mod rows;
mod state;

pub use attention::{Columns, HEAD_MAX, KvShape, Queries, Reach, Scores, attend, write_kv};
pub use bf16::{bf16_from_f32, f32_from_bf16};
pub use cached::{Cached, F8, F16, Unscaled};
pub use cpu::Level;
pub use f16::{f16_from_f32, f32_from_f16};
pub use latent::{LATENT_MAX, LatentShape, attend_latents, write_latents};
pub use linear::{
    Groups, Inputs, Linear, PANEL, Start, group_word, pack_columns, pack_f8_row, pack_group_row,
    pack_row, pack_rows, quantise_row, run_heads,
};
pub use math::{cos_sin, tanh};
pub use peaks::{best_per_s, flops_per_s, read_bytes_per_s};
pub use pool::Pool;
pub use rows::{
    Activation, Choice, ExpertGroups, Norm, activate, clamped_swiglu, norm, norm_in_place, rotate,
    route,
};
pub use state::{COLS_MAX, Heads, StateShape, TAPS_MAX, Taps, convolve, scan, steps};
