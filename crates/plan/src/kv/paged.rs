//! Paged allocation: blocks of one size for all groups, taken as tokens are written.

use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, SizeOverflow};

use super::{Capacity, GroupReport, KvLaw, Need};
use crate::error::PlanError;
use crate::settings::Load;

/// Blocks of one size, drawn by groups of layers from one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PagedLaw {
    /// Bytes of one block.
    pub block_bytes: Bytes,
    /// Blocks that hold nothing for ever (vLLM's null block).
    pub null_blocks: u64,
    /// The groups that draw on the pool.
    pub groups: Vec<PagedGroup>,
    /// How the engine prints a pool's tokens.
    pub log: LogRule,
    /// What the engine asks of the pool before it starts.
    pub start: StartRule,
}

/// Layers whose blocks are allotted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagedGroup {
    /// What they keep.
    pub kind: GroupKind,
    /// Set where each layer has a page of its own size and one block is all of them together.
    pub own_pages: bool,
    /// Layers of the model in the group.
    pub layers: u64,
    /// Padding layers that take room as if they were real.
    pub padding_layers: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Bytes of one layer's page, its own padding included; where the layers' pages differ, of all
    /// of them together.
    pub page: Bytes,
    /// Bytes of what one token (for a state: one sequence) leaves in all layers of the group.
    pub row: Bytes,
    /// How many blocks a sequence holds.
    pub held: Held,
    /// Whether whole blocks of common prefixes are held once.
    pub shares: bool,
}

/// Blocks of one group that a sequence of L tokens holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// ⌈L / block⌉.
    PerToken,
    /// ⌈min(L, cap) / block⌉, plus `extra` where set, at most ⌈L / block⌉ + `extra`.
    Capped {
        /// Tokens after which no more are held.
        cap: u64,
        /// Blocks on top, since a window may start inside one.
        extra: u64,
        /// Whether the extra block is held even by a sequence shorter than the cap.
        always_extra: bool,
    },
    /// This many, whatever the length.
    Fixed(u64),
}

/// How an engine prints how many tokens a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRule {
    /// Requests of the longest length, times that length, rounded down.
    ConcurrencyTimesLength,
    /// So, where a request's blocks are its pages' bytes over those of the first group's page: as many as it holds
    /// where all pages are of one size.
    BytesOverFirstPage,
    /// Blocks ÷ groups × block size.
    BlocksOverGroups,
}

/// What an engine asks of the pool before it starts, for one request of the longest length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRule {
    /// Nothing: it starts with any pool.
    None,
    /// The pages of every layer, without the padding of groups.
    Layers,
    /// The blocks of the first group only.
    FirstGroup,
    /// The blocks of all groups.
    Groups,
    /// The blocks of all groups, and those that hold nothing.
    GroupsAndNull,
}

impl PagedGroup {
    /// Blocks that one sequence of `tokens` holds.
    #[must_use]
    pub fn blocks(&self, tokens: u64) -> u64 {
        let of = |n: u64| n.div_ceil(self.block_size.max(1));
        match self.held {
            Held::PerToken => of(tokens),
            Held::Capped {
                cap,
                extra,
                always_extra,
            } => {
                if tokens <= cap && !always_extra {
                    of(tokens)
                } else if always_extra {
                    of(tokens.min(cap)).saturating_add(extra)
                } else {
                    of(tokens).min(of(cap).saturating_add(extra))
                }
            }
            Held::Fixed(n) => n,
        }
    }

    /// One page of each of the group's layers.
    fn layer_pages(&self) -> Result<Bytes, SizeOverflow> {
        if self.own_pages {
            Ok(self.page)
        } else {
            self.page.times(self.layers)
        }
    }

    /// Tokens whose keys and values a sequence of `tokens` really needs.
    fn live_tokens(&self, tokens: u64) -> u64 {
        match self.kind {
            GroupKind::Full | GroupKind::Latent => tokens,
            GroupKind::Window(n) | GroupKind::Chunk(n) => tokens.min(n),
            GroupKind::State => 1,
        }
    }
}

