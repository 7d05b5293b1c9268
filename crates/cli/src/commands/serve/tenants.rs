//! `--tenants FILE`: who may come, with which keys, and how much of the server each may have.

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll_schedule::Tenant;
use plimsoll_server::{Access, KeyDigest, Keys, Rules, digest};
use plimsoll_units::Bytes;
use serde::Deserialize;

use crate::error::{Exit, Failure};

/// Largest file that is read.
const MAX_FILE: u64 = 4 << 20;
/// Most tenants: each is a label in metrics.
const MAX_TENANTS: usize = 1024;

/// A table of the file; its name is the tenant's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    #[serde(default)]
    keys: Vec<String>,
    /// SHA-256 of keys, in hexadecimal digits: then the file is no secret.
    #[serde(default)]
    keys_sha256: Vec<String>,
    kv_floor: Option<String>,
    kv_cap: Option<String>,
    max_requests: Option<u32>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    #[serde(default)]
    admin: bool,
}

/// A part of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Share {
    Bytes(Bytes),
    Percent(f64),
}

impl Share {
    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size such as 2GiB, and no part such as 25%");
        match text.trim().strip_suffix('%') {
            None => text.parse().map(Self::Bytes).map_err(|_| wrong()),
            Some(number) => {
                let percent: f64 = number.trim().parse().map_err(|_| wrong())?;
                let fits = (0.0..=100.0).contains(&percent);
                fits.then_some(Self::Percent(percent)).ok_or_else(wrong)
            }
        }
    }

    /// In pages of a pool, and a part of one.
    #[allow(
        clippy::cast_precision_loss,
        reason = "pages are u32, sizes are rounded"
    )]
    fn pages(self, pool: u32, page: Bytes) -> f64 {
        match self {
            Self::Bytes(bytes) => bytes.get() as f64 / page.get().max(1) as f64,
            Self::Percent(percent) => f64::from(pool) * percent / 100.0,
        }
    }
}

/// What a file says, checked as far as it can be without the model.
#[derive(Debug)]
pub(crate) struct Tenants {
    rules: Vec<Rules>,
    shares: Vec<(Option<Share>, Option<Share>)>,
    keys: Keys,
}

impl Tenants {
    /// Reads a file; with a key from elsewhere, whoever has that is one more tenant, who may do anything.
    pub(crate) fn read(path: &Path, key: Option<&str>) -> Result<Self, Failure> {
        let bad = |what: String| {
            Failure::new(
                Exit::Config,
                "E-TENANT-001",
                format!("{}: {what}", path.display()),
            )
            .hint("README.md shows such a file, under \"Tenants\"")
        };
        let size = std::fs::metadata(path).map(|m| m.len());
        let text = match size {
            Ok(n) if n > MAX_FILE => return Err(bad(format!("{n} bytes are too many"))),
            _ => std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?,
        };
        let tables: BTreeMap<String, Table> = toml::from_str(&text).map_err(|e| {
            // Not the text of the error: it shows the line, and keys may be in it.
            let before = e
                .span()
                .and_then(|s| text.get(..s.start))
                .unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            bad(format!("line {line}: {}", without_values(e.message())))
        })?;
        Self::of(tables, key).map_err(bad)
    }

