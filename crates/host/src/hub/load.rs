//! Loading from the hub: what is cached first, then what is missing, within a traffic limit.

use std::path::Path;

use plimsoll_model::gguf;
use plimsoll_model::json::printable;
use plimsoll_model::safetensors::{Index, SafetensorsHeader};
use serde_json::Value;

use super::cache::{Cache, Head};
use super::http::{Client, Found, Wanted};
use super::remote::RemoteFile;
use super::{HubConfig, HubId};
use crate::error::{HostError, Kind};
use crate::file::{MAX_JSON_BYTES, parse_config, read_config};
use crate::load::{self, HeaderKind, LoadOptions, Loaded, gguf_error, gguf_parts};
use crate::locate::ModelRef;

const CONFIG: &str = "config.json";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const SINGLE: &str = "model.safetensors";
/// First guess at the header of a model in one file: that of a 9B model has some 50 KB.
const FIRST_GUESS: u64 = 64 << 10;
/// Bytes of a tensor's entry beside its name: type, two dimensions, two offsets and punctuation.
const ENTRY: u64 = 96;
/// Longest list of a repository's files that is read.
const MAX_LIST: u64 = 2 << 20;

/// Loads a model of the hub.
///
/// # Errors
/// [`HostError`].
pub(crate) fn load(id: &HubId, options: &LoadOptions) -> Result<Loaded, HostError> {
    let mut config = HubConfig::from_env(&options.env)?;
    config.offline |= options.offline;
    let cache = Cache::new(&config, id);
    let session = Session {
        id,
        options,
        cache: &cache,
        config: &config,
    };
    session.load()
}

struct Session<'a> {
    id: &'a HubId,
    options: &'a LoadOptions,
    cache: &'a Cache,
    config: &'a HubConfig,
}

