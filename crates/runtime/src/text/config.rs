//! What `tokenizer_config.json`, `generation_config.json` and `config.json` say of text.

use std::path::Path;

use plimsoll_host::read_whole;
use plimsoll_model::json::parse_config;
use serde_json::Value;

use super::{TextError, Tokenizer, corrupt};
use crate::sample::Sampling;

/// Largest accepted setting; those that repeat the added tokens have some MB.
const MAX_CONFIG_BYTES: u64 = 32 << 20;
/// Largest accepted template; the longest published has about 20 kB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// Most end tokens that are taken from a configuration.
const MAX_EOS: usize = 64;

/// What `tokenizer_config.json` and `chat_template.jinja` say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// The token that begins a text.
    pub bos: Option<String>,
    /// The token that ends one.
    pub eos: Option<String>,
    /// Whether a prompt begins with `bos`; where nothing is said, the tokenizer itself decides.
    pub add_bos: Option<bool>,
    /// The chat template.
    pub chat_template: Option<String>,
}

/// The JSON object in a file; `None` where there is no such file.
fn object(path: &Path) -> Result<Option<Value>, TextError> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let bytes = read_whole(path, MAX_CONFIG_BYTES)?;
    let value = parse_config(&bytes).map_err(|e| corrupt(path.display(), e))?;
    if value.is_object() {
        Ok(Some(value))
    } else {
        Err(corrupt(path.display(), "it is not an object"))
    }
}

impl TokenizerConfig {
    /// Reads what a folder says; nothing where it has no such files.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn from_folder(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer_config.json");
        let mut config = match object(&path)? {
            Some(value) => Self::from_json(&value, &path.display().to_string())?,
            None => Self::default(),
        };
        let path = folder.join("chat_template.jinja");
        if path.symlink_metadata().is_ok() {
            let bytes = read_whole(&path, MAX_TEMPLATE_BYTES)?;
            let text =
                String::from_utf8(bytes).map_err(|_| corrupt(path.display(), "it is not UTF-8"))?;
            config.chat_template = Some(text);
        }
        Ok(config)
    }

    fn from_json(value: &Value, place: &str) -> Result<Self, TextError> {
        // A token is a string, or an object with its properties.
        let token = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.get("content").unwrap_or(v).as_str() {
                Some(s) => Ok(Some(s.to_owned())),
                None => Err(corrupt(place, format!("`{key}` is no token"))),
            },
        };
        let add_bos = match value.get("add_bos_token") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(b)) => Some(*b),
            Some(_) => return Err(corrupt(place, "`add_bos_token` is neither true nor false")),
        };
        let chat_template = match value.get("chat_template") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(s.clone()),
            // Several, by name.
            Some(Value::Array(all)) => all
                .iter()
                .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|t| Some(t.get("template")?.as_str()?.to_owned())),
            Some(_) => return Err(corrupt(place, "`chat_template` is no text")),
        };
        if chat_template
            .as_ref()
            .is_some_and(|t| t.len() as u64 > MAX_TEMPLATE_BYTES)
        {
            return Err(corrupt(
                place,
                format!("`chat_template` has more than {MAX_TEMPLATE_BYTES} bytes"),
            ));
        }
        Ok(Self {
            bos: token("bos_token")?,
            eos: token("eos_token")?,
            add_bos,
            chat_template,
        })
    }
}

/// What a model's own configuration says of generation. The numbers are as they stand there: they are checked as
/// a client's are, where they are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a text, sorted; ids without a logit among them.
    pub eos: Vec<u32>,
    /// Temperature.
    pub temperature: Option<f64>,
    /// top-k.
    pub top_k: Option<u32>,
    /// top-p.
    pub top_p: Option<f64>,
    /// min-p.
    pub min_p: Option<f64>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f64>,
}

impl GenerationConfig {
    /// How a request is sampled that asks for nothing.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "rounds; ranges are checked after"
        )]
        let of = |own: Option<f64>, other: f32| own.map_or(other, |x| x as f32);
        let plain = Sampling::default();
        Sampling {
            temperature: of(self.temperature, plain.temperature),
            top_k: self.top_k.unwrap_or(plain.top_k),
            top_p: of(self.top_p, plain.top_p),
            min_p: of(self.min_p, plain.min_p),
            repetition_penalty: of(self.repetition_penalty, plain.repetition_penalty),
            ..plain
        }
    }

    /// Reads what a folder says: `generation_config.json`; ends from `config.json` where it names none; and the
    /// tokenizer's own end.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn from_folder(
        folder: &Path,
        tokenizer: &Tokenizer,
        config: &TokenizerConfig,
    ) -> Result<Self, TextError> {
        let path = folder.join("generation_config.json");
        let place = path.display().to_string();
        let mut all = Self::default();
        if let Some(value) = object(&path)? {
            let number = |key: &str| match value.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(v) => v
                    .as_f64()
                    .map(Some)
                    .ok_or_else(|| corrupt(&place, format!("`{key}` is not a number"))),
            };
            all.temperature = number("temperature")?;
            all.top_p = number("top_p")?;
            all.min_p = number("min_p")?;
            all.repetition_penalty = number("repetition_penalty")?;
            all.top_k = match value.get("top_k") {
                None | Some(Value::Null) => None,
                // −1 is no limit.
                Some(v) if v.as_i64() == Some(-1) => Some(0),
                Some(v) => {
                    Some(id(v).ok_or_else(|| corrupt(&place, "`top_k` is no whole number"))?)
                }
            };
            all.eos = ends(&value, &place)?;
        }
        if all.eos.is_empty() {
            let path = folder.join("config.json");
            if let Some(value) = object(&path)? {
                let place = path.display().to_string();
                all.eos = ends(&value, &place)?;
                if let Some(text) = value.get("text_config").filter(|_| all.eos.is_empty()) {
                    all.eos = ends(text, &place)?;
                }
            }
        }
        all.eos
            .extend(config.eos.as_deref().and_then(|t| tokenizer.id(t)));
        all.eos.sort_unstable();
        all.eos.dedup();
        Ok(all)
    }
}

fn id(v: &Value) -> Option<u32> {
    u32::try_from(v.as_u64()?).ok()
}

/// `eos_token_id`: none, one or several.
fn ends(value: &Value, place: &str) -> Result<Vec<u32>, TextError> {
    let bad = || {
        corrupt(
            place,
            "`eos_token_id` is neither a token id nor a list of them",
        )
    };
    match value.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_EOS => {
            list.iter().map(|v| id(v).ok_or_else(bad)).collect()
        }
        Some(v) => Ok(vec![id(v).ok_or_else(bad)?]),
    }
}
