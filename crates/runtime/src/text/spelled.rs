//! Special tokens that somebody's text spells: in a chat they are text, or whoever writes a message could end it and
//! speak as another.
//!
//! Before a template sees the messages, each such spelling gives way to a mark; afterwards it comes back, and the special
//! tokens that are found at these places are replaced by those of the plain text. Everything else is tokenised as always.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::{MAX_TEXT_BYTES, TextError, Tokenizer, caught};

/// A tokenizer's special tokens.
#[derive(Default)]
pub(super) struct Specials {
    /// Finds them in a text; absent where there are none.
    search: Option<AhoCorasick>,
    all: Vec<Special>,
}

struct Special {
    id: u32,
    text: String,
    /// Tokens of its text, where it is no more than that.
    plain: Vec<u32>,
}

/// Marks that stand for spellings, until the template has run.
#[derive(Debug, Default)]
pub struct Disarmed {
    /// What begins and ends a mark: in none of the texts.
    edge: char,
    spelled: Vec<String>,
}

impl Specials {
    pub(super) fn of(tokenizer: &mut tokenizers::Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let mut found: Vec<(u32, String)> = added
            .filter(|(_, t)| t.special && !t.content.is_empty())
            .map(|(id, t)| (id, t.content))
            .collect();
        found.sort();
        tokenizer.set_encode_special_tokens(true);
        let plain = |text: &str| {
            let encoded = caught(|| tokenizer.encode_fast(text, false));
            encoded.map(|e| e.get_ids().to_vec()).unwrap_or_default()
        };
        let all: Vec<Special> = found
            .into_iter()
            .map(|(id, text)| Special {
                id,
                plain: plain(&text),
                text,
            })
            .collect();
        tokenizer.set_encode_special_tokens(false);
        let texts = all.iter().map(|s| &s.text);
        let mut search = AhoCorasick::builder();
        search.match_kind(MatchKind::LeftmostLongest);
        // As the tokenizer does, which is no larger.
        let search = (!all.is_empty())
            .then(|| search.build(texts).ok())
            .flatten();
        Self { search, all }
    }
}

impl Tokenizer {
    /// Puts marks in the place of special tokens that the texts in these values spell, names of fields among them.
    pub fn disarm<'v>(&self, values: impl IntoIterator<Item = &'v mut Value>) -> Disarmed {
        let mut disarmed = Disarmed::default();
        let Some(search) = &self.specials.search else {
            return disarmed;
        };
        let mut values: Vec<&mut Value> = values.into_iter().collect();
        values.retain(|value| any(value, &|text| search.is_match(text)));
        if values.is_empty() {
            return disarmed;
        }
        // Of characters that nobody has a use for, one that nobody uses. There are more than texts can hold each of.
        let uses = |c: char| values.iter().any(|v| any(v, &|text| text.contains(c)));
        let free = ('\u{f0000}'..='\u{ffffd}').find(|c| !uses(*c));
        let edge = free.unwrap_or('\u{fffd}');
        disarmed.edge = edge;
        let spelled = &mut disarmed.spelled;
        let mut marked = |text: &str| {
            let mut out = String::with_capacity(text.len());
            let mut end = 0;
            for found in search.find_iter(text) {
                out.push_str(&text[end..found.start()]);
                out.push_str(&format!("{edge}{}{edge}", spelled.len()));
                spelled.push(text[found.range()].to_owned());
                end = found.end();
            }
            out.push_str(&text[end..]);
            out
        };
        for value in values {
            change(value, &mut marked);
        }
        disarmed
    }

    /// The tokens of a prompt that a template made of disarmed texts; `special` as of [`Tokenizer::encode`].
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_chat(
        &self,
        prompt: &str,
        disarmed: &Disarmed,
        special: bool,
    ) -> Result<Vec<u32>, TextError> {
        let (text, spelled) = disarmed.restore(prompt);
        if spelled.is_empty() {
            return self.encode(&text, special);
        }
        if text.len() > MAX_TEXT_BYTES {
            // With the message for it.
            return self.encode(&text, special);
        }
        let encoding =
            caught(|| self.inner.encode(text.as_str(), false)).map_err(TextError::Encode)?;
        let mut ids = Vec::with_capacity(encoding.len());
        let mut next = spelled.iter().peekable();
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            while next.next_if(|s| s.end <= start).is_some() {}
            // Such a token may take the space around it with it.
            let inside = next.peek().is_some_and(|s| start < s.end && s.start < end);
            match self.specials.all.iter().find(|s| inside && s.id == id) {
                Some(special) => ids.extend_from_slice(&special.plain),
                None => ids.push(id),
            }
        }
        if special {
            // What belongs around a text, around one that spells nothing.
            let around = self.encode("", true)?;
            ids.splice(0..0, around);
        }
        Ok(ids)
    }
}

/// Whether a text in a value is such a one; names of fields are texts.
fn any(value: &Value, is: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => is(text),
        Value::Array(all) => all.iter().any(|v| any(v, is)),
        Value::Object(all) => all.iter().any(|(name, v)| is(name) || any(v, is)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Changes all texts in a value.
fn change(value: &mut Value, to: &mut dyn FnMut(&str) -> String) {
    match value {
        Value::String(text) => *text = to(text),
        Value::Array(all) => all.iter_mut().for_each(|v| change(v, to)),
        Value::Object(all) => {
            let old = std::mem::take(all);
            all.extend(old.into_iter().map(|(name, mut v)| {
                let name = to(&name);
                change(&mut v, to);
                (name, v)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Disarmed {
    /// The prompt with the spellings in place of their marks, and where they are.
    fn restore(&self, prompt: &str) -> (String, Vec<Range<usize>>) {
        let mut spelled = Vec::new();
        if self.spelled.is_empty() {
            return (prompt.to_owned(), spelled);
        }
        let mut text = String::with_capacity(prompt.len());
        for (i, piece) in prompt.split(self.edge).enumerate() {
            let mark = (i % 2 == 1).then(|| piece.parse::<usize>().ok()).flatten();
            match mark.and_then(|m| self.spelled.get(m)) {
                Some(spelling) => {
                    let start = text.len();
                    text.push_str(spelling);
                    spelled.push(start..text.len());
                }
                // A template that takes texts apart may have taken a mark apart.
                None => text.push_str(piece),
            }
        }
        (text, spelled)
    }
}
