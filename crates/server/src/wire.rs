//! What clients send, as it stands in their JSON: fields of both generating routes, with the names of OpenAI's and
//! vLLM's interfaces. Lists are cut off where they are too long, while they are read.
//!
//! A name that stands nowhere here is an error: what a client asks for and does not get, it should hear of. What OpenAI
//! has and what changes nothing here (`user`, `metadata` ...) is taken and not looked at.

use std::fmt;
use std::marker::PhantomData;

use plimsoll_runtime::guide::MAX_CHOICES;
use plimsoll_runtime::sample::{MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::prepare::Route;

/// Most prompts of one request.
pub(crate) const MAX_PROMPTS: usize = 128;
/// Most messages of a chat.
const MAX_MESSAGES: usize = 4096;
/// Most parts of a message.
pub(crate) const MAX_PARTS: usize = 1024;
/// Most tokens of all prompts, given as ids: more than any context holds.
const MAX_IDS: usize = 4 << 20;
/// Most tools.
const MAX_TOOLS: usize = 128;
/// Longest `cache_salt`.
pub(crate) const MAX_SALT: usize = 128;
/// Most sequences of one body, over all its prompts.
pub(crate) const MAX_SEQUENCES: usize = 256;
/// Most stop strings and tokens that are read; the runtime's own limits are below.
const MAX_STOPS: usize = 256;

/// The messages of a chat.
pub(crate) type Messages = List<Object<Message>, MAX_MESSAGES>;

/// A body of `/v1/completions` or `/v1/chat/completions`.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    /// The model; the one that is served, where left out.
    pub(crate) model: Option<String>,
    /// Texts, or tokens by their ids; each is a request of its own.
    pub(crate) prompt: Option<Prompts>,
    /// The chat so far.
    pub(crate) messages: Option<Messages>,
    /// Tokens of an answer at most.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub(crate) max_tokens: Option<Whole>,
    /// The same, by its newer name; chats without either are as long as fits.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub(crate) max_completion_tokens: Option<Whole>,
    /// Tokens before it may end.
    #[schemars(range(min = 0, max = u32::MAX))]
    pub(crate) min_tokens: Option<Whole>,
    /// Answers to each prompt.
    #[schemars(range(min = 1, max = MAX_SEQUENCES))]
    pub(crate) n: Option<Whole>,
    /// Answers that are drawn, of which the likeliest `n` are given.
    #[schemars(range(min = 1, max = MAX_SEQUENCES))]
    pub(crate) best_of: Option<Whole>,
    /// Whether it comes in events, token by token.
    pub(crate) stream: Option<bool>,
    /// What streams tell beside.
    pub(crate) stream_options: Option<Object<StreamOptions>>,
    /// Whether the prompt stands before the answer.
    pub(crate) echo: Option<bool>,
    /// Log probabilities: of how many likeliest tokens, or in chats whether.
    pub(crate) logprobs: Option<AskedLogprobs>,
    /// Of how many likeliest tokens, where `logprobs` is true.
    #[schemars(range(min = 0, max = MAX_LOGPROBS))]
    pub(crate) top_logprobs: Option<Whole>,
    /// 0 takes the likeliest token.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub(crate) temperature: Option<f64>,
    /// Draws from the likeliest tokens that have this probability together.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f64>,
    /// Draws from so many likeliest tokens; 0 and -1 are no limit.
    #[schemars(range(min = -1, max = u32::MAX))]
    pub(crate) top_k: Option<Whole>,
    /// Draws from tokens with at least this part of the likeliest one's probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) min_p: Option<f64>,
    /// Taken from the logits of tokens that were generated.
    #[schemars(range(min = -2.0, max = 2.0))]
    pub(crate) presence_penalty: Option<f64>,
    /// The same, for each time that they were.
    #[schemars(range(min = -2.0, max = 2.0))]
    pub(crate) frequency_penalty: Option<f64>,
    /// Above 1, makes tokens that stand in prompt or answer less likely.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub(crate) repetition_penalty: Option<f64>,
    /// What is added to logits, by token.
    pub(crate) logit_bias: Option<Biases>,
    /// The same seed draws the same answer.
    #[schemars(range(min = i64::MIN, max = u64::MAX))]
    pub(crate) seed: Option<Whole>,
    /// Texts that end an answer.
    pub(crate) stop: Option<Strings>,
    /// Tokens that end an answer.
    #[schemars(with = "Option<List<u32, MAX_STOP_IDS>>")]
    pub(crate) stop_token_ids: Option<List<Whole, MAX_STOPS>>,
    /// Whether the end of the text does not end it.
    pub(crate) ignore_eos: Option<bool>,
    /// Whether what ended it is part of it.
    pub(crate) include_stop_str_in_output: Option<bool>,
    /// Whether the tokenizer adds its own, as one that begins a text.
    pub(crate) add_special_tokens: Option<bool>,
    /// Whether the chat ends where the assistant begins to speak.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Finds only prefixes in the cache of requests with the same salt.
    #[schemars(extend("pattern" = format!("^[!-~]{{1,{MAX_SALT}}}$")))]
    pub(crate) cache_salt: Option<String>,
    /// Lower numbers go first.
    #[schemars(range(min = i32::MIN, max = i32::MAX))]
    pub(crate) priority: Option<Whole>,
    /// Searches with `n` beams in place of drawing.
    pub(crate) use_beam_search: Option<bool>,
    /// Of beams: their scores are divided by their lengths to this power.
    pub(crate) length_penalty: Option<f64>,
    /// Of beams: whether it ends with as many answers as beams.
    pub(crate) early_stopping: Option<bool>,

    /// What the answer has to be: JSON, or JSON of a schema.
    pub(crate) response_format: Option<Object<ResponseFormat>>,
    /// The same, in vLLM's way: a schema, expression, choice or grammar.
    pub(crate) structured_outputs: Option<Object<StructuredOutputs>>,
    /// A JSON schema that the answer keeps to.
    pub(crate) guided_json: Option<Json>,
    /// A regular expression that the answer keeps to.
    pub(crate) guided_regex: Option<String>,
    /// Texts of which the answer is one.
    pub(crate) guided_choice: Option<List<String, MAX_CHOICES>>,
    /// A grammar that the answer keeps to.
    pub(crate) guided_grammar: Option<String>,
    /// Functions that the model may call.
    pub(crate) tools: Option<List<Object<Tool>, MAX_TOOLS>>,
    /// Whether it calls one, and which.
    pub(crate) tool_choice: Option<ToolChoice>,
    /// Whether it may call several.
    pub(crate) parallel_tool_calls: Option<bool>,

    // Taken only where they ask for nothing.
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!([[], null])))]
    functions: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!(["none", null])))]
    function_call: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!([["text"], null])))]
    modalities: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!([null])))]
    audio: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!(["", null])))]
    suffix: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!([null])))]
    web_search_options: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!(["none", null])))]
    reasoning_effort: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!(["medium", null])))]
    verbosity: Option<Value>,
    /// OpenAI has it; taken only where it asks for nothing.
    #[schemars(extend("enum" = json!([true, null])))]
    skip_special_tokens: Option<Value>,

    // Change nothing here.
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "user")]
    #[schemars(with = "Option<Value>")]
    _user: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "metadata")]
    #[schemars(with = "Option<Value>")]
    _metadata: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "store")]
    #[schemars(with = "Option<Value>")]
    _store: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "service_tier")]
    #[schemars(with = "Option<Value>")]
    _service_tier: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "safety_identifier")]
    #[schemars(with = "Option<Value>")]
    _safety_identifier: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "prompt_cache_key")]
    #[schemars(with = "Option<Value>")]
    _prompt_cache_key: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "prompt_cache_retention")]
    #[schemars(with = "Option<Value>")]
    _prompt_cache_retention: Option<IgnoredAny>,
    /// OpenAI has it; it changes nothing here.
    #[serde(rename = "prediction")]
    #[schemars(with = "Option<Value>")]
    _prediction: Option<IgnoredAny>,
}

