//! The bytes of tokens, for grammars.

use serde_json::Value;

use super::Tokenizer;

impl Tokenizer {
    /// The bytes of each token, by id; empty for ids that are none, and begun by 0xFF for special ones, which no text
    /// spells. `None` where tokens are no bytes: of a vocabulary that is neither of byte signs nor falls back to them.
    #[must_use]
    pub fn token_bytes(&self) -> Option<Vec<Vec<u8>>> {
        let decoder = serde_json::to_value(self.inner.get_decoder()?).ok()?;
        let steps = decoder.get("decoders").and_then(Value::as_array);
        let steps = steps.map_or_else(|| std::slice::from_ref(&decoder), Vec::as_slice);
        let has = |kind: &str| {
            steps
                .iter()
                .any(|d| d.get("type").is_some_and(|t| t == kind))
        };
        let signs = has("ByteLevel");
        if !signs && !has("ByteFallback") && !has("Metaspace") {
            return None;
        }
        let bytes: std::collections::BTreeMap<char, u8> =
            (0..=u8::MAX).map(|b| (byte_sign(b), b)).collect();
        let added = self.inner.get_added_tokens_decoder();
        let mut all = vec![Vec::new(); self.vocab() as usize];
        for (id, slot) in (0..).zip(&mut all) {
            let Some(token) = self.token(id) else {
                continue;
            };
            *slot = match added.get(&id) {
                Some(a) if a.special => [&[0xff], token.as_bytes()].concat(),
                Some(_) => token.into_bytes(),
                // A token that is no bytes cannot be chosen.
                None if signs => {
                    let known: Option<Vec<u8>> =
                        token.chars().map(|c| bytes.get(&c).copied()).collect();
                    known.unwrap_or_default()
                }
                None => match byte_token(&token) {
                    Some(byte) => vec![byte],
                    None => token.replace('\u{2581}', " ").into_bytes(),
                },
            };
        }
        Some(all)
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`).
pub(crate) fn byte_sign(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|b| !printable(*b)).count();
    char::from_u32(256 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}
