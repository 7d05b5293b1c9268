//! Counts and indices that must not be mixed up.

use std::fmt;

use crate::{Bytes, SizeOverflow};

macro_rules! count {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The bytes of this many units of `each`.
            ///
            /// # Errors
            /// [`SizeOverflow`] past 2^64 − 1 bytes.
            pub fn of(self, each: Bytes) -> Result<Bytes, SizeOverflow> {
                each.times(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! index {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

count! {
    /// A number of tokens (slots of a KV cache, positions of a sequence).
    Tokens
}
count! {
    /// A number of KV blocks. Not an index: see [`BlockId`].
    Blocks
}
count! {
    /// A time or a span of it, in nanoseconds. Decisions use no other clock.
    Nanos
}
index! {
    /// Which physical page of the pool.
    BlockId(u32)
}
index! {
    /// Which layer, counted from the first decoder layer.
    LayerId(u32)
}
index! {
    /// Which sequence.
    SeqId(u64)
}

impl Tokens {
    /// Blocks of `block_size` tokens that hold this many tokens: the last may be partly filled.
    ///
    /// A `block_size` of zero holds nothing and counts as one token per block.
    #[must_use]
    pub fn blocks(self, block_size: Self) -> Blocks {
        Blocks(self.0.div_ceil(block_size.0.max(1)))
    }
}
