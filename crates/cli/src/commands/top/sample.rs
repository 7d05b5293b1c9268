//! What a server says at one moment, and what happened between two.

use plimsoll_server::memory::{Memory, SCHEMA};

/// Sum and count of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    sum_s: f64,
    count: f64,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) memory: Memory,
    first_token: Times,
    between_tokens: Times,
}

/// What happened between two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Tokens of answers in a second.
    pub(super) generated_per_s: f64,
    /// Tokens of prompts in a second.
    pub(super) prompt_per_s: f64,
    /// Mean time to a first token, where there was one.
    pub(super) first_token_s: Option<f64>,
    /// Mean time between two tokens, where there were any.
    pub(super) between_tokens_s: Option<f64>,
}

impl Sample {
    /// Reads what `/v1/memory` and `/metrics` answered; says what is wrong with it.
    pub(super) fn read(memory: &str, metrics: &str) -> Result<Self, String> {
        let memory: Memory =
            serde_json::from_str(memory).map_err(|e| format!("/v1/memory: {e}"))?;
        if memory.schema != SCHEMA {
            let schema: String = memory.schema.chars().take(40).collect();
            return Err(format!("/v1/memory is {schema:?}, and {SCHEMA} is read"));
        }
        let times = |name: &str| Times {
            sum_s: total(metrics, &format!("{name}_sum")),
            count: total(metrics, &format!("{name}_count")),
        };
        Ok(Self {
            memory,
            first_token: times("vllm:time_to_first_token_seconds"),
            between_tokens: times("vllm:inter_token_latency_seconds"),
        })
    }

    /// What happened since `before`. After a restart of the server there is nothing to compare with.
    #[allow(clippy::cast_precision_loss, reason = "for a screen")]
    pub(super) fn since(&self, before: &Self) -> Rates {
        let (a, b) = (&before.memory, &self.memory);
        let seconds = b.at_ms.saturating_sub(a.at_ms) as f64 / 1000.0;
        if seconds <= 0.0 || b.engine_steps < a.engine_steps {
            return Rates::default();
        }
        let rate = |a: u64, b: u64| b.saturating_sub(a) as f64 / seconds;
        let mean = |a: Times, b: Times| {
            let count = b.count - a.count;
            (count > 0.0).then(|| ((b.sum_s - a.sum_s) / count).max(0.0))
        };
        Rates {
            generated_per_s: rate(a.counters.generated_tokens, b.counters.generated_tokens),
            prompt_per_s: rate(a.counters.prompt_tokens, b.counters.prompt_tokens),
            first_token_s: mean(before.first_token, self.first_token),
            between_tokens_s: mean(before.between_tokens, self.between_tokens),
        }
    }
}

/// All samples of this name, added up.
fn total(metrics: &str, name: &str) -> f64 {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let starts = rest.starts_with(['{', ' ']);
        let value = rest.rsplit(' ').next().filter(|_| starts)?;
        value.parse::<f64>().ok().filter(|v| v.is_finite())
    };
    metrics.lines().filter_map(of).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const EXAMPLE: &str =
        include_str!("../../../../../docs/memory.example.json");

    /// The example, `seconds` later, after so many tokens more.
    pub(in super::super) fn later(seconds: u64, tokens: u64) -> Sample {
        let metrics = format!(
            "# HELP x x\nvllm:inter_token_latency_seconds_sum{{model_name=\"a b\"}} {}\n\
             vllm:inter_token_latency_seconds_count{{model_name=\"a b\"}} {tokens}\n\
             vllm:time_to_first_token_seconds_sum {}\nvllm:time_to_first_token_seconds_count {seconds}\n",
            tokens as f64 * 0.01,
            seconds as f64 * 0.05
        );
        let mut sample = Sample::read(EXAMPLE, &metrics).unwrap();
        sample.memory.at_ms += seconds * 1000;
        sample.memory.counters.generated_tokens += tokens;
        sample.memory.engine_steps += tokens;
        sample
    }

    #[test]
    fn rates_are_of_what_happened_between() {
        let rates = later(2, 500).since(&later(0, 0));
        assert_eq!(rates.generated_per_s, 250.0);
        assert_eq!(rates.prompt_per_s, 0.0);
        assert!((rates.between_tokens_s.unwrap() - 0.01).abs() < 1e-9);
        assert_eq!(later(3, 500).since(&later(2, 500)).between_tokens_s, None);
        // Another process, or the same moment.
        assert_eq!(later(3, 0).since(&later(2, 500)), Rates::default());
        assert_eq!(later(2, 500).since(&later(2, 500)), Rates::default());
    }

    #[test]
    fn another_shape_is_told() {
        assert!(
            Sample::read("{}", "")
                .unwrap_err()
                .contains("missing field")
        );
        let newer = EXAMPLE.replace("plimsoll.memory/1", "plimsoll.memory/2");
        assert!(Sample::read(&newer, "").unwrap_err().contains("memory/2"));
    }
}