impl Asked {
    /// Fields that are for the other route, and whether they ask for something.
    pub(crate) fn elsewhere(&self, route: Route) -> Vec<(&'static str, bool)> {
        match route {
            Route::Completion => vec![
                ("messages", self.messages.is_some()),
                (
                    "max_completion_tokens",
                    self.max_completion_tokens.is_some(),
                ),
                (
                    "tools",
                    self.tools.as_ref().is_some_and(|t| !t.0.is_empty()),
                ),
                (
                    "add_generation_prompt",
                    self.add_generation_prompt.is_some(),
                ),
            ],
            Route::Chat => vec![
                ("prompt", self.prompt.is_some()),
                ("echo", self.echo == Some(true)),
                ("best_of", self.best_of.is_some()),
            ],
        }
    }

    /// A field that asks for what is not there.
    pub(crate) fn unsupported(&self) -> Option<&'static str> {
        let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
        let all: [(&str, &Option<Value>, bool); 9] = [
            (
                "functions",
                &self.functions,
                self.functions.as_ref().is_some_and(empty),
            ),
            (
                "function_call",
                &self.function_call,
                is(&self.function_call, "none"),
            ),
            (
                "modalities",
                &self.modalities,
                self.modalities
                    .as_ref()
                    .and_then(Value::as_array)
                    .is_some_and(|m| m == &["text"]),
            ),
            ("audio", &self.audio, false),
            ("suffix", &self.suffix, is(&self.suffix, "")),
            ("web_search_options", &self.web_search_options, false),
            (
                "reasoning_effort",
                &self.reasoning_effort,
                is(&self.reasoning_effort, "none"),
            ),
            ("verbosity", &self.verbosity, is(&self.verbosity, "medium")),
            (
                "skip_special_tokens",
                &self.skip_special_tokens,
                self.skip_special_tokens == Some(Value::Bool(true)),
            ),
        ];
        let wrong = all
            .into_iter()
            .find(|(_, v, neutral)| v.is_some() && !neutral);
        wrong.map(|w| w.0)
    }
}

