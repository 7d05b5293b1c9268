//! What differs between versions, in one table.
//!
//! Read: 0.11.2, 0.17.0, 0.18.0, 0.19.0, 0.21.0, 0.32.0 (`v1/core/kv_cache_utils.py`,
//! `v1/kv_cache_interface.py`, `platforms/*.py`, `model_executor/models/config.py`); of 0.24.0 and 0.28.0 how
//! pages share a block. A version in
//! between follows the nearest older one read, except where the change's own pull request names
//! its first release.

use super::super::super::Version;
use super::compressed::Packing;
use crate::kv::{LogRule, StartRule};

const V0_12: Version = Version::new(0, 12);
const V0_17: Version = Version::new(0, 17);
const V0_18: Version = Version::new(0, 18);
const V0_19: Version = Version::new(0, 19);
pub(super) const V0_21: Version = Version::new(0, 21);
/// vllm#45181 and #45207 pad pages from here (kvcached#399 names the release).
const V0_24: Version = Version::new(0, 24);
/// vllm#47728 frees by processed tokens from here (tt-xla#5908 names the release).
const V0_26: Version = Version::new(0, 26);
/// vllm#50991 caches prefixes of hybrid models by default (vllm-metal#651 names the release).
const V0_28: Version = Version::new(0, 28);
const V0_32: Version = Version::new(0, 32);

/// Versions whose source was read.
const READ: [Version; 6] = [
    Version {
        major: 0,
        minor: 11,
        patch: 2,
    },
    V0_17,
    V0_18,
    V0_19,
    V0_21,
    V0_32,
];

/// One version's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// The version.
    pub(super) version: Version,
    /// The largest bucket sets the group size where it is below smallest × numerator ÷ denominator.
    pub(super) level_below: Option<(u64, u64)>,
    /// What happens to pages of several sizes.
    pub(super) unify: Unify,
    /// Full attention counts keys twice instead of keys and values.
    pub(super) full_by_key: bool,
    /// So do window layers.
    pub(super) window_by_key: bool,
    /// Whether chunked layers are treated as full ones: the variable
    /// `VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE` is 0 unless set.
    pub(super) chunks_alone: bool,
    /// Which states are cached with prefixes.
    pub(super) states: States,
    /// Whether the type asked of states is that of gated delta rules, too.
    pub(super) delta_types: bool,
    /// Whether the second selective state space (Mamba 2) keeps one state more with cached prefixes:
    /// the one at a block's end inside a prefill.
    pub(super) checkpoint: bool,
    /// Whether hybrids cache prefixes unless told otherwise.
    pub(super) hybrid_prefixes: bool,
    /// How blocks are chosen.
    pub(super) blocks: BlockChoice,
    /// Whether window and chunk layers hold the tokens of every batch in flight, not of one.
    pub(super) all_batches: bool,
    /// KV types with a scale per token and head, and nvfp4.
    pub(super) packed_types: bool,
    /// 4-bit integers with a scale per token and head.
    pub(super) int4: bool,
    /// How caches of several page sizes share a block.
    pub(super) packing: Packing,
    /// The log line.
    pub(super) log: LogRule,
    /// The check before it starts.
    pub(super) start: StartRule,
}

/// What happens to pages of several sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unify {
    /// The start fails.
    Refuse,
    /// Blocks of smaller pages grow where the sizes divide, else the start fails.
    Grow,
    /// Blocks grow where the sizes divide, else pages are padded; latent pages cannot be.
    GrowOrPad,
}

/// Which states are cached with prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum States {
    /// All of them, or prefix caching is switched off where the kernels cannot.
    AllOrOff,
    /// All of them, or the last aligned one where the kernels cannot.
    AllOrAlign,
    /// The last aligned one.
    Align,
}

/// How blocks are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockChoice {
    /// Before loading, by platform rules.
    Platform,
    /// After loading, by what the attention backend supports; hybrids are aligned before.
    Backend,
    /// After loading, hybrids too.
    BackendAlign,
    /// So, and aligned to the blocks of all backends.
    AllBackends,
}

impl Rules {
    /// The rules of `version`.
    pub(super) fn of(version: Version) -> Self {
        let at_least = |v: Version| version >= v;
        Self {
            version,
            level_below: if at_least(V0_18) {
                Some((3, 2))
            } else if at_least(V0_17) {
                Some((5, 4))
            } else {
                None
            },
            unify: if at_least(V0_24) {
                Unify::GrowOrPad
            } else if at_least(V0_17) {
                Unify::Grow
            } else {
                Unify::Refuse
            },
            full_by_key: !at_least(V0_17),
            window_by_key: !at_least(V0_21),
            chunks_alone: !at_least(V0_17),
            states: if at_least(V0_28) {
                States::Align
            } else if at_least(V0_17) {
                States::AllOrAlign
            } else {
                States::AllOrOff
            },
            delta_types: at_least(V0_17),
            checkpoint: at_least(V0_32),
            // 0.11 ignored its own rule for hybrids (vllm#29393).
            hybrid_prefixes: at_least(V0_28) || !at_least(V0_12),
            blocks: if at_least(V0_32) {
                BlockChoice::AllBackends
            } else if at_least(V0_21) {
                BlockChoice::BackendAlign
            } else if at_least(V0_18) {
                BlockChoice::Backend
            } else {
                BlockChoice::Platform
            },
            all_batches: at_least(V0_26),
            packed_types: at_least(V0_21),
            int4: at_least(V0_32),
            packing: if at_least(V0_28) {
                Packing::Widest {
                    balanced: at_least(V0_32),
                }
            } else if at_least(V0_24) {
                Packing::Sizes
            } else {
                Packing::Repeats
            },
            log: if at_least(V0_28) {
                LogRule::ConcurrencyTimesLength
            } else if at_least(V0_21) {
                LogRule::BytesOverFirstPage
            } else {
                LogRule::BlocksOverGroups
            },
            start: if at_least(V0_32) {
                StartRule::GroupsAndNull
            } else if at_least(V0_19) {
                StartRule::Groups
            } else if at_least(V0_17) {
                StartRule::FirstGroup
            } else {
                StartRule::Layers
            },
        }
    }

    /// The version whose source was followed, where it is another minor release.
    pub(super) fn nearest(&self) -> Option<Version> {
        let same = |v: &Version| (v.major, v.minor) == (self.version.major, self.version.minor);
        if READ.iter().any(same) {
            return None;
        }
        let older = READ.iter().rev().find(|v| **v <= self.version);
        Some(*older.unwrap_or(&READ[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_between_follow_the_older_one() {
        assert_eq!(Rules::of(Version::new(0, 19)).nearest(), None);
        assert_eq!(Rules::of(Version::new(0, 20)).nearest(), Some(V0_19));
        assert_eq!(Rules::of(Version::new(0, 25)).nearest(), Some(V0_21));
        assert_eq!(Rules::of(Version::new(0, 33)).nearest(), Some(V0_32));
        assert_eq!(Rules::of(Version::new(0, 9)).nearest(), Some(READ[0]));
        assert_eq!(
            Rules::of(Version::new(0, 20)).log,
            LogRule::BlocksOverGroups
        );
    }
}
