//! A server of ours, asked over HTTP.

use std::time::Duration;

use plimsoll_model::json::printable;

use crate::error::{HostError, Kind};

/// How long it may take for anything.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read: the map of a million pages is smaller.
const MOST_BYTES: u64 = 32 << 20;

/// One.
pub struct Peer {
    agent: ureq::Agent,
    address: String,
    key: Option<String>,
}

impl std::fmt::Debug for Peer {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// The server at this address, `http://` where no scheme is given; nothing is sent yet.
    ///
    /// # Errors
    /// [`HostError`] of kind usage where this is no address.
    pub fn new(address: &str, key: Option<&str>) -> Result<Self, HostError> {
        let full = if address.contains("://") {
            address.to_owned()
        } else {
            format!("http://{address}")
        };
        if crate::hub::origin(&full).is_none() {
            let e = HostError::new(Kind::Usage, "this is no address of a server");
            return Err(e
                .at(printable(address))
                .because("it begins with http:// or https:// and has a host")
                .next("write it as http://127.0.0.1:8000"));
        }
        let timeout = Some(TIMEOUT);
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A key is for the server that was named.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("plimsoll/", env!("CARGO_PKG_VERSION")))
            .timeout_global(timeout)
            .proxy(None)
            .build();
        let address = full.trim_end_matches('/');
        Ok(Self {
            agent: agent.new_agent(),
            address: address.trim_end_matches("/v1").to_owned(),
            key: key.map(str::to_owned),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it answers at this path.
    ///
    /// # Errors
    /// [`HostError`] of kind unreachable where nobody answers, forbidden where the key is none, and I/O where the
    /// answer is no success.
    pub fn get(&self, path: &str) -> Result<String, HostError> {
        let gone = |e: &ureq::Error| {
            HostError::new(Kind::Unreachable, "the server cannot be reached")
                .at(&self.address)
                .because(e)
                .next("start it with `plimsoll serve`, or name the address that it printed")
        };
        let mut request = self.agent.get(format!("{}{path}", self.address));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|e| gone(&e))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MOST_BYTES);
        let body = body.read_to_string().map_err(|e| gone(&e))?;
        let refused = |kind, what: &str, next: &str| {
            Err(HostError::new(kind, what)
                .at(format!("{}{path}", self.address))
                .because(format!("it answers {status}"))
                .next(next))
        };
        match status {
            200 => Ok(body),
            401 | 403 => refused(
                Kind::Forbidden,
                "the server does not let this key look",
                "set PLIMSOLL_API_KEY to the key of a tenant with `admin = true`",
            ),
            _ => refused(
                Kind::Io,
                "the server does not answer as `plimsoll serve` does",
                "name the address that `plimsoll serve` printed",
            ),
        }
    }
}
