//! [`load`]: from what a MODEL argument refers to, to a spec.

use std::path::{Path, PathBuf};

use plimsoll_model::gguf::{self, Split};
use plimsoll_model::json::printable;
use plimsoll_model::read_at::ReadAt as _;
use plimsoll_model::safetensors::{Index, SafetensorsHeader, spec_with_headers};
use plimsoll_model::{Assume, ModelError, ModelSpec, from_config};
use serde_json::Value;

use crate::env::Env;
use crate::error::{HostError, Kind};
use crate::file::{FileSource, read_config, read_small};
use crate::hub;
use crate::locate::{ModelRef, is_pickle};

/// How a model is to be read.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What may be assumed of unknown architectures.
    pub assume: Assume,
    /// No socket may be opened, whatever the environment says.
    pub offline: bool,
    /// Ask the hub even for what is cached.
    pub refresh: bool,
    /// Read headers; without them the weights are those that the config implies.
    pub headers: bool,
    /// Most bytes to read from the hub for a config and safetensors headers.
    pub traffic: u64,
    /// Most bytes to read for a GGUF header, which holds the whole tokenizer and has no index.
    pub gguf_traffic: u64,
    /// The environment.
    pub env: Env,
}

impl LoadOptions {
    /// The usual limits, for this environment.
    #[must_use]
    pub fn new(env: Env) -> Self {
        Self {
            assume: Assume::Nothing,
            offline: false,
            refresh: false,
            headers: true,
            traffic: 5_000_000,
            gguf_traffic: 64 << 20,
            env,
        }
    }
}

/// Where the weights of a spec come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderKind {
    /// No header was read: the config implies them.
    None,
    /// Safetensors headers.
    Safetensors,
    /// GGUF headers.
    Gguf,
}

/// A file whose header was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name inside the folder or repository.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Tensors in it.
    pub tensors: usize,
}

/// A model as loaded. Notes are in the spec.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its `config.json`, or for GGUF what stands for it.
    pub config: Value,
    /// The model.
    pub spec: ModelSpec,
    /// Where it was read, for people.
    pub origin: String,
    /// Where the weights come from.
    pub headers: HeaderKind,
    /// The files whose headers were read.
    pub files: Vec<StoredFile>,
    /// Bytes read from the network.
    pub traffic: u64,
    /// The commit of a repository on the hub, where it is known.
    pub commit: Option<String>,
}

/// Loads a model.
///
/// # Errors
/// [`HostError`].
pub fn load(model: &ModelRef, options: &LoadOptions) -> Result<Loaded, HostError> {
    match model {
        ModelRef::BuiltIn(entry) => {
            let origin = format!("built-in catalogue ({})", entry.source);
            config_only(entry.config.clone(), &entry.name, origin, options)
        }
        ModelRef::Config(path) => {
            let place = path.display().to_string();
            config_only(read_config(path)?, &place, place.clone(), options)
        }
        ModelRef::Folder(path) => folder(path, options),
        ModelRef::Safetensors(path) => safetensors(path, options),
        ModelRef::Index(path) => {
            let dir = parent(path);
            let config = config_beside(path)?;
            let read = Weights::Index(path.clone());
            with_weights(config, &dir, read, options)
        }
        ModelRef::Gguf(path) => gguf_file(path, options),
        ModelRef::Hub(id) => hub::load(id, options),
    }
}

/// An error about the model that a config describes.
pub(crate) fn model_error(place: &str, err: &ModelError) -> HostError {
    let next = match err {
        ModelError::UnknownArchitecture { .. } => {
            "see `plimsoll models list` for the families that are known; `--assume gqa` takes it for a LLaMA-like decoder"
        }
        ModelError::Missing { .. } => {
            "add the field, or give the config.json of the checkpoint itself"
        }
        _ => "correct the field, or fetch the file again",
    };
    HostError::new(Kind::Corrupt, "this model cannot be planned")
        .at(place)
        .because(err)
        .next(next)
}