fn is(value: &Option<Value>, neutral: &str) -> bool {
    value.as_ref().and_then(Value::as_str) == Some(neutral)
}

/// Something with fields: a list would be taken for them in their order.
#[derive(Debug)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        d.deserialize_map(Read(PhantomData))
    }
}

/// `response_format`: what an answer is.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(crate) kind: FormatKind,
    pub(crate) json_schema: Option<Object<NamedSchema>>,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

/// A schema with its name; strict or not, it is kept to.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    #[serde(rename = "name")]
    _name: String,
    pub(crate) schema: Option<Json>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
    #[serde(rename = "description")]
    _description: Option<String>,
}

/// vLLM's `structured_outputs`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    pub(crate) json: Option<Json>,
    pub(crate) json_object: Option<bool>,
    pub(crate) regex: Option<String>,
    pub(crate) choice: Option<List<String, MAX_CHOICES>>,
    pub(crate) grammar: Option<String>,
}

/// A tool that an answer may call.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    _kind: FunctionWord,
    pub(crate) function: Object<Function>,
}

/// The one type of tools.
#[derive(Clone, Copy, Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FunctionWord {
    Function,
}

/// A function, as a client describes it.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) parameters: Option<Json>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// Which tools an answer calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = ToolChoice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", \"auto\", \"required\" or a function by its name")
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<ToolChoice, E> {
                match word {
                    "none" => Ok(ToolChoice::None),
                    "auto" => Ok(ToolChoice::Auto),
                    "required" => Ok(ToolChoice::Required),
                    _ => Err(E::custom(
                        "it is none, auto or required, or a function by its name",
                    )),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoice, A::Error> {
                #[derive(serde::Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Named {
                    #[serde(rename = "type")]
                    _kind: FunctionWord,
                    function: Object<Name>,
                }
                #[derive(serde::Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Name {
                    name: String,
                }
                let named = Named::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ToolChoice::Named(named.function.0.name))
            }
        }
        d.deserialize_any(Read)
    }
}

/// What a stream says beside its text.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
    /// Padding of chunks against listeners: none is sent.
    #[serde(rename = "include_obfuscation")]
    #[schemars(with = "Option<Value>")]
    _include_obfuscation: Option<IgnoredAny>,
}

