//! Packing of many rows at once, for whoever fills an arena of weights; `pack_row` is its oracle.

use super::PANEL;

/// Pairs of k that are packed of all rows before the next: their words fill the cache once.
const TILE: usize = 16;

/// Packs whole rows, `k` elements each and one after another in `rows`, as rows `first..` of one panel.
///
/// # Panics
/// Where the panel has not `PANEL × ⌈k/2⌉` words, or the rows do not fit it.
pub fn pack_rows(panel: &mut [u32], k: usize, first: usize, rows: &[u16]) {
    if k == 0 {
        return;
    }
    let pairs = k.div_ceil(2);
    let count = rows.len() / k;
    assert!(panel.len() == PANEL * pairs && first + count <= PANEL && rows.len() == count * k);
    for from in (0..pairs).step_by(TILE) {
        let to = (from + TILE).min(pairs);
        let words = &mut panel[from * PANEL..to * PANEL];
        for (r, row) in rows.chunks_exact(k).enumerate() {
            let row = &row[2 * from..(2 * to).min(k)];
            for (words, pair) in words.chunks_exact_mut(PANEL).zip(row.chunks(2)) {
                let high = pair.get(1).copied().unwrap_or(0);
                words[first + r] = u32::from(pair[0]) | u32::from(high) << 16;
            }
        }
    }
}

/// Packs columns: element by element of k, the `stride` elements of all outputs side by side, of which those
/// from `column` on become rows `first..first + count` of one panel.
///
/// # Panics
/// Where the panel has not `PANEL × ⌈k/2⌉` words, or the columns do not fit it or are not there.
pub fn pack_columns(
    panel: &mut [u32],
    k: usize,
    (first, count): (usize, usize),
    (columns, stride, column): (&[u16], usize, usize),
) {
    assert!(panel.len() == PANEL * k.div_ceil(2) && first + count <= PANEL);
    assert!(columns.len() >= k * stride && column + count <= stride);
    for (i, words) in panel.chunks_exact_mut(PANEL).enumerate() {
        let words = &mut words[first..first + count];
        let low = &columns[2 * i * stride + column..][..count];
        if 2 * i + 1 < k {
            let high = &columns[(2 * i + 1) * stride + column..][..count];
            for ((w, l), h) in words.iter_mut().zip(low).zip(high) {
                *w = u32::from(*l) | u32::from(*h) << 16;
            }
        } else {
            for (w, l) in words.iter_mut().zip(low) {
                *w = u32::from(*l);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack_row;
    use super::*;

    #[test]
    fn packs_as_one_row_after_the_other() {
        for (n, k) in [(1_usize, 1_usize), (32, 2), (31, 33), (32, 97), (20, 130)] {
            let rows: Vec<u16> = (0..n * k).map(|i| (i * 40503 + 7) as u16).collect();
            let mut want = vec![0; PANEL * n.div_ceil(PANEL) * k.div_ceil(2)];
            for (r, row) in rows.chunks_exact(k).enumerate() {
                pack_row(&mut want, k, r, row.iter().copied());
            }
            // In two parts, over what is no zero in these lanes.
            let mut got = want.clone();
            for words in got.chunks_exact_mut(PANEL) {
                words[..n].fill(u32::MAX);
            }
            let mut again = got.clone();
            let cut = n / 3;
            pack_rows(&mut got, k, cut, &rows[cut * k..]);
            pack_rows(&mut got, k, 0, &rows[..cut * k]);
            assert_eq!(got, want, "{n} x {k}");

            let stride = n + 3;
            let mut columns = vec![0; k * stride];
            for (at, v) in rows.iter().enumerate() {
                columns[at % k * stride + 2 + at / k] = *v;
            }
            pack_columns(&mut again, k, (cut, n - cut), (&columns, stride, 2 + cut));
            pack_columns(&mut again, k, (0, cut), (&columns, stride, 2));
            assert_eq!(again, want, "columns of {n} x {k}");
        }
    }
}
