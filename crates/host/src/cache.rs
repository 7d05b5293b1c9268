//! What was computed once and is kept for the next start: files under the user's cache folder, each named by what it was
//! made from. Nothing depends on them.

use std::path::PathBuf;

use ring::digest::{Context, SHA256, digest};

use crate::env::Env;

/// The name of what is made from these parts.
#[must_use]
pub fn name(kind: &str, parts: &[&str]) -> String {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hex: String = hash
        .finish()
        .as_ref()
        .iter()
        .take(16)
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("{kind}-{hex}")
}

/// `$XDG_CACHE_HOME/plimsoll`, or `~/.cache/plimsoll`.
fn folder(env: &Env) -> Option<PathBuf> {
    let caches = env.path("XDG_CACHE_HOME");
    let caches = caches.or_else(|| env.home().map(|h| h.join(".cache")));
    Some(caches?.join("plimsoll"))
}

/// What was kept under a name, whole: its digest lies before it.
#[must_use]
pub fn read(env: &Env, name: &str) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(folder(env)?.join(name)).ok()?;
    let (sum, rest) = bytes.split_at_checked(32)?;
    let whole = digest(&SHA256, rest).as_ref() == sum;
    whole.then(|| bytes.split_off(32))
}

/// Keeps it; where that fails, nothing is kept.
pub fn write(env: &Env, name: &str, bytes: &[u8]) {
    let Some(folder) = folder(env) else { return };
    let path = folder.join(name);
    // Whoever reads meanwhile finds the old one, or this one, whole.
    let part = folder.join(format!("{name}.{}", std::process::id()));
    let all = [digest(&SHA256, bytes).as_ref(), bytes].concat();
    let kept = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&part, all))
        .and_then(|()| std::fs::rename(&part, &path));
    if kept.is_err() {
        std::fs::remove_file(&part).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("plimsoll-cache-{}", std::process::id()));
        let text = folder.to_string_lossy().into_owned();
        let env = Env::of([("XDG_CACHE_HOME", text.as_str())]);
        let names = [name("kernels", &["ab", "c"]), name("kernels", &["a", "bc"])];
        assert_ne!(names[0], names[1]);
        assert_eq!(read(&env, &names[0]), None);
        write(&env, &names[0], b"code");
        assert_eq!(read(&env, &names[0]).as_deref(), Some(&b"code"[..]));
        assert_eq!(read(&env, &names[1]), None);
        let path = folder.join("plimsoll").join(&names[0]);
        for damage in [&b"cod"[..], b"", b"x"] {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(if damage.is_empty() { 0 } else { 32 });
            bytes.extend(damage);
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read(&env, &names[0]), None);
        }
        std::fs::remove_dir_all(&folder).ok();
    }
}