/// A message of a chat.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Option<Content>,
    pub(crate) name: Option<String>,
    pub(crate) tool_calls: Option<List<Object<Call>, MAX_TOOLS>>,
    pub(crate) tool_call_id: Option<String>,
    #[serde(rename = "refusal")]
    #[schemars(with = "Option<Value>")]
    _refusal: Option<IgnoredAny>,
    #[serde(rename = "annotations")]
    #[schemars(with = "Option<Value>")]
    _annotations: Option<IgnoredAny>,
}

/// A call that the assistant made.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    pub(crate) id: String,
    #[serde(rename = "type")]
    _kind: FunctionWord,
    pub(crate) function: Object<Called>,
}

/// A function with the arguments that it was called with, as JSON in a text.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Called {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

impl Role {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// What a message says: parts of text, one under another.
#[derive(Debug)]
pub(crate) struct Content(pub(crate) String);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    // Named so that the error is about the type of the part.
    #[serde(rename = "image_url")]
    _image_url: Option<IgnoredAny>,
    #[serde(rename = "input_audio")]
    _input_audio: Option<IgnoredAny>,
    #[serde(rename = "file")]
    _file: Option<IgnoredAny>,
    #[serde(rename = "refusal")]
    _refusal: Option<IgnoredAny>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of parts of text")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut all: Vec<String> = Vec::new();
                while let Some(part) = parts.next_element::<Object<Part>>()?.map(|p| p.0) {
                    if all.len() == MAX_PARTS {
                        return Err(A::Error::custom(format!("more than {MAX_PARTS} parts")));
                    }
                    match (&*part.kind, part.text) {
                        ("text", Some(text)) => all.push(text),
                        ("text", None) => return Err(A::Error::missing_field("text")),
                        (kind, _) => {
                            let kind: String = kind.chars().take(32).collect();
                            return Err(A::Error::custom(format!(
                                "parts of type {kind:?} are not supported: this model reads text"
                            )));
                        }
                    }
                }
                Ok(Content(all.join("\n")))
            }
        }
        d.deserialize_any(Read)
    }
}

/// A prompt: text, or tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// One prompt or several.
#[derive(Debug, PartialEq)]
pub(crate) struct Prompts(pub(crate) Vec<Prompt>);

/// A text, an id or a list of ids.
enum Item {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

fn token<E: Error>(id: u64) -> Result<u32, E> {
    u32::try_from(id).map_err(|_| E::custom(format!("{id} is no token id")))
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }
            fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
                token(id).map(Item::Id)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element::<u64>()? {
                    if ids.len() == MAX_IDS {
                        return Err(A::Error::custom(format!("more than {MAX_IDS} tokens")));
                    }
                    ids.push(token(id)?);
                }
                Ok(Item::Ids(ids))
            }
        }
        d.deserialize_any(Read)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Prompts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of texts, a list of token ids or a list of such lists")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mut all = Vec::new();
                let mut ids = Vec::new();
                while let Some(item) = seq.next_element::<Item>()? {
                    match item {
                        Item::Id(id) if all.is_empty() => ids.push(id),
                        Item::Text(text) if ids.is_empty() => all.push(Prompt::Text(text)),
                        Item::Ids(list) if ids.is_empty() => all.push(Prompt::Ids(list)),
                        _ => {
                            return Err(A::Error::custom(
                                "token ids beside prompts: they are one prompt or a list of lists",
                            ));
                        }
                    }
                    if all.len() > MAX_PROMPTS {
                        return Err(A::Error::custom(format!("more than {MAX_PROMPTS} prompts")));
                    }
                    if ids.len() > MAX_IDS {
                        return Err(A::Error::custom(format!("more than {MAX_IDS} tokens")));
                    }
                }
                if !ids.is_empty() {
                    all.push(Prompt::Ids(ids));
                }
                Ok(Prompts(all))
            }
        }
        d.deserialize_any(Read)
    }
}

