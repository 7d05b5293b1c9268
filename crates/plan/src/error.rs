//! Why a plan cannot be made. A plan that does not fit is not among these.

use plimsoll_model::{ModelError, ShardError};
use plimsoll_program::ParallelError;
use plimsoll_units::SizeOverflow;

/// Why a plan cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Degrees that the model cannot be divided by.
    #[error("{0}")]
    Parallel(#[from] ParallelError),
    /// A tensor or cache that cannot be divided.
    #[error("{0}")]
    Shard(#[from] ShardError),
    /// A size past 64 bits.
    #[error("the plan does not fit into 64 bits: {0}")]
    Size(#[from] SizeOverflow),
    /// The model could not be changed as asked.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// A setting that the engine refuses.
    #[error("{engine} does not accept {setting}: {reason}")]
    Refused {
        /// The engine.
        engine: String,
        /// The setting, as a flag.
        setting: String,
        /// Why.
        reason: String,
    },
    /// One replica over several slices of cards.
    #[error(
        "{degrees} would spread one replica over slices of a card, and {slice} reaches no other slice or card \
         (no peer-to-peer access, no NCCL): each slice runs a whole replica"
    )]
    Slices {
        /// The degrees that spread it, in words.
        degrees: String,
        /// The slice.
        slice: String,
        /// The card that it is a slice of.
        card: String,
    },
    /// A load that makes no sense for the model.
    #[error("{0}")]
    Load(String),
}