pub(crate) fn config_only(
    config: Value,
    place: &str,
    origin: String,
    options: &LoadOptions,
) -> Result<Loaded, HostError> {
    let mut spec = from_config(&config, options.assume).map_err(|e| model_error(place, &e))?;
    if config.get("auto_map").is_some_and(|v| !v.is_null()) {
        spec.notes
            .push("the config names code of its own (`auto_map`); it is never run".to_owned());
    }
    Ok(Loaded {
        config,
        spec,
        origin,
        headers: HeaderKind::None,
        files: Vec::new(),
        traffic: 0,
        commit: None,
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The `config.json` in the folder of a weights file.
fn config_beside(path: &Path) -> Result<Value, HostError> {
    let config = parent(path).join("config.json");
    if config.symlink_metadata().is_err() {
        return Err(HostError::new(Kind::Corrupt, "weights alone do not say what the model is")
            .at(path.display())
            .because("there is no config.json beside it, which says how many heads and layers there are")
            .next("put the model's config.json into the same folder"));
    }
    read_config(&config)
}

/// Which weights a folder has.
enum Weights {
    None,
    /// Nothing but pickles.
    Pickle,
    Index(PathBuf),
    /// Safetensors files without an index.
    Files(Vec<String>),
}

/// The names of the regular files and links in a folder, sorted.
fn names(dir: &Path) -> Result<Vec<String>, HostError> {
    let entries = std::fs::read_dir(dir)
        .map_err(|e| crate::file::io_error("cannot read the folder", dir, &e))?;
    let mut names: Vec<String> = entries
        .filter_map(|e| {
            let e = e.ok()?;
            // A folder is no weights file; a link may be one.
            e.file_type().ok().filter(|t| !t.is_dir())?;
            e.file_name().into_string().ok()
        })
        .collect();
    names.sort();
    Ok(names)
}

fn weights_in(dir: &Path, names: &[String]) -> Weights {
    const INDEX: &str = "model.safetensors.index.json";
    let has = |n: &str| names.iter().any(|m| m == n);
    if has(INDEX) {
        return Weights::Index(dir.join(INDEX));
    }
    if has("model.safetensors") {
        return Weights::Files(vec!["model.safetensors".to_owned()]);
    }
    let all: Vec<String> = names
        .iter()
        .filter(|n| n.ends_with(".safetensors"))
        .cloned()
        .collect();
    // Exports under other names (`consolidated`, adapters) come beside the model's own shards.
    let shards: Vec<String> = all
        .iter()
        .filter(|n| n.starts_with("model-") && n.contains("-of-"))
        .cloned()
        .collect();
    if !shards.is_empty() {
        return Weights::Files(shards);
    }
    if let [one] = all.as_slice() {
        return Weights::Files(vec![one.clone()]);
    }
    if names.iter().any(|n| is_pickle(n)) {
        Weights::Pickle
    } else {
        Weights::None
    }
}

fn folder(dir: &Path, options: &LoadOptions) -> Result<Loaded, HostError> {
    let names = names(dir)?;
    if names.iter().any(|n| n == "config.json") {
        let config = read_config(&dir.join("config.json"))?;
        let weights = weights_in(dir, &names);
        return with_weights(config, dir, weights, options);
    }
    let gguf: Vec<&String> = names
        .iter()
        .filter(|n| n.to_ascii_lowercase().ends_with(".gguf"))
        .collect();
    // All parts of one split model lead to the same set.
    let first: Vec<&&String> = gguf
        .iter()
        .filter(|n| !n.contains("-of-") || n.contains("-00001-of-"))
        .collect();
    match first.as_slice() {
        [one] => gguf_file(&dir.join(one.as_str()), options),
        [] => Err(HostError::new(Kind::NotFound, "the folder holds no model")
            .at(dir.display())
            .because("there is neither a config.json nor a .gguf file in it")
            .next(if names.is_empty() {
                "check the path: the folder is empty"
            } else {
                "put the model's config.json into it, or name the file"
            })),
        several => Err(
            HostError::new(Kind::Usage, "the folder holds several GGUF models")
                .at(dir.display())
                .because(
                    several
                        .iter()
                        .take(5)
                        .map(|n| printable(n))
                        .collect::<Vec<_>>()
                        .join(", "),
                )
                .next("name one of the files"),
        ),
    }
}

/// A config with the weights of its folder.
fn with_weights(
    config: Value,
    dir: &Path,
    weights: Weights,
    options: &LoadOptions,
) -> Result<Loaded, HostError> {
    let place = dir.join("config.json").display().to_string();
    let mut loaded = config_only(config, &place, dir.display().to_string(), options)?;
    if !options.headers {
        return Ok(loaded);
    }
    let (index, files) = match weights {
        Weights::None => return Ok(loaded),
        Weights::Pickle => {
            loaded.spec.notes.push(
                "the folder's weights are pickles, which are never opened: sizes are those that the config implies"
                    .to_owned(),
            );
            return Ok(loaded);
        }
        Weights::Files(files) => (None, files),
        Weights::Index(path) => {
            let index = parse_index(&read_small(&path)?, &path.display().to_string())?;
            let files = index.shards().into_iter().map(str::to_owned).collect();
            (Some(index), files)
        }
    };
    let mut headers = Vec::new();
    for name in files {
        let path = dir.join(&name);
        if index.is_some() && path.symlink_metadata().is_err() {
            let tensors = index
                .as_ref()
                .map_or(0, |i| i.weight_map.values().filter(|s| **s == name).count());
            return Err(HostError::new(Kind::Corrupt, "a shard is missing")
                .at(path.display())
                .because(format!("the index places {tensors} tensors in it"))
                .next("fetch the missing shard; every one that the index names is needed"));
        }
        stays_inside(dir, &path)?;
        let (source, header) = open_safetensors(&path)?;
        headers.push((name, source.size(), header));
    }
    apply(
        &mut loaded,
        index.as_ref(),
        headers,
        &dir.display().to_string(),
    )?;
    Ok(loaded)
}

pub(crate) fn parse_index(bytes: &[u8], place: &str) -> Result<Index, HostError> {
    Index::parse(bytes).map_err(|err| {
        HostError::new(Kind::Corrupt, "this index cannot be used")
            .at(place)
            .because(&err)
            .next(err.next_step())
    })
}

/// Puts the stored tensors in place of those that the config implies.
pub(crate) fn apply(
    loaded: &mut Loaded,
    index: Option<&Index>,
    headers: Vec<(String, u64, SafetensorsHeader)>,
    place: &str,
) -> Result<(), HostError> {
    loaded.files = headers
        .iter()
        .map(|(name, size, h)| StoredFile {
            name: name.clone(),
            size: *size,
            tensors: h.tensors.len(),
        })
        .collect();
    let named: Vec<(String, SafetensorsHeader)> =
        headers.into_iter().map(|(n, _, h)| (n, h)).collect();
    if let Some(index) = index {
        index.check(&named).map_err(|err| {
            HostError::new(Kind::Corrupt, "index and shards disagree")
                .at(place)
                .because(&err)
                .next(err.next_step())
        })?;
    }
    let headers: Vec<SafetensorsHeader> = named.into_iter().map(|(_, h)| h).collect();
    let spec = spec_with_headers(loaded.spec.clone(), &headers).map_err(|err| {
        HostError::new(Kind::Corrupt, "config and weights do not fit together")
            .at(place)
            .because(err)
            .next("check that both are of one model; the config.json alone can be planned, too")
    })?;
    loaded.spec = spec;
    let stored: u64 = headers
        .iter()
        .flat_map(|h| &h.tensors)
        .map(|t| t.end - t.begin)
        .sum();
    if let Some(total) = index.and_then(|i| i.total_size).filter(|&t| t != stored) {
        loaded.spec.notes.push(format!(
            "the index states {total} bytes of weights, the shards hold {stored}: the shards count"
        ));
    }
    loaded.headers = HeaderKind::Safetensors;
    Ok(())
}

/// A weights file must not lead out of its folder, save into the blobs of the hub cache that the
/// folder belongs to.
fn stays_inside(dir: &Path, path: &Path) -> Result<(), HostError> {
    let Ok(target) = std::fs::read_link(path) else {
        // No link, or not there: opening it says which.
        return Ok(());
    };
    let refuse = || {
        HostError::new(Kind::Corrupt, "a weights file is a link out of its folder")
            .at(path.display())
            .because(format!(
                "it leads to {}",
                printable(&target.to_string_lossy())
            ))
            .next("copy the file into the folder, or name the folder that it lies in")
    };
    let real = |p: &Path| {
        p.canonicalize().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
                crate::file::io_error("cannot follow the link", path, &e)
            }
            // Links that lead to each other: the folder is at fault, not the disk.
            _ => HostError::new(Kind::Corrupt, "the link cannot be followed")
                .at(path.display())
                .because(e.to_string())
                .next("replace the link by the file that it should lead to"),
        })
    };
    if real(path)?.starts_with(real(dir)?) {
        return Ok(());
    }
    // `snapshots/COMMIT/FILE → ../../blobs/ETAG`: only the first step counts, since a store of
    // blobs may share its files further on.
    let blobs = dir
        .parent()
        .filter(|p| p.file_name().is_some_and(|n| n == "snapshots"))
        .and_then(Path::parent);
    let first = dir.join(&target);
    let holder = first.parent().map(real).transpose()?;
    let allowed = blobs
        .map(|b| b.join("blobs"))
        .filter(|b| b.is_dir())
        .map(|b| real(&b))
        .transpose()?;
    match (holder, allowed) {
        (Some(h), Some(a)) if h == a => Ok(()),
        _ => Err(refuse()),
    }
}

