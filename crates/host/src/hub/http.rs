//! One GET at a time, with the checks that a hub client needs.
//!
//! Redirects are followed by hand: the first answer carries the commit and the true ETag, a token
//! must stay with the host it is for, and a server must not send us to another scheme. Every byte
//! of a body counts against a budget, so that no server can make us read without end.

use std::cell::Cell;
use std::io::Read as _;
use std::time::Duration;

use plimsoll_model::json::printable;
use ureq::http::{HeaderMap, Method, StatusCode, header};

use super::HubConfig;
use crate::error::{HostError, Kind};

/// Redirects that are followed for one request.
const MAX_REDIRECTS: u32 = 5;

/// A client for one model: it counts what it reads.
pub(super) struct Client {
    agent: ureq::Agent,
    config: HubConfig,
    read: Cell<u64>,
    budget: Cell<u64>,
}

/// What a request asked for, for messages.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
}

/// An answer whose body is still to be read.
pub(super) struct Reply {
    /// The commit that the revision stands for.
    pub(super) commit: Option<String>,
    /// What identifies the content, by the hub.
    pub(super) etag: Option<String>,
    /// What identifies it by the server that sends the bytes.
    pub(super) own_etag: Option<String>,
    /// Size of the whole file.
    pub(super) size: Option<u64>,
    /// Offset of the body's first byte.
    pub(super) start: u64,
    /// Length of the body, where stated.
    length: Option<u64>,
    /// The address that answered.
    pub(super) address: String,
    body: ureq::Body,
}

/// What the hub says of a file.
pub(super) struct Probe {
    pub(super) etag: Option<String>,
    pub(super) size: Option<u64>,
}

/// An answer, or that there is no such file.
pub(super) enum Found {
    Yes(Box<Reply>),
    /// The repository has no such file; it does exist.
    No,
}

/// Scheme and authority of an address, in lower case.
pub(crate) fn origin(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain = !authority.is_empty()
        && authority.bytes().all(|b| b.is_ascii_graphic())
        && !authority.contains(['@', '\\']);
    (plain && ["http", "https"].contains(&scheme.as_str()))
        .then(|| format!("{scheme}://{}", authority.to_ascii_lowercase()))
}

/// The address that a `Location` means, seen from `from`; `None` where it is none that we follow.
fn follow(from: &str, location: &str) -> Option<String> {
    let here = origin(from)?;
    let to = if location.starts_with("//") {
        format!("{}:{location}", here.split(':').next()?)
    } else if location.starts_with('/') {
        format!("{here}{location}")
    } else {
        location.to_owned()
    };
    let there = origin(&to)?;
    // From an encrypted page only to encrypted ones.
    let downgrade = here.starts_with("https:") && there.starts_with("http:");
    (!downgrade).then_some(to)
}

