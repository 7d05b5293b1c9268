//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::SafetensorsHeader;
use crate::json::{self, JsonError, printable};

/// A parsed index, whose shard names are plain file names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Shard by tensor.
    pub weight_map: BTreeMap<String, String>,
    /// `metadata.total_size`, where it is a whole number. Engines ignore it, and published
    /// checkpoints have it wrong (after requantising), so it serves for notes only.
    pub total_size: Option<u64>,
}

/// Why an index, or the shards under it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Not acceptable JSON.
    #[error("the index is no valid JSON: {0}")]
    Json(#[from] JsonError),
    /// Not the structure of an index.
    #[error("the index has no `weight_map` object of tensor names to file names: {0}")]
    Structure(String),
    /// A shard's name is a path, or names another kind of file.
    #[error("the index places `{tensor}` in `{shard}`, which {reason}")]
    BadShard {
        /// The tensor.
        tensor: String,
        /// The shard as written.
        shard: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A shard is not there.
    #[error("the shard {shard} is missing; the index places {tensors} tensors in it")]
    MissingShard {
        /// The shard.
        shard: String,
        /// Tensors in it by the index.
        tensors: usize,
    },
    /// A tensor is not where the index says.
    #[error("the index places `{tensor}` in {shard}, which does not hold it")]
    Absent {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor is in two shards.
    #[error("the tensor `{tensor}` is both in {first} and in {second}")]
    Twice {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// A shard holds a tensor that the index does not know.
    #[error("{shard} holds `{tensor}`, which the index does not list")]
    Unlisted {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
}

impl IndexError {
    /// What the reader can do.
    #[must_use]
    pub const fn next_step(&self) -> &'static str {
        match self {
            Self::MissingShard { .. } => {
                "fetch the missing shard; every one that the index names is needed"
            }
            Self::BadShard { .. } => {
                "a shard must be a .safetensors file beside the index; do not use this folder unless you wrote it"
            }
            _ => "index and shards are from different versions: fetch the whole folder again",
        }
    }
}

/// What is wrong with a shard's name, if anything: it must be a plain `.safetensors` file name.
fn bad_name(name: &str) -> Option<&'static str> {
    let pickle = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
    if name.contains(['/', '\\', ':', '\0']) || name == ".." || name.starts_with('.') {
        return Some("is a path: a shard lies beside its index");
    }
    if pickle.iter().any(|p| name.ends_with(p)) {
        return Some("is a pickle, which can run code when opened");
    }
    if !name.ends_with(".safetensors") || name.len() > 255 {
        return Some("is no .safetensors file name");
    }
    None
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// [`IndexError::Json`], [`IndexError::Structure`] or [`IndexError::BadShard`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let value = json::parse(bytes)?;
        let structure = |what: &str| IndexError::Structure(what.to_owned());
        let map = value
            .get("weight_map")
            .ok_or_else(|| structure("the key is missing"))?
            .as_object()
            .ok_or_else(|| structure("it is not an object"))?;
        if map.is_empty() {
            return Err(structure("it is empty"));
        }
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in map {
            let shard = shard
                .as_str()
                .ok_or_else(|| structure("a file name is not a string"))?;
            if let Some(reason) = bad_name(shard) {
                return Err(IndexError::BadShard {
                    tensor: printable(tensor),
                    shard: printable(shard),
                    reason,
                });
            }
            weight_map.insert(tensor.clone(), shard.to_owned());
        }
        let total_size = value
            .get("metadata")
            .and_then(|m| m.get("total_size"))
            .and_then(Value::as_u64);
        Ok(Self {
            weight_map,
            total_size,
        })
    }

    /// The shards, each once, in order of name.
    #[must_use]
    pub fn shards(&self) -> Vec<&str> {
        let set: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        set.into_iter().collect()
    }

    /// Checks that every shard is there and that shards and index name the same tensors in the
    /// same places.
    ///
    /// # Errors
    /// [`IndexError`] for the first that does not.
    pub fn check(&self, shards: &[(String, SafetensorsHeader)]) -> Result<(), IndexError> {
        let mut place: BTreeMap<&str, &str> = BTreeMap::new();
        for (shard, header) in shards {
            for t in &header.tensors {
                if let Some(first) = place.insert(&t.name, shard) {
                    return Err(IndexError::Twice {
                        tensor: printable(&t.name),
                        first: first.to_owned(),
                        second: shard.clone(),
                    });
                }
            }
        }
        for name in self.shards() {
            if !shards.iter().any(|(shard, _)| shard == name) {
                return Err(IndexError::MissingShard {
                    shard: name.to_owned(),
                    tensors: self.weight_map.values().filter(|s| *s == name).count(),
                });
            }
        }
        for (tensor, shard) in &self.weight_map {
            if place.get(tensor.as_str()) != Some(&shard.as_str()) {
                return Err(IndexError::Absent {
                    tensor: printable(tensor),
                    shard: shard.clone(),
                });
            }
        }
        for (tensor, shard) in place {
            if !self.weight_map.contains_key(tensor) {
                return Err(IndexError::Unlisted {
                    tensor: printable(tensor),
                    shard: shard.to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::StoredTensor;
    use plimsoll_units::DType;

    const TWO: &[u8] = br#"{"metadata":{"total_size":4},"weight_map":{
        "a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

    fn shard(n: u32, names: &[&str]) -> (String, SafetensorsHeader) {
        let tensors = names
            .iter()
            .map(|n| StoredTensor {
                name: (*n).to_owned(),
                dtype: DType::U8,
                shape: vec![1],
                begin: 0,
                end: 1,
            })
            .collect();
        let header = SafetensorsHeader {
            tensors,
            ..SafetensorsHeader::default()
        };
        (format!("model-0000{n}-of-00002.safetensors"), header)
    }

    #[test]
    fn index_and_shards_must_name_the_same_tensors() {
        let index = Index::parse(TWO).unwrap();
        assert_eq!(index.total_size, Some(4));
        assert_eq!(index.shards().len(), 2);
        assert_eq!(index.check(&[shard(1, &["a"]), shard(2, &["b"])]), Ok(()));
        let fails = |shards: &[(String, SafetensorsHeader)]| index.check(shards).unwrap_err();
        assert!(matches!(
            fails(&[shard(1, &["a"])]),
            IndexError::MissingShard { tensors: 1, .. }
        ));
        assert!(matches!(
            fails(&[shard(1, &[]), shard(2, &["b"])]),
            IndexError::Absent { .. }
        ));
        assert!(matches!(
            fails(&[shard(1, &["a"]), shard(2, &["a", "b"])]),
            IndexError::Twice { .. }
        ));
        assert!(matches!(
            fails(&[shard(1, &["a", "c"]), shard(2, &["b"])]),
            IndexError::Unlisted { .. }
        ));
        assert!(matches!(
            fails(&[shard(1, &["b"]), shard(2, &["a"])]),
            IndexError::Absent { .. }
        ));
    }

    #[test]
    fn i9_a_shard_is_a_file_name_beside_the_index() {
        for bad in [
            "../x.safetensors",
            "/x.safetensors",
            "a/b.safetensors",
            "..\\\\x.safetensors",
            "C:x.safetensors",
            "x\\u0000.safetensors",
            ".safetensors",
            "model.bin",
            "x",
            "",
        ] {
            let text = format!(r#"{{"weight_map":{{"a":"{bad}"}}}}"#);
            assert!(
                matches!(
                    Index::parse(text.as_bytes()),
                    Err(IndexError::BadShard { .. })
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_no_index_is_refused() {
        for bad in [
            "{}",
            "[]",
            r#"{"weight_map":[]}"#,
            r#"{"weight_map":{}}"#,
            r#"{"weight_map":{"a":1}}"#,
        ] {
            assert!(
                matches!(Index::parse(bad.as_bytes()), Err(IndexError::Structure(_))),
                "{bad}"
            );
        }
        let twice = br#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#;
        assert!(matches!(Index::parse(twice), Err(IndexError::Json(_))));
    }
}
