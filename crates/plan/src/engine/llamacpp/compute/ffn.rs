//! Feed-forward parts of the graph: dense, and routed to experts (`build_ffn`, `build_moe_ffn`).

use plimsoll_model::Moe;

use super::super::net::Arch;
use super::build::Builder;
use super::graph::{Id, Type};

impl Builder<'_> {
    pub(super) fn dense(&mut self, h: Id, inner: u64) -> Id {
        let rows = self.g.ne(h)[1];
        let y = if self.arch.fused_gate_up() {
            let both = self
                .g
                .op("gate and up", &[inner.saturating_mul(2), rows], &[h]);
            self.g.op("gated", &[inner, rows], &[both])
        } else if self.arch.layer_norm() {
            // The bias and GELU work in place.
            self.g.op("up", &[inner, rows], &[h])
        } else {
            let gate = self.g.op("gate", &[inner, rows], &[h]);
            let up = self.g.op("up", &[inner, rows], &[h]);
            self.gated(gate, up)
        };
        self.g.op("down", &[self.net.width, rows], &[y])
    }

    /// `act(gate) × up`: one operation that is never done in place, or two that are.
    fn gated(&mut self, gate: Id, up: Id) -> Id {
        if self.run.rules.glu {
            let ne = self.g.ne(gate);
            self.g.op("gated", &ne, &[gate, up])
        } else {
            self.g.like("gated", &[gate, up])
        }
    }

    /// Routed experts and, where there is one, the shared expert.
    ///
    /// `DeepSeek`'s choice of expert groups is left out: its tensors are narrower than a row of
    /// probabilities, and no golden row has them at its peak.
    pub(super) fn routed(&mut self, h: Id, m: &Moe) -> Id {
        let rows = self.g.ne(h)[1];
        let w = self.net.width;
        let probabilities = self.g.op("expert probabilities", &[m.experts, rows], &[h]);
        let each = self.g.view(probabilities, &[1, m.experts, rows]);
        let deepseek = self.arch == Arch::DeepSeek2;
        let scores = if deepseek && self.net.expert_bias {
            self.g.like("expert scores", &[probabilities])
        } else {
            probabilities
        };
        let order = self
            .g
            .op_typed("expert order", &[m.experts, rows], Type::I32, &[scores]);
        let ids = self.g.part(order, &[m.top_k, rows]);
        let weights = self
            .g
            .op("expert weights", &[1, m.top_k, rows], &[each, ids]);
        let flat = self.g.view(weights, &[m.top_k, rows]);
        let weights = if self.arch == Arch::GptOss {
            self.g.like("expert weights", &[flat])
        } else if deepseek && !self.net.expert_bias {
            flat
        } else {
            let sum = self.g.op("weight sum", &[1, rows], &[flat]);
            self.g
                .in_place("expert weights", &[m.top_k, rows], &[flat, sum])
        };
        let mut weights = self.g.view(weights, &[1, m.top_k, rows]);
        if deepseek && self.net.expert_bias {
            weights = self.g.like("expert weights", &[weights]);
        }
        let input = self.g.view(h, &[w, 1, rows]);
        let wide = [m.intermediate, m.top_k, rows];
        let gate = self.g.op("expert gate", &wide, &[input, ids]);
        let up = self.g.op("expert up", &wide, &[input, ids]);
        let y = self.gated(gate, up);
        let down = self.g.op("expert down", &[w, m.top_k, rows], &[y, ids]);
        let weighted = self.g.like("expert down", &[down, weights]);
        let out = self.sum_experts(weighted, m.top_k, rows);
        if m.shared == 0 {
            return out;
        }
        let shared = self.dense(h, m.shared);
        if self.arch == Arch::Qwen3Next {
            let gate = self.g.op("shared gate", &[1, rows], &[h]);
            let gated = self.g.like("shared expert", &[shared, gate]);
            return self.g.like("experts", &[out, gated]);
        }
        self.g.like("experts", &[out, shared])
    }

    /// All experts' rows are views first, then summed up one by one; a single one is copied.
    fn sum_experts(&mut self, weighted: Id, top_k: u64, rows: u64) -> Id {
        let w = self.net.width;
        let views: Vec<Id> = (0..top_k)
            .map(|_| self.g.part(weighted, &[w, rows]))
            .collect();
        if let [only] = views.as_slice() {
            return self.g.op("experts", &[w, rows], &[*only]);
        }
        let mut views = views.into_iter();
        let Some(first) = views.next() else {
            return weighted;
        };
        views.fold(first, |sum, v| {
            self.g.in_place("experts", &[w, rows], &[sum, v])
        })
    }
}
