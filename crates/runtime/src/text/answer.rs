//! [`Answer`]: the text of one answer, token by token: what may be shown of it so far.

use super::{Detokenizer, Stops, TextError, Tokenizer};

/// An answer under way.
#[derive(Clone, Debug)]
pub struct Answer {
    stream: Detokenizer,
    stops: Stops,
    over: bool,
}

impl Answer {
    /// What follows `prompt`, up to one of `stops`.
    #[must_use]
    pub fn new(prompt: &[u32], stops: Stops) -> Self {
        Self {
            stream: Detokenizer::new(prompt, false),
            stops,
            over: false,
        }
    }

    /// The text that one more token completes; empty for one that only ends the answer.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
        ends: bool,
    ) -> Result<String, TextError> {
        if self.over || ends {
            return Ok(String::new());
        }
        let text = self.stream.push(tokenizer, token)?;
        Ok(self.show(&text))
    }

    /// What was held back, when no more tokens come.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        if self.over {
            return Ok(String::new());
        }
        let rest = self.stream.finish(tokenizer)?;
        let mut text = self.show(&rest);
        if !self.over {
            text.push_str(&self.stops.finish());
        }
        Ok(text)
    }

    fn show(&mut self, text: &str) -> String {
        let (shown, over) = self.stops.push(text);
        self.over = over;
        shown
    }
}
