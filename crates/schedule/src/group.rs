//! A request in flight: its sequences, where they are, and what they may still need.

use plimsoll_kv::planted::{self, Bug};
use plimsoll_kv::{Layout, PromptKeys, Table};
use plimsoll_units::{Nanos, SeqId};

use crate::request::{Fan, Request};

/// Who goes first. Priority is worth a fixed time of waiting, so that the order of two requests never
/// changes: nobody waits for ever, and nothing is sorted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Arrival, moved by the class.
    key: i128,
    /// Order of arrival.
    number: u64,
}

impl Rank {
    pub(crate) fn new(arrived: Nanos, priority: i32, class: Nanos, number: u64) -> Self {
        Self {
            key: i128::from(arrived.0) + i128::from(priority) * i128::from(class.0),
            number,
        }
    }
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has not run.
    Waiting,
    /// It holds blocks and gets rows.
    Running,
    /// It was preempted; its blocks are in swap space.
    Swapped,
    /// It was preempted; its tokens are known and will be computed again.
    Dropped,
}

/// One sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    /// Its place among the request's sequences.
    pub(crate) index: u32,
    /// Its blocks; `None` while it has none to its name.
    pub(crate) table: Option<Table>,
    /// Prompt and what was generated.
    pub(crate) tokens: Vec<u32>,
    /// Sum of log probabilities.
    pub(crate) score: f64,
    /// Those of a beam's tokens; nothing of a sample's, which are told as they are drawn.
    pub(crate) logprobs: Vec<f32>,
    /// Whether it has ended.
    pub(crate) ended: bool,
}

/// Why a sequence came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A token or a text that ends it.
    Stop,
    /// Its length.
    Length,
    /// [`RowOutput::Failed`](crate::RowOutput::Failed), of any sequence of its request.
    Error,
}

/// A finished sequence, or a finished beam.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Its place among the request's sequences.
    pub index: u32,
    /// What was generated.
    pub tokens: Vec<u32>,
    /// Sum of log probabilities.
    pub logprob: f64,
    /// Those of a beam's tokens; nothing of a sample's, which were told as they were drawn.
    pub logprobs: Vec<f32>,
    /// What it is ranked by: the sum, or the beam's length-penalised score.
    pub score: f64,
    /// Why it ended.
    pub end: End,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) request: Request,
    pub(crate) rank: Rank,
    pub(crate) phase: Phase,
    /// Living sequences; one until the prompt is done.
    pub(crate) seqs: Vec<Sequence>,
    pub(crate) done: Vec<Completion>,
    /// Whether its sequences have come apart: each has tokens of its own.
    pub(crate) forked: bool,
    pub(crate) keys: Option<PromptKeys>,
    /// Pages that it holds at most, ever.
    pub(crate) worst: u32,
    /// Whether `worst` pages are promised to it: it never gives way.
    pub(crate) guaranteed: bool,
    /// Pages of its prompt that it has not taken yet.
    pub(crate) promised: u32,
    /// Whether it runs with fewer pages than what is known of it fills: it takes what others leave, from the
    /// first token missing, until it has caught up.
    pub(crate) stalled: bool,
    /// Times it gave way.
    pub(crate) swaps: u32,
    pub(crate) recomputes: u32,
    /// Prompt tokens found in the prefix cache at first.
    pub(crate) cached_tokens: u32,
    /// Prompt tokens whose keys and values have been there at some time.
    pub(crate) prompt_computed: u32,
    /// Number of the last step that had rows of it.
    pub(crate) placed: u64,
}

impl Group {
    pub(crate) fn preemptions(&self) -> u32 {
        self.swaps + self.recomputes
    }

    /// Sequences that it counts for among those that run.
    pub(crate) fn width(&self) -> u32 {
        match self.request.fan() {
            // Sequences that have ended do not come back; beams that died do.
            Fan::Sample { .. } if self.forked => u32::try_from(self.seqs.len()).unwrap_or(u32::MAX),
            fan => fan.width(),
        }
    }

    /// Living sequences with blocks.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.seqs.iter().filter_map(|s| s.table.as_ref())
    }

    /// Tokens of a sequence whose keys and values have been there at some time: all but the last, once
    /// anything is generated.
    pub(crate) fn computed(&self, seq: &Sequence) -> u32 {
        if seq.len() > self.request.prompt_len() {
            seq.len() - 1
        } else {
            self.prompt_computed
        }
    }

    /// Where its leading sequence has to get before the others can begin: the prompt's end, once its
    /// sequences have come apart; else the end of what is known.
    pub(crate) fn leader_target(&self) -> u32 {
        if self.forked && self.seqs.len() > 1 {
            self.request.prompt_len()
        } else {
            self.seqs.first().map_or(0, Sequence::len)
        }
    }
}

impl Sequence {
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn committed(&self) -> u32 {
        self.table.as_ref().map_or(0, Table::committed)
    }
}

/// Pages that a request holds at most, ever: whole blocks of the prompt once, everything else once per
/// sequence. The last token drawn is never written.
pub(crate) fn worst_case(layout: &Layout, request: &Request, chunk: u32) -> u64 {
    let (prompt, output) = (request.prompt_len(), request.max_tokens());
    worst_of(layout, prompt, output, request.fan().width(), chunk)
}

/// As [`worst_case`], for a request of this shape.
pub(crate) fn worst_of(layout: &Layout, prompt: u32, output: u32, width: u32, chunk: u32) -> u64 {
    let prompt = u64::from(prompt);
    let total = (prompt + u64::from(output)).saturating_sub(1);
    // Whoever gave way computes everything again in chunks, what it had generated too.
    let one = layout.peak(total, u64::from(chunk));
    let mut width = u64::from(width);
    if planted::is(Bug::WorstCaseOfOne) {
        width = 1;
    }
    if width == 1 {
        return one;
    }
    let shared: u64 = layout
        .groups
        .iter()
        .filter(|g| g.keeps_all())
        .map(|g| prompt / u64::from(g.slots))
        .sum();
    shared + width * (one - shared.min(one))
}
