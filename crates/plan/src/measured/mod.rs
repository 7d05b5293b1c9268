//! Published start-up reports: reading them, predicting them, and how far off the predictions are.
//!
//! A report is split at the door into a [`Setup`] (model, flags, engine version, card) and the
//! [`Reported`] figures. [`predict`] takes the setup and a configuration and never sees a figure,
//! so a prediction is the same whether the figures are there or not. What cannot be predicted is
//! an `Err` with the reason, never left out.
//!
//! Pure: text and JSON values in, values out.

mod card;
mod card_name;
mod configs;
mod figure;
mod fit;
mod gguf;
mod llama;
mod metrics;
mod predict;
mod published;
mod quantisation;
mod record;
mod sglang;
mod trtllm;
mod version;
mod vllm;

pub use card::{card, device};
pub use configs::Configs;
pub use figure::{Figure, Unit};
pub use fit::{Fit, fit};
pub use gguf::config_of_gguf;
pub use llama::{Compute, LlamaRun};
pub use metrics::{
    Judged, Metrics, graph_estimate, judge, judge_figure, metrics, tokens_given_pool,
};
pub use predict::{Estimate, Model, Prediction, attention_kind, predict, predict_on};
pub use record::{LineError, Record, Reported, Setup, StartOutcome, parse_records};
pub use version::{EngineName, Said, read_engine};