/// A whole number, also where it is written with a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole(pub(crate) i128);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Whole, E> {
                Ok(Whole(n.into()))
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<Whole, E> {
                Ok(Whole(n.into()))
            }
            fn visit_f64<E: Error>(self, x: f64) -> Result<Whole, E> {
                // Above, neighbours have no f64 of their own.
                const EXACT: f64 = 9_007_199_254_740_992.0;
                if x.fract() != 0.0 || x.abs() > EXACT {
                    return Err(E::custom(format!("{x} is no whole number")));
                }
                #[allow(clippy::cast_possible_truncation, reason = "checked above")]
                Ok(Whole(x as i128))
            }
        }
        d.deserialize_any(Read)
    }
}

/// `logprobs`: of chats whether, of completions how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskedLogprobs {
    Whether(bool),
    Count(Whole),
}

impl<'de> Deserialize<'de> for AskedLogprobs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = AskedLogprobs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens, or for chats true or false")
            }
            fn visit_bool<E: Error>(self, b: bool) -> Result<AskedLogprobs, E> {
                Ok(AskedLogprobs::Whether(b))
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<AskedLogprobs, E> {
                Ok(AskedLogprobs::Count(Whole(n.into())))
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<AskedLogprobs, E> {
                Ok(AskedLogprobs::Count(Whole(n.into())))
            }
        }
        d.deserialize_any(Read)
    }
}

/// One text or several.
#[derive(Debug)]
pub(crate) struct Strings(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of texts")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Strings, A::Error> {
                capped(seq, MAX_STOPS).map(Strings)
            }
        }
        d.deserialize_any(Read)
    }
}

/// Any JSON, none of whose objects names a key twice: readers differ in which one they take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Json(pub(crate) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E: Error>(self) -> Result<Json, E> {
                Ok(Json(Value::Null))
            }
            fn visit_bool<E: Error>(self, b: bool) -> Result<Json, E> {
                Ok(Json(b.into()))
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Json, E> {
                Ok(Json(n.into()))
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<Json, E> {
                Ok(Json(n.into()))
            }
            fn visit_f64<E: Error>(self, x: f64) -> Result<Json, E> {
                Ok(Json(x.into()))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
                Ok(Json(text.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element::<Json>()? {
                    all.push(one.0);
                }
                Ok(Json(all.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut all = Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    if all.contains_key(&key) {
                        let key: String = key.chars().take(32).collect();
                        return Err(A::Error::custom(format!("{key:?} stands twice")));
                    }
                    all.insert(key, map.next_value::<Json>()?.0);
                }
                Ok(Json(all.into()))
            }
        }
        d.deserialize_any(Read)
    }
}

/// A list of at most `N`.
#[derive(Debug)]
pub(crate) struct List<T, const N: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Read<T, N> {
            type Value = List<T, N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<List<T, N>, A::Error> {
                capped(seq, N).map(List)
            }
        }
        d.deserialize_seq(Read(PhantomData))
    }
}

fn capped<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut seq: A,
    most: usize,
) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(one) = seq.next_element()? {
        if all.len() == most {
            return Err(A::Error::custom(format!("more than {most} entries")));
        }
        all.push(one);
    }
    Ok(all)
}

/// `logit_bias`: ids, written as texts, and what is added to their logits.
#[derive(Debug)]
pub(crate) struct Biases(pub(crate) Vec<(u32, f64)>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Biases;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids and numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
                let mut all = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if all.len() == MAX_BIASES {
                        return Err(A::Error::custom(format!("more than {MAX_BIASES} entries")));
                    }
                    let id = key.parse().map_err(|_| {
                        let key: String = key.chars().take(32).collect();
                        A::Error::custom(format!("{key:?} is no token id"))
                    })?;
                    all.push((id, map.next_value()?));
                }
                Ok(Biases(all))
            }
        }
        d.deserialize_map(Read)
    }
}

/// A body of `/tokenize`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tokenize {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Option<String>,
    pub(crate) messages: Option<Messages>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) return_token_strs: Option<bool>,
}

/// A body of `/detokenize`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Detokenize {
    pub(crate) model: Option<String>,
    pub(crate) tokens: List<u32, MAX_IDS>,
}
