//! [`Step`] and [`Executor`]: what one step does, and whoever does it.
//!
//! A step is carried out in this order: swaps out, swaps in, block copies, then rows. (A sequence that comes
//! back may share a block and write it in the same step: the copy needs what the swap brings.) Events and
//! table changes come first of all; they describe where things are, and move nothing.

use std::ops::Range;

use plimsoll_kv::Outbox;
use plimsoll_units::{Nanos, SeqId};

use crate::request::RequestId;

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Counts from 1.
    pub number: u64,
    /// What happens to sequences, each with the number of table changes that come before it.
    pub events: Vec<(usize, SeqEvent)>,
    /// Table changes, copies and transfers.
    pub kv: Outbox,
    /// What is computed.
    pub rows: Vec<Row>,
    /// Query tokens of all rows.
    pub tokens: Vec<u32>,
}

/// What happens to a sequence, for whoever keeps state beside its blocks (grammar, penalties).
///
/// The low half of a [`SeqId`] is a small number, reused after the sequence has gone; the high half tells
/// its users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqEvent {
    /// It begins, with empty tables.
    Start {
        /// Which.
        seq: SeqId,
        /// Of which request.
        request: RequestId,
        /// Its place among the request's sequences.
        index: u32,
    },
    /// It begins with the tables and state of another; where it is known already, its tables are another's again, who
    /// has computed their prompt, and tokens that were generated stay.
    Fork {
        /// Which.
        seq: SeqId,
        /// From which.
        from: SeqId,
        /// Of which request.
        request: RequestId,
        /// Its place among the request's sequences.
        index: u32,
    },
    /// Its tables are cut; tokens that were generated stay.
    Truncate {
        /// Which.
        seq: SeqId,
        /// Tokens whose keys and values stay.
        to: u32,
    },
    /// It ends.
    Drop {
        /// Which.
        seq: SeqId,
    },
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which sequence.
    pub seq: SeqId,
    /// Of which request.
    pub request: RequestId,
    /// Its place among the request's sequences.
    pub index: u32,
    /// Position of the first query token: tokens whose keys and values are there.
    pub start: u32,
    /// Its query tokens, in [`Step::tokens`].
    pub tokens: Range<u32>,
    /// What comes out.
    pub output: Output,
}

/// What a row yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Keys and values only.
    None,
    /// Draws of the next token, sequence indices from the row's on.
    Sample {
        /// How many, of different sequences to be.
        draws: u32,
    },
    /// The most likely next tokens.
    Candidates {
        /// How many.
        k: u32,
    },
}

/// One token that came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Its id.
    pub token: u32,
    /// Its log probability.
    pub logprob: f32,
    /// Whether it ends its sequence (an end token, a stop string that it completed).
    pub ends: bool,
}

/// What a row yielded: empty for [`Output::None`].
#[derive(Clone, Debug, PartialEq)]
pub enum RowOutput {
    /// Nothing.
    None,
    /// One draw.
    One(Draw),
    /// Several draws or candidates, best first for candidates.
    Many(Vec<Draw>),
    /// Nothing can be chosen (its logits are no numbers): its request ends here, and no other.
    Failed,
}

impl RowOutput {
    /// The draws.
    #[must_use]
    pub fn draws(&self) -> &[Draw] {
        match self {
            Self::None | Self::Failed => &[],
            Self::One(d) => std::slice::from_ref(d),
            Self::Many(d) => d,
        }
    }
}

/// What a step yielded, in the order of its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// Row by row.
    pub rows: Vec<RowOutput>,
    /// Tags of transfers that failed: out, their pages are intact; in, what came is not to be used.
    pub failed_transfers: Vec<u64>,
    /// How long it took.
    pub elapsed: Nanos,
}

/// A step under way.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a step that was submitted must be completed"]
pub struct Ticket(pub u64);

/// Why a step was not carried out: nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step} failed: {reason}")]
pub struct ExecutorError {
    /// Which step.
    pub step: u64,
    /// Why.
    pub reason: String,
}

/// Whoever carries steps out: CPU, CUDA, or the simulator's clock.
pub trait Executor {
    /// Begins a step.
    ///
    /// # Errors
    /// [`ExecutorError`] where none of it was done.
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError>;

    /// Waits for it.
    ///
    /// # Errors
    /// [`ExecutorError`] where what its rows wrote is not to be used. Transfers and copies are then taken as
    /// failed too.
    fn complete(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError>;

    /// Forgets all that it knows of sequences, pages and steps under way: the scheduler begins anew.
    fn restart(&mut self) {}
}
