//! [`Detokenizer`]: text from tokens as they come.
//!
//! A token's text depends on its neighbours: bytes of one character lie in several tokens, and a leading space is
//! dropped at the start only. So a few tokens are decoded again with each new one, and what is longer than
//! before is new (the two offsets of text-generation-inference and vLLM).

use super::{TextError, Tokenizer};

/// Tokens before the first that give it its context (vLLM's `INITIAL_INCREMENTAL_DETOKENIZATION_OFFSET`).
const CONTEXT: usize = 5;
/// Tokens that may wait for the rest of a character, which has four bytes at most: after these, a replacement
/// character is what the model wrote.
const MAX_WAITING: usize = 8;

/// The text of one sequence, as its tokens come.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    /// The last tokens: context, then those whose text is not out.
    ids: Vec<u32>,
    /// Tokens of the context.
    read: usize,
    /// Whether special tokens have a text.
    special: bool,
}

impl Detokenizer {
    /// For what follows `prompt`.
    #[must_use]
    pub fn new(prompt: &[u32], special: bool) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            read: ids.len(),
            ids,
            special,
        }
    }

    /// The text that `token` completes; empty while a character lacks bytes.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TextError> {
        self.ids.push(token);
        let force = self.ids.len() - self.read >= MAX_WAITING;
        self.advance(tokenizer, force)
    }

    /// What is left: bytes that never became a character.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        self.advance(tokenizer, true)
    }

    fn advance(&mut self, tokenizer: &Tokenizer, force: bool) -> Result<String, TextError> {
        if self.ids.len() == self.read {
            return Ok(String::new());
        }
        let before = tokenizer.decode(&self.ids[..self.read], self.special)?;
        let all = tokenizer.decode(&self.ids, self.special)?;
        if all.ends_with('\u{fffd}') && !force {
            return Ok(String::new());
        }
        // Where a decoder changed what is out already, the rest from there on is as near as can be.
        let new = all.get(before.len()..).unwrap_or_default().to_owned();
        if new.is_empty() && !force {
            // A special token, or a space that the next word decides on.
            if self.ids.len() - self.read < MAX_WAITING {
                return Ok(String::new());
            }
        }
        // What was new is now the context.
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(new)
    }
}