fn mul(a: u64, b: u64) -> Result<u64, SizeOverflow> {
    a.checked_mul(b).ok_or(SizeOverflow)
}

impl PagedLaw {
    /// Blocks that one request of `tokens` holds, all groups together.
    #[must_use]
    pub fn blocks_per_request(&self, tokens: u64) -> u64 {
        self.groups
            .iter()
            .fold(0, |sum, g| g.blocks(tokens).saturating_add(sum))
    }

    /// Blocks of one group for the whole load, shared ones counted once.
    fn group_blocks(g: &PagedGroup, load: &Load) -> Result<u64, SizeOverflow> {
        let each = g.blocks(load.context);
        if !g.shares {
            return mul(mul(each, load.sequences)?, load.users);
        }
        // Only whole blocks are shared: the prompt's among the sequences of a request, the common
        // prefix's among requests.
        let bs = g.block_size.max(1);
        let prompt = if load.sequences > 1 {
            (load.prompt / bs).min(each)
        } else {
            0
        };
        let per_request = mul(each - prompt, load.sequences)?
            .checked_add(prompt)
            .ok_or(SizeOverflow)?;
        let prefix = (load.shared_prefix / bs).min(each);
        let sharing = load.sharing_users();
        let saved = mul(prefix, sharing.saturating_sub(1))?;
        // A prefix longer than the prompt is shared by all sequences of all requests anyway.
        let total = mul(per_request, load.users)?;
        Ok(total.saturating_sub(saved))
    }

    fn live_bytes(g: &PagedGroup, load: &Load) -> Result<Bytes, SizeOverflow> {
        let each = g.live_tokens(load.context);
        let tokens = if g.shares {
            let prompt = if load.sequences > 1 {
                load.prompt.min(each)
            } else {
                0
            };
            let per_request = mul(each - prompt, load.sequences)?
                .checked_add(prompt)
                .ok_or(SizeOverflow)?;
            let prefix = load.shared_prefix.min(each);
            mul(per_request, load.users)?
                .saturating_sub(mul(prefix, load.sharing_users().saturating_sub(1))?)
        } else {
            mul(mul(each, load.sequences)?, load.users)?
        };
        g.row.times(tokens)
    }
}

impl KvLaw for PagedLaw {
    fn need(&self, load: &Load) -> Result<Need, PlanError> {
        let mut blocks = if load.users == 0 { 0 } else { self.null_blocks };
        let mut live = Bytes::ZERO;
        for g in &self.groups {
            blocks = blocks
                .checked_add(Self::group_blocks(g, load)?)
                .ok_or(PlanError::Size(SizeOverflow))?;
            live = live.add(Self::live_bytes(g, load)?)?;
        }
        let pool = self.block_bytes.times(blocks)?;
        Ok(Need {
            pool,
            token_states: live.min(pool),
            reserved: Bytes::ZERO,
            internal: pool.saturating_sub(live),
            external: Bytes::ZERO,
        })
    }

