//! [`Config`]: typed, bounded access to the fields of a `config.json`.

use serde_json::{Map, Value};

use plimsoll_units::DType;

use crate::ModelError;
use crate::json::non_finite;

/// Largest accepted dimension (hidden size, vocabulary, heads ...): far above any model, far below
/// what would let a product of four dimensions leave 128 bits.
const MAX_DIM: u64 = 1 << 31;
/// Largest accepted number of layers: several times that of any model. What is made of a config grows with it.
pub(crate) const MAX_LAYERS: u64 = 1 << 10;

/// A view of one JSON object of a config, which knows its path for error messages.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A JSON value in at most 60 characters.
fn short(v: &Value) -> String {
    let text = non_finite(v).map_or_else(|| v.to_string(), str::to_owned);
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

/// A name from a file for a message: at most 60 characters, nothing that a terminal would obey.
pub(crate) fn shorten(name: &str) -> String {
    let cut = name.chars().nth(60).is_some();
    let keep = if cut { 57 } else { 60 };
    let kept = name.chars().take(keep).flat_map(char::escape_debug);
    kept.chain(if cut { "..." } else { "" }.chars()).collect()
}

impl<'a> Config<'a> {
    /// The top level of a config.
    ///
    /// # Errors
    /// [`ModelError::NotAnObject`].
    pub fn root(json: &'a Value) -> Result<Self, ModelError> {
        match json {
            Value::Object(map) => Ok(Self {
                map,
                path: String::new(),
            }),
            other => Err(ModelError::NotAnObject { found: kind(other) }),
        }
    }

    /// The field's name with its path, for messages.
    #[must_use]
    pub fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The raw value, `null` counting as absent.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there with the value `null`, which libraries read as "none", where they
    /// put their own default in place of an absent key.
    #[must_use]
    pub fn is_null(&self, key: &str) -> bool {
        matches!(self.map.get(key), Some(Value::Null))
    }

    /// Whether any of the keys is present.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The nested object under `key`.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is there but not an object.
    pub fn object(&self, key: &str) -> Result<Option<Config<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config {
                map,
                path: format!("{}{key}.", self.path),
            })),
            Some(v) => Err(self.invalid(key, v, "expected an object")),
        }
    }

    /// A list of objects, as `block_configs`.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is something else.
    pub fn objects(&self, key: &str) -> Result<Option<Vec<Config<'a>>>, ModelError> {
        let Some(v) = self.get(key) else {
            return Ok(None);
        };
        let items = v.as_array().map(Vec::as_slice).unwrap_or_default();
        let one = |(i, item): (usize, &'a Value)| {
            item.as_object().map(|map| Config {
                map,
                path: format!("{}{key}[{i}].", self.path),
            })
        };
        let all: Option<Vec<_>> = items.iter().enumerate().map(one).collect();
        match all.filter(|all| !all.is_empty()) {
            Some(all) => Ok(Some(all)),
            None => Err(self.invalid(key, v, "expected an array of objects")),
        }
    }

    /// The text model's config: a nested one where there is a wrapper, else this one.
    ///
    /// # Errors
    /// As [`Config::object`].
    pub fn text(&self) -> Result<Config<'a>, ModelError> {
        // Of a model that speaks, too, the part that thinks.
        if let Some(inner) = self.object("thinker_config")? {
            return inner.text_of();
        }
        self.text_of()
    }

    fn text_of(&self) -> Result<Config<'a>, ModelError> {
        for key in ["text_config", "language_config", "llm_config"] {
            if let Some(inner) = self.object(key)? {
                return Ok(inner);
            }
        }
        Ok(self.clone())
    }

    /// The names of all fields, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    fn invalid(&self, key: &str, v: &Value, reason: impl Into<String>) -> ModelError {
        ModelError::Invalid {
            field: self.path_of(key),
            value: short(v),
            reason: reason.into(),
        }
    }

    /// An error about `key`'s value.
    #[must_use]
    pub fn reject(&self, key: &str, reason: impl Into<String>) -> ModelError {
        match self.map.get(key) {
            Some(v) => self.invalid(key, v, reason),
            None => ModelError::Invalid {
                field: self.path_of(key),
                value: "absent".to_owned(),
                reason: reason.into(),
            },
        }
    }

    fn number(&self, key: &str, v: &Value, max: u64) -> Result<u64, ModelError> {
        // Some exporters write 4096.0; JSON has one number type, so an integral float is one.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "integral and within 2^53 by the guard"
        )]
        let n = v.as_u64().or_else(|| {
            v.as_f64()
                .filter(|f| f.fract() == 0.0 && (0.0..9.0e15).contains(f))
                .map(|f| f as u64)
        });
        match n {
            Some(n) if n <= max => Ok(n),
            Some(_) => Err(self.invalid(key, v, format!("expected at most {max}"))),
            None => Err(self.invalid(key, v, "expected a whole number, 0 or more")),
        }
    }

    /// A whole number under `key`, 0 allowed.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is no whole number in range.
    pub fn opt(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.get(key)
            .map(|v| self.number(key, v, MAX_DIM))
            .transpose()
    }

    /// The first of `keys` that is present.
    ///
    /// # Errors
    /// As [`Config::opt`].
    pub fn opt_any(&self, keys: &[&str]) -> Result<Option<u64>, ModelError> {
        for key in keys {
            if let Some(n) = self.opt(key)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    /// A dimension under the first of `keys` that is present: 1 or more.
    ///
    /// # Errors
    /// [`ModelError::Missing`] naming the first key and `why`, or [`ModelError::Invalid`].
    pub fn dim(&self, keys: &[&str], why: &'static str) -> Result<u64, ModelError> {
        for key in keys {
            match self.opt(key)? {
                Some(0) => return Err(self.reject(key, "expected 1 or more")),
                Some(n) => return Ok(n),
                None => {}
            }
        }
        Err(ModelError::Missing {
            field: self.path_of(keys.first().copied().unwrap_or_default()),
            why,
        })
    }

    /// As [`Config::dim`], with a default where absent.
    ///
    /// # Errors
    /// [`ModelError::Invalid`].
    pub fn dim_or(&self, keys: &[&str], default: u64) -> Result<u64, ModelError> {
        for key in keys {
            match self.opt(key)? {
                Some(0) => return Err(self.reject(key, "expected 1 or more")),
                Some(n) => return Ok(n),
                None => {}
            }
        }
        Ok(default)
    }

    /// The number of layers: 1 to 1,024.
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn layers(&self, keys: &[&str]) -> Result<u64, ModelError> {
        let n = self.dim(keys, "it gives the number of layers")?;
        if n > MAX_LAYERS {
            let key = keys
                .iter()
                .find(|k| self.has(k))
                .copied()
                .unwrap_or_default();
            return Err(self.reject(key, format!("expected at most {MAX_LAYERS} layers")));
        }
        Ok(n)
    }

    /// A flag; absent counts as `default`.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is no boolean.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(self.invalid(key, v, "expected true or false")),
        }
    }

    /// A string.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A number, for ratios such as a multiplier.
    #[must_use]
    pub fn float(&self, key: &str) -> Option<f64> {
        self.get(key)
            .and_then(Value::as_f64)
            .filter(|f| f.is_finite())
    }

    /// A number above 0.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is something else.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(v) = self.get(key) else {
            return Ok(None);
        };
        match v.as_f64().filter(|f| f.is_finite() && *f > 0.0) {
            Some(f) => Ok(Some(f)),
            None => Err(self.invalid(key, v, "expected a number above 0")),
        }
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is something else.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(v) = self.get(key) else {
            return Ok(None);
        };
        let list = v.as_array().map(|l| l.iter().map(Value::as_f64).collect());
        match list {
            Some(Some(list)) => Ok(Some(list)),
            _ => Err(self.invalid(key, v, "expected an array of numbers")),
        }
    }

    /// A list of strings, as `layer_types`.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is something else.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(v) = self.get(key) else {
            return Ok(None);
        };
        let list = v
            .as_array()
            .ok_or_else(|| self.invalid(key, v, "expected an array"))?;
        list.iter()
            .map(|item| {
                item.as_str()
                    .ok_or_else(|| self.invalid(key, v, "expected strings"))
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<u64>>, ModelError> {
        let Some(v) = self.get(key) else {
            return Ok(None);
        };
        let list = v
            .as_array()
            .ok_or_else(|| self.invalid(key, v, "expected an array"))?;
        list.iter()
            .map(|item| self.number(key, item, MAX_DIM))
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }

    /// `architectures[0]`, if given.
    #[must_use]
    pub fn architecture(&self) -> Option<&'a str> {
        self.get("architectures")?.as_array()?.first()?.as_str()
    }

    /// The type of the stored weights: `dtype` or `torch_dtype`.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] where it names no type.
    pub fn dtype(&self) -> Result<Option<DType>, ModelError> {
        for key in ["dtype", "torch_dtype"] {
            if let Some(v) = self.get(key) {
                let name = v
                    .as_str()
                    .ok_or_else(|| self.invalid(key, v, "expected a type name"))?;
                if name == "auto" {
                    continue;
                }
                return name
                    .parse()
                    .map(Some)
                    .map_err(|_| self.invalid(key, v, "expected a type such as bfloat16"));
            }
        }
        Ok(None)
    }
}
