//! Where weights come from: files on this machine, or the hub, from which nothing comes until the plan says it fits.

use std::cell::RefCell;
use std::time::Instant;

use plimsoll_host::hub::{Fetching, HubId, download};
use plimsoll_host::{LoadOptions, Loaded, ModelRef};
use plimsoll_report::short_bytes;
use plimsoll_runtime::weights::Checkpoint;

use crate::demo::{Located, find};
use crate::error::{Exit, Failure};
use crate::load::failure;
use crate::progress::Progress;

/// As [`find`]; a hub id that the catalogue knows, too, is the hub's, since the catalogue has no weights.
pub(super) fn locate(model: &str) -> Result<Located, Failure> {
    let mut located = find(model)?;
    if matches!(located.reference, ModelRef::BuiltIn(_))
        && let Ok(id) = HubId::parse(model)
    {
        located.reference = ModelRef::Hub(id);
    }
    Ok(located)
}

/// The weights of a model that was loaded.
pub(super) enum Source<'a> {
    Here(Checkpoint),
    Hub(&'a HubId),
}

impl<'a> Source<'a> {
    /// Opens the files of `model`, where they are here.
    pub(super) fn of(model: &'a ModelRef, loaded: &Loaded) -> Result<Self, Failure> {
        match model {
            ModelRef::Hub(id) => Ok(Self::Hub(id)),
            here => open(here, loaded).map(Self::Here),
        }
    }

    /// The files, downloaded where they are not here.
    pub(super) fn checkpoint(
        self,
        loaded: &Loaded,
        options: &LoadOptions,
    ) -> Result<Checkpoint, Failure> {
        match self {
            Self::Here(checkpoint) => Ok(checkpoint),
            Self::Hub(id) => open(&downloaded(id, loaded, options)?, loaded),
        }
    }
}

fn open(model: &ModelRef, loaded: &Loaded) -> Result<Checkpoint, Failure> {
    if let Some(checkpoint) = Checkpoint::of(model, loaded).map_err(|e| failure(&e))? {
        return Ok(checkpoint);
    }
    let hub = match model {
        ModelRef::BuiltIn(entry) => entry.aliases.iter().find(|a| a.contains('/')),
        _ => None,
    };
    let hint = match hub {
        Some(id) => format!("name `{id}` to download it from the hub"),
        None => "name a folder, a .gguf file or a hub id org/name".to_owned(),
    };
    let what = format!("there are no weights in {}", loaded.origin);
    Err(Failure::new(Exit::NotFound, "E-GEN-007", what)
        .why("it says how the model is built, and no more")
        .hint(hint))
}

fn downloaded(id: &HubId, loaded: &Loaded, options: &LoadOptions) -> Result<ModelRef, Failure> {
    let progress = Progress::new();
    // The file that is on its way, and when and where it was first seen, for its rate.
    let begun = RefCell::new((String::new(), Instant::now(), 0));
    let folder = download(id, loaded, options, &|at| match at {
        Fetching::Waiting(file) => {
            progress.show(|| format!("waiting for another process that downloads {file}"));
        }
        Fetching::Bytes { file, done, all } => {
            let mut begun = begun.borrow_mut();
            if begun.0 != file {
                *begun = (file.to_owned(), Instant::now(), done);
            }
            // A server that cannot go on begins again, so it may be less than it was.
            let came = done.saturating_sub(begun.2) as f64;
            let rate = came / begun.1.elapsed().as_secs_f64().max(1e-3);
            progress.show(|| {
                format!(
                    "downloading {file}: {} of {}, {}/s",
                    short_bytes(done),
                    short_bytes(all),
                    short_bytes(rate as u64)
                )
            });
        }
    });
    folder.map(ModelRef::Folder).map_err(|e| failure(&e))
}
