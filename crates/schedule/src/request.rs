//! [`Request`]: the one validated form of a request, whoever asks.

use std::sync::Arc;

use plimsoll_kv::Scope;

/// Which request. Chosen by the caller, unique among the living.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// How sequences of one request come about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fan {
    /// `best_of` draws from one prompt, of which the `n` best are wanted.
    Sample {
        /// Sequences wanted.
        n: u32,
        /// Sequences drawn; at least `n`.
        best_of: u32,
    },
    /// A beam search.
    Beam(Beam),
}

/// A beam search, as vLLM and transformers name its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beam {
    /// Beams.
    pub width: u32,
    /// A finished beam's score is its log probability divided by its length to this power.
    pub length_penalty: f64,
    /// Whether the search ends with the `width`-th finished beam, or only when no live beam can still beat
    /// the worst of them.
    pub early_stopping: bool,
}

impl Fan {
    /// One sequence.
    pub const ONE: Self = Self::Sample { n: 1, best_of: 1 };

    /// Sequences that run at once.
    #[must_use]
    pub const fn width(&self) -> u32 {
        match self {
            Self::Sample { best_of, .. } => *best_of,
            Self::Beam(b) => b.width,
        }
    }
}

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Rows of the output head: token ids are below it.
    pub vocab: u32,
    /// Sequences of one request.
    pub max_width: u32,
    /// Tenants.
    pub tenants: u16,
}

/// What is wrong with a request: a mistake of whoever sent it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// No tokens.
    #[error("the prompt is empty: send at least one token")]
    EmptyPrompt,
    /// No output asked for.
    #[error("max_tokens is 0: ask for at least one token")]
    NothingAsked,
    /// Prompt and output exceed the model's length.
    #[error(
        "the prompt has {prompt} tokens and max_tokens is {output}: together they exceed the limit of {limit}; shorten either"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: u64,
        /// Tokens asked for.
        output: u32,
        /// Tokens allowed.
        limit: u32,
    },
    /// A token id that the model does not have.
    #[error("token {token} at position {position} is out of range: ids are below {vocab}")]
    NoSuchToken {
        /// The id.
        token: u32,
        /// Where.
        position: usize,
        /// Ids are below this.
        vocab: u32,
    },
    /// Too many sequences, or none.
    #[error("{width} sequences are out of range: use 1 to {max}")]
    Width {
        /// Asked for.
        width: u32,
        /// Allowed.
        max: u32,
    },
    /// Fewer draws than wanted sequences.
    #[error("best_of is {best_of} and n is {n}: best_of must be at least n")]
    BestOf {
        /// Sequences wanted.
        n: u32,
        /// Sequences drawn.
        best_of: u32,
    },
    /// A length penalty that is no number, or absurd.
    #[error("length_penalty {0} is out of range: use -10 to 10")]
    LengthPenalty(f64),
    /// A tenant that was not configured.
    #[error("tenant {tenant} is unknown: there are {tenants}")]
    Tenant {
        /// Asked for.
        tenant: u16,
        /// Configured.
        tenants: u16,
    },
}

/// A request that was found to make sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    id: RequestId,
    prompt: Arc<[u32]>,
    max_tokens: u32,
    fan: Fan,
    scope: Scope,
    priority: i32,
    reads_cache: bool,
}

impl Request {
    /// Checks and makes a request of `prompt` for up to `max_tokens` tokens per sequence.
    ///
    /// # Errors
    /// [`RequestError`], naming what to change.
    pub fn new(
        id: RequestId,
        prompt: Arc<[u32]>,
        max_tokens: u32,
        fan: Fan,
        scope: Scope,
        limits: &Limits,
    ) -> Result<Self, RequestError> {
        if prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(RequestError::NothingAsked);
        }
        let length = prompt.len() as u64;
        if length + u64::from(max_tokens) > u64::from(limits.max_model_len) {
            return Err(RequestError::TooLong {
                prompt: length,
                output: max_tokens,
                limit: limits.max_model_len,
            });
        }
        if let Some((position, &token)) =
            prompt.iter().enumerate().find(|(_, t)| **t >= limits.vocab)
        {
            return Err(RequestError::NoSuchToken {
                token,
                position,
                vocab: limits.vocab,
            });
        }
        let width = fan.width();
        if width == 0 || width > limits.max_width {
            return Err(RequestError::Width {
                width,
                max: limits.max_width,
            });
        }
        match fan {
            Fan::Sample { n, best_of } if n == 0 || best_of < n => {
                return Err(RequestError::BestOf { n, best_of });
            }
            Fan::Beam(b) if !(-10.0..=10.0).contains(&b.length_penalty) => {
                return Err(RequestError::LengthPenalty(b.length_penalty));
            }
            _ => {}
        }
        if scope.tenant.0 >= limits.tenants {
            return Err(RequestError::Tenant {
                tenant: scope.tenant.0,
                tenants: limits.tenants,
            });
        }
        Ok(Self {
            id,
            prompt,
            max_tokens,
            fan,
            scope,
            priority: 0,
            reads_cache: true,
        })
    }

    /// The same request in another class: lower goes first, as in vLLM. Any value is in range.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// The same request, all of whose prompt is computed: for the logits of its positions. Others find its blocks
    /// in the prefix cache as they find anybody's.
    #[must_use]
    pub fn without_cached_prefix(mut self) -> Self {
        self.reads_cache = false;
        self
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// Its prompt.
    #[must_use]
    pub const fn prompt(&self) -> &Arc<[u32]> {
        &self.prompt
    }

    /// Length of the prompt, in tokens.
    #[must_use]
    pub fn prompt_len(&self) -> u32 {
        // Checked against max_model_len.
        u32::try_from(self.prompt.len()).unwrap_or(u32::MAX)
    }

    /// Tokens per sequence at most.
    #[must_use]
    pub const fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// How its sequences come about.
    #[must_use]
    pub const fn fan(&self) -> Fan {
        self.fan
    }

    /// Whose it is and what it may share.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether it begins with what the prefix cache has of its prompt.
    #[must_use]
    pub const fn reads_cache(&self) -> bool {
        self.reads_cache
    }

    /// Its class.
    #[must_use]
    pub const fn priority(&self) -> i32 {
        self.priority
    }
}
