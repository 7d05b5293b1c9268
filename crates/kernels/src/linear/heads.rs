//! [`run_heads`]: rows whose heads have a matrix of their own each.

use super::{CHUNK, GROUP, Linear, Outputs, PANEL, Rows, Start, TILE};
use crate::cpu::Level;
use crate::pool::Pool;
use plimsoll_units::WeightType;

/// `y = x W^T` for `m` rows of `matrices.len()` heads, which lie one after the other in a row of x and of y: each head
/// with its matrix, which are all of one size and of bfloat16.
///
/// # Panics
/// Where the slices are too short, or matrices of different sizes, types or inputs.
pub fn run_heads(
    pool: &mut Pool,
    level: Level,
    matrices: &[Linear<'_>],
    x: &[f32],
    m: usize,
    y: &mut [f32],
) {
    let heads = matrices.len();
    let Some(Linear { n, k, inputs, .. }) = matrices.first().copied() else {
        return;
    };
    let same = |l: &Linear<'_>| (l.n, l.k, l.form, l.inputs) == (n, k, WeightType::Bf16, inputs);
    assert!(matrices.iter().all(same));
    assert!(x.len() >= m * heads * k && y.len() >= m * heads * n);
    if m == 0 {
        return;
    }
    let panels = n.div_ceil(PANEL);
    let tile = (heads * panels)
        .div_ceil(pool.threads() * 8)
        .clamp(1, TILE)
        .next_multiple_of(GROUP);
    let tiles = panels.div_ceil(tile);
    let chunk = if m < 2 * CHUNK { m } else { CHUNK };
    let out = Outputs(y.as_mut_ptr());
    pool.run(heads * tiles * m.div_ceil(chunk), |i| {
        let (head, from) = (i / tiles % heads, i % tiles * tile);
        let first = i / tiles / heads * chunk;
        let rows = Rows::Spaced {
            first: first * heads + head,
            step: heads,
            count: (m - first).min(chunk),
        };
        let range = from..(from + tile).min(panels);
        // SAFETY: tiles write the outputs of their own panels, head and rows only, which lie in y.
        unsafe { matrices[head].tile(level, x, rows, range, out, Start::Zero) };
    });
}
