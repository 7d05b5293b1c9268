//! What tests of the scheduler share.

use plimsoll_schedule::{CostModel, Rates, Work};

/// A machine on which everything takes about as long as everything else.
pub(crate) fn cost() -> CostModel {
    CostModel {
        work: Work {
            weight_bytes: 1,
            token_flops: 1,
            head_flops: 1,
            attention: Vec::new(),
        },
        rates: Rates {
            flops_per_s: 1,
            memory_bytes_per_s: 1,
            link_bytes_per_s: 1,
            transfer_ns: 0,
            transfers_per_block: 1,
            step_ns: 1,
            row_ns: 0,
        },
    }
}
