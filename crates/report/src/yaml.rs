//! YAML of a fixed shape: keys of ours in an order for readers, every text quoted as JSON quotes it, which YAML reads alike.

/// A value.
pub(crate) enum Yaml {
    Text(String),
    Number(u64),
    Bool(bool),
    List(Vec<Yaml>),
    Map(Vec<(&'static str, Yaml)>),
    /// A map whose keys are found.
    Found(Vec<(String, Yaml)>),
}

impl Yaml {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// The document.
    pub(crate) fn document(&self) -> String {
        let mut out = String::new();
        self.write(0, &mut out);
        out
    }

    /// Writes lines at `depth`; what stands on a line that has begun is written by [`Yaml::after`].
    fn write(&self, depth: usize, out: &mut String) {
        match self {
            Self::Map(pairs) => {
                for (key, value) in pairs {
                    value.under(key, depth, out);
                }
            }
            Self::Found(pairs) => {
                for (key, value) in pairs {
                    value.under(key, depth, out);
                }
            }
            Self::List(items) => {
                for item in items {
                    out.push_str(&"  ".repeat(depth));
                    out.push('-');
                    item.item(depth, out);
                }
            }
            scalar => {
                out.push_str(&scalar.scalar());
                out.push('\n');
            }
        }
    }

    fn under(&self, key: &str, depth: usize, out: &mut String) {
        out.push_str(&"  ".repeat(depth));
        out.push_str(key);
        out.push(':');
        self.after(depth, out);
    }

    /// What follows `key:`.
    fn after(&self, depth: usize, out: &mut String) {
        match self {
            Self::Map(pairs) if pairs.is_empty() => out.push_str(" {}\n"),
            Self::Found(pairs) if pairs.is_empty() => out.push_str(" {}\n"),
            Self::List(items) if items.is_empty() => out.push_str(" []\n"),
            Self::Map(_) | Self::Found(_) | Self::List(_) => {
                out.push('\n');
                self.write(depth + 1, out);
            }
            scalar => {
                out.push(' ');
                out.push_str(&scalar.scalar());
                out.push('\n');
            }
        }
    }

    /// What follows `-`: the first pair of a map stands on the same line.
    fn item(&self, depth: usize, out: &mut String) {
        match self {
            Self::Map(pairs) if !pairs.is_empty() => {
                let mut inner = String::new();
                self.write(depth + 1, &mut inner);
                out.push(' ');
                out.push_str(inner.trim_start());
            }
            other => other.after(depth, out),
        }
    }

    fn scalar(&self) -> String {
        match self {
            Self::Text(text) => serde_json::Value::String(text.clone()).to_string(),
            Self::Number(n) => n.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::List(_) | Self::Map(_) | Self::Found(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Yaml;

    #[test]
    fn nesting_and_quotes() {
        let y = Yaml::Map(vec![
            ("a", Yaml::text("x: \"y\"\n")),
            (
                "list",
                Yaml::List(vec![
                    Yaml::Map(vec![("n", Yaml::Number(1)), ("m", Yaml::Map(vec![]))]),
                    Yaml::text("- no"),
                ]),
            ),
        ]);
        assert_eq!(
            y.document(),
            "a: \"x: \\\"y\\\"\\n\"\nlist:\n  - n: 1\n    m: {}\n  - \"- no\"\n"
        );
    }
}
