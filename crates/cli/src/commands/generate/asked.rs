//! What a prompt asks for: by flags for all of them, by fields of its own line, else by the model's own configuration.

use std::collections::BTreeMap;

use plimsoll_runtime::sample::{Sampling, SamplingParams};
use plimsoll_runtime::text::Stops;
use plimsoll_schedule::{Beam, Fan};
use serde::Deserialize;

use crate::args::generate::GenerateArgs;
use crate::commands::engine::Started;

/// Fields of a line, with the names of OpenAI's and vLLM's APIs; what is left out is asked for by flags.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pub(super) prompt: Option<String>,
    pub(super) max_tokens: Option<u32>,
    min_tokens: Option<u32>,
    n: Option<u32>,
    best_of: Option<u32>,
    beam_width: Option<u32>,
    length_penalty: Option<f64>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    stop: Option<OneOrMore>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    pub(super) logprobs: Option<u32>,
    pub(super) prompt_logprobs: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a text, or a list of texts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// What is asked of the engine.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) fan: Fan,
    pub(super) params: SamplingParams,
    pub(super) stops: Stops,
    /// Where tokens are drawn.
    pub(super) seed: Option<u64>,
}

impl Asked {
    /// What flags ask for.
    pub(super) fn flags(args: &GenerateArgs) -> Self {
        let some = |list: &[u32]| (!list.is_empty()).then(|| list.to_vec());
        let stop = (!args.stop.is_empty()).then(|| OneOrMore::More(args.stop.clone()));
        Self {
            prompt: args.prompt.clone(),
            max_tokens: Some(args.max_tokens),
            min_tokens: args.min_tokens,
            n: (args.samples > 1).then_some(args.samples),
            best_of: args.best_of,
            beam_width: args.beam_width,
            length_penalty: args.length_penalty,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            presence_penalty: args.presence_penalty,
            frequency_penalty: args.frequency_penalty,
            logit_bias: (!args.logit_bias.is_empty())
                .then(|| args.logit_bias.iter().copied().collect()),
            seed: args.seed,
            stop,
            stop_token_ids: some(&args.stop_token_id),
            ignore_eos: args.ignore_eos.then_some(true),
            logprobs: args.logprobs,
            prompt_logprobs: args.prompt_logprobs,
        }
    }

    /// These fields, and where one is left out, that of `other`.
    pub(super) fn or(self, other: &Self) -> Self {
        let other = other.clone();
        Self {
            prompt: self.prompt.or(other.prompt),
            max_tokens: self.max_tokens.or(other.max_tokens),
            min_tokens: self.min_tokens.or(other.min_tokens),
            n: self.n.or(other.n),
            best_of: self.best_of.or(other.best_of),
            beam_width: self.beam_width.or(other.beam_width),
            length_penalty: self.length_penalty.or(other.length_penalty),
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
            logit_bias: self.logit_bias.or(other.logit_bias),
            seed: self.seed.or(other.seed),
            stop: self.stop.or(other.stop),
            stop_token_ids: self.stop_token_ids.or(other.stop_token_ids),
            ignore_eos: self.ignore_eos.or(other.ignore_eos),
            logprobs: self.logprobs.or(other.logprobs),
            prompt_logprobs: self.prompt_logprobs.or(other.prompt_logprobs),
        }
    }

    /// Whether it is a beam search.
    pub(super) fn searches(&self) -> bool {
        self.beam_width.is_some()
    }

    /// Sequences that run at once.
    pub(super) fn width(&self) -> u32 {
        self.fan().width()
    }

    fn fan(&self) -> Fan {
        let n = self.n.unwrap_or(1);
        match self.beam_width {
            // As transformers does unless told: the search ends when no beam can beat those that have ended.
            Some(width) => Fan::Beam(Beam {
                width,
                length_penalty: self.length_penalty.unwrap_or(1.0),
                early_stopping: false,
            }),
            None => Fan::Sample {
                n,
                best_of: self.best_of.unwrap_or(n),
            },
        }
    }

    /// Whether what is asked here goes with a search, or without one: it ranks by the model's own distribution and
    /// draws nothing.
    pub(super) fn check(&self, searches: bool) -> Result<(), String> {
        let of_draws = [
            ("n", self.n.is_some()),
            ("best_of", self.best_of.is_some()),
            ("temperature", self.temperature.is_some()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
            ("repetition_penalty", self.repetition_penalty.is_some()),
            ("presence_penalty", self.presence_penalty.is_some()),
            ("frequency_penalty", self.frequency_penalty.is_some()),
            ("logit_bias", self.logit_bias.is_some()),
        ];
        let named = of_draws.into_iter().find(|o| o.1).filter(|_| searches);
        match (named, self.length_penalty) {
            (Some((name, _)), _) => Err(format!(
                "{name} and beam_width exclude each other: a search draws nothing"
            )),
            (None, Some(_)) if !searches => {
                Err("length_penalty is for a search: give beam_width too".to_owned())
            }
            (None, _) => Ok(()),
        }
    }

    /// All of it, checked against the model; `drawn` is the seed where none is given.
    pub(super) fn ask(&self, server: &Started, max_tokens: u32, drawn: u64) -> Result<Ask, String> {
        let own = server.generation.sampling();
        let ignore_eos = self.ignore_eos.unwrap_or(false);
        let common = Sampling {
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            min_tokens: self.min_tokens.unwrap_or(0),
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos,
            ..Sampling::default()
        };
        let biases = self.logit_bias.iter().flatten();
        let asked = match self.beam_width {
            Some(_) => common,
            None => Sampling {
                temperature: self.temperature.unwrap_or(own.temperature),
                top_k: self.top_k.unwrap_or(own.top_k),
                top_p: self.top_p.unwrap_or(own.top_p),
                min_p: self.min_p.unwrap_or(own.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
                presence_penalty: self.presence_penalty.unwrap_or(0.0),
                frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
                logit_bias: biases.map(|(id, x)| (*id, *x)).collect(),
                seed: self.seed.unwrap_or(drawn),
                ..common
            },
        };
        let draws = self.beam_width.is_none() && asked.temperature > 0.0;
        let seed = draws.then_some(asked.seed);
        let params = SamplingParams::new(asked, server.vocab, &server.generation.eos, max_tokens)
            .map_err(|e| e.to_string())?;
        let stops = match self.stop.clone() {
            None => Vec::new(),
            Some(OneOrMore::One(text)) => vec![text],
            Some(OneOrMore::More(all)) => all,
        };
        Ok(Ask {
            fan: self.fan(),
            params,
            stops: Stops::new(stops, false).map_err(|e| e.to_string())?,
            seed,
        })
    }

    /// Whether its seed has to be drawn, should anything be.
    pub(super) fn lacks_seed(&self) -> bool {
        self.seed.is_none()
    }
}
