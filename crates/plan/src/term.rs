//! [`Term`]: one line of a memory map, with how it came about and how well it is known.

use std::fmt;

use plimsoll_units::{Bytes, SizeOverflow};

/// Where bytes belong, in the order of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// The model's weights, scales included.
    Weights,
    /// LoRA adapters.
    Adapters,
    /// The draft model of speculative decoding.
    Draft,
    /// The KV cache or page pool, recurrent states included.
    KvCache,
    /// Activations and temporary buffers at their peak.
    Activations,
    /// Fixed workspaces.
    Workspace,
    /// Encoder outputs kept for multimodal requests.
    EncoderCache,
    /// CUDA graphs.
    Graphs,
    /// Buffers of collectives.
    Collectives,
    /// Context and modules of the driver, library handles.
    Driver,
    /// What the engine's budget rule leaves unused, or what our server keeps beside its arenas.
    Reserve,
    /// What other processes use.
    InUse,
    /// KV swapped to host memory.
    Swap,
    /// KV swapped to a file: on a disk, not in memory.
    SwapFile,
}

impl Region {
    /// The name in reports and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Adapters => "adapters",
            Self::Draft => "draft",
            Self::KvCache => "kv_cache",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
            Self::EncoderCache => "encoder_cache",
            Self::Graphs => "graphs",
            Self::Collectives => "collectives",
            Self::Driver => "driver",
            Self::Reserve => "reserve",
            Self::InUse => "in_use",
            Self::Swap => "swap",
            Self::SwapFile => "swap_file",
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How well a term is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the byte: a sum of stored or allocated sizes.
    Exact,
    /// By a formula from the engine's source, without fitted constants.
    Derived,
    /// By a formula with constants fitted to published measurements; 90 % lie within.
    Calibrated {
        /// Lower end.
        low: Bytes,
        /// Upper end.
        high: Bytes,
    },
    /// Not above this (and not below zero).
    Bound,
}

impl Kind {
    /// The name in reports and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Derived => "derived",
            Self::Calibrated { .. } => "calibrated",
            Self::Bound => "bound",
        }
    }
}

/// One line of a memory map.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Where it belongs.
    pub region: Region,
    /// What it is, unique within its rank.
    pub name: String,
    /// The planned bytes.
    pub bytes: Bytes,
    /// How well they are known.
    pub kind: Kind,
    /// The formula, in the words of `inputs`.
    pub formula: String,
    /// The values that went in.
    pub inputs: Vec<(String, String)>,
    /// Where the formula comes from: paper section, or engine file and function.
    pub source: String,
    /// Whether the ranks of one process have it together, once.
    pub shared: bool,
}

impl Term {
    /// A term known to the byte.
    pub fn exact(region: Region, name: impl Into<String>, bytes: Bytes) -> Self {
        Self {
            region,
            name: name.into(),
            bytes,
            kind: Kind::Exact,
            formula: String::new(),
            inputs: Vec::new(),
            source: String::new(),
            shared: false,
        }
    }

    /// Once for all ranks of a process.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// With another kind.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// With its formula.
    #[must_use]
    pub fn formula(mut self, text: impl Into<String>) -> Self {
        self.formula = text.into();
        self
    }

    /// With one more input.
    #[must_use]
    pub fn input(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.inputs.push((name.into(), value.to_string()));
        self
    }

    /// With its source.
    #[must_use]
    pub fn source(mut self, text: impl Into<String>) -> Self {
        self.source = text.into();
        self
    }

    /// The least it may be.
    #[must_use]
    pub const fn low(&self) -> Bytes {
        match self.kind {
            Kind::Exact | Kind::Derived => self.bytes,
            Kind::Calibrated { low, .. } => low,
            Kind::Bound => Bytes::ZERO,
        }
    }

    /// The most it may be.
    #[must_use]
    pub const fn high(&self) -> Bytes {
        match self.kind {
            Kind::Exact | Kind::Derived | Kind::Bound => self.bytes,
            Kind::Calibrated { high, .. } => high,
        }
    }
}

/// The sum of planned bytes.
///
/// # Errors
/// [`SizeOverflow`].
pub fn total<'a>(terms: impl IntoIterator<Item = &'a Term>) -> Result<Bytes, SizeOverflow> {
    Bytes::sum(terms.into_iter().map(|t| t.bytes))
}
