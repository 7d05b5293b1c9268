//! Ideal allocation: exactly the bytes of live tokens, shared ones once, no blocks at all.

use plimsoll_program::{GroupKind, PoolGeometry};
use plimsoll_units::{Bytes, SizeOverflow};

use super::{Capacity, GroupReport, KvLaw, Need};
use crate::error::PlanError;
use crate::settings::Load;

/// Bytes per token, layer group by layer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenLaw {
    /// Kind, number of layers, bytes of one token (or sequence) in one layer.
    pub groups: Vec<(GroupKind, u64, Bytes)>,
}

impl TokenLaw {
    /// The groups of a geometry, without its pages.
    #[must_use]
    pub fn of(geometry: &PoolGeometry) -> Self {
        Self {
            groups: geometry
                .groups
                .iter()
                .map(|g| (g.kind, g.layers, g.rate))
                .collect(),
        }
    }

    fn bytes(&self, load: &Load) -> Result<Bytes, SizeOverflow> {
        let mul = |a: u64, b: u64| a.checked_mul(b).ok_or(SizeOverflow);
        let mut sum = Bytes::ZERO;
        for &(kind, layers, rate) in &self.groups {
            let tokens = match kind {
                GroupKind::Full | GroupKind::Latent => {
                    let prompt = if load.sequences > 1 {
                        load.prompt.min(load.context)
                    } else {
                        0
                    };
                    let each = mul(load.context - prompt, load.sequences)?
                        .checked_add(prompt)
                        .ok_or(SizeOverflow)?;
                    let shared = load.shared_prefix.min(load.context);
                    mul(each, load.users)?
                        .saturating_sub(mul(shared, load.sharing_users().saturating_sub(1))?)
                }
                GroupKind::Window(n) | GroupKind::Chunk(n) => {
                    mul(mul(load.context.min(n), load.sequences)?, load.users)?
                }
                GroupKind::State => mul(load.sequences, load.users)?,
            };
            sum = sum.add(rate.times(layers)?.times(tokens)?)?;
        }
        Ok(sum)
    }

    /// Bytes of one more token of a long sequence.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes_per_token(&self) -> Result<Bytes, SizeOverflow> {
        self.groups
            .iter()
            .filter(|(kind, ..)| *kind != GroupKind::State)
            .try_fold(Bytes::ZERO, |acc, (_, layers, rate)| {
                acc.add(rate.times(*layers)?)
            })
    }

    /// Bytes of the states of one sequence.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes_per_sequence(&self) -> Result<Bytes, SizeOverflow> {
        self.groups
            .iter()
            .filter(|(kind, ..)| *kind == GroupKind::State)
            .try_fold(Bytes::ZERO, |acc, (_, layers, rate)| {
                acc.add(rate.times(*layers)?)
            })
    }
}

impl KvLaw for TokenLaw {
    fn need(&self, load: &Load) -> Result<Need, PlanError> {
        let pool = self.bytes(load)?;
        Ok(Need {
            pool,
            token_states: pool,
            ..Need::default()
        })
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "ratios for print"
    )]
    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError> {
        let one = self.bytes(&Load::plain(1, max_len))?;
        let max_concurrency = if one == Bytes::ZERO {
            0.0
        } else {
            pool.get() as f64 / one.get() as f64
        };
        let grows = self
            .groups
            .iter()
            .all(|(k, ..)| matches!(k, GroupKind::Full | GroupKind::Latent));
        let per_token = self.bytes_per_token()?;
        Ok(Capacity {
            blocks: None,
            bytes_per_block: per_token,
            block_size: 1,
            tokens: if grows {
                pool.whole(per_token)
            } else {
                (max_concurrency * max_len as f64) as u64
            },
            max_concurrency,
            groups: self
                .groups
                .iter()
                .map(|&(kind, layers, page)| GroupReport {
                    kind,
                    layers,
                    padding_layers: 0,
                    block_size: 1,
                    page,
                    blocks_per_request: match kind {
                        GroupKind::Full | GroupKind::Latent => max_len,
                        GroupKind::Window(n) | GroupKind::Chunk(n) => max_len.min(n),
                        GroupKind::State => 1,
                    },
                })
                .collect(),
        })
    }
}
