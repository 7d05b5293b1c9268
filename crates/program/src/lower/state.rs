//! State-space layers (Mamba-2): a convolution over the last few inputs, then a state per head that every token changes.

use plimsoll_model::StateSpace;
use plimsoll_units::DType;

use super::LowerError;
use super::build::{Builder, Part};
use super::decoder::{Decoder, product, single, sum};
use crate::pool::{GroupKind, state_bytes};
use crate::program::{ActivationKind, BufferId, ConvolveOp, Op, Rows, ScanOp, StatePlace};

impl Decoder<'_> {
    /// Projects, convolves, and passes the states; returns where the heads' results are, gated and normalised.
    pub(super) fn recur(
        &mut self,
        b: &mut Builder<'_>,
        i: usize,
        s: &StateSpace,
        normed: BufferId,
    ) -> Result<BufferId, LowerError> {
        let names = &self.names.state;
        let inner = product(s.heads, s.rows)?;
        let before = sum(inner, s.conv_channels)?;
        let all = sum(before, s.heads)?;
        let input = b.buffer("state_in", Rows::Tokens, all)?;
        let parts = [Part::whole(names.input, all)];
        self.linear(b, i, "state_in", &parts, normed, input)?;
        let [tail, state] = self.state_places(s)?;
        let (channels, taps, layer) = (s.conv_channels, s.conv_taps, Some(i));
        let convolved = b.buffer("convolved", Rows::Tokens, channels)?;
        let stored = format!("{}.weight", names.convolution);
        let shape = [channels, 1, taps];
        let elements = 0..product(channels, taps)?;
        let weight = b.elements(layer, ["convolution", &stored], &shape, elements, 0)?;
        let parts = [Part::whole(names.convolution, channels)];
        let bias = b.biases(layer, "convolution", &parts)?;
        b.op(Op::Convolve(ConvolveOp {
            x: input,
            from: inner,
            out: convolved,
            taps,
            weight,
            bias,
            state: tail,
        }));
        let taken = b.buffer("taken", Rows::Tokens, channels)?;
        self.activate(b, convolved, taken, false);
        let steps = b.buffer("steps", Rows::Tokens, product(2, s.heads)?)?;
        let bias = b.vector(layer, "step_bias", names.step_bias, s.heads, 0)?;
        let decay = b.vector(layer, "decay", names.decay, s.heads, 0)?;
        b.op(Op::Steps {
            x: input,
            from: before,
            bias,
            decay,
            limits: self.a.step_limits.map(single),
            out: steps,
        });
        let scanned = b.buffer("scanned", Rows::Tokens, inner)?;
        let skip = b.vector(layer, "skip", names.skip, s.heads, 0)?;
        b.op(Op::Scan(ScanOp {
            x: taken,
            steps,
            skip,
            out: scanned,
            heads: s.heads,
            rows: s.rows,
            cols: s.cols,
            groups: s.groups,
            state,
        }));
        let gated = b.buffer("gated", Rows::Tokens, inner)?;
        b.op(Op::Gate {
            kind: ActivationKind::Silu,
            gate: input,
            from: 0,
            x: scanned,
            out: gated,
        });
        let stored = format!("{}.weight", names.norm);
        let head = inner / s.groups.max(1);
        for group in 0..s.groups {
            let from = product(group, head)?;
            let gains = from..sum(from, head)?;
            let weight = b.elements(layer, ["state_norm", &stored], &[inner], gains, 0)?;
            b.op(Op::Norm {
                kind: self.norm_kind(),
                weight: Some(weight),
                bias: None,
                x: gated,
                out: gated,
                from,
                heads: 1,
                head,
            });
        }
        Ok(gated)
    }

    /// Where a layer keeps the inputs of its convolution, and its states.
    fn state_places(&mut self, s: &StateSpace) -> Result<[StatePlace; 2], LowerError> {
        let dtype = s.state_dtype.unwrap_or(self.rules.state_dtype);
        if [dtype, self.rules.state_dtype] != [DType::F32; 2] {
            return Err(LowerError::Unsupported {
                family: self.spec.family,
                what: format!(
                    "its recurrent states are kept in {dtype}, and recurrences run in f32"
                ),
            });
        }
        let rate = state_bytes(s, 1, dtype, dtype)?;
        let (group, index) = self.place((GroupKind::State, rate))?;
        let from = product(index, rate.get() / 4)?;
        let inputs = product(s.conv_channels, s.conv_taps.saturating_sub(1))?;
        let state = sum(from, inputs)?;
        Ok([from, state].map(|from| StatePlace { group, from }))
    }
}
