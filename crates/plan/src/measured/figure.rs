//! [`Figure`]: the terms that engines print when they start.

use std::fmt;

/// One printed term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Figure {
    /// Weights of the first worker.
    Weights,
    /// Activation peak of the profile run.
    Activation,
    /// Memory taken outside the tensor allocator since start.
    NonTorch,
    /// What is left for the KV cache.
    KvPool,
    /// Tokens that the KV cache holds, as the engine prints it.
    KvTokens,
    /// Requests of the longest length that it holds.
    MaxConcurrency,
    /// KV buffers over all devices (llama.cpp).
    KvBuffer,
    /// Compute buffer of the first device (llama.cpp).
    ComputeBuffer,
    /// vLLM's own estimate of graph memory, printed from 0.18 on and taken off the KV cache from
    /// 0.21 on. A diagnostic: not among [`Figure::ALL`].
    GraphEstimate,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 2^30 bytes.
    Gib,
    /// 2^20 bytes.
    Mib,
    /// Tokens.
    Tokens,
    /// Requests.
    Requests,
}

impl Figure {
    /// The terms of the accuracy report, in its order.
    pub const ALL: &'static [Self] = &[
        Self::Weights,
        Self::Activation,
        Self::NonTorch,
        Self::KvPool,
        Self::KvTokens,
        Self::MaxConcurrency,
        Self::KvBuffer,
        Self::ComputeBuffer,
    ];

    /// What vLLM prints.
    pub const VLLM: &'static [Self] = &[
        Self::Weights,
        Self::Activation,
        Self::NonTorch,
        Self::KvPool,
        Self::KvTokens,
        Self::MaxConcurrency,
    ];

    /// What SGLang prints.
    pub const SGLANG: &'static [Self] = &[Self::Weights, Self::KvPool, Self::KvTokens];

    /// What TensorRT-LLM prints.
    pub const TENSORRT_LLM: &'static [Self] = &[
        Self::Weights,
        Self::Activation,
        Self::KvPool,
        Self::KvTokens,
    ];

    /// What llama.cpp prints.
    pub const LLAMA_CPP: &'static [Self] = &[Self::Weights, Self::KvBuffer, Self::ComputeBuffer];

    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Activation => "activation",
            Self::NonTorch => "non_torch",
            Self::KvPool => "kv_pool",
            Self::KvTokens => "kv_tokens",
            Self::MaxConcurrency => "max_concurrency",
            Self::KvBuffer => "kv_buffer",
            Self::ComputeBuffer => "compute_buffer",
            Self::GraphEstimate => "graph_estimate",
        }
    }

    /// Its unit: that of the engine's own log line.
    #[must_use]
    pub const fn unit(self) -> Unit {
        match self {
            Self::Weights
            | Self::Activation
            | Self::NonTorch
            | Self::KvPool
            | Self::GraphEstimate => Unit::Gib,
            Self::KvTokens => Unit::Tokens,
            Self::MaxConcurrency => Unit::Requests,
            Self::KvBuffer | Self::ComputeBuffer => Unit::Mib,
        }
    }

    /// The least divisor of a relative error: 1 GiB for memory, so that a few MiB of a small term
    /// do not count as a large share of it; nothing for counts, which are relative to themselves.
    #[must_use]
    pub const fn least_divisor(self) -> f64 {
        match self.unit() {
            Unit::Gib => 1.0,
            Unit::Mib => 1024.0,
            Unit::Tokens | Unit::Requests => 0.0,
        }
    }

    /// Decimals that the engine prints.
    #[must_use]
    pub const fn decimals(self) -> u32 {
        match self.unit() {
            Unit::Gib | Unit::Mib | Unit::Requests => 2,
            Unit::Tokens => 0,
        }
    }
}

impl Unit {
    /// The symbol in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gib => "GiB",
            Self::Mib => "MiB",
            Self::Tokens => "tokens",
            Self::Requests => "requests",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