    fn of(tables: BTreeMap<String, Table>, key: Option<&str>) -> Result<Self, String> {
        let mut all = Self {
            rules: Vec::new(),
            shares: Vec::new(),
            keys: Vec::new(),
        };
        if let Some(key) = key {
            let Access { tenants, keys, .. } = Access::key(key);
            all.rules = tenants;
            all.keys = keys.unwrap_or_default();
            all.shares.push((None, None));
        }
        if tables.is_empty() {
            return Err("there are no tenants".to_owned());
        }
        if tables.len() + all.rules.len() > MAX_TENANTS {
            return Err(format!("there are more than {MAX_TENANTS} tenants"));
        }
        for (name, table) in tables {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
                return Err(format!(
                    "{name:?} is no name: use 1 to 64 letters, digits, dots, dashes and underscores"
                ));
            }
            let place = u16::try_from(all.rules.len()).map_err(|_| "too many tenants")?;
            if all.rules.iter().any(|r| r.name == name) {
                return Err(format!(
                    "{name} is whoever has --api-key: choose another name"
                ));
            }
            for digest in table.digests(&name)? {
                if let Some((_, other)) = all.keys.iter().find(|k| k.0 == digest) {
                    let other = all
                        .rules
                        .get(usize::from(*other))
                        .map_or(&name, |r| &r.name);
                    return Err(format!("a key of {name} is one of {other} already"));
                }
                all.keys.push((digest, place));
            }
            let share = |what: &str, text: &Option<String>| {
                let read = text.as_deref().map(Share::read).transpose();
                read.map_err(|e| format!("{what} of {name}: {e}"))
            };
            all.shares.push((
                share("kv-floor", &table.kv_floor)?,
                share("kv-cap", &table.kv_cap)?,
            ));
            let zero = [
                ("max-requests", table.max_requests == Some(0)),
                ("requests-per-minute", table.requests_per_minute == Some(0)),
                ("tokens-per-minute", table.tokens_per_minute == Some(0)),
            ];
            if let Some((what, _)) = zero.into_iter().find(|z| z.1) {
                return Err(format!("{what} of {name} is 0: take its keys out instead"));
            }
            all.rules.push(Rules {
                name,
                admin: table.admin,
                max_requests: table.max_requests,
                requests_per_minute: table.requests_per_minute,
                tokens_per_minute: table.tokens_per_minute,
            });
        }
        Ok(all)
    }

    /// Their rights to the pages of a pool.
    pub(crate) fn shares(&self, pool: u32, page: Bytes) -> Result<Vec<Tenant>, Failure> {
        let bad = |what: String| {
            Failure::new(Exit::Config, "E-TENANT-002", what)
                .why(format!("the KV cache has {pool} pages of {page}"))
                .hint("change the tenants' file, or `--kv-memory`")
        };
        let mut all = Vec::with_capacity(self.rules.len());
        let mut floors = 0_u64;
        for (rules, (floor, cap)) in self.rules.iter().zip(&self.shares) {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "beyond the range, `as` stops at its ends"
            )]
            let (floor, cap) = (
                floor.map_or(0, |f| f.pages(pool, page).ceil() as u32),
                cap.map_or(u32::MAX, |c| c.pages(pool, page).floor() as u32),
            );
            let name = &rules.name;
            if cap == 0 {
                return Err(bad(format!("kv-cap of {name} is less than a page")));
            }
            if floor > cap {
                return Err(bad(format!(
                    "kv-floor of {name} is {floor} pages, above its kv-cap of {cap}"
                )));
            }
            floors += u64::from(floor);
            all.push(Tenant { floor, cap });
        }
        if floors > u64::from(pool) {
            return Err(bad(format!(
                "the floors of all tenants are {floors} pages together"
            )));
        }
        Ok(all)
    }

    pub(crate) fn access(&self) -> Access {
        Access {
            tenants: self.rules.clone(),
            keys: Some(self.keys.clone()),
            ..Access::open()
        }
    }

    /// The keys of a file that was read again: only they may have changed.
    pub(crate) fn new_keys(&self, new: Self) -> Result<Keys, String> {
        if new.rules != self.rules || new.shares != self.shares {
            return Err(
                "only keys can change while the server runs: restart it for the rest".to_owned(),
            );
        }
        Ok(new.keys)
    }
}

impl Table {
    fn digests(&self, name: &str) -> Result<Vec<KeyDigest>, String> {
        let mut all = Vec::new();
        for key in &self.keys {
            // A header can carry no other.
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!(
                    "a key of {name} is empty, or has characters that no header carries"
                ));
            }
            all.push(digest(key.as_bytes()));
        }
        for text in &self.keys_sha256 {
            let digest = hex(text).ok_or_else(|| {
                format!("keys-sha256 of {name}: a digest has 64 hexadecimal digits")
            })?;
            all.push(digest);
        }
        Ok(all)
    }
}

