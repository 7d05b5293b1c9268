//! [`Groups`]: rows of a batch that go to different matrices, the experts of a mixture.

use super::{GROUP, Linear, Outputs, PANEL, Rows, Start};
use crate::cpu::Level;
use crate::pool::Pool;

/// Rows by the expert that each goes to, so that every expert's matrix is read once, for all of its rows.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Every row's number once: those of the first expert, then those of the second.
    rows: Vec<usize>,
    /// Where each expert's rows end.
    ends: Vec<usize>,
}

impl Groups {
    /// Row i goes to the i-th expert of `of`.
    ///
    /// # Panics
    /// Where an expert is not below `experts`.
    #[must_use]
    pub fn new(experts: usize, of: impl Iterator<Item = usize> + Clone) -> Self {
        let mut ends = vec![0; experts];
        of.clone().for_each(|e| ends[e] += 1);
        // Where each begins, until its rows are listed.
        let mut begin = 0;
        for end in &mut ends {
            (*end, begin) = (begin, begin + *end);
        }
        let mut rows = vec![0; begin];
        for (row, e) in of.enumerate() {
            rows[ends[e]] = row;
            ends[e] += 1;
        }
        Self { rows, ends }
    }

    /// `y = x W^T`, every row of y with the matrix of its expert, which are all of one size, from what `start` says of
    /// its expert on; `share` rows of y, one after the other, have one row of x. Matrices of experts without rows are
    /// not asked for. `scratch` is that of [`Linear::run`].
    ///
    /// # Panics
    /// Where the slices are too short, or matrices of different sizes, types or inputs.
    #[allow(clippy::too_many_arguments, reason = "what any matrix product has")]
    pub fn run<'a>(
        &self,
        pool: &mut Pool,
        level: Level,
        expert: impl Fn(usize) -> (Linear<'a>, Start<'a>),
        share: usize,
        x: &[f32],
        scratch: &mut [f32],
        y: &mut [f32],
    ) {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let busy: Vec<(Linear<'a>, Start<'a>, Rows<'_>)> = begins
            .zip(&self.ends)
            .enumerate()
            .filter(|(_, (from, to))| from < to)
            .map(|(e, (from, to))| {
                let rows = &self.rows[from..*to];
                let (matrix, start) = expert(e);
                (matrix, start, Rows::Listed { rows, share })
            })
            .collect();
        let Some((one, ..)) = busy.first().copied() else {
            return;
        };
        let Linear { n, k, form, .. } = one;
        for (m, start, _) in &busy {
            assert!((m.n, m.k, m.form, m.inputs) == (n, k, form, one.inputs));
            assert!(!matches!(start, Start::Bias(b) if b.len() < n));
        }
        assert!(x.len() >= self.rows.len().div_ceil(share) * k && y.len() >= self.rows.len() * n);
        let x = one.inputs_of(pool, level, x, self.rows.len().div_ceil(share), scratch);
        let panels = n.div_ceil(PANEL);
        let tile = (busy.len() * panels)
            .div_ceil(pool.threads() * 8)
            .clamp(1, one.tile_panels())
            .next_multiple_of(GROUP);
        let tiles = panels.div_ceil(tile);
        let out = Outputs(y.as_mut_ptr());
        pool.run(busy.len() * tiles, |i| {
            let (matrix, start, rows) = busy[i / tiles];
            let from = i % tiles * tile;
            let range = from..(from + tile).min(panels);
            // SAFETY: tiles write the outputs of their own panels only, and experts have no row in common: `new`
            // lists every row once, and all of them lie in y.
            unsafe { matrix.tile(level, x, rows, range, out, start) };
        });
    }
}
