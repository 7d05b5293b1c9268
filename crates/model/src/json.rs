//! JSON from strangers: bounded, in UTF-8, and with every key once.
//!
//! `serde_json` keeps the last of two equal keys; two readers of one file may then see different
//! models. Here a second key is an error, as are a byte-order mark and nesting past its limit of
//! 128 levels.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why bytes are not acceptable JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (line {line}, column {column})")]
pub struct JsonError {
    /// What is wrong.
    pub reason: String,
    /// Line, from 1; 0 where unknown.
    pub line: usize,
    /// Column in bytes, from 1; 0 where unknown.
    pub column: usize,
    /// Offset in bytes from the start of the JSON text.
    pub offset: u64,
}

impl JsonError {
    pub(crate) fn at(bytes: &[u8], offset: usize, reason: impl Into<String>) -> Self {
        let head = bytes.get(..offset).unwrap_or(bytes);
        let line = head.split(|&b| b == b'\n').count();
        let column = head.rsplit(|&b| b == b'\n').next().map_or(0, <[u8]>::len) + 1;
        Self {
            reason: reason.into(),
            line,
            column,
            offset: offset as u64,
        }
    }

    pub(crate) fn from_serde(bytes: &[u8], err: &serde_json::Error) -> Self {
        // serde_json's text ends in its own position, which we give ourselves.
        let text = err.to_string();
        let reason = match text.rfind(" at line ") {
            Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
            None => text,
        };
        let before: usize = bytes
            .split_inclusive(|&b| b == b'\n')
            .take(err.line().saturating_sub(1))
            .map(<[u8]>::len)
            .sum();
        Self {
            reason,
            line: err.line(),
            column: err.column(),
            offset: (before + err.column().saturating_sub(1)) as u64,
        }
    }
}

/// Checks what must hold before any JSON parser sees the bytes, and returns them as text.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, JsonError> {
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        return Err(JsonError::at(
            bytes,
            0,
            "it starts with a byte-order mark; save it as UTF-8 without one",
        ));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(JsonError::at(bytes, 0, "it is UTF-16; save it as UTF-8"));
    }
    std::str::from_utf8(bytes)
        .map_err(|err| JsonError::at(bytes, err.valid_up_to(), "it is not UTF-8"))
}

/// Reads one JSON value.
///
/// # Errors
/// [`JsonError`] where the bytes are no UTF-8 JSON text, hold a key twice in one object, or nest
/// more than 128 levels deep.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let text = text(bytes)?;
    let mut de = serde_json::Deserializer::from_str(text);
    let value = Once
        .deserialize(&mut de)
        .and_then(|v| de.end().map(|()| v))
        .map_err(|err| JsonError::from_serde(bytes, &err))?;
    Ok(value)
}

/// Reads a `config.json`: as [`parse`], but with `Infinity`, `-Infinity` and `NaN` where a value may
/// stand. Python's `json.dumps` writes them, and published configs hold them (`time_step_limit`). They
/// become what newer releases of transformers write for them, `{"__float__": "Infinity"}`: no number, so that
/// whoever reads a size refuses them.
///
/// # Errors
/// As [`parse`].
pub fn parse_config(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut marked = bytes.to_vec();
    let (mut in_string, mut at) = (false, 0);
    while let Some(&b) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        let word = WORDS.iter().find(|w| rest.starts_with(w.as_bytes()));
        at += match (b, word) {
            (b'\\', _) if in_string => 2,
            (_, Some(word)) if !in_string && !is_key(rest, word) => {
                // A string of the same length, so that places of later errors are those of the file.
                let mark = mark(word);
                for (slot, c) in marked.iter_mut().skip(at).zip(mark.bytes()) {
                    *slot = c;
                }
                word.len()
            }
            _ => {
                in_string ^= b == b'"';
                1
            }
        };
    }
    let mut value = parse(&marked)?;
    unmark(&mut value);
    Ok(value)
}

/// What Python writes for numbers that JSON lacks.
const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// A JSON string as long as `word`: nothing but a character that no text has.
fn mark(word: &str) -> String {
    format!("\"{}\"", "\u{7f}".repeat(word.len() - 2))
}