impl Session<'_> {
    fn load(&self) -> Result<Loaded, HostError> {
        let use_cache = !self.options.refresh || self.config.offline;
        if use_cache && let Some(loaded) = self.cached()? {
            return Ok(loaded);
        }
        let client = Client::new(self.config, self.options.traffic).map_err(|e| self.offline(e))?;
        let mut loaded = match self.id.file() {
            Some(file) => self.remote_gguf(&client, file),
            None => self.remote(&client),
        }?;
        loaded.traffic = client.traffic();
        Ok(loaded)
    }

    fn offline(&self, err: HostError) -> HostError {
        let cause = if self.options.offline {
            "`--offline` is set"
        } else {
            "HF_HUB_OFFLINE is set"
        };
        HostError::new(err.kind(), format!("{} is not cached", self.id.repo()))
            .at(self.cache.place())
            .because(format!("{cause}, so the hub may not be asked"))
            .next("run once without it, or give a local folder or config.json")
    }

    fn origin(&self, commit: Option<&str>, from: &str) -> String {
        let short = commit
            .and_then(|c| c.get(..12))
            .unwrap_or(self.id.revision());
        let file = self.id.file().map_or_else(String::new, |f| format!(":{f}"));
        format!("{}@{short}{file} ({from})", self.id.repo())
    }

    fn wanted<'b>(&'b self, revision: &'b str, file: &'b str) -> Wanted<'b> {
        Wanted {
            repo: self.id.repo(),
            revision,
            file,
        }
    }

    /// What the caches alone give; `None` where the hub must be asked.
    fn cached(&self) -> Result<Option<Loaded>, HostError> {
        let Some(commit) = self.cache.commit(self.id.revision()) else {
            return Ok(None);
        };
        let snapshot = self.cache.snapshot(&commit);
        let origin = self.origin(Some(&commit), "cached");
        if let Some(file) = self.id.file() {
            let local = snapshot.map(|s| s.join(file)).filter(|p| p.exists());
            let whole = local.map(|p| load::load(&ModelRef::Gguf(p), self.options));
            // Another part may still be missing.
            let whole = whole.filter(|l| !matches!(l, Err(e) if e.kind() == Kind::NotFound));
            let mut loaded = match whole {
                Some(loaded) => loaded?,
                None => match self.cached_gguf(&commit, file)? {
                    Some(loaded) => loaded,
                    None => return Ok(None),
                },
            };
            loaded.origin = origin;
            loaded.commit = Some(commit);
            in_folder(&mut loaded, folder_of(file));
            return Ok(Some(loaded));
        }
        let Some(snapshot) = snapshot else {
            return Ok(None);
        };
        if !snapshot.join(CONFIG).exists() {
            // The one GGUF model that is here; whether the repository has others, only the hub knows.
            let model = ModelRef::Folder(snapshot);
            let here = self
                .config
                .offline
                .then(|| load::load(&model, self.options));
            let here = here.and_then(Result::ok);
            return Ok(here.map(|loaded| Loaded {
                origin,
                commit: Some(commit),
                ..loaded
            }));
        }
        if has_weights(&snapshot) {
            let mut loaded = load::load(&ModelRef::Folder(snapshot), self.options)?;
            loaded.origin = origin;
            loaded.commit = Some(commit);
            return Ok(Some(loaded));
        }
        let config = read_config(&snapshot.join(CONFIG))?;
        let mut loaded = load::config_only(config, &origin, origin.clone(), self.options)?;
        loaded.commit = Some(commit.clone());
        if !self.options.headers || self.cached_headers(&commit, &mut loaded)? {
            return Ok(Some(loaded));
        }
        if self.config.offline {
            loaded.spec.notes.push(
                "headers are not cached and the hub may not be asked: weights are those that the config implies"
                    .to_owned(),
            );
            return Ok(Some(loaded));
        }
        // The config is at hand; its commit's headers are not.
        let client = Client::new(self.config, self.options.traffic)?;
        self.headers(&client, &commit, Some(&commit), &mut loaded)?;
        loaded.traffic = client.traffic();
        Ok(Some(loaded))
    }

    /// Config and headers from the hub.
    fn remote(&self, client: &Client) -> Result<Loaded, HostError> {
        let revision = self.id.revision();
        let wanted = self.wanted(revision, CONFIG);
        let reply = match client.get(&client.address(wanted), None, wanted)? {
            Found::Yes(reply) => *reply,
            Found::No => return self.without_config(client),
        };
        let (commit, etag, address) = (
            reply.commit.clone(),
            reply.etag.clone(),
            reply.address.clone(),
        );
        let Some(bytes) =
            client.whole(reply, MAX_JSON_BYTES.min(client.left().saturating_sub(1)))?
        else {
            return Err(
                HostError::new(Kind::Corrupt, "the config.json is too large")
                    .at(address)
                    .because(format!("at most {MAX_JSON_BYTES} bytes are read"))
                    .next("check the repository"),
            );
        };
        let config: Value = parse_config(&bytes, &address)?;
        if let (Some(commit), Some(etag)) = (&commit, &etag) {
            self.cache.store(revision, commit, etag, CONFIG, &bytes);
        }
        let origin = self.origin(commit.as_deref(), &self.config.endpoint);
        let mut loaded = load::config_only(config, &address, origin, self.options)?;
        loaded.commit.clone_from(&commit);
        if self.options.headers {
            let at = commit.as_deref().unwrap_or(revision);
            self.headers(client, at, commit.as_deref(), &mut loaded)?;
        }
        Ok(loaded)
    }

    /// Headers of `revision` into `loaded`; a note where there are none or too many.
    fn headers(
        &self,
        client: &Client,
        revision: &str,
        commit: Option<&str>,
        loaded: &mut Loaded,
    ) -> Result<(), HostError> {
        if let Some(commit) = commit
            && self.cached_headers(commit, loaded)?
        {
            return Ok(());
        }
        let wanted = self.wanted(revision, INDEX);
        let index = match client.get(&client.address(wanted), None, wanted)? {
            Found::No => None,
            Found::Yes(reply) => {
                let address = reply.address.clone();
                let Some(bytes) =
                    client.whole(*reply, client.left().saturating_sub(1).min(MAX_JSON_BYTES))?
                else {
                    return self.too_much(loaded, "the index of the weights alone");
                };
                let index = load::parse_index(&bytes, &address)?;
                if let Some(commit) = commit {
                    let size = bytes.len() as u64;
                    self.cache.store_head(commit, INDEX, &Head { size, bytes });
                }
                Some(index)
            }
        };
        let shards: Vec<(&str, u64)> = match &index {
            None => vec![(SINGLE, FIRST_GUESS)],
            Some(index) => index
                .shards()
                .into_iter()
                .map(|s| (s, header_guess(index, s)))
                .collect(),
        };
        if shards.iter().map(|(_, guess)| *guess).sum::<u64>() > client.left() {
            return self.too_much(loaded, "the headers of all shards");
        }
        let mut headers = Vec::new();
        for (shard, guess) in shards {
            match self.shard(client, revision, commit, shard, guess)? {
                Some((size, header)) => headers.push((shard.to_owned(), size, header)),
                None if index.is_some() => {
                    return Err(HostError::new(Kind::Corrupt, "a shard is missing")
                        .at(format!("{}:{shard}", self.id.repo()))
                        .because("the index names it, and the repository does not have it")
                        .next("choose another revision, or plan the config.json alone"));
                }
                None => {
                    loaded.spec.notes.push(
                        "the repository holds no safetensors: weights are those that the config implies".to_owned(),
                    );
                    return Ok(());
                }
            }
        }
        load::apply(loaded, index.as_ref(), headers, self.id.repo())
    }

    fn too_much(&self, loaded: &mut Loaded, what: &str) -> Result<(), HostError> {
        loaded.spec.notes.push(format!(
            "{what} would exceed the limit of {} bytes of traffic: weights are those that the config implies",
            self.options.traffic
        ));
        Ok(())
    }

    /// The header of one file: a guess, and the rest where it was too small.
    fn shard(
        &self,
        client: &Client,
        revision: &str,
        commit: Option<&str>,
        file: &str,
        guess: u64,
    ) -> Result<Option<(u64, SafetensorsHeader)>, HostError> {
        let wanted = self.wanted(revision, file);
        let Some(remote) = RemoteFile::open(client, wanted, guess)? else {
            return Ok(None);
        };
        let place = format!("{}:{file}", self.id.repo());
        let header = SafetensorsHeader::read(&remote).map_err(|err| {
            remote.failure().unwrap_or_else(|| {
                HostError::new(Kind::Corrupt, "this safetensors file cannot be used")
                    .at(format!("{place}, byte {}", err.offset))
                    .because(&err.problem)
                    .next(err.next_step())
            })
        })?;
        let head = remote.head(header.data_start);
        if let Some(commit) = commit {
            self.cache.store_head(commit, file, &head);
        }
        Ok(Some((head.size, header)))
    }

    /// Headers that we kept of this commit; whether all were there.
    fn cached_headers(&self, commit: &str, loaded: &mut Loaded) -> Result<bool, HostError> {
        let index = self
            .cache
            .head(commit, INDEX)
            .and_then(|h| Index::parse(&h.bytes).ok());
        let files = index.as_ref().map_or_else(|| vec![SINGLE], Index::shards);
        let mut headers = Vec::new();
        for file in files {
            // What cannot be read back is fetched again.
            let header = self.cache.head(commit, file).and_then(|head| {
                Some((
                    file.to_owned(),
                    head.size,
                    SafetensorsHeader::read(&head).ok()?,
                ))
            });
            match header {
                Some(h) => headers.push(h),
                None => return Ok(false),
            }
        }
        load::apply(loaded, index.as_ref(), headers, self.id.repo())?;
        Ok(true)
    }

    fn cached_gguf(&self, commit: &str, file: &str) -> Result<Option<Loaded>, HostError> {
        let dir = folder_of(file);
        let missing = || HostError::new(Kind::Offline, "a part is not cached");
        let read = |name: &str| {
            let head = self
                .cache
                .head(commit, &format!("{dir}{name}"))
                .ok_or_else(missing)?;
            let header = gguf::Header::read(&head).map_err(|_| missing())?;
            Ok((head.size, header))
        };
        match gguf_parts(
            base_of(file),
            &self.origin(Some(commit), "cached"),
            read,
            self.options,
        ) {
            Ok(loaded) => Ok(Some(loaded)),
            Err(err) if err.kind() == Kind::Offline => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// A GGUF file of a repository, and its other parts.
    fn remote_gguf(&self, client: &Client, file: &str) -> Result<Loaded, HostError> {
        if !file.to_ascii_lowercase().ends_with(".gguf") {
            return Err(HostError::new(
                Kind::Usage,
                "only a GGUF file can be named inside a repository",
            )
            .at(printable(file))
            .next("leave the file out: config and safetensors headers are found by themselves"));
        }
        client.allow(self.options.gguf_traffic);
        let dir = folder_of(file);
        let mut commit = None;
        let read = |name: &str| {
            let path = format!("{dir}{name}");
            let revision = commit
                .clone()
                .unwrap_or_else(|| self.id.revision().to_owned());
            let wanted = self.wanted(&revision, &path);
            let place = format!("{}:{path}", self.id.repo());
            let Some(remote) = RemoteFile::open(client, wanted, 1 << 20)? else {
                return Err(
                    HostError::new(Kind::NotFound, "the repository has no such file")
                        .at(place)
                        .next("check the file's name on the model's page"),
                );
            };
            let header = gguf::Header::read(&remote)
                .map_err(|err| remote.failure().unwrap_or_else(|| gguf_error(&place, &err)))?;
            let head = remote.head(header.data_start);
            if let Some(c) = &remote.commit {
                self.cache.store_head(c, &path, &head);
                self.cache.store_ref(self.id.revision(), c);
                commit = Some(c.clone());
            }
            Ok((head.size, header))
        };
        let mut loaded = gguf_parts(
            base_of(file),
            &format!("{}:{file}", self.id.repo()),
            read,
            self.options,
        )?;
        loaded.origin = self.origin(commit.as_deref(), &self.config.endpoint);
        loaded.headers = HeaderKind::Gguf;
        loaded.commit = commit;
        in_folder(&mut loaded, dir);
        Ok(loaded)
    }

    /// A repository without `config.json`: its only GGUF model, or what it holds.
    fn without_config(&self, client: &Client) -> Result<Loaded, HostError> {
        let wanted = self.wanted(self.id.revision(), CONFIG);
        let none = || {
            HostError::new(Kind::NotFound, "the repository has no config.json").at(self.id.repo())
        };
        let address = client.list_address(self.id.repo(), self.id.revision());
        let names = match client.get(&address, None, wanted)? {
            Found::No => Vec::new(),
            Found::Yes(reply) => {
                match client.whole(*reply, MAX_LIST.min(client.left().saturating_sub(1)))? {
                    Some(bytes) => gguf_names(&bytes),
                    None => Vec::new(),
                }
            }
        };
        match names.as_slice() {
            [] => Err(none()
                .because("and no GGUF model either, as far as the hub lists its files")
                .next("check the name; adapters and datasets cannot be planned")),
            [one] => {
                let id = HubId::parse(&format!("{}@{}:{one}", self.id.repo(), self.id.revision()))?;
                Session { id: &id, ..*self }.remote_gguf(client, one)
            }
            several => {
                let shown: Vec<String> = several.iter().take(10).map(|n| printable(n)).collect();
                Err(
                    HostError::new(Kind::Usage, "the repository holds several GGUF models")
                        .at(self.id.repo())
                        .because(shown.join(", "))
                        .next(format!(
                            "name one: {}:{}",
                            self.id.repo(),
                            shown.first().map_or("", String::as_str)
                        )),
                )
            }
        }
    }
}

/// Whether a snapshot has every safetensors file of its model; caches often hold a part.
fn has_weights(snapshot: &Path) -> bool {
    if snapshot.join(SINGLE).exists() {
        return true;
    }
    let Ok(bytes) = crate::file::read_small(&snapshot.join(INDEX)) else {
        return false;
    };
    Index::parse(&bytes).is_ok_and(|i| i.shards().iter().all(|s| snapshot.join(s).exists()))
}

/// How large the header of a shard will be, from the names in it.
fn header_guess(index: &Index, shard: &str) -> u64 {
    let names = index.weight_map.iter().filter(|(_, s)| *s == shard);
    names
        .map(|(name, _)| name.len() as u64 + ENTRY)
        .sum::<u64>()
        + 256
}

/// Names the files as the repository does.
fn in_folder(loaded: &mut Loaded, folder: &str) {
    for file in &mut loaded.files {
        file.name.insert_str(0, folder);
    }
}

/// `a/b/` of `a/b/c`.
fn folder_of(file: &str) -> &str {
    file.rfind('/')
        .and_then(|i| file.get(..=i))
        .unwrap_or_default()
}

/// `c` of `a/b/c`.
fn base_of(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// The GGUF models in the hub's list of a repository's files: first parts only, no projectors.
fn gguf_names(bytes: &[u8]) -> Vec<String> {
    let Ok(list) = plimsoll_model::json::parse(bytes) else {
        return Vec::new();
    };
    let files = list
        .get("siblings")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut names: Vec<String> = files
        .iter()
        .filter_map(|f| f.get("rfilename")?.as_str())
        .filter(|n| n.to_ascii_lowercase().ends_with(".gguf"))
        .filter(|n| !base_of(n).to_ascii_lowercase().starts_with("mmproj"))
        .filter(|n| !n.contains("-of-") || n.contains("-00001-of-"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}
