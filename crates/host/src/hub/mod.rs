//! The model hub: configs and headers by HTTP ranges, and the cache that the Python library keeps.
//!
//! Conventions are those of `huggingface_hub` (`constants.py`, `file_download.py`): the same
//! variables, the same folder layout, so that what was downloaded by anyone is found by us and
//! what we store is found by others. A plan stores `config.json` there, a download all files that a
//! run needs; headers, which no other program expects as parts of files, are kept under
//! `$HF_HOME/plimsoll`.

mod cache;
mod download;
mod http;
mod load;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use plimsoll_model::json::printable;

use crate::env::Env;
use crate::error::{HostError, Kind};

pub use download::{Fetching, download};
pub(crate) use http::origin;
pub(crate) use load::load;

/// A model on the hub: `org/name`, with a revision and a file where given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

impl HubId {
    /// Reads `org/name[@revision][:file]`.
    ///
    /// # Errors
    /// [`HostError`] of kind usage where a part could leave its place in a path or an address.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let bad = |why: &str| {
            Err(HostError::new(Kind::Usage, "this is no hub id")
                .at(printable(text))
                .because(why)
                .next("write org/name, org/name@revision, or org/name:file.gguf"))
        };
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (rest, None),
        };
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|p| is_name(p)) || repo.contains("--") {
            return bad(
                "organisation and name have letters, digits, `-`, `_` and `.`, at most 96 each",
            );
        }
        if revision.is_some_and(|r| !is_path(r, "._-")) {
            return bad("a revision is a branch, tag or commit");
        }
        if file.is_some_and(|f| !is_path(f, "._- +()[],")) {
            return bad("a file is a path inside the repository");
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// `org/name`.
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The revision: `main` where none is given.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The file, where one is named.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

/// One part of a repository's name.
fn is_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=96).contains(&text.len())
        && text.bytes().all(ok)
        && !text.starts_with(['.', '-'])
        && !text.ends_with(['.', '-'])
        && !text.contains("..")
}

/// Parts separated by `/` that stay below where they start.
fn is_path(text: &str, extra: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || extra.as_bytes().contains(&b);
    (1..=255).contains(&text.len())
        && text.split('/').all(|p| {
            !p.is_empty()
                && p != "."
                && !p.contains("..")
                && !p.starts_with('-')
                && p.bytes().all(ok)
        })
}

/// A commit of a repository.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A secret that prints as `hf_***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hf_***")
    }
}

impl Token {
    /// A token as it may stand in a header: printable ASCII without spaces.
    fn clean(text: &str) -> Option<Self> {
        let text = text.trim();
        let ok =
            !text.is_empty() && text.len() <= 4096 && text.bytes().all(|b| b.is_ascii_graphic());
        ok.then(|| Self(text.to_owned()))
    }

    /// The value of the header that carries it.
    fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

/// Where the hub and its cache are, and what may be used.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Scheme and host, without a slash at the end.
    pub endpoint: String,
    /// `models--org--name` folders.
    pub cache: Option<PathBuf>,
    /// Headers that we keep.
    pub headers: Option<PathBuf>,
    /// The user's token.
    pub token: Option<Token>,
    /// No socket may be opened.
    pub offline: bool,
    /// Longest wait for a connection, an answer, or the next byte.
    pub timeout: Duration,
    /// Whether the process's proxies are used; a made-up environment has none.
    pub proxies: bool,
}

/// The public hub.
const ENDPOINT: &str = "https://huggingface.co";
/// The Python library's own default for downloads.
const TIMEOUT: Duration = Duration::from_secs(10);

impl HubConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`HostError`] of kind usage where `HF_ENDPOINT` is no web address, or the token cannot be
    /// one.
    pub fn from_env(env: &Env) -> Result<Self, HostError> {
        let endpoint = env
            .get("HF_ENDPOINT")
            .unwrap_or(ENDPOINT)
            .trim_end_matches('/')
            .to_owned();
        if http::origin(&endpoint).is_none() || endpoint.contains(['?', '#', '@']) {
            return Err(HostError::new(Kind::Usage, "HF_ENDPOINT is no web address")
                .at(printable(&endpoint))
                .next("write it as https://host, or unset it"));
        }
        let home = home(env);
        let cache = env
            .path("HF_HUB_CACHE")
            .or_else(|| env.path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let timeout = env
            .get("HF_HUB_DOWNLOAD_TIMEOUT")
            .and_then(|t| t.parse().ok())
            .filter(|t| (1..=3600).contains(t))
            .map_or(TIMEOUT, Duration::from_secs);
        Ok(Self {
            endpoint,
            token: token(env, home.as_deref())?,
            headers: cache_folder(env).map(|c| c.join("headers")),
            cache,
            offline: env.is_true("HF_HUB_OFFLINE") || env.is_true("TRANSFORMERS_OFFLINE"),
            timeout,
            proxies: env.is_process(),
        })
    }
}

/// The home of the hub's files.
fn home(env: &Env) -> Option<PathBuf> {
    let base = env
        .path("XDG_CACHE_HOME")
        .or_else(|| Some(env.home()?.join(".cache")));
    env.path("HF_HOME")
        .or_else(|| Some(base?.join("huggingface")))
}