/// Whether `word`, at the start of `rest`, stands in place of a key.
fn is_key(rest: &[u8], word: &str) -> bool {
    let after = rest.iter().skip(word.len());
    after.copied().find(|b| !b.is_ascii_whitespace()) == Some(b':')
}

/// Marks as numbers. Values nest no deeper than [`parse`] lets them.
fn unmark(value: &mut Value) {
    match value {
        Value::String(s) if s.starts_with('\u{7f}') => {
            let word = WORDS.iter().find(|w| mark(w).trim_matches('"') == s);
            if let Some(word) = word {
                *value = serde_json::json!({ FLOAT: word });
            }
        }
        Value::Array(list) => list.iter_mut().for_each(unmark),
        Value::Object(map) => map.values_mut().for_each(unmark),
        _ => {}
    }
}

/// The key under which transformers keeps a number that JSON lacks.
const FLOAT: &str = "__float__";

/// The name of a number that JSON lacks, where `value` is one.
#[must_use]
pub fn non_finite(value: &Value) -> Option<&str> {
    value.get(FLOAT)?.as_str()
}

/// Builds a [`Value`] in which every key occurs once.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element_seed(Once)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(duplicate(&key)));
            }
            let value = access.next_value_seed(Once)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The message for a key that occurs twice.
pub(crate) fn duplicate(key: &str) -> String {
    format!("the key `{}` occurs twice", printable(key))
}

/// Text from a file in a form that is safe to print: control characters escaped, at most 80
/// characters.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == 80 {
            out.push_str("...");
            break;
        }
        // Bidirectional overrides reorder a terminal line as control characters do.
        let hides = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || hides {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A map of strings in which every key occurs once, for `Deserialize`-driven readers.
pub(crate) struct StringMap;

impl<'de> DeserializeSeed<'de> for StringMap {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for StringMap {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object whose values are strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value::<String>()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(duplicate(&key)));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_json_equals_serde_jsons() {
        let text = r#"{"a": [1, -2, 3.5, null, true, "x"], "b": {"c": {}}, "d": 1e3}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        let deep = "[".repeat(100_000);
        let cases: [(&[u8], &str); 9] = [
            (b"{\"a\":1,\n \"a\":2}", "the key `a` occurs twice"),
            (b"{\"x\":{\"n\":1,\"n\":1}}", "the key `n` occurs twice"),
            (b"\xef\xbb\xbf{}", "byte-order mark"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"{\"a\": \"\xff\"}", "not UTF-8"),
            (deep.as_bytes(), "recursion limit"),
            (b"{\"a\": NaN}", "expected value"),
            (b"{} {}", "trailing characters"),
            (b"", "EOF"),
        ];
        for (bytes, part) in cases {
            let err = parse(bytes).unwrap_err();
            assert!(err.reason.contains(part), "{err}");
        }
        let err = parse(b"{\"a\":1,\n \"a\":2}").unwrap_err();
        assert_eq!(err.line, 2);
    }

    #[test]
    fn a_config_may_hold_what_python_writes_for_infinity() {
        let text = br#"{"a": [0.0, Infinity, -Infinity], "b": "Infinity \"NaN", "c": -1, "d":NaN}"#;
        let float = |word: &str| serde_json::json!({ "__float__": word });
        let expected = serde_json::json!({
            "a": [0.0, float("Infinity"), float("-Infinity")], "b": "Infinity \"NaN", "c": -1, "d": float("NaN"),
        });
        assert_eq!(parse_config(text), Ok(expected));
        assert!(parse(text).is_err());
        // Elsewhere they are no words, and what is wrong is found where it is.
        for (text, offset) in [
            (r#"{"a": Infinity, NaN: 1}"#, 16),
            (r#"{"a": [-Infinity, Infinit]}"#, 18),
            (r#"{"a": NaN, "b": nan}"#, 17),
            (r#"{"a": Infinity5}"#, 14),
        ] {
            assert_eq!(
                parse_config(text.as_bytes()).unwrap_err().offset,
                offset,
                "{text}"
            );
        }
    }

    #[test]
    fn printable_text_holds_no_control_characters() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable(&"x".repeat(100)).len(), 83);
    }
}
