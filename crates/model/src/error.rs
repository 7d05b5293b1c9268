//! Why a model cannot be read.

use plimsoll_units::SizeOverflow;

use crate::tensor::ShardError;

/// Why a config or header does not give a [`crate::ModelSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The JSON is valid but is not an object.
    #[error("a model config is a JSON object; this is {found}")]
    NotAnObject {
        /// What was found instead.
        found: &'static str,
    },
    /// A field that decides memory is absent.
    #[error("`{field}` is missing: {why}")]
    Missing {
        /// The field, with its path inside the config.
        field: String,
        /// What it decides.
        why: &'static str,
    },
    /// A field has an unusable value.
    #[error("`{field}` is {value}: {reason}")]
    Invalid {
        /// The field, with its path inside the config.
        field: String,
        /// The value as JSON, shortened.
        value: String,
        /// What a usable value looks like.
        reason: String,
    },
    /// The architecture is not one we know.
    #[error(
        "architecture {architecture} is unknown: {missing} (if it is a LLaMA-like decoder with grouped-query \
         attention over the full context in every layer, say so with `--assume gqa`)"
    )]
    UnknownArchitecture {
        /// `architectures[0]` and `model_type` as found.
        architecture: String,
        /// The fact that a config alone does not state.
        missing: String,
    },
    /// Two facts exclude each other.
    #[error("{0}")]
    Contradiction(String),
    /// A size exceeds what 64 bits hold.
    #[error("{what}: {source}")]
    TooLarge {
        /// What was being sized.
        what: String,
        /// The overflow.
        source: SizeOverflow,
    },
    /// A tensor cannot be split as asked.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl From<SizeOverflow> for ModelError {
    fn from(source: SizeOverflow) -> Self {
        Self::TooLarge {
            what: "the model".to_owned(),
            source,
        }
    }
}
