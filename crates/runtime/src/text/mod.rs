//! Text: to tokens and back, and chats to prompts.
//!
//! Promises: a damaged tokenizer or template is one error, never a panic; text comes out of tokens piece by piece
//! without broken UTF-8, and all pieces together are what decoding at once gives; a template cannot run for ever
//! or grow without bound.

mod answer;
mod bytes;
mod config;
mod ggml;
mod spelled;
mod stops;
mod stream;
mod template;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use plimsoll_host::{HostError, read_whole};
use plimsoll_model::json::printable;

use crate::weights::Checkpoint;

pub use answer::Answer;
#[cfg(test)]
pub(crate) use bytes::byte_sign;
pub use config::{GenerationConfig, TokenizerConfig};
pub use spelled::Disarmed;
pub use stops::{MAX_STOP_BYTES, MAX_STOPS, StopError, Stops};
pub use stream::Detokenizer;
pub use template::{ChatTemplate, Now};

/// Largest accepted tokenizer.json; those of 260,000 words have about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Longest text that is encoded: far above what any context holds, and below what takes long.
pub const MAX_TEXT_BYTES: usize = 16 << 20;

/// Why text cannot become tokens or tokens text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] HostError),
    /// A file that is no usable tokenizer, template or setting.
    #[error("{place}: {problem}; fetch the file again, or correct it")]
    Corrupt {
        /// The file, or key of a GGUF file.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A text that the tokenizer does not take.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// Tokens that the tokenizer does not take.
    #[error("tokens cannot be decoded: {0}")]
    Decode(String),
    /// A chat that the template does not take.
    #[error("the chat template refuses these messages: {0}")]
    Chat(String),
}

fn corrupt(place: impl ToString, problem: impl ToString) -> TextError {
    TextError::Corrupt {
        place: place.to_string(),
        problem: problem.to_string(),
    }
}

/// All that a model's files say of text.
#[derive(Debug)]
pub struct ModelText {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// How it makes prompts of chats, where it does.
    pub template: Option<ChatTemplate>,
    /// How it is meant to be sampled, and what ends a text.
    pub generation: GenerationConfig,
}

impl ModelText {
    /// Reads what belongs to a checkpoint: the metadata of a GGUF file, or the files beside the weights.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, TextError> {
        let (tokenizer, config, generation) = if let Some(metadata) = checkpoint.metadata() {
            let vocabulary = checkpoint.vocabulary()?;
            ggml::read(checkpoint.path(0), metadata, &vocabulary)?
        } else {
            let folder = checkpoint.folder();
            let config = TokenizerConfig::from_folder(folder)?;
            let tokenizer = Tokenizer::from_folder(folder, &config)?;
            let generation = GenerationConfig::from_folder(folder, &tokenizer, &config)?;
            (tokenizer, config, generation)
        };
        Ok(Self {
            template: ChatTemplate::new(&config)?,
            tokenizer,
            generation,
        })
    }
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Ids are below this.
    vocab: u32,
    /// The token that begins a text, where the configuration and not the tokenizer decides on it.
    bos: Option<(u32, bool)>,
    specials: spelled::Specials,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab)
    }
}

/// Runs foreign code that may panic on a hostile tokenizer.
fn caught<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| printable(&e.to_string())),
        Err(_) => Err("the tokenizer's rules contradict each other".to_owned()),
    }
}

impl Tokenizer {
    /// Reads the `tokenizer.json` of a folder, with what `tokenizer_config.json` says of the first token.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn from_folder(folder: &Path, config: &TokenizerConfig) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_whole(&path, MAX_TOKENIZER_BYTES)?;
        Self::from_json(&bytes, &path.display().to_string(), config)
    }

    /// Reads a `tokenizer.json` from `place`.
    ///
    /// # Errors
    /// [`TextError::Corrupt`].
    pub fn from_json(
        bytes: &[u8],
        place: &str,
        config: &TokenizerConfig,
    ) -> Result<Self, TextError> {
        let mut inner = caught(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|e| corrupt(place, format!("this is no usable tokenizer: {e}")))?;
        // Some were saved while they cut or filled up texts for training.
        inner.with_padding(None);
        caught(|| inner.with_truncation(None).map(|_| ())).map_err(|e| corrupt(place, e))?;
        let largest = inner.get_vocab(true).into_values().max();
        let Some(largest) = largest.filter(|&l| l < u32::MAX) else {
            return Err(corrupt(
                place,
                "its vocabulary is empty, or an id is 2^32 - 1",
            ));
        };
        let bos = config.bos.as_deref().and_then(|t| inner.token_to_id(t));
        Ok(Self {
            bos: bos.zip(config.add_bos),
            vocab: largest + 1,
            specials: spelled::Specials::of(&mut inner),
            inner,
        })
    }

    /// Ids are below this; not all of them need exist.
    #[must_use]
    pub const fn vocab(&self) -> u32 {
        self.vocab
    }

    /// The id of a token.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this id, as it stands in the vocabulary.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The tokens of a text. With `special`, as the start of a prompt: with the tokens that the model's
    /// configuration puts around a text (a template writes them itself). Special tokens that the text spells are
    /// special tokens either way; [`Tokenizer::disarm`] is for texts of others.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TextError::Encode(format!(
                "it has {} bytes; at most {MAX_TEXT_BYTES} are taken",
                text.len()
            )));
        }
        let encoding =
            caught(|| self.inner.encode_fast(text, special)).map_err(TextError::Encode)?;
        let mut ids = encoding.get_ids().to_vec();
        if special && let Some((bos, add)) = self.bos {
            match (add, ids.first() == Some(&bos)) {
                (true, false) => ids.insert(0, bos),
                // Where the text itself spells it, it stays.
                (false, true) if !self.spells(text, bos) => {
                    ids.remove(0);
                }
                _ => {}
            }
        }
        Ok(ids)
    }

    fn spells(&self, text: &str, token: u32) -> bool {
        self.token(token).is_some_and(|t| text.starts_with(&t))
    }

    /// The text of tokens, special ones left out unless `special`. Incomplete characters become U+FFFD; ids that
    /// the tokenizer does not have give nothing.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String, TextError> {
        caught(|| self.inner.decode(ids, !special)).map_err(TextError::Decode)
    }
}

#[cfg(test)]
mod tests;