/// Opens a safetensors file and checks its header.
///
/// # Errors
/// [`HostError`] where it cannot be read or trusted.
pub fn open_safetensors(path: &Path) -> Result<(FileSource, SafetensorsHeader), HostError> {
    let source = FileSource::open(path)?;
    let header = SafetensorsHeader::read(&source).map_err(|err| {
        HostError::new(Kind::Corrupt, "this safetensors file cannot be used")
            .at(format!("{}, byte {}", path.display(), err.offset))
            .because(&err.problem)
            .next(err.next_step())
    })?;
    Ok((source, header))
}

/// Opens a GGUF file and checks its header.
///
/// # Errors
/// [`HostError`] where it cannot be read or trusted.
pub fn open_gguf(path: &Path) -> Result<(FileSource, gguf::Header), HostError> {
    let source = FileSource::open(path)?;
    let header =
        gguf::Header::read(&source).map_err(|e| gguf_error(&path.display().to_string(), &e))?;
    Ok((source, header))
}

fn safetensors(path: &Path, options: &LoadOptions) -> Result<Loaded, HostError> {
    // Opened first: what is no safetensors file is told before a config is missed.
    open_safetensors(path)?;
    let config = config_beside(path)?;
    let dir = parent(path);
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    // One shard of several stands for all of them.
    let weights = match weights_in(&dir, &names(&dir)?) {
        Weights::Index(index)
            if parse_index(&read_small(&index)?, "the index")?
                .shards()
                .contains(&name.as_str()) =>
        {
            Weights::Index(index)
        }
        Weights::Files(files) if files.contains(&name) => Weights::Files(files),
        _ => Weights::Files(vec![name]),
    };
    with_weights(config, &dir, weights, options)
}

