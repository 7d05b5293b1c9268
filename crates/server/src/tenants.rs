//! Who may come, and how much of the server each may have.
//!
//! A tenant is a name with keys. Its pages are the scheduler's matter (`schedule::Tenant`); here are its keys, its
//! rates and the requests that it may have at once. A rate is a bucket of one minute: whoever's bucket is not empty is
//! let in, the prompt is taken from it at once and the answer as it comes, so a bucket may owe, and a request that
//! ends early never pays for what it did not get.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use plimsoll_kv::{Scope, TenantId};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::code::Code;
use crate::error::ApiError;

/// One minute, in nanoseconds.
const MINUTE_NS: i128 = 60_000_000_000;

/// The SHA-256 of a key: what is kept of it.
pub type KeyDigest = [u8; 32];

/// What is kept of a key.
#[must_use]
pub fn digest(key: &[u8]) -> KeyDigest {
    Sha256::digest(key).into()
}

/// What one tenant may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What it is called in metrics; never empty.
    pub name: String,
    /// Whether it sees what others do: metrics, and the map of memory.
    pub admin: bool,
    /// Requests in flight at once.
    pub max_requests: Option<u32>,
    /// Requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u64>,
}

/// Keys, each with the place of its tenant.
pub type Keys = Vec<(KeyDigest, u16)>;

/// Reads the keys again and hands them over, unless the old ones stay; then it says which: whoever hears of new keys can
/// use them.
pub type Reload = Arc<dyn Fn(&dyn Fn(Keys)) + Send + Sync>;

/// Who may come.
#[derive(Clone)]
pub struct Access {
    /// The tenants, by their places: those of the scheduler's configuration.
    pub tenants: Vec<Rules>,
    /// Their keys; without, everybody is the first tenant.
    pub keys: Option<Keys>,
    /// Whether tenants find one another's prefixes in the cache. They can tell by the time to the first token.
    pub shared_prefixes: bool,
    /// On SIGHUP.
    pub reload: Option<Reload>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Digests of short keys can be guessed: they are not shown either.
        let keys = self.keys.as_ref().map(Vec::len);
        f.debug_struct("Access")
            .field("tenants", &self.tenants)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// Everybody.
    #[must_use]
    pub fn open() -> Self {
        Self {
            tenants: vec![Rules {
                name: "default".to_owned(),
                admin: true,
                ..Rules::default()
            }],
            keys: None,
            shared_prefixes: false,
            reload: None,
        }
    }

    /// Whoever has this key.
    #[must_use]
    pub fn key(key: &str) -> Self {
        Self {
            keys: Some(vec![(digest(key.as_bytes()), 0)]),
            ..Self::open()
        }
    }
}

/// Whoever sent a request, once its key was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) admin: bool,
}

/// A tenant, and what it did last.
#[derive(Debug)]
struct Tenant {
    rules: Rules,
    flying: AtomicU32,
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
}

/// All tenants.
pub(crate) struct Tenants {
    all: Vec<Tenant>,
    keys: Option<RwLock<Keys>>,
    shared_prefixes: bool,
    reload: Option<Reload>,
}

impl std::fmt::Debug for Tenants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenants")
            .field("all", &self.all)
            .finish_non_exhaustive()
    }
}

impl Tenants {
    pub(crate) fn new(access: Access) -> Self {
        let tenant = |rules: Rules| Tenant {
            flying: AtomicU32::new(0),
            requests: rules.requests_per_minute.map(|n| Bucket::new(n.into())),
            tokens: rules.tokens_per_minute.map(Bucket::new),
            rules,
        };
        Self {
            all: access.tenants.into_iter().map(tenant).collect(),
            keys: access.keys.map(RwLock::new),
            shared_prefixes: access.shared_prefixes,
            reload: access.reload,
        }
    }

    /// Whose key this is. Takes the same time for every key of a length.
    pub(crate) fn caller(&self, key: Option<&[u8]>) -> Option<Caller> {
        let place = match &self.keys {
            None => 0,
            Some(keys) => {
                let given = digest(key?);
                let (mut found, mut place) = (Choice::from(0), 0);
                for (digest, tenant) in keys.read().unwrap_or_else(PoisonError::into_inner).iter() {
                    let same = digest.ct_eq(&given);
                    place.conditional_assign(tenant, same);
                    found |= same;
                }
                bool::from(found).then_some(place)?
            }
        };
        let tenant = self.all.get(usize::from(place))?;
        Some(Caller {
            tenant: TenantId(place),
            admin: tenant.rules.admin,
        })
    }

    /// What a tenant is called.
    pub(crate) fn name(&self, tenant: TenantId) -> &str {
        let tenant = self.all.get(usize::from(tenant.0));
        tenant.map_or("", |t| &t.rules.name)
    }

