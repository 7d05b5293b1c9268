//! Finding values in lines.

/// A line without colours and control characters, cut to `max` bytes.
pub(super) fn clean(line: &str, max: usize) -> String {
    let mut end = line.len().min(max);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = String::with_capacity(end);
    let mut chars = line[..end].chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // An escape sequence: `[`, parameters, and one final letter.
                if chars.peek() == Some(&'[') {
                    chars.next();
                    for c in chars.by_ref() {
                        if ('@'..='~').contains(&c) {
                            break;
                        }
                    }
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.trim().to_owned()
}

/// What follows `marker`.
pub(super) fn after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.find(marker).map(|at| &line[at + marker.len()..])
}

/// The decimal number at the start, after spaces: `14.99 GiB`. A decimal comma is accepted where
/// `comma` says that the writer may follow the locale.
pub(super) fn decimal(text: &str, comma: bool) -> Option<f64> {
    let text = text.trim_start();
    let end = text
        .char_indices()
        .find(|(i, c)| {
            !(c.is_ascii_digit() || *c == '.' || (comma && *c == ',') || (*i == 0 && *c == '-'))
        })
        .map_or(text.len(), |(i, _)| i);
    // A full stop that ends the sentence is no decimal point.
    let number = text[..end].trim_end_matches(['.', ',']).replace(',', ".");
    number
        .parse::<f64>()
        .ok()
        .filter(|f| f.is_finite() && f.abs() < 1e12)
}

/// The whole number at the start, after spaces, with or without thousands separators.
pub(super) fn count(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == ','))
        .unwrap_or(text.len());
    let digits: String = text[..end].chars().filter(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|n| *n <= 1 << 40)
}

/// The value of `key` in a list of `key=value` or `'key': value` pairs, unquoted; `None` and `null`
/// count as absent. The key must not be the end of a longer one.
pub(super) fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    for (form, quoted) in [
        (format!("{key}="), false),
        (format!("'{key}': "), true),
        (format!("\"{key}\": "), true),
    ] {
        let mut from = 0;
        while let Some(at) = line[from..].find(&form) {
            let start = from + at;
            let before = line[..start].chars().next_back();
            let whole =
                quoted || before.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '-'));
            let value = &line[start + form.len()..];
            if whole {
                return unquoted(value);
            }
            from = start + form.len();
        }
    }
    None
}

fn unquoted(value: &str) -> Option<&str> {
    let value = value.trim_start();
    for quote in ['\'', '"'] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.find(quote).map(|end| &rest[..end]);
        }
    }
    let end = value.find([',', ')', '}', ' ', ']']).unwrap_or(value.len());
    let bare = &value[..end];
    (!matches!(bare, "" | "None" | "null")).then_some(bare)
}

/// Sets what is not set yet: the first rank speaks for all.
pub(super) fn first<T>(slot: &mut Option<T>, value: Option<T>) {
    if slot.is_none() {
        *slot = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_controls_go() {
        assert_eq!(
            clean("\u{1b}[1;36m(Worker)\u{1b}[0;0m a\u{0}b\t ", 100),
            "(Worker) ab"
        );
        assert_eq!(clean("äöü", 3), "ä");
    }

    #[test]
    fn numbers_as_engines_print_them() {
        assert_eq!(decimal(" 14.9888 GiB", false), Some(14.9888));
        assert_eq!(decimal("-1.44 GiB", false), Some(-1.44));
        assert_eq!(decimal("4.60GiB.", false), Some(4.6));
        assert_eq!(decimal("4.60.", false), Some(4.6));
        assert_eq!(decimal(" 2160,00 MiB", true), Some(2160.0));
        assert_eq!(decimal("x", false), None);
        assert_eq!(count("476,016 tokens"), Some(476_016));
        assert_eq!(count("99999999999999999999"), None);
    }

    #[test]
    fn fields_of_configs_and_arguments() {
        let line = "with config: model='a/b', tokenizer_revision=None, max_seq_len=8192, quantization=None, x=(y=2)";
        assert_eq!(field(line, "model"), Some("a/b"));
        assert_eq!(field(line, "max_seq_len"), Some("8192"));
        assert_eq!(field(line, "quantization"), None);
        assert_eq!(field(line, "seq_len"), None);
        let args = "non-default args: {'model': 'a/b', 'max_num_seqs': 256}";
        assert_eq!(field(args, "max_num_seqs"), Some("256"));
    }
}
