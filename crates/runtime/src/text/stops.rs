//! [`Stops`]: strings that end a text, wherever tokens begin and end.

/// Most stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;

/// What is wrong with stop strings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty one.
    #[error("stop string {0} is empty: it would end every text")]
    Empty(usize),
    /// A long one.
    #[error("stop string {index} has {len} bytes: use at most {MAX_STOP_BYTES}")]
    TooLong {
        /// Which.
        index: usize,
        /// Its bytes.
        len: usize,
    },
    /// Too many.
    #[error("there are {0} stop strings: use at most {MAX_STOPS}")]
    TooMany(usize),
}

/// What may be shown of a text that could end in a stop string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    strings: Vec<String>,
    /// Whether the string that ends a text is part of it.
    include: bool,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl Stops {
    /// Checks stop strings.
    ///
    /// # Errors
    /// [`StopError`].
    pub fn new(strings: Vec<String>, include: bool) -> Result<Self, StopError> {
        if strings.len() > MAX_STOPS {
            return Err(StopError::TooMany(strings.len()));
        }
        for (index, s) in strings.iter().enumerate() {
            if s.is_empty() {
                return Err(StopError::Empty(index));
            }
            if s.len() > MAX_STOP_BYTES {
                let len = s.len();
                return Err(StopError::TooLong { index, len });
            }
        }
        Ok(Self {
            strings,
            include,
            held: String::new(),
        })
    }

    /// Whether there is no stop string.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Takes new text; gives what may be shown, and whether the text ends with it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        // The one that is whole first, as if the text came byte by byte.
        let found = self
            .strings
            .iter()
            .filter_map(|s| {
                let at = self.held.find(s.as_str())?;
                Some((at + s.len(), at))
            })
            .min();
        if let Some((end, at)) = found {
            self.held.truncate(if self.include { end } else { at });
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.tail();
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is held back, when the text ends for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that begin a stop string: the most of any of them.
    fn tail(&self) -> usize {
        let begins = |s: &String| {
            let most = (s.len() - 1).min(self.held.len());
            (1..=most)
                .rev()
                .find(|&n| self.held.as_bytes().ends_with(&s.as_bytes()[..n]))
                .filter(|&n| self.held.is_char_boundary(self.held.len() - n))
        };
        self.strings.iter().filter_map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown when the text comes in pieces of at most `n` characters.
    fn shown(stops: &[&str], include: bool, text: &str, n: usize) -> (String, bool) {
        let strings = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut s = Stops::new(strings, include).unwrap();
        let mut out = String::new();
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(n) {
            let (new, ended) = s.push(&piece.iter().collect::<String>());
            out += &new;
            if ended {
                return (out, true);
            }
        }
        out += &s.finish();
        (out, false)
    }

    #[test]
    fn cuts_where_the_one_begins_that_is_whole_first() {
        for n in 1..8 {
            for (stops, text, want, ended) in [
                (&["\n\n"][..], "a\nb\n\nc", "a\nb", true),
                (&["END"], "the EN", "the EN", false),
                (&["END"], "ENENDD", "EN", true),
                (&["aab"], "aaaab", "aa", true),
                (&["äö"], "xäyäöz", "xäy", true),
                (&[], "anything", "anything", false),
                (&["abcd", "x"], "abcx", "abc", true),
                // One inside another is whole first, also where one token has both.
                (&["abcd", "bc"], "xabcd", "xa", true),
                (&["bcd", "abcd"], "xabcd", "x", true),
            ] {
                assert_eq!(
                    shown(stops, false, text, n),
                    (want.to_owned(), ended),
                    "{text} by {n}"
                );
            }
        }
        assert_eq!(
            shown(&["\n\n"], true, "a\n\nb", 1),
            ("a\n\n".to_owned(), true)
        );
    }

    #[test]
    fn shows_what_no_stop_string_can_begin_with() {
        let mut s = Stops::new(vec!["<|end|>".to_owned()], false).unwrap();
        assert_eq!(s.push("a<"), ("a".to_owned(), false));
        assert_eq!(s.push("|e"), (String::new(), false));
        assert_eq!(s.push("x"), ("<|ex".to_owned(), false));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let new = |s: Vec<String>| Stops::new(s, false).unwrap_err();
        assert_eq!(new(vec!["a".into(), String::new()]), StopError::Empty(1));
        assert_eq!(
            new(vec!["a".repeat(257)]),
            StopError::TooLong { index: 0, len: 257 }
        );
        assert_eq!(new(vec!["a".into(); 17]), StopError::TooMany(17));
        assert!(Stops::new(vec!["a".repeat(256); 16], false).is_ok());
    }
}