/// Where what can be made again is kept that no other program expects: `$HF_HOME/plimsoll`.
#[must_use]
pub fn cache_folder(env: &Env) -> Option<PathBuf> {
    Some(home(env)?.join("plimsoll"))
}

/// The token: `HF_TOKEN`, its old name, then the file; none where implicit use is switched off.
fn token(env: &Env, home: Option<&std::path::Path>) -> Result<Option<Token>, HostError> {
    if env.is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
    }
    let bad = |place: &str| {
        HostError::new(Kind::Usage, "the hub token cannot be one")
            .at(place)
            .because("it holds spaces or characters outside ASCII")
            .next("copy the token again from your hub settings")
    };
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = env.get(name).map(str::trim).filter(|t| !t.is_empty()) {
            return Token::clean(text).map(Some).ok_or_else(|| bad(name));
        }
    }
    let path = env
        .path("HF_TOKEN_PATH")
        .or_else(|| Some(home?.join("token")));
    // A file that is not there, or not readable for us, is no token: public models need none.
    let Some(bytes) = path
        .as_deref()
        .and_then(|p| crate::file::read_small(p).ok())
    else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() {
        return Ok(None);
    }
    Token::clean(&text)
        .map(Some)
        .ok_or_else(|| bad("the token file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k8_ids_that_could_leave_their_place_are_refused() {
        for good in [
            "org/name",
            "a/b@main",
            "a/b@refs/pr/3",
            "Qwen/Qwen3-0.6B@0123abc",
            "a/b:sub/x-Q4_K_M.gguf",
            "a/b@v1.0:x.gguf",
        ] {
            assert!(HubId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "../name",
            "org/..",
            "org/../x",
            "a/b/c",
            "org/",
            "/name",
            "org/na me",
            "org/na\nme",
            "a--b/c",
            "a/b@",
            "a/b@../..",
            "a/b@/etc",
            "a/b@x/../../y",
            "a/b@-x",
            "a/b@x\0",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "a/b:",
            "a/b:x/../../y.gguf",
            "a/b:x\\y",
            "a/b@m%2f..",
            "org/name?x=1",
            "org/name#x",
            "ö/x",
            ".a/b",
        ] {
            let err = HubId::parse(bad).unwrap_err();
            assert_eq!(err.kind(), Kind::Usage, "{bad}");
        }
        let long = format!("a/{}", "n".repeat(97));
        assert!(HubId::parse(&long).is_err());
    }

    #[test]
    fn the_environment_places_cache_endpoint_and_token() {
        let of =
            |vars: &[(&str, &str)]| HubConfig::from_env(&Env::of(vars.iter().copied())).unwrap();
        let c = of(&[("HOME", "/h")]);
        assert_eq!(c.endpoint, "https://huggingface.co");
        assert_eq!(c.cache, Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(
            c.headers,
            Some("/h/.cache/huggingface/plimsoll/headers".into())
        );
        assert!(!c.offline && c.token.is_none());
        assert_eq!(
            of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache,
            Some("/x/huggingface/hub".into())
        );
        assert_eq!(
            of(&[("HOME", "/h"), ("HF_HOME", "~/f")]).cache,
            Some("/h/f/hub".into())
        );
        assert_eq!(
            of(&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")]).cache,
            Some("/old".into())
        );
        assert_eq!(
            of(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]).cache,
            Some("/new".into())
        );
        assert_eq!(
            of(&[("HF_ENDPOINT", "http://mirror:8080/")]).endpoint,
            "http://mirror:8080"
        );
        assert_eq!(of(&[]).cache, None);
        for yes in ["1", "true", "YES", "on"] {
            assert!(of(&[("HF_HUB_OFFLINE", yes)]).offline);
        }
        assert!(!of(&[("HF_HUB_OFFLINE", "0")]).offline);
        for bad in [
            "file:///etc",
            "huggingface.co",
            "https://",
            "https://u:p@h",
            "https://h/?x",
        ] {
            assert!(
                HubConfig::from_env(&Env::of([("HF_ENDPOINT", bad)])).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn k9_the_token_is_found_and_never_printed() {
        let dir = std::env::temp_dir().join(format!("plimsoll-token-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("token"), "hf_fromfile\n").unwrap();
        let home = dir.to_str().unwrap();
        let of = |vars: &[(&str, &str)]| HubConfig::from_env(&Env::of(vars.iter().copied()));
        let header = |vars: &[(&str, &str)]| of(vars).unwrap().token.map(|t| t.header());
        assert_eq!(
            header(&[("HF_HOME", home)]),
            Some("Bearer hf_fromfile".into())
        );
        assert_eq!(
            header(&[("HF_HOME", home), ("HF_TOKEN", " hf_env ")]),
            Some("Bearer hf_env".into())
        );
        assert_eq!(
            header(&[
                ("HF_HOME", home),
                ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
                ("HF_TOKEN", "x")
            ]),
            None
        );
        let elsewhere = dir.join("token");
        assert_eq!(
            header(&[("HF_TOKEN_PATH", elsewhere.to_str().unwrap())]),
            Some("Bearer hf_fromfile".into())
        );
        let debug = format!("{:?}", of(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(
            debug.contains("hf_***") && !debug.contains("secret"),
            "{debug}"
        );
        let err = of(&[("HF_TOKEN", "hf_se cret")]).unwrap_err();
        assert!(!format!("{err:?}").contains("cret"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
