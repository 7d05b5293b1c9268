//! [`World`]: an executor whose clock is a cost model, and which knows where answers end.
//!
//! It models times, tokens as hashes of who drew them, beams by a named branching model, and faults. It
//! computes nothing: logits, and so what real models would say, are outside of it.

use plimsoll_schedule::{
    CostModel, Draw, Executor, ExecutorError, Output, Row, RowOutput, Step, StepOutput, Ticket,
};
use plimsoll_units::Bytes;

use super::Config;

/// How beams branch: the model `exponential-gaps`.
///
/// The log probabilities of a beam's candidates, best first, fall by gaps drawn from an exponential
/// distribution of mean 1; the best one's own is drawn from one of mean `drift` below zero. (Only the ratio
/// counts: a common factor changes no ranking.) Without drift, beams keep their order and their own best
/// candidates; the more drift, the sooner the children of one beam push the others out, and the more is
/// shared. Drawn from a hash of request, beam and position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Branching {
    /// Mean of the best candidate's loss, in means of the gaps between candidates.
    pub drift: f64,
}

impl Default for Branching {
    /// What comes nearest to the paper's savings (figure 15), Alpaca's and ShareGPT's.
    fn default() -> Self {
        Self { drift: 0.01 }
    }
}

/// What goes wrong, in parts of a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Steps that are not carried out.
    pub steps: u32,
    /// Transfers whose pages do not arrive whole.
    pub transfers: u32,
}

/// What the world knows of a living request.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    prompt: u64,
    output: u64,
    seed: u64,
}

/// The executor of a simulation.
#[derive(Clone, Debug)]
pub struct World {
    cost: CostModel,
    page: Bytes,
    branching: Branching,
    faults: Faults,
    seed: u64,
    vocab: u32,
    requests: Vec<Truth>,
    born: u64,
    output: Option<StepOutput>,
}

/// A well-mixed 64-bit hash: the finaliser of `SplitMix64` (Steele et al., 2014).
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl World {
    /// The world of one replica; what it draws is its own.
    pub(super) fn new(config: &Config, page: Bytes, replica: u32) -> Self {
        Self {
            cost: config.truth.clone(),
            page,
            branching: config.branching,
            faults: config.faults,
            seed: mix(config.seed.wrapping_add(u64::from(replica))),
            vocab: config.scheduler.limits.vocab.max(1),
            requests: Vec::new(),
            born: 0,
            output: None,
        }
    }

    /// The request of this small number will end after `output` tokens.
    pub(super) fn expect(&mut self, slot: u32, prompt: u64, output: u64) {
        let slot = slot as usize;
        if self.requests.len() <= slot {
            self.requests.resize(slot + 1, Truth::default());
        }
        self.born += 1;
        self.requests[slot] = Truth {
            prompt,
            output,
            seed: mix(self.seed ^ self.born),
        };
    }

    fn row(&self, r: &Row) -> RowOutput {
        let slot = usize::try_from(r.request.0).unwrap_or(usize::MAX);
        let truth = self.requests.get(slot).copied().unwrap_or_default();
        // Tokens generated once this one is there.
        let position = u64::from(r.start) + u64::from(r.tokens.end - r.tokens.start);
        let generated = (position + 1).saturating_sub(truth.prompt);
        let ends = generated >= truth.output;
        let draw = |index: u32, logprob: f32| {
            let h = mix(truth.seed ^ mix(position << 16 ^ u64::from(index)));
            #[allow(clippy::cast_possible_truncation, reason = "below the vocabulary")]
            let token = (h % u64::from(self.vocab)) as u32;
            Draw {
                token,
                logprob,
                ends,
            }
        };
        match r.output {
            Output::None => RowOutput::None,
            Output::Sample { draws: 1 } => RowOutput::One(draw(r.index, -1.0)),
            Output::Sample { draws } => {
                RowOutput::Many((0..draws).map(|i| draw(r.index + i, -1.0)).collect())
            }
            Output::Candidates { k } => {
                let mut logprob = 0.0_f64;
                let draws = (0..k)
                    .map(|i| {
                        let beam = u64::from(r.index) << 32 | u64::from(i);
                        let h = mix(truth.seed ^ mix(position ^ mix(beam)));
                        #[allow(clippy::cast_precision_loss, reason = "53 bits are kept")]
                        let u = ((h >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
                        let mean = if i == 0 { self.branching.drift } else { 1.0 };
                        logprob += mean * libm::log(u);
                        #[allow(clippy::cast_possible_truncation, reason = "a score")]
                        draw(i, logprob as f32)
                    })
                    .collect();
                RowOutput::Many(draws)
            }
        }
    }

    fn goes_wrong(&self, what: u64, per_million: u32) -> bool {
        per_million > 0 && mix(self.seed ^ mix(what)) % 1_000_000 < u64::from(per_million)
    }
}

impl Executor for World {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        if self.goes_wrong(step.number, self.faults.steps) {
            return Err(ExecutorError {
                step: step.number,
                reason: "a fault that the simulation planned".into(),
            });
        }
        let mut failed = Vec::new();
        if self.faults.transfers > 0 {
            for s in step.kv.swaps_out.iter().chain(&step.kv.swaps_in) {
                let what = step.number << 32 ^ u64::from(s.slot) ^ 1 << 63;
                if self.goes_wrong(what, self.faults.transfers) && !failed.contains(&s.tag) {
                    failed.push(s.tag);
                }
            }
        }
        self.output = Some(StepOutput {
            rows: step.rows.iter().map(|r| self.row(r)).collect(),
            failed_transfers: failed,
            elapsed: self.cost.step(&self.cost.load(step, self.page)),
        });
        Ok(Ticket(step.number))
    }

    fn complete(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.output.take().ok_or_else(|| ExecutorError {
            step: ticket.0,
            reason: "no such step is under way".into(),
        })
    }
}
