//! [`Checkpoint`]: the files of a model, and where each tensor lies in them.

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll_host::{FileSource, HostError, Loaded, ModelRef, open_gguf, open_safetensors};
use plimsoll_model::gguf::{Metadata, Value};
use plimsoll_model::json::printable;
use plimsoll_model::read_at::{ReadAt as _, ReadError};
use plimsoll_units::DType;

use super::names;

/// In which order the rows of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As the model has them.
    Plain,
    /// In each head of `head` rows, the first and second half alternate: llama.cpp turns neighbours by an angle
    /// where Hugging Face's LLaMA turns rows that lie half a head apart (`permute` of its converter).
    Alternating {
        /// Rows of a head.
        head: u64,
    },
}

impl Order {
    /// Where row `row` of the model lies.
    pub(super) const fn stored(self, row: u64) -> u64 {
        match self {
            Self::Plain => row,
            Self::Alternating { head } => {
                let (start, row) = (row / head * head, row % head);
                let half = head / 2;
                start + row % half * 2 + row / half
            }
        }
    }

    /// The stored rows among which the model's rows `from..to` lie.
    pub(super) const fn cover(self, from: u64, to: u64) -> (u64, u64) {
        match self {
            Self::Plain => (from, to),
            Self::Alternating { head } => (from / head * head, to.div_ceil(head) * head),
        }
    }
}

#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    dtype: DType,
    shape: Vec<u64>,
    /// First byte in the file.
    begin: u64,
}

/// A tensor, or the part of one that an expert has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) name: &'a str,
    pub(super) file: usize,
    pub(super) dtype: DType,
    pub(super) shape: &'a [u64],
    pub(super) begin: u64,
    pub(super) order: Order,
    /// Stored by a converter that transposes what is stored inputs first, and adds the 1 to norms that need it.
    pub(super) converted: bool,
}

/// The files of a model.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(String, FileSource)>,
    tensors: BTreeMap<String, Stored>,
    /// Of the first GGUF file, where it is one.
    gguf: Option<Metadata>,
}

impl Checkpoint {
    /// Opens the files of a model that was loaded, and so checked, from `model`; `None` where it is not on this
    /// machine, or is a config alone.
    ///
    /// # Errors
    /// [`HostError`] where a file changed since.
    pub fn of(model: &ModelRef, loaded: &Loaded) -> Result<Option<Self>, HostError> {
        let folder = match model {
            ModelRef::Folder(path) => path.as_path(),
            ModelRef::Safetensors(path) | ModelRef::Index(path) | ModelRef::Gguf(path) => {
                path.parent().unwrap_or(Path::new(""))
            }
            ModelRef::Config(_) | ModelRef::BuiltIn(_) | ModelRef::Hub(_) => return Ok(None),
        };
        let names: Vec<&str> = loaded.files.iter().map(|f| f.name.as_str()).collect();
        if names.is_empty() {
            return Ok(None);
        }
        Self::open(folder, &names).map(Some)
    }

    /// Opens files of one folder: all safetensors, or all GGUF.
    ///
    /// # Errors
    /// [`HostError`] where one cannot be read or trusted.
    pub fn open(folder: &Path, names: &[&str]) -> Result<Self, HostError> {
        let mut all = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            gguf: None,
        };
        for name in names {
            all.add(&folder.join(name))?;
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<(), HostError> {
        let file = self.files.len();
        let mut tensors = Vec::new();
        let gguf = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let source = if gguf {
            let (source, header) = open_gguf(path)?;
            for t in header.tensors {
                tensors.push((t.name, t.dtype, t.shape, header.data_start + t.begin));
            }
            self.gguf.get_or_insert(header.metadata);
            source
        } else {
            let (source, header) = open_safetensors(path)?;
            for t in header.tensors {
                tensors.push((t.name, t.dtype, t.shape, header.data_start + t.begin));
            }
            source
        };
        for (name, dtype, shape, begin) in tensors {
            let stored = Stored {
                file,
                dtype,
                shape,
                begin,
            };
            if let Some(other) = self.tensors.insert(name.clone(), stored) {
                let first = self.files.get(other.file).map_or("", |f| f.0.as_str());
                return Err(HostError::new(
                    plimsoll_host::Kind::Corrupt,
                    "a tensor is stored twice",
                )
                .at(path.display())
                .because(format!("`{}` is also in {first}", printable(&name)))
                .next("keep the files of one checkpoint only in the folder"));
            }
        }
        self.files.push((path.display().to_string(), source));
        Ok(())
    }

    /// The tensor that Hugging Face's checkpoint calls `name`.
    pub(super) fn find(&self, name: &str) -> Option<Found<'_>> {
        let Some(metadata) = &self.gguf else {
            let (name, t) = self.tensors.get_key_value(name)?;
            return Some(Found {
                name,
                file: t.file,
                dtype: t.dtype,
                shape: &t.shape,
                begin: t.begin,
                order: Order::Plain,
                converted: false,
            });
        };
        let text = |key: &str| metadata.get(key).and_then(Value::as_str);
        let arch = text("general.architecture")?;
        let (stored, expert) = names::gguf(arch, name)?;
        let (name, t) = self.tensors.get_key_value(&stored)?;
        let (mut shape, mut begin) = (t.shape.as_slice(), t.begin);
        if let Some(expert) = expert {
            let (&experts, one) = shape.split_first()?;
            if expert >= experts {
                return None;
            }
            let elements = one.iter().product();
            // The header's bytes were found to be in the file.
            begin += expert * t.dtype.bytes(elements).ok()?.get();
            shape = one;
        }
        let order = match names::alternating(arch, name) {
            None => Order::Plain,
            Some(key) => {
                let heads = metadata
                    .get(&format!("{arch}.{key}"))
                    .and_then(Value::as_u64);
                // The keys' own number is optional where it is that of the queries.
                let all = || {
                    metadata
                        .get(&format!("{arch}.attention.head_count"))?
                        .as_u64()
                };
                let head = shape.first()?.checked_div(heads.or_else(all)?)?;
                if head < 2 || head % 2 == 1 || shape.first()? % head != 0 {
                    return None;
                }
                Order::Alternating { head }
            }
        };
        Some(Found {
            name,
            file: t.file,
            dtype: t.dtype,
            shape,
            begin,
            order,
            converted: true,
        })
    }

    /// All tensors, in the order of their data: name, file, first byte, type, shape.
    pub(super) fn all(&self) -> Vec<Found<'_>> {
        let mut all: Vec<Found<'_>> = self
            .tensors
            .iter()
            .map(|(name, t)| Found {
                name,
                file: t.file,
                dtype: t.dtype,
                shape: &t.shape,
                begin: t.begin,
                order: Order::Plain,
                converted: true,
            })
            .collect();
        all.sort_by_key(|t| (t.file, t.begin));
        all
    }

    /// The metadata of a GGUF model, in which its tokenizer lies.
    #[must_use]
    pub const fn metadata(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// Reads bytes of a file.
    pub(super) fn read(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        match self.files.get(file) {
            Some((_, source)) => source.read_at(offset, buf),
            None => Err(ReadError {
                offset,
                len: buf.len() as u64,
                reason: "the checkpoint has no such file".to_owned(),
            }),
        }
    }

    /// The path of a file, for people.
    pub(super) fn path(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| f.0.as_str())
    }
}
