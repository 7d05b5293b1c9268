//! Tokenizers of GGUF files, as the `tokenizer.json` that a checkpoint of the same model has.
//!
//! Two kinds: `gpt2`, a BPE over bytes with its merges, and `llama`, SentencePiece's BPE, whose merges follow from
//! its scores (`generate_merges` of transformers). How a text is cut before the merges is known to llama.cpp by
//! name only (`tokenizer.ggml.pre`, `llama-vocab.cpp`); the rules here are those of the models' own files.

use std::collections::BTreeMap;

use plimsoll_model::gguf::{Metadata, Value, Vocabulary};
use plimsoll_model::json::printable;
use serde_json::{Value as Json, json};

use super::{GenerationConfig, TextError, Tokenizer, TokenizerConfig, corrupt};

/// `tokenizer.ggml.token_type`.
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;

/// What a piece of text ends at, for the tokenizers of Llama 3, Qwen 2, GPT-4o and Mistral's Tekken.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a BPE over bytes cuts a text before its merges.
enum Cut {
    /// GPT-2's rule, which is built in.
    Gpt2,
    /// Every digit by itself, then GPT-2's rule.
    Digits,
    /// A rule of its own.
    Rule(&'static str),
}

/// The rule of a name, whether a piece that is a token stays one without merges, and whether a prompt begins with
/// the first token where the file does not say.
fn pre(name: &str) -> Option<(Cut, bool, bool)> {
    Some(match name {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" => (Cut::Gpt2, false, false),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" => {
            (Cut::Digits, false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => (Cut::Rule(LLAMA3), true, true),
        "dbrx" | "smaug-bpe" => (Cut::Rule(LLAMA3), false, false),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" => (Cut::Rule(QWEN2), false, false),
        "gpt-4o" => (Cut::Rule(GPT4O), false, false),
        "tekken" => (Cut::Rule(TEKKEN), true, true),
        _ => return None,
    })
}

/// A file's tokenizer, and what it says of prompts and ends.
pub(super) fn read(
    place: &str,
    metadata: &Metadata,
    vocabulary: &Vocabulary,
) -> Result<(Tokenizer, TokenizerConfig, GenerationConfig), TextError> {
    let key = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}"));
    let bad = |problem: String| corrupt(place, format!("its tokenizer is damaged: {problem}"));
    let n = vocabulary.tokens.len();
    let lists = [vocabulary.scores.len(), vocabulary.types.len()];
    if n == 0 || lists.iter().any(|&l| l != 0 && l != n) {
        return Err(bad(format!(
            "there are {n} tokens, {} scores and {} types",
            lists[0], lists[1]
        )));
    }
    if vocabulary.scores.iter().any(|s| s.is_nan()) {
        return Err(bad("a score is not a number".to_owned()));
    }
    let mut ids = BTreeMap::new();
    for (id, token) in (0_u32..).zip(&vocabulary.tokens) {
        if let Some(other) = ids.insert(token.as_str(), id) {
            return Err(bad(format!(
                "tokens {other} and {id} are both `{}`",
                printable(token)
            )));
        }
    }
    let token_of = |name: &str| match key(name).and_then(Value::as_u64) {
        None => Ok(None),
        Some(id) => match usize::try_from(id)
            .ok()
            .and_then(|i| vocabulary.tokens.get(i))
        {
            Some(token) => Ok(Some((id as u32, token.clone()))),
            None => Err(bad(format!("{name} is {id}, and there are {n} tokens"))),
        },
    };
    let unknown = token_of("unknown_token_id")?;
    let model = key("model").and_then(Value::as_str).unwrap_or("");
    let (json, begins) = match model {
        "gpt2" => {
            let name = key("pre").and_then(Value::as_str).unwrap_or("");
            let Some((cut, whole, begins)) = pre(name) else {
                return Err(corrupt(
                    place,
                    format!(
                        "its tokenizer cuts texts by the rule `{}`, which is not known; use the model's Hugging Face folder",
                        printable(name)
                    ),
                ));
            };
            (
                byte_level(vocabulary, &ids, &cut, whole, name == "qwen2"),
                begins,
            )
        }
        "llama" => {
            let space = key("add_space_prefix")
                .and_then(Value::as_bool)
                .unwrap_or(true);
            let unknown = unknown.map(|u| u.1);
            (
                sentencepiece(vocabulary, &ids, space, unknown.as_deref()),
                true,
            )
        }
        other => {
            return Err(corrupt(
                place,
                format!(
                    "its tokenizer is of the kind `{}`; gpt2 and llama are known, use the model's Hugging Face folder",
                    printable(other)
                ),
            ));
        }
    };
    let config = TokenizerConfig {
        bos: token_of("bos_token_id")?.map(|t| t.1),
        eos: token_of("eos_token_id")?.map(|t| t.1),
        add_bos: Some(
            key("add_bos_token")
                .and_then(Value::as_bool)
                .unwrap_or(begins),
        ),
        chat_template: match metadata.get("tokenizer.chat_template") {
            Some(Value::LongString { bytes }) => {
                return Err(bad(format!("its chat template has {bytes} bytes")));
            }
            other => other.and_then(Value::as_str).map(str::to_owned),
        },
    };
    let mut eos = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(token_of(name)?.map(|t| t.0));
    }
    eos.sort_unstable();
    eos.dedup();
    let bytes = serde_json::to_vec(&json).map_err(|e| bad(e.to_string()))?;
    let tokenizer = Tokenizer::from_json(&bytes, place, &config)?;
    let generation = GenerationConfig {
        eos,
        ..GenerationConfig::default()
    };
    Ok((tokenizer, config, generation))
}

fn kind(vocabulary: &Vocabulary, id: u32) -> u32 {
    vocabulary.types.get(id as usize).copied().unwrap_or(1)
}

/// Control tokens, and those that are found in a text before anything else.
fn added(vocabulary: &Vocabulary) -> Vec<Json> {
    (0_u32..)
        .zip(&vocabulary.tokens)
        .filter(|(id, t)| {
            matches!(kind(vocabulary, *id), UNKNOWN | CONTROL | USER_DEFINED) && !t.is_empty()
        })
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "special": kind(vocabulary, id) != USER_DEFINED,
                "normalized": false, "single_word": false, "lstrip": false, "rstrip": false,
            })
        })
        .collect()
}

