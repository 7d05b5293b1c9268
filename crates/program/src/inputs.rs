//! [`StepInputs`]: what a device is told with every step, as lists of 32-bit words in its memory, and what it keeps
//! between two kernels of an operation.

use plimsoll_units::{Bytes, SizeOverflow};

use crate::pool::GroupKind;
use crate::program::{AttentionOp, LatentOp, Op, Program};

/// Words of a row's description: its first token, its first position, its tokens, where its table begins.
pub const ROW_WORDS: u64 = 4;
/// Keys of a part that attention may treat apart from the others of a sequence, and put together with them after.
pub const ATTENTION_PART: u64 = 512;
/// Blocks that keep a large GPU busy.
pub const BUSY: u64 = 256;
/// Parts of KV heads that are treated at once at most, but where one token has more: enough to keep a GPU busy.
const PARTS_MAX: u64 = 4096;
/// Words that say what is told of a row of logits: whether anything, how many keys, temperature, margin, the number by which
/// a token is picked (two words), whether one is.
pub const BRIEF_WORDS: u64 = 8;
/// 64-bit words of what is told of a row of logits, before its keys.
pub const SHORT_HEAD: u64 = 8;
/// Keys after them at most, each the logit and the number of one of the likeliest tokens.
pub const SHORT_KEYS: u32 = 256;
/// Rows of latents that a block has, a token with one of its heads.
pub const LATENT_ROWS: u64 = 32;
/// The same of latents: many heads look at a row, and what they come to is larger than what they look at.
const LATENT_PARTS_MAX: u64 = 256;
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
    /// What is told of each one's logits.
    pub briefs: u64,
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
            briefs: lists(program.outputs, BRIEF_WORDS)?,
            copies: lists(2, program.outputs)?,
            swaps: lists(2, program.outputs)?,
            partials: lists(1, partials(program, context)?)?,
        })
    }

    /// Words before the briefs.
    #[must_use]
    pub const fn before_briefs(&self) -> u64 {
        self.constants + self.tokens + self.rows + self.tables + self.wanted
    }

    /// The words of what parts of attention come to, where it treats `parts` of each of so many tokens apart: where the blocks of
    /// all tokens alone keep no GPU busy, and there is room. `of` is [`AttentionOp::parted`] or [`LatentOp::parted`].
    #[must_use]
    pub fn apart(&self, of: Parted, tokens: u64, parts: u64) -> Option<u64> {
        let words = tokens.checked_mul(parts)?.checked_mul(of.words)?;
        let busy = tokens.saturating_mul(of.blocks) >= BUSY;
        (parts > 1 && !busy && words <= self.partials).then_some(words)
    }

    /// Words before the list of copies.
    #[must_use]
    pub const fn before_copies(&self) -> u64 {
        self.before_briefs() + self.briefs
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
            self.briefs,
            self.copies,
            self.swaps,
            self.partials,
        ];
        let words = all.into_iter().try_fold(0_u64, u64::checked_add);
        Bytes::product([words.ok_or(SizeOverflow)?, 4])
    }
}

/// 64-bit words of what is told of a row of `vocab` logits.
#[must_use]
pub fn short_words(vocab: u64) -> u64 {
    SHORT_HEAD + vocab.min(SHORT_KEYS.into())
}

/// What attention of one token takes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parted {
    /// Blocks that it keeps busy where its keys are not parted.
    pub blocks: u64,
    /// Words of what a part comes to: for each head the largest score, the sum of weights, and the values.
    pub words: u64,
}

impl AttentionOp {
    /// What a token takes: a block has a KV head.
    #[must_use]
    pub const fn parted(&self) -> Parted {
        Parted {
            blocks: self.kv_heads,
            words: part_words(self.q_heads, self.v_dim),
        }
    }
}

impl LatentOp {
    /// What a token takes: a block has [`LATENT_ROWS`] heads.
    #[must_use]
    pub const fn parted(&self) -> Parted {
        Parted {
            blocks: self.heads.div_ceil(LATENT_ROWS),
            words: part_words(self.heads, self.rank),
        }
    }
}

const fn part_words(heads: u64, values: u64) -> u64 {
    heads.saturating_mul(values.saturating_add(2))
}

fn partials(program: &Program, context: u64) -> Result<u64, SizeOverflow> {
    let parts = context.div_ceil(ATTENTION_PART);
    if parts <= 1 {
        return Ok(0);
    }
    let mut most = 0;
    for op in &program.ops {
        let (at_once, words) = match op {
            Op::Attention(a) => (PARTS_MAX / a.kv_heads.max(1), a.parted().words),
            Op::Latent(a) => (LATENT_PARTS_MAX, a.parted().words),
            _ => continue,
        };
        let all = program.tokens.checked_mul(parts).ok_or(SizeOverflow)?;
        let all = all.min(at_once.max(parts));
        most = most.max(all.checked_mul(words).ok_or(SizeOverflow)?);
    }
    Ok(most)
}
