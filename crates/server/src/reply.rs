//! What clients get, as it stands in their JSON: fields in OpenAI's order and with its names.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Map;

use crate::code::Code;

/// What stands at a field that OpenAI has and that is always null here.
pub(crate) type Null = ();

/// A completion, a chat completion, or a piece of a stream of either.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Reply<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: Null,
    pub(crate) choices: Vec<Choice>,
    /// Left out of pieces, unless it was asked for: then null until the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// One answer, or more of it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Choice {
    Completion {
        index: u64,
        text: String,
        logprobs: Option<Columns>,
        finish_reason: Option<&'static str>,
    },
    Chat {
        index: u64,
        message: Message,
        logprobs: Option<ChatLogprobs>,
        finish_reason: &'static str,
    },
    Chunk {
        index: u64,
        delta: Delta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
    },
}

/// What the assistant says.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Said")]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    /// Null where it only calls tools.
    pub(crate) content: Option<String>,
    pub(crate) refusal: Null,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// More of a message: only what there is more of.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<Null>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

impl Delta {
    /// Who speaks.
    pub(crate) fn begin() -> Self {
        Self {
            role: Some("assistant"),
            content: Some(String::new()),
            refusal: Some(()),
            tool_calls: Vec::new(),
        }
    }

    pub(crate) fn content(text: String) -> Self {
        Self {
            content: Some(text),
            ..Self::default()
        }
    }

    pub(crate) fn call(call: ToolCall) -> Self {
        Self {
            tool_calls: vec![call],
            ..Self::default()
        }
    }
}

/// A call of a tool. What a stream's first piece of it said is not said again.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ToolCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: Function,
    /// Which call of its answer, in streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
}

/// A function, with arguments that are JSON in a text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CalledFunction")]
pub(crate) struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) arguments: String,
}

/// Tokens that were read and written.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) total_tokens: u64,
    pub(crate) prompt_tokens_details: PromptDetails,
    pub(crate) completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: u64,
}

/// Log probabilities of a completion: columns. As numbers of 64 bits, which all clients read.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Columns {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<Option<f64>>,
    /// By their texts, the likeliest first.
    pub(crate) top_logprobs: Vec<Option<Map<String, serde_json::Value>>>,
    pub(crate) text_offset: Vec<usize>,
}

/// Log probabilities of a chat.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<TokenLogprob>,
    pub(crate) refusal: Null,
}

/// A token, and the likeliest ones at its place.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    pub(crate) own: Likely,
    pub(crate) top_logprobs: Vec<Likely>,
}

/// A token with its log probability.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Likely {
    pub(crate) token: String,
    pub(crate) logprob: f64,
    pub(crate) bytes: Vec<u8>,
}

/// `/v1/models`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Models<'a> {
    pub(crate) object: &'static str,
    pub(crate) data: [Model<'a>; 1],
}

/// A model.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Model<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    pub(crate) root: &'a str,
    pub(crate) parent: Null,
    pub(crate) max_model_len: u32,
}

/// `/tokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Tokenized {
    pub(crate) count: usize,
    pub(crate) max_model_len: u32,
    pub(crate) tokens: Vec<u32>,
    pub(crate) token_strs: Option<Vec<String>>,
}

/// `/detokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Detokenized {
    pub(crate) prompt: String,
}

/// `/health`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Health")]
pub(crate) struct Health<W: Serialize, R: Serialize> {
    pub(crate) status: W,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<R>,
}

/// `/version`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
}

/// An error.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct Failure<'a> {
    pub(crate) error: Fault<'a>,
}

/// What went wrong.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Fault<'a> {
    pub(crate) message: &'a str,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'a str>,
    pub(crate) code: Code,
    /// Of a prompt that is too long: its tokens, and those of the longest sequence. As in llama.cpp's server.
    #[serde(flatten)]
    pub(crate) context: Option<Context>,
}

/// How long a prompt is, and how long prompt and answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Context {
    pub(crate) n_prompt_tokens: u64,
    pub(crate) n_ctx: u64,
}