    fn start(&self, max_len: u64) -> Result<Option<Bytes>, PlanError> {
        let of = |blocks: u64| self.block_bytes.times(blocks);
        let all = self.blocks_per_request(max_len);
        Ok(match self.start {
            StartRule::None => None,
            StartRule::Layers => {
                let mut sum = Bytes::ZERO;
                for g in &self.groups {
                    sum = sum.add(g.layer_pages()?.times(g.blocks(max_len))?)?;
                }
                Some(sum)
            }
            StartRule::FirstGroup => {
                Some(of(self.groups.first().map_or(0, |g| g.blocks(max_len)))?)
            }
            StartRule::Groups => Some(of(all)?),
            StartRule::GroupsAndNull => Some(of(all
                .checked_add(self.null_blocks)
                .ok_or(SizeOverflow)?)?),
        })
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the engine computes its log line in floating point, and this repeats it"
    )]
    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError> {
        let blocks = pool.whole(self.block_bytes);
        let per_request = match self.log {
            LogRule::BytesOverFirstPage => {
                let of = |sum: Bytes, g: &PagedGroup| sum.add(g.page.times(g.blocks(max_len))?);
                let bytes = self.groups.iter().try_fold(Bytes::ZERO, of)?;
                let page = self.groups.first().map_or(1, |g| g.page.get());
                bytes.get().div_ceil(page.max(1))
            }
            LogRule::ConcurrencyTimesLength | LogRule::BlocksOverGroups => {
                self.blocks_per_request(max_len)
            }
        };
        let max_concurrency = if per_request == 0 {
            0.0
        } else {
            blocks as f64 / per_request as f64
        };
        let first = self.groups.first().map_or(1, |g| g.block_size);
        let tokens = match self.log {
            LogRule::ConcurrencyTimesLength | LogRule::BytesOverFirstPage => {
                (max_concurrency * max_len as f64) as u64
            }
            LogRule::BlocksOverGroups => {
                let smallest = self.groups.iter().map(|g| g.block_size).min().unwrap_or(1);
                mul(blocks / (self.groups.len() as u64).max(1), smallest)?
            }
        };
        Ok(Capacity {
            blocks: Some(blocks),
            bytes_per_block: self.block_bytes,
            block_size: first,
            tokens,
            max_concurrency,
            groups: self
                .groups
                .iter()
                .map(|g| GroupReport {
                    kind: g.kind,
                    layers: g.layers,
                    padding_layers: g.padding_layers,
                    block_size: g.block_size,
                    page: g.page,
                    blocks_per_request: g.blocks(max_len),
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law() -> PagedLaw {
        PagedLaw {
            block_bytes: Bytes::new(16 * 100),
            null_blocks: 1,
            groups: vec![PagedGroup {
                kind: GroupKind::Full,
                own_pages: false,
                layers: 1,
                padding_layers: 0,
                block_size: 16,
                page: Bytes::new(16 * 100),
                row: Bytes::new(100),
                held: Held::PerToken,
                shares: true,
            }],
            log: LogRule::ConcurrencyTimesLength,
            start: StartRule::GroupsAndNull,
        }
    }

    fn blocks(load: Load) -> u64 {
        law().need(&load).unwrap().pool.get() / 1600
    }

    #[test]
    fn a_shared_prefix_is_held_once() {
        // 10 users of 8 blocks each, and the null block.
        assert_eq!(blocks(Load::plain(10, 128)), 81);
        let shared = |prefix| {
            blocks(Load {
                shared_prefix: prefix,
                ..Load::plain(10, 128)
            })
        };
        assert_eq!(shared(64), 81 - 9 * 4);
        // Doubling the prefix (for twice the context) adds its blocks once, not per user.
        let longer = blocks(Load {
            shared_prefix: 128,
            ..Load::plain(10, 192)
        });
        assert_eq!(longer - shared(64), 4);
        // A part of a block is not shared.
        assert_eq!(shared(79), shared(64));
    }

    #[test]
    fn parallel_sampling_is_linear_in_n_and_below_it_when_the_prompt_is_shared() {
        let n = |n| {
            blocks(Load {
                sequences: n,
                prompt: 64,
                ..Load::plain(1, 128)
            }) - 1
        };
        assert_eq!(n(1), 8);
        assert_eq!(n(4), 4 + 4 * 4);
        assert!(n(4) < 4 * n(1));
    }

    #[test]
    fn classes_of_waste_add_up() {
        let need = law().need(&Load::plain(3, 50)).unwrap();
        assert_eq!(
            need.token_states.get() + need.internal.get(),
            need.pool.get()
        );
        assert_eq!(need.token_states.get(), 3 * 50 * 100);
    }
}