/// A path segment by segment in an address; `/` stays where `keep` says so.
pub(super) fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (keep_slash && b == b'/') {
            out.push(b.into());
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An ETag as `huggingface_hub` stores it: without weakness mark and quotes.
fn etag(headers: &HeaderMap) -> Option<String> {
    let raw = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"))?;
    Some(raw.trim_start_matches("W/").trim_matches('"').to_owned())
}

impl Client {
    /// A client that reads at most `budget` bytes of bodies.
    ///
    /// # Errors
    /// [`HostError`] of kind offline where no socket may be opened.
    pub(super) fn new(config: &HubConfig, budget: u64) -> Result<Self, HostError> {
        // A body is at most a few megabytes; a server that drips must not hold us for ever.
        Self::with(config, budget, Some(config.timeout.saturating_mul(6)))
    }

    /// A client for whole files, which take as long as they take while bytes come.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn unbounded(config: &HubConfig) -> Result<Self, HostError> {
        Self::with(config, u64::MAX, None)
    }

    fn with(config: &HubConfig, budget: u64, body: Option<Duration>) -> Result<Self, HostError> {
        if config.offline {
            return Err(HostError::new(Kind::Offline, "the network may not be used"));
        }
        let timeout = Some(config.timeout);
        let mut builder = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("plimsoll/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .timeout_recv_body(body)
            .max_response_header_size(64 << 10);
        if !config.proxies {
            builder = builder.proxy(None);
        }
        Ok(Self {
            agent: builder.build().new_agent(),
            config: config.clone(),
            read: Cell::new(0),
            budget: Cell::new(budget),
        })
    }

    /// Bytes of bodies read so far.
    pub(super) fn traffic(&self) -> u64 {
        self.read.get()
    }

    /// Bytes that may still be read.
    pub(super) fn left(&self) -> u64 {
        self.budget.get().saturating_sub(self.read.get())
    }

    /// Lets the whole model take `budget` bytes.
    pub(super) fn allow(&self, budget: u64) {
        self.budget.set(budget);
    }

    /// The address of a file of a repository.
    pub(super) fn address(&self, w: Wanted<'_>) -> String {
        format!(
            "{}/{}/resolve/{}/{}",
            self.config.endpoint,
            w.repo,
            encode(w.revision, false),
            encode(w.file, true)
        )
    }

    /// The address of the list of a repository's files.
    pub(super) fn list_address(&self, repo: &str, revision: &str) -> String {
        format!(
            "{}/api/models/{repo}/revision/{}",
            self.config.endpoint,
            encode(revision, false)
        )
    }

    /// Asks for `range` (first and last byte) of `address`, or for all of it.
    pub(super) fn get(
        &self,
        address: &str,
        range: Option<(u64, u64)>,
        w: Wanted<'_>,
    ) -> Result<Found, HostError> {
        let mut address = address.to_owned();
        let (mut commit, mut first_etag) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::GET, &address, range)?;
            let (parts, body) = response.into_parts();
            commit = commit.or_else(|| {
                text(&parts.headers, "x-repo-commit")
                    .filter(|c| super::is_commit(c))
                    .map(str::to_owned)
            });
            // The first answer names the file's own tag; a store behind it may use another.
            first_etag = first_etag.or_else(|| etag(&parts.headers));
            if parts.status.is_redirection() {
                let location = text(&parts.headers, header::LOCATION.as_str()).unwrap_or_default();
                address = self.follow(&address, location)?;
                continue;
            }
            if let Some(found) = self.judge(parts.status, &parts.headers, w)? {
                return Ok(found);
            }
            let own_etag = text(&parts.headers, "etag").map(str::to_owned);
            let reply = Reply {
                commit,
                etag: first_etag,
                own_etag,
                size: None,
                start: 0,
                length: None,
                address,
                body,
            };
            return self
                .extent(reply, parts.status, &parts.headers, range)
                .map(|r| Found::Yes(Box::new(r)));
        }
        Err(self.odd(
            &address,
            format!("it redirects more than {MAX_REDIRECTS} times"),
        ))
    }

    /// What the hub says of a file without sending it; `None` where the repository has none. Where it sends us to
    /// another host for the bytes, it has said all.
    pub(super) fn probe(&self, address: &str, w: Wanted<'_>) -> Result<Option<Probe>, HostError> {
        let (mut address, mut tag) = (address.to_owned(), None);
        for _ in 0..=MAX_REDIRECTS {
            let (parts, _) = self.send(Method::HEAD, &address, None)?.into_parts();
            let number = |name: &str| text(&parts.headers, name)?.parse().ok();
            let linked = parts.headers.contains_key("x-linked-etag");
            tag = tag.or_else(|| etag(&parts.headers));
            if parts.status.is_redirection() && !linked {
                let location = text(&parts.headers, header::LOCATION.as_str()).unwrap_or_default();
                address = self.follow(&address, location)?;
                continue;
            }
            if !parts.status.is_redirection()
                && let Some(Found::No) = self.judge(parts.status, &parts.headers, w)?
            {
                return Ok(None);
            }
            let size = number("x-linked-size");
            let here = || (!parts.status.is_redirection()).then(|| number("content-length"))?;
            return Ok(Some(Probe {
                etag: tag,
                size: size.or_else(here),
            }));
        }
        Err(self.odd(
            &address,
            format!("it redirects more than {MAX_REDIRECTS} times"),
        ))
    }

    fn follow(&self, address: &str, location: &str) -> Result<String, HostError> {
        follow(address, location).ok_or_else(|| {
            self.odd(
                address,
                format!(
                    "it redirects to `{}`, which is not followed",
                    printable(location)
                ),
            )
        })
    }

    fn send(
        &self,
        method: Method,
        address: &str,
        range: Option<(u64, u64)>,
    ) -> Result<ureq::http::Response<ureq::Body>, HostError> {
        let mut request = if method == Method::HEAD {
            self.agent.head(address)
        } else {
            self.agent.get(address)
        }
        .header("accept-encoding", "identity");
        if let Some((first, last)) = range {
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        if let Some(token) = &self.config.token
            && origin(address) == origin(&self.config.endpoint)
        {
            request = request.header("authorization", token.header());
        }
        request.call().map_err(|err| self.transport(address, &err))
    }

    /// What a status that is no success means; `None` for one that is.
    fn judge(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        w: Wanted<'_>,
    ) -> Result<Option<Found>, HostError> {
        let code = text(headers, "x-error-code").unwrap_or_default();
        let place = format!("{} at {}", w.repo, self.config.endpoint);
        let token = if self.config.token.is_some() {
            "the token given"
        } else {
            "no token given"
        };
        match status.as_u16() {
            200 | 206 | 416 => Ok(None),
            404 if code == "RepoNotFound" => {
                Err(HostError::new(Kind::NotFound, "the hub has no such model")
                    .at(place)
                    .next("check organisation and name; a private model needs HF_TOKEN"))
            }
            404 if code == "RevisionNotFound" => Err(HostError::new(
                Kind::NotFound,
                "the model has no such revision",
            )
            .at(format!("{place}, revision {}", w.revision))
            .next("leave @revision out for the newest version")),
            404 => Ok(Some(Found::No)),
            // The hub answers 401 for models that do not exist, too: it does not tell strangers.
            401 => Err(
                HostError::new(Kind::Forbidden, "the hub does not show this model")
                    .at(place)
                    .because(format!(
                        "it does not exist, or is private or gated ({token})"
                    ))
                    .next("check the name; set HF_TOKEN to a token that may read it"),
            ),
            403 => Err(
                HostError::new(Kind::Forbidden, "the hub refuses this model")
                    .at(place)
                    .because(if code == "GatedRepo" {
                        format!("its licence must be accepted first ({token})")
                    } else {
                        format!("access is not allowed ({token})")
                    })
                    .next(format!(
                        "accept the terms at {}/{}, then set HF_TOKEN",
                        self.config.endpoint, w.repo
                    )),
            ),
            408 | 425 | 429 | 500..=599 => {
                let wait = text(headers, "retry-after")
                    .filter(|t| t.len() < 40)
                    .map(printable);
                let again = wait.map_or_else(
                    || "try again in a minute".to_owned(),
                    |w| format!("try again after {w} (Retry-After)"),
                );
                Err(
                    HostError::new(Kind::Temporary, "the hub is busy or limits requests")
                        .at(place)
                        .because(format!("it answered {status}"))
                        .next(again),
                )
            }
            _ => Err(self.odd(&place, format!("it answered {status}"))),
        }
    }

    /// Checks that the answer is the range that was asked for.
    fn extent(
        &self,
        mut reply: Reply,
        status: StatusCode,
        headers: &HeaderMap,
        range: Option<(u64, u64)>,
    ) -> Result<Reply, HostError> {
        let length = text(headers, "content-length").and_then(|t| t.parse::<u64>().ok());
        reply.length = length;
        let Some((first, last)) = range else {
            reply.size = length;
            return Ok(reply);
        };
        let odd = |why: &str| Err(self.odd(&reply.address, why.to_owned()));
        let stated = text(headers, "content-range").unwrap_or_default();
        match status.as_u16() {
            206 => {
                let Some((from, to, size)) = content_range(stated) else {
                    return odd("its Content-Range cannot be read");
                };
                let right = from == first && to <= last && from <= to && to < size;
                if !right || length.is_some_and(|l| l != to - from + 1) {
                    return odd("its Content-Range is not the range that was asked for");
                }
                reply.length = Some(to - from + 1);
                (reply.start, reply.size) = (first, Some(size));
                Ok(reply)
            }
            416 => {
                let size = stated
                    .strip_prefix("bytes */")
                    .and_then(|t| t.parse::<u64>().ok());
                let why = size.map_or_else(String::new, |n| format!("the file has {n} bytes"));
                Err(
                    HostError::new(Kind::Corrupt, "the file ends before its header does")
                        .at(&reply.address)
                        .because(why)
                        .next(
                            "the file on the hub is empty or incomplete; choose another revision",
                        ),
                )
            }
            // The server ignores ranges: from the start we can read what we need and hang up.
            _ if first == 0 && length.is_some() => {
                reply.size = length;
                Ok(reply)
            }
            _ => odd("it does not serve ranges of files"),
        }
    }

    /// The first `n` bytes of the body, or all where it is shorter by its own word.
    pub(super) fn body(&self, reply: Reply, n: u64) -> Result<Vec<u8>, HostError> {
        let want = reply.length.map_or(n, |l| l.min(n));
        if want > self.left() {
            return Err(HostError::new(
                Kind::Io,
                "reading the model would exceed the traffic limit",
            )
            .at(&reply.address)
            .because(format!("{want} bytes more, where {} are left", self.left()))
            .next("download the file and plan from there"));
        }
        let mut bytes = Vec::new();
        let mut reader = reply
            .body
            .into_with_config()
            .limit(u64::MAX)
            .reader()
            .take(want);
        let result = reader.read_to_end(&mut bytes);
        self.read
            .set(self.read.get().saturating_add(bytes.len() as u64));
        let short = |why: String| Err(ended_early(&reply.address, why));
        match result {
            Err(err) => short(format!("after {} bytes: {err}", bytes.len())),
            Ok(_) if reply.length.is_some() && (bytes.len() as u64) < want => {
                short(format!("after {} of {want} bytes", bytes.len()))
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// Hands the body's `n` bytes on as they come, in pieces of at most `piece`.
    pub(super) fn pieces(
        &self,
        reply: Reply,
        n: u64,
        piece: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let mut reader = reply
            .body
            .into_with_config()
            .limit(u64::MAX)
            .reader()
            .take(n);
        let mut buffer = vec![0; piece];
        let mut done = 0_u64;
        while done < n {
            let why = match reader.read(&mut buffer) {
                Ok(0) => format!("after {done} of {n} bytes"),
                Err(err) => format!("after {done} of {n} bytes: {err}"),
                Ok(read) => {
                    take(buffer.get(..read).unwrap_or_default())?;
                    done += read as u64;
                    continue;
                }
            };
            return Err(ended_early(&reply.address, why));
        }
        Ok(())
    }

    /// All of a small body; `None` where it is larger than `max` by its own word.
    pub(super) fn whole(&self, reply: Reply, max: u64) -> Result<Option<Vec<u8>>, HostError> {
        if reply.length.is_some_and(|l| l > max) {
            return Ok(None);
        }
        // One byte more shows a body that has no end.
        let bytes = self.body(reply, max.saturating_add(1))?;
        Ok((bytes.len() as u64 <= max).then_some(bytes))
    }

    fn odd(&self, place: &str, why: String) -> HostError {
        let mirror = self.config.endpoint != super::ENDPOINT;
        HostError::new(Kind::Io, "the server does not answer as a hub does")
            .at(printable(place))
            .because(why)
            .next(if mirror {
                "check HF_ENDPOINT; a plan needs a mirror that serves ranges"
            } else {
                "try again later, or give a local folder"
            })
    }

    fn transport(&self, address: &str, err: &ureq::Error) -> HostError {
        let host = origin(address).unwrap_or_default();
        let lasting = matches!(
            err,
            ureq::Error::Protocol(_)
                | ureq::Error::Http(_)
                | ureq::Error::BadUri(_)
                | ureq::Error::Tls(_)
        );
        if lasting {
            return self.odd(&host, err.to_string());
        }
        HostError::new(Kind::Temporary, "the hub cannot be reached")
            .at(host)
            .because(err)
            .next("check the connection and proxies; with a cached model, `--offline` needs none")
    }
}

fn ended_early(address: &str, why: String) -> HostError {
    HostError::new(Kind::Temporary, "the connection ended early")
        .at(address)
        .because(why)
        .next("try again")
}

/// `bytes 0-99/1234`.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    Some((
        from.trim().parse().ok()?,
        to.trim().parse().ok()?,
        size.trim().parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_web() {
        let from = "https://hub.example/a/b";
        assert_eq!(follow(from, "/c").as_deref(), Some("https://hub.example/c"));
        assert_eq!(
            follow(from, "//cdn.example/c").as_deref(),
            Some("https://cdn.example/c")
        );
        assert_eq!(
            follow(from, "https://cdn.example/c").as_deref(),
            Some("https://cdn.example/c")
        );
        for bad in [
            "file:///etc/passwd",
            "http://hub.example/c",
            "ftp://x/y",
            "",
            "c",
            "https://u@h/",
            "https:///x",
        ] {
            assert_eq!(follow(from, bad), None, "{bad}");
        }
        assert_eq!(
            follow("http://127.0.0.1:1/a", "http://127.0.0.1:2/b").as_deref(),
            Some("http://127.0.0.1:2/b")
        );
    }

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü.gguf", true), "a%20b/%C3%BC.gguf");
        assert_eq!(content_range("bytes 0-99/1234"), Some((0, 99, 1234)));
        for bad in ["", "bytes */5", "bytes 0-9/*", "0-9/10", "bytes -1-9/10"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