/// An error about a GGUF file.
pub(crate) fn gguf_error(place: &str, err: &gguf::GgufError) -> HostError {
    HostError::new(Kind::Corrupt, "this GGUF file cannot be used")
        .at(format!("{place}, byte {}", err.offset))
        .because(&err.problem)
        .next(err.next_step())
}

fn gguf_file(path: &Path, options: &LoadOptions) -> Result<Loaded, HostError> {
    let dir = parent(path);
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let read = |name: &str| {
        let (source, header) = open_gguf(&dir.join(name))?;
        Ok((source.size(), header))
    };
    gguf_parts(&name, &path.display().to_string(), read, options)
}

/// A GGUF model, the other parts of which `read` finds by name.
pub(crate) fn gguf_parts(
    name: &str,
    place: &str,
    mut read: impl FnMut(&str) -> Result<(u64, gguf::Header), HostError>,
    options: &LoadOptions,
) -> Result<Loaded, HostError> {
    let (size, first) = read(name)?;
    let split_error = |err: &gguf::SplitError| {
        HostError::new(Kind::Corrupt, "the parts of this model do not fit together")
            .at(place)
            .because(err)
            .next(err.next_step())
    };
    let mut files = Vec::new();
    let mut parts = Vec::new();
    match Split::of(&first) {
        None => {
            files.push(StoredFile {
                name: name.to_owned(),
                size,
                tensors: first.tensors.len(),
            });
            parts.push((name.to_owned(), first));
        }
        Some(split) => {
            for sibling in gguf::sibling_names(name, split).map_err(|e| split_error(&e))? {
                let (size, header) = if sibling == name {
                    (size, first.clone())
                } else {
                    read(&sibling)?
                };
                files.push(StoredFile {
                    name: sibling.clone(),
                    size,
                    tensors: header.tensors.len(),
                });
                parts.push((sibling, header));
            }
        }
    }
    let header = gguf::join(parts).map_err(|e| split_error(&e))?;
    let (config, spec) = gguf::spec(&header, options.assume).map_err(|err| match err {
        gguf::GgufSpecError::Model(err) => model_error(place, &err),
        gguf::GgufSpecError::Mismatch(_) => {
            HostError::new(Kind::Corrupt, "this GGUF file cannot be used")
                .at(place)
                .because(err)
                .next("convert the model again, or fetch it from a source that you trust")
        }
    })?;
    Ok(Loaded {
        config,
        spec,
        origin: place.to_owned(),
        headers: HeaderKind::Gguf,
        files,
        traffic: 0,
        commit: None,
    })
}
