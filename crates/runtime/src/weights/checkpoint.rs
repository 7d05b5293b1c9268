//! [`Checkpoint`]: the files of a model, and where each tensor lies in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_host::{FileSource, HostError, Kind, Loaded, ModelRef, open_gguf, open_safetensors};
use plimsoll_model::gguf::{Metadata, Vocabulary};
use plimsoll_model::json::printable;
use plimsoll_model::read_at::{ReadAt as _, ReadError};
use plimsoll_units::DType;

#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    dtype: DType,
    shape: Vec<u64>,
    /// First byte in the file.
    begin: u64,
}

/// A tensor, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) name: &'a str,
    pub(super) file: usize,
    pub(super) dtype: DType,
    pub(super) shape: &'a [u64],
    pub(super) begin: u64,
}

/// The files of a model.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<(String, FileSource)>,
    tensors: BTreeMap<String, Stored>,
    /// Of the first GGUF file, where it is one.
    gguf: Option<Metadata>,
}

impl Checkpoint {
    /// Opens the files of a model that was loaded, and so checked, from `model`; `None` where it is a config
    /// alone, or on the hub: what is downloaded is opened as the folder that it lies in.
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
            folder: folder.to_owned(),
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

    /// The tensor with this stored name.
    pub(super) fn find(&self, name: &str) -> Option<Found<'_>> {
        let (name, t) = self.tensors.get_key_value(name)?;
        Some(found(name, t))
    }

    /// All tensors, in the order of their data.
    pub(super) fn all(&self) -> Vec<Found<'_>> {
        let mut all: Vec<Found<'_>> = self.tensors.iter().map(|(n, t)| found(n, t)).collect();
        all.sort_by_key(|t| (t.file, t.begin));
        all
    }

    /// The metadata of a GGUF model, in which the rest of its tokenizer lies.
    pub(crate) const fn metadata(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// The vocabulary of a GGUF model; empty for others.
    ///
    /// # Errors
    /// [`HostError`] where the file changed since it was opened, or has too large a one.
    pub fn vocabulary(&self) -> Result<Vocabulary, HostError> {
        match self.files.first().filter(|_| self.gguf.is_some()) {
            None => Ok(Vocabulary::default()),
            Some((path, source)) => Vocabulary::read(source).map_err(|e| {
                HostError::new(Kind::Corrupt, "this GGUF file has no usable tokenizer")
                    .at(format!("{path}, byte {}", e.offset))
                    .because(&e.problem)
                    .next(e.next_step())
            }),
        }
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

    /// The folder that the files lie in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a file, for people.
    pub(crate) fn path(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| f.0.as_str())
    }
}

fn found<'a>(name: &'a str, t: &'a Stored) -> Found<'a> {
    Found {
        name,
        file: t.file,
        dtype: t.dtype,
        shape: &t.shape,
        begin: t.begin,
    }
}
