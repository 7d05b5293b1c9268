//! The demo model: a checkpoint inside this program, so that the engine runs with no download.
//!
//! It is loaded as any other folder: its files lie in our cache folder, where they are written once and compared with
//! what the program holds on every use. Where the cache cannot be written, they lie in a temporary folder meanwhile.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use plimsoll_host::{Env, ModelRef, cache_folder, locate, write_whole};
use plimsoll_model::catalogue::Entry;

use crate::error::Failure;

/// What it is called as a MODEL.
pub(crate) const NAME: &str = "demo";

/// What it goes on from unless told.
pub(crate) const PROMPT: &str = "She had not been an hour in the house before";

/// What to tell whoever runs it.
pub(crate) const NOTE: &str = "demo: a small LLaMA, trained on the novels of Jane Austen and built into this program; \
     name a folder, a .gguf file or a hub id org/name to run another model";

/// Its files, config.json first.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../demo/config.json")),
    (
        "generation_config.json",
        include_bytes!("../demo/generation_config.json"),
    ),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    (
        "model.safetensors",
        include_bytes!("../demo/model.safetensors"),
    ),
    // Nobody trained it for chats: a question in quotation marks is answered in such.
    (
        "chat_template.jinja",
        include_bytes!("../demo/chat_template.jinja"),
    ),
];

/// What a MODEL argument refers to.
pub(crate) struct Located {
    pub(crate) reference: ModelRef,
    /// Where the files of the demo model lie as long as this lives, if not in the cache.
    _temporary: Option<Temporary>,
}

/// A folder that is gone at the end.
struct Temporary(PathBuf);

impl Temporary {
    /// A new folder: one that somebody else made is not taken.
    fn new(name: &str) -> Result<Self, Failure> {
        let mut n = 0_u32;
        loop {
            let folder = format!("plimsoll-{name}-{}-{n}", std::process::id());
            let path = std::env::temp_dir().join(folder);
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == ErrorKind::AlreadyExists && n < 100 => n += 1,
                Err(e) => return Err(Failure::cannot_write(&path, &e)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nobody is left to be told, and the system cleans its temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether `model` means the demo model: a path of that name goes first, as for every built-in name.
pub(crate) fn is_meant(model: &str) -> bool {
    model == NAME && Path::new(NAME).symlink_metadata().is_err()
}

/// As [`plimsoll_host::locate`], which does not know the demo model.
pub(crate) fn find(model: &str) -> Result<Located, Failure> {
    if !is_meant(model) {
        return Ok(Located {
            reference: locate(model).map_err(|e| crate::load::failure(&e))?,
            _temporary: None,
        });
    }
    // By version: another one may have other files, and run at the same time.
    let name = concat!("demo-", env!("CARGO_PKG_VERSION"));
    if let Some(folder) = cache_folder(&Env::process()).map(|c| c.join(name))
        && unpack(&folder).is_ok()
    {
        return Ok(Located {
            reference: ModelRef::Folder(folder),
            _temporary: None,
        });
    }
    let temporary = Temporary::new(name)?;
    unpack(&temporary.0).map_err(|e| Failure::cannot_write(&temporary.0, &e))?;
    Ok(Located {
        reference: ModelRef::Folder(temporary.0.clone()),
        _temporary: Some(temporary),
    })
}

/// Writes what is not there, or differs.
fn unpack(folder: &Path) -> std::io::Result<()> {
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if !std::fs::read(&path).is_ok_and(|b| b == bytes) {
            write_whole(&path, bytes)?;
        }
    }
    Ok(())
}

/// As one of the catalogue, which has no weights.
pub(crate) fn entry() -> Entry {
    let [(_, config), ..] = FILES;
    Entry {
        name: NAME.to_owned(),
        aliases: Vec::new(),
        config: plimsoll_model::json::parse_config(config).unwrap_or_default(),
        source: "with its weights in this program; made by tools/demo/train.py".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_figures_are_of_these_files() {
        let metrics = include_bytes!("../demo/metrics.json");
        let metrics: serde_json::Value = serde_json::from_slice(metrics).unwrap();
        let made = FILES.iter().filter(|f| f.0 != "chat_template.jinja");
        let bytes: usize = made.map(|f| f.1.len()).sum();
        assert_eq!(metrics["bytes"], bytes);
        assert!(bytes <= 8_000_000);
        assert!(metrics["bits_per_byte"].as_f64().unwrap() <= 2.0);
        assert!(entry().config.is_object());
    }
}