fn hex(text: &str) -> Option<KeyDigest> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// A parser's message without what stands in quotes there: it may be a key.
fn without_values(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) => format!("{}...{}", &message[..first], &message[last + 1..]),
        _ => message.to_owned(),
    }
}

/// Whether others than the owner may read a file with keys.
#[cfg(unix)]
pub(crate) fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Tenants, String> {
        let tables = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        Tenants::of(tables, None)
    }

    #[test]
    fn shares_are_whole_pages() {
        let t = read("[a]\nkv-floor = '10%'\nkv-cap = '3MiB'\n[b]\nkv-floor = '1'\n[c]\n").unwrap();
        let page = Bytes::new(1 << 20);
        let shares = t.shares(25, page).unwrap();
        // A promise is kept in full, a limit is never passed.
        assert_eq!(shares[0], Tenant { floor: 3, cap: 3 });
        assert_eq!(
            shares[1],
            Tenant {
                floor: 1,
                cap: u32::MAX
            }
        );
        assert_eq!(shares[2], Tenant::FREE);
        let refused = |text: &str| read(text).unwrap().shares(25, page).unwrap_err().what;
        assert!(refused("[a]\nkv-floor='60%'\n[b]\nkv-floor='60%'").contains("together"));
        assert!(refused("[a]\nkv-floor='60%'\nkv-cap='20%'").contains("above"));
        assert!(refused("[a]\nkv-cap='1kB'").contains("less than a page"));
    }

    #[test]
    fn mistakes_are_told_without_keys() {
        let wrong = |text: &str, says: &str| {
            let e = read(text).unwrap_err();
            assert!(e.contains(says), "{e}");
            assert!(!e.contains("secret"), "{e}");
        };
        wrong("", "no tenants");
        wrong(
            "[a]\nkeys=['secret']\n[b]\nkeys=['secret']",
            "is one of a already",
        );
        wrong("[a]\nkeys=['secret', 'secret']", "is one of a already");
        wrong("[a]\nkeys=['a secret']", "no header");
        wrong("[a]\nkeys=['']", "empty");
        wrong("[a]\nkeys-sha256=['secret']", "64 hexadecimal");
        wrong(
            "[a]\nkv-floor='secretly'"
                .replace("secretly", "101%")
                .as_str(),
            "no size",
        );
        wrong("[a]\nkv-cap='NaN%'", "no size");
        wrong("['a b']\n", "is no name");
        wrong("[a]\nmax-requests=0", "is 0");
        wrong("[a]\nlimit=1", "unknown field");
        let typed = r#"invalid type: string "x\"y", expected u32"#;
        assert_eq!(
            without_values(typed),
            "invalid type: string ..., expected u32"
        );
    }

    #[test]
    fn a_digest_is_as_good_as_its_key() {
        let of = |text: &str| read(text).unwrap().keys;
        let hex: String = digest(b"k").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            of("[a]\nkeys=['k']"),
            of(&format!("[a]\nkeys-sha256=['{hex}']"))
        );
    }

    #[test]
    fn only_keys_change_while_it_runs() {
        let old = read("[a]\nkeys=['k']\n[b]\nkeys=['l']").unwrap();
        let keys = old
            .new_keys(read("[a]\n[b]\nkeys=['m', 'k']").unwrap())
            .unwrap();
        assert_eq!(keys, vec![(digest(b"m"), 1), (digest(b"k"), 1)]);
        assert!(
            old.new_keys(read("[a]\nkv-cap='1GiB'\n[b]").unwrap())
                .is_err()
        );
        assert!(old.new_keys(read("[a]").unwrap()).is_err());
    }
}
