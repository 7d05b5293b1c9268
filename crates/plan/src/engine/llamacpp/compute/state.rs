//! The gated delta rule's part of the graph (`models/qwen3next.cpp`, `delta-net-base.cpp`).

use plimsoll_model::StateSpace;
use plimsoll_units::SizeOverflow;

use super::super::net::key_heads;
use super::build::Builder;
use super::graph::Id;

impl Builder<'_> {
    pub(super) fn gated_delta(&mut self, h: Id, s: &StateSpace) -> Result<Id, SizeOverflow> {
        let (n, slots) = (self.s.tokens, self.s.slots.max(1));
        let each = n / slots;
        let (dim, values, channels) = (s.cols, s.heads, s.conv_channels);
        let keys = key_heads(s).ok_or(SizeOverflow)?.max(1);
        let share = values / keys;
        let past = s.conv_taps.saturating_sub(1);
        let wide = dim.saturating_mul(values);
        let square = dim.saturating_mul(dim);
        let rows: Vec<Id> = self.state_rows.into_iter().collect();

        let conv = self.g.op(
            "conv states",
            &[past.saturating_mul(channels), slots],
            &rows,
        );
        let conv = self.g.view(conv, &[past, channels, slots]);
        let mixed = self.g.op("qkv", &[channels, n], &[h]);
        let mixed = self.g.view(mixed, &[channels, each, slots]);
        let mixed = self.g.part(mixed, &[each, channels, slots]);
        let ne = [each.saturating_add(past), channels, slots];
        let input = self.g.op("conv input", &ne, &[conv, mixed]);
        let tail = self.g.part(input, &[past, channels, slots]);
        let outside = self.outside;
        self.g.store("conv states", &[tail], outside);
        let state = self
            .g
            .op("state", &[square.saturating_mul(values), slots], &rows);
        let out = self.g.op("conv output", &[channels, each, slots], &[input]);
        let q = self.delta_heads(out, dim, [keys, share]);
        let k = self.delta_heads(out, dim, [keys, share]);
        let v = self.g.part(out, &[dim, values, each, slots]);
        let gates = self
            .g
            .op("decay and beta", &[values.saturating_mul(2), n], &[h]);
        let decay = self.g.part(gates, &[share, keys, n]);
        let decay = self.g.op("decay", &[values, each, slots], &[decay]);
        let beta = self.g.part(gates, &[share, keys, n]);
        let beta = self.g.op("beta", &[share, keys, n], &[beta]);
        let state = self.g.view(state, &[dim, dim, values, slots]);
        let ne = [wide, n.saturating_add(dim.saturating_mul(slots))];
        let y = self.g.op("delta rule", &ne, &[q, k, v, decay, beta, state]);
        let new = self.g.part(y, &[dim, dim, values, slots]);
        self.g.store("state", &[new], outside);
        let y = self.g.part(y, &[dim, values, each, slots]);
        let y = self.g.op("delta output", &[dim, values, each, slots], &[y]);
        let z = self.g.op("output gate", &[wide, n], &[h]);
        let z = self.g.view(z, &[dim, values, each, slots]);
        let z = self.g.like("output gate", &[z]);
        let y = self.g.like("delta output", &[y, z]);
        let y = self.g.view(y, &[wide, n]);
        let w = self.net.width;
        let y = self.g.op("attention output", &[w, each, slots], &[y]);
        Ok(self.g.view(y, &[w, n]))
    }

    /// Normalised queries or keys, repeated to the number of value heads.
    fn delta_heads(&mut self, from: Id, dim: u64, [keys, share]: [u64; 2]) -> Id {
        let (n, slots) = (self.s.tokens, self.s.slots.max(1));
        let ne = [dim, keys, n / slots, slots];
        let t = self.g.part(from, &ne);
        let t = self.g.op("q or k", &ne, &[t]);
        if share == 1 {
            return t;
        }
        let t = self.g.view(t, &[dim, 1, keys, n]);
        let t = self.g.op("q or k repeated", &[dim, share, keys, n], &[t]);
        self.g
            .view(t, &[dim, keys.saturating_mul(share), n / slots, slots])
    }
}