    /// Takes the keys that are there now; whoever is in stays in.
    pub(crate) fn reload(&self) {
        if let (Some(reload), Some(keys)) = (&self.reload, &self.keys) {
            reload(&|new| *keys.write().unwrap_or_else(PoisonError::into_inner) = new);
        }
    }

    /// Who may find whose prefixes, under a salt that the client chose.
    pub(crate) fn scope(&self, tenant: TenantId, salt: Option<&str>) -> Scope {
        let mut bytes = Vec::new();
        if !self.shared_prefixes {
            bytes.extend_from_slice(&tenant.0.to_le_bytes());
        }
        // Which of both this is must not depend on what a client writes.
        bytes.push(u8::from(self.shared_prefixes));
        if let Some(salt) = salt {
            bytes.extend_from_slice(salt.as_bytes());
        }
        Scope {
            tenant,
            salt: bytes,
            ..Scope::default()
        }
    }

    /// Lets requests of a tenant in, with prompts of so many tokens, as far as its rates go; they count as in flight
    /// until what comes back is dropped.
    pub(crate) fn enter(
        self: &Arc<Self>,
        tenant: TenantId,
        requests: u32,
        prompt_tokens: u64,
    ) -> Result<Arc<Visit>, ApiError> {
        let Some(t) = self.all.get(usize::from(tenant.0)) else {
            return Err(ApiError::server(
                Code::InternalError,
                "there is no such tenant",
            ));
        };
        // More than there ever may be at once: waiting would not help.
        if let Some(max) = t.rules.max_requests.filter(|max| requests > *max) {
            let message = format!(
                "there are {requests} prompts and you may have {max} requests at once: send fewer at once"
            );
            return Err(ApiError::value("prompt", message));
        }
        let before = t.flying.fetch_add(requests, Ordering::AcqRel);
        // From here on it goes again with the visit.
        let visit = Arc::new(Visit {
            tenants: Arc::clone(self),
            tenant,
            requests,
        });
        if let Some(max) = t.rules.max_requests
            && before.saturating_add(requests) > max
        {
            let message = format!(
                "{before} requests of yours are in flight, and you may have {max} at once: wait until one ends"
            );
            return Err(ApiError::busy(message, Duration::from_secs(1)).code(Code::TooManyRequests));
        }
        let now = Instant::now();
        // Neither is taken from where the other is empty.
        let waits = [&t.requests, &t.tokens]
            .into_iter()
            .map(|b| b.as_ref().and_then(|b| lock(b).wait(now)));
        if let Some(wait) = waits.flatten().max() {
            let message = format!(
                "you have used up your rate: it is there again in {:.1} s",
                wait.as_secs_f64()
            );
            return Err(ApiError::busy(message, wait).code(Code::RateLimitExceeded));
        }
        t.take(now, requests.into(), prompt_tokens);
        Ok(visit)
    }
}

impl Tenant {
    fn take(&self, now: Instant, requests: u64, tokens: u64) {
        for (bucket, n) in [(&self.requests, requests), (&self.tokens, tokens)] {
            if let Some(bucket) = bucket {
                lock(bucket).take(now, n);
            }
        }
    }
}

/// Requests of one body, from when they were let in until nobody has to do with them any more.
#[derive(Debug)]
pub(crate) struct Visit {
    tenants: Arc<Tenants>,
    tenant: TenantId,
    requests: u32,
}

impl Visit {
    /// So many tokens more of their answers.
    pub(crate) fn generated(&self, tokens: u64) {
        if let Some(t) = self.tenants.all.get(usize::from(self.tenant.0)) {
            t.take(Instant::now(), 0, tokens);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(t) = self.tenants.all.get(usize::from(self.tenant.0)) {
            t.flying.fetch_sub(self.requests, Ordering::AcqRel);
        }
    }
}

fn lock(bucket: &Mutex<Bucket>) -> std::sync::MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What may still be used, filled with `rate` in a minute up to what a minute gives.
#[derive(Debug)]
struct Bucket {
    rate: i128,
    /// In parts of which one is `MINUTE_NS`; below zero it owes.
    level: i128,
    at: Instant,
}

impl Bucket {
    fn new(rate: u64) -> Mutex<Self> {
        let rate = i128::from(rate.max(1));
        Mutex::new(Self {
            rate,
            level: rate * MINUTE_NS,
            at: Instant::now(),
        })
    }

    fn fill(&mut self, now: Instant) {
        let ns = now.saturating_duration_since(self.at).as_nanos();
        let ns = i128::try_from(ns)
            .unwrap_or(MINUTE_NS)
            .min(i128::from(u64::MAX));
        self.level = (self.level + ns * self.rate).min(self.rate * MINUTE_NS);
        self.at = self.at.max(now);
    }

