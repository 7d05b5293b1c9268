//! [`locate`]: what a MODEL argument refers to.

use std::path::{Path, PathBuf};

use plimsoll_model::catalogue::{self, Entry};
use plimsoll_model::json::printable;

use crate::error::{HostError, Kind};
use crate::hub::HubId;

/// What a MODEL argument refers to.
#[derive(Clone, Debug)]
pub enum ModelRef {
    /// A folder, with a `config.json` or GGUF files in it.
    Folder(PathBuf),
    /// A `config.json` on its own.
    Config(PathBuf),
    /// A safetensors file, whose `config.json` lies beside it.
    Safetensors(PathBuf),
    /// `model.safetensors.index.json`.
    Index(PathBuf),
    /// A GGUF file, or one part of a split one.
    Gguf(PathBuf),
    /// A built-in model.
    BuiltIn(&'static Entry),
    /// A model on the hub.
    Hub(HubId),
}

/// Ends of file names that hold pickles.
const PICKLES: &[&str] = &[".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"];

pub(crate) fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PICKLES.iter().any(|p| name.ends_with(p))
}

/// The refusal of a pickle.
fn pickle(path: &str) -> HostError {
    HostError::new(Kind::Corrupt, "this file is not read")
        .at(printable(path))
        .because("a pickle is a program: opening it can run code of whoever wrote it")
        .next(
            "convert it to safetensors where you trust it (`safetensors.torch.save_file`), or give the \
             config.json beside it: a plan needs no weights",
        )
}

/// Finds what `model` refers to: an existing path, then a built-in name, then a hub id
/// `org/name[@revision][:file.gguf]`.
///
/// # Errors
/// [`HostError`] with the names it may have meant.
pub fn locate(model: &str) -> Result<ModelRef, HostError> {
    if model.is_empty() {
        return Err(HostError::new(Kind::Usage, "MODEL is empty").next(FORMS));
    }
    let path = Path::new(model);
    if !model.contains('\0') && path.symlink_metadata().is_ok() {
        return existing(path);
    }
    if let Some(entry) = catalogue::find(model) {
        return Ok(ModelRef::BuiltIn(entry));
    }
    if catalogue::is_unpublished(model) {
        return Err(HostError::new(
            Kind::NotFound,
            format!(
                "no shape of {} has been published, so its memory cannot be planned",
                printable(model)
            ),
        )
        .because("a plan needs layers, heads and sizes, and guesses nothing")
        .next("plan a model of known shape; `plimsoll models list` shows the built-in ones"));
    }
    if looks_like_path(model) {
        let missing = HostError::new(Kind::NotFound, "there is no such file").at(printable(model));
        return Err(if is_pickle(model) {
            pickle(model)
        } else {
            missing.next("check the path")
        });
    }
    if model.contains('/') {
        return HubId::parse(model).map(ModelRef::Hub);
    }
    Err(unknown(model))
}

const FORMS: &str = "give a built-in name, a folder, a config.json, .safetensors or .gguf file, or a hub id org/name";

/// Whether the text can only be meant as a path.
fn looks_like_path(model: &str) -> bool {
    let lower = model.to_ascii_lowercase();
    let file = [".json", ".safetensors", ".gguf"]
        .iter()
        .any(|e| lower.ends_with(e))
        || is_pickle(model);
    // `org/name:file.gguf` is a file of the hub.
    model.starts_with(['/', '.', '~', '\\']) || (file && !model.contains(':'))
}

fn existing(path: &Path) -> Result<ModelRef, HostError> {
    let owned = path.to_owned();
    if path.is_dir() {
        return Ok(ModelRef::Folder(owned));
    }
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let lower = name.to_ascii_lowercase();
    if lower.ends_with(".safetensors") {
        Ok(ModelRef::Safetensors(owned))
    } else if lower.ends_with(".gguf") {
        Ok(ModelRef::Gguf(owned))
    } else if lower.ends_with(".bin.index.json") {
        Err(pickle(&name))
    } else if lower.ends_with(".index.json") {
        Ok(ModelRef::Index(owned))
    } else if lower.ends_with(".json") {
        Ok(ModelRef::Config(owned))
    } else if is_pickle(&name) {
        Err(pickle(&path.display().to_string()))
    } else {
        // Broken links, devices and pipes are named by opening them; a regular file without a
        // known ending may be a config under another name, as in a cache of blobs.
        Ok(ModelRef::Config(owned))
    }
}

/// Longest name that is compared with others.
const LONGEST_NAME: usize = 120;

/// Letters that another name begins with, at least, to be named for it.
const ALIKE: usize = 4;

/// The error for a name that is nothing, with names that are near, or else those that begin as it does.
fn unknown(model: &str) -> HostError {
    let lower = model.to_ascii_lowercase();
    let mut near: Vec<(usize, usize, &str)> = catalogue::entries()
        .iter()
        .filter(|_| lower.len() <= LONGEST_NAME)
        .flat_map(|e| {
            std::iter::once(&e.name)
                .chain(&e.aliases)
                .map(move |n| (e, n.to_ascii_lowercase()))
        })
        .filter_map(|(e, n)| {
            let away = strsim::damerau_levenshtein(&lower, &n);
            let alike = n.bytes().filter(|_| !n.contains('/')).zip(lower.bytes());
            let alike = alike.take_while(|(a, b)| a == b).count();
            if away <= (n.len().min(lower.len()) / 3).max(1) {
                Some((0, away, e.name.as_str()))
            } else {
                (alike >= ALIKE).then(|| (lower.len() - alike, away, e.name.as_str()))
            }
        })
        .collect();
    near.sort_unstable();
    let mut names: Vec<&str> = Vec::new();
    for (_, _, n) in near {
        if !names.contains(&n) && names.len() < 3 {
            names.push(n);
        }
    }
    let error = HostError::new(
        Kind::NotFound,
        format!("`{}` is no model that is known", printable(model)),
    )
    .because("it is neither a path, nor a built-in name, nor a hub id org/name");
    if names.is_empty() {
        error.next(FORMS)
    } else {
        let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
        error.next(format!(
            "did you mean {}? `plimsoll models list` has all",
            names.join(" or ")
        ))
    }
}
