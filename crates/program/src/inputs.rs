//! [`StepInputs`]: what a device is told with every step, as lists of 32-bit words in its memory, and what it keeps
//! between two kernels of an operation.

use plimsoll_units::{Bytes, SizeOverflow};

use crate::pool::GroupKind;
use crate::program::{AttentionOp, Op, Program};

/// Words of a row's description: its first token, its first position, its tokens, where its table begins.
pub const ROW_WORDS: u64 = 4;
/// Keys of a part that attention may treat apart from the others of a sequence, and put together with them after.
pub const ATTENTION_PART: u64 = 512;
/// Blocks that keep a large GPU busy.
pub const BUSY: u64 = 256;
/// Parts of KV heads that are treated at once at most, but where one token has more: enough to keep a GPU busy.
const PARTS_MAX: u64 = 4096;
/// Lists begin at a multiple of so many words.
const ALIGN: u64 = 4;

/// Words of the lists that a step has at most, for T tokens and R rows. Constants of the program lie before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepInputs {
    /// Constants: angles per position of each rotary table.
    pub constants: u64,
    /// Tokens, positions, and the row that each token is of.
    pub tokens: u64,
    /// For each group, the rows.
    pub rows: u64,
    /// For each row and group, its table.
    pub tables: u64,
    /// Tokens whose logits are wanted.
    pub wanted: u64,
    /// Pages that are copied, and where to: of so many at a time.
    pub copies: u64,
    /// Pages that go to swap space or come back, and their places: of so many at a time.
    pub swaps: u64,
    /// What parts of attention come to before they are put together.
    pub partials: u64,
}

impl StepInputs {
    /// Those of a program whose sequences have at most `context` tokens.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn of(program: &Program, context: u64) -> Result<Self, SizeOverflow> {
        let lists = |n: u64, each: u64| -> Result<u64, SizeOverflow> {
            let each = each.checked_next_multiple_of(ALIGN).ok_or(SizeOverflow)?;
            n.checked_mul(each).ok_or(SizeOverflow)
        };
        let constants = program.ops.iter().map(|op| match op {
            Op::Rotary(table) => lists(1, table.frequencies.len() as u64),
            _ => Ok(0),
        });
        let mut tables = 0_u64;
        for group in &program.geometry.groups {
            let blocks = match group.kind {
                GroupKind::State => group.state_pages,
                _ => context.div_ceil(group.slots.max(1)),
            };
            let all = lists(program.outputs, blocks)?;
            tables = tables.checked_add(all).ok_or(SizeOverflow)?;
        }
        let groups = program.geometry.groups.len() as u64;
        Ok(Self {
            constants: constants.sum::<Result<_, _>>()?,
            tokens: lists(3, program.tokens)?,
            rows: lists(
                groups,
                program.outputs.checked_mul(ROW_WORDS).ok_or(SizeOverflow)?,
            )?,
            tables,
            wanted: lists(1, program.outputs)?,
            copies: lists(2, program.outputs)?,
            swaps: lists(2, program.outputs)?,
            partials: lists(1, partials(program, context)?)?,
        })
    }

    /// The words of its parts, where attention of so many tokens treats `parts` parts of their sequences apart: where their
    /// KV heads alone keep no GPU busy, and there is room.
    #[must_use]
    pub fn apart(&self, a: &AttentionOp, tokens: u64, parts: u64) -> Option<u64> {
        let words = tokens.checked_mul(parts)?.checked_mul(part_words(a))?;
        let busy = tokens.saturating_mul(a.kv_heads) >= BUSY;
        (parts > 1 && !busy && words <= self.partials).then_some(words)
    }

    /// Words before the list of copies.
    #[must_use]
    pub const fn before_copies(&self) -> u64 {
        self.constants + self.tokens + self.rows + self.tables + self.wanted
    }

    /// Words before the list of swaps: apart from copies, beside which they may be under way.
    #[must_use]
    pub const fn before_swaps(&self) -> u64 {
        self.before_copies() + self.copies
    }

    /// Words before what parts of attention come to.
    #[must_use]
    pub const fn before_partials(&self) -> u64 {
        self.before_swaps() + self.swaps
    }

    /// Bytes of all of them.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes(&self) -> Result<Bytes, SizeOverflow> {
        let all = [
            self.constants,
            self.tokens,
            self.rows,
            self.tables,
            self.wanted,
            self.copies,
            self.swaps,
            self.partials,
        ];
        let words = all.into_iter().try_fold(0_u64, u64::checked_add);
        Bytes::product([words.ok_or(SizeOverflow)?, 4])
    }
}

/// Words of a part of one token: for each head the largest score, the sum of weights, and the values.
fn part_words(a: &AttentionOp) -> u64 {
    a.q_heads.saturating_mul(a.v_dim.saturating_add(2))
}

fn partials(program: &Program, context: u64) -> Result<u64, SizeOverflow> {
    let parts = context.div_ceil(ATTENTION_PART);
    if parts <= 1 {
        return Ok(0);
    }
    let mut most = 0;
    for op in &program.ops {
        if let Op::Attention(a) = op {
            let all = PARTS_MAX / a.kv_heads.max(1);
            let all = program
                .tokens
                .checked_mul(parts)
                .ok_or(SizeOverflow)?
                .min(all.max(parts));
            most = most.max(all.checked_mul(part_words(a)).ok_or(SizeOverflow)?);
        }
    }
    Ok(most)
}