    /// How long until there is one again, where there is none.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        let lacks = MINUTE_NS - self.level;
        let ns = (lacks + self.rate - 1) / self.rate;
        (lacks > 0).then(|| Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, now: Instant, n: u64) {
        self.fill(now);
        self.level -= i128::from(n) * MINUTE_NS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(rules: Rules) -> Arc<Tenants> {
        let mut access = Access::key("right");
        access.tenants = vec![rules];
        Arc::new(Tenants::new(access))
    }

    #[test]
    fn a_bucket_fills_with_its_rate_and_no_more_than_a_minute() {
        let bucket = Bucket::new(60);
        let mut b = lock(&bucket);
        let start = b.at;
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(b.wait(start), None);
        b.take(start, 60);
        assert_eq!(b.wait(start), Some(Duration::from_secs(1)));
        assert_eq!(b.wait(after(400)), Some(Duration::from_millis(600)));
        assert_eq!(b.wait(after(1_000)), None);
        // It may owe, and then waits longer.
        b.take(after(1_000), 11);
        assert_eq!(b.wait(after(1_000)), Some(Duration::from_secs(11)));
        // A year later it holds what a minute gives.
        let late = after(31_536_000_000);
        assert_eq!(b.wait(late), None);
        b.take(late, 60);
        assert!(b.wait(late).is_some());
        // A clock that goes back takes nothing away.
        assert!(b.wait(start).is_some());
    }

    #[test]
    fn rates_count_prompts_at_once_and_answers_as_they_come() {
        let t = tenants(Rules {
            name: "a".to_owned(),
            tokens_per_minute: Some(600),
            requests_per_minute: Some(1_000),
            ..Rules::default()
        });
        let enter = |tokens| t.enter(TenantId(0), 1, tokens);
        let visit = enter(100).unwrap();
        // 500 are left, and the answer takes more.
        enter(0).unwrap();
        visit.generated(800);
        let refused = enter(0).unwrap_err();
        let after = refused.retry_after.unwrap();
        assert!((29.0..=30.2).contains(&after.as_secs_f64()), "{after:?}");
        assert_eq!(refused.code, Code::RateLimitExceeded);
    }

    #[test]
    fn whoever_ends_makes_room_for_his_own() {
        let t = tenants(Rules {
            name: "a".to_owned(),
            max_requests: Some(3),
            ..Rules::default()
        });
        let enter = |n| t.enter(TenantId(0), n, 1);
        let first = enter(2).unwrap();
        assert!(enter(2).is_err(), "a body comes in as a whole");
        let second = enter(1).unwrap();
        assert_eq!(enter(1).unwrap_err().code, Code::TooManyRequests);
        let also = Arc::clone(&first);
        drop(first);
        assert!(enter(1).is_err(), "the engine has it still");
        drop((also, second));
        enter(3).unwrap();
        assert_eq!(
            enter(4).unwrap_err().code,
            crate::code::Code::InvalidValue,
            "never"
        );
    }

    #[test]
    fn a_key_is_its_tenants() {
        let mut access = Access::open();
        access.tenants.push(Rules {
            name: "b".to_owned(),
            ..Rules::default()
        });
        access.keys = Some(vec![
            (digest(b"one"), 0),
            (digest(b"two"), 1),
            (digest(b"three"), 1),
        ]);
        let t = Tenants::new(access);
        let of = |key: &str| {
            t.caller(Some(key.as_bytes()))
                .map(|c| (c.tenant.0, c.admin))
        };
        assert_eq!(of("one"), Some((0, true)));
        assert_eq!(of("two"), Some((1, false)));
        assert_eq!(of("three"), Some((1, false)));
        assert_eq!(of("four"), None);
        assert_eq!(of(""), None);
        assert_eq!(t.caller(None), None);
        // Where there are no keys, any is as good as none.
        let open = Tenants::new(Access::open());
        assert!(open.caller(None).is_some() && open.caller(Some(b"x")).is_some());
    }

    #[test]
    fn nobody_writes_his_way_into_anothers_prefixes() {
        let t = Tenants::new(Access::open());
        let mut access = Access::open();
        access.shared_prefixes = true;
        let shared = Tenants::new(access);
        let all = [
            t.scope(TenantId(0), None),
            t.scope(TenantId(1), None),
            t.scope(TenantId(0), Some("\u{1}")),
            t.scope(TenantId(1), Some("a")),
            t.scope(TenantId(0), Some("a")),
            shared.scope(TenantId(0), None),
            shared.scope(TenantId(0), Some("a")),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a.salt, b.salt);
            }
        }
        let both = [0, 1].map(|t| shared.scope(TenantId(t), Some("a")));
        assert_eq!(both[0].salt, both[1].salt);
        assert_ne!(both[0].tenant, both[1].tenant);
    }
}