fn bpe(ids: &BTreeMap<&str, u32>, merges: &[Json]) -> Json {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": ids, "merges": merges,
    })
}

fn byte_level(
    vocabulary: &Vocabulary,
    ids: &BTreeMap<&str, u32>,
    cut: &Cut,
    whole: bool,
    composed: bool,
) -> Json {
    let merges: Vec<Json> = vocabulary
        .merges
        .iter()
        // The first half may itself be a space.
        .map(|m| match m.char_indices().skip(1).find(|c| c.1 == ' ') {
            Some((at, _)) => json!([&m[..at], &m[at + 1..]]),
            None => json!([m]),
        })
        .collect();
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
    let sequence =
        |first: Json, regex| json!({"type": "Sequence", "pretokenizers": [first, bytes(regex)]});
    let cut = match cut {
        Cut::Gpt2 => bytes(true),
        Cut::Digits => sequence(json!({"type": "Digits", "individual_digits": true}), true),
        Cut::Rule(rule) => sequence(
            json!({"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": false}),
            false,
        ),
    };
    let mut model = bpe(ids, &merges);
    model["ignore_merges"] = whole.into();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(vocabulary),
        "normalizer": composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": cut, "post_processor": null, "decoder": bytes(true), "model": model,
    })
}

fn sentencepiece(
    vocabulary: &Vocabulary,
    ids: &BTreeMap<&str, u32>,
    space: bool,
    unknown: Option<&str>,
) -> Json {
    let mut model = bpe(ids, &merges(vocabulary, ids));
    model["unk_token"] = unknown.into();
    model["fuse_unk"] = true.into();
    model["byte_fallback"] = vocabulary.types.contains(&BYTE).into();
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![
        replace("▁", " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(vocabulary),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders}, "model": model,
    })
}

/// Every way to make a token of two others, in the order of the scores of what is made.
fn merges(vocabulary: &Vocabulary, ids: &BTreeMap<&str, u32>) -> Vec<Json> {
    let score = |id: u32| vocabulary.scores.get(id as usize).copied().unwrap_or(0.0);
    let mut all = Vec::new();
    for (id, token) in (0_u32..).zip(&vocabulary.tokens) {
        if matches!(kind(vocabulary, id), UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        let mut ways: Vec<(u32, u32, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (a, b) = token.split_at(at);
                Some((*ids.get(a)?, *ids.get(b)?, a, b))
            })
            .collect();
        ways.sort_unstable_by_key(|w| (w.0, w.1));
        all.extend(ways.into_iter().map(|(.., a, b)| (score(id), a, b)));
    }
    let chars = |s: &str| s.chars().count();
    // Stable, as there: of equal ones the first stays first.
    all.sort_by(|x, y| {
        y.0.total_cmp(&x.0)
            .then_with(|| chars(y.1).cmp(&chars(x.1)))
            .then_with(|| chars(y.2).cmp(&chars(x.2)))
    });
    all.into_iter().map(|(_, a, b)| json!([a, b])).collect()
}
