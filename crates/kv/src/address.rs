//! Content addresses: what a block holds, as a keyed hash chained from the sequence's start.
//!
//! The key is secret per process, so that nobody can construct a prompt that collides with another's. The tokens of a
//! block are compared on every hit as well; what came before it, and states, are told apart by addresses alone. Each group has a chain of its own, rooted in everything
//! that changes keys and values besides the tokens: tenant salt, adapter, cache type, model and media.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::layout::Layout;
use crate::planted::{self, Bug};
use crate::table::TenantId;

/// What besides its tokens decides a prompt's keys and values, and who may share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Whose it is; charged for what it holds.
    pub tenant: TenantId,
    /// Sharing stays among equal salts. Tenants that must not see each other's prefixes have different
    /// ones.
    pub salt: Vec<u8>,
    /// Which adapter computes it.
    pub adapter: Option<u64>,
    /// Digests of images or sounds in the prompt.
    pub media: Vec<[u8; 32]>,
}

/// The addresses of a prompt's full blocks, group by group; computed once per request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptKeys {
    pub(crate) groups: Vec<Vec<u128>>,
    pub(crate) tokens: u32,
}

/// Computes addresses under one process's key.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    key: [u8; 16],
    fingerprint: Vec<u8>,
}

fn field(h: &mut SipHasher13, bytes: &[u8]) {
    h.write_u64(bytes.len() as u64);
    h.write(bytes);
}

impl Addresses {
    pub(crate) fn new(key: [u8; 16], fingerprint: Vec<u8>) -> Self {
        Self { key, fingerprint }
    }

    /// The start of `group`'s chain. Every field is length-prefixed: no two scopes write alike.
    pub(crate) fn root(&self, scope: &Scope, group: usize) -> u128 {
        let mut h = SipHasher13::new_with_key(&self.key);
        field(&mut h, &self.fingerprint);
        if !planted::is(Bug::AddressIgnoresSalt) {
            field(&mut h, &scope.salt);
        }
        match scope.adapter {
            Some(a) => field(&mut h, &a.to_le_bytes()),
            None => field(&mut h, &[]),
        }
        h.write_u64(scope.media.len() as u64);
        for m in &scope.media {
            h.write(m);
        }
        h.write_u64(group as u64);
        h.finish128().as_u128()
    }

    /// The address of a block of `tokens` after `parent`.
    pub(crate) fn child(&self, parent: u128, tokens: &[u32]) -> u128 {
        let mut h = SipHasher13::new_with_key(&self.key);
        if !planted::is(Bug::AddressIgnoresParent) {
            h.write(&parent.to_le_bytes());
        }
        h.write_u64(tokens.len() as u64);
        let mut buffer = [0_u8; 64];
        for chunk in tokens.chunks(16) {
            for (bytes, t) in buffer.chunks_exact_mut(4).zip(chunk) {
                bytes.copy_from_slice(&t.to_le_bytes());
            }
            h.write(&buffer[..chunk.len() * 4]);
        }
        h.finish128().as_u128()
    }

    pub(crate) fn keys(&self, layout: &Layout, scope: &Scope, tokens: &[u32]) -> PromptKeys {
        let groups = layout
            .groups
            .iter()
            .enumerate()
            .map(|(g, group)| {
                let step = block_tokens(layout, group) as usize;
                let mut parent = self.root(scope, g);
                tokens
                    .chunks_exact(step)
                    .map(|block| {
                        parent = self.child(parent, block);
                        parent
                    })
                    .collect()
            })
            .collect();
        PromptKeys {
            groups,
            tokens: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Tokens between two addresses of a group's chain: its block, or the unit for a state.
pub(crate) fn block_tokens(layout: &Layout, group: &crate::layout::GroupLayout) -> u32 {
    if group.is_state() {
        layout.unit
    } else {
        group.slots.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_decides_keys_and_values_changes_the_address() {
        let of =
            |key: u8, fingerprint: &[u8], scope: &Scope, group, parents: &[u32], last: &[u32]| {
                let a = Addresses::new([key; 16], fingerprint.to_vec());
                let parent = a.child(a.root(scope, group), parents);
                a.child(parent, last)
            };
        let scope = Scope::default();
        let with = |change: &dyn Fn(&mut Scope)| {
            let mut scope = Scope::default();
            change(&mut scope);
            scope
        };
        let salt = |s: &[u8]| with(&|scope| scope.salt = s.to_vec());
        let mut all = vec![
            of(0, b"f", &scope, 0, &[1, 2], &[3]),
            of(1, b"f", &scope, 0, &[1, 2], &[3]),
            of(0, b"g", &scope, 0, &[1, 2], &[3]),
            of(0, b"f", &scope, 1, &[1, 2], &[3]),
            of(0, b"f", &scope, 0, &[2, 1], &[3]),
            of(0, b"f", &scope, 0, &[1, 2], &[4]),
            // The same tokens, cut elsewhere.
            of(0, b"f", &scope, 0, &[1], &[2, 3]),
            of(0, b"f", &salt(b"a"), 0, &[1, 2], &[3]),
            of(0, b"fa", &scope, 0, &[1, 2], &[3]),
            of(0, b"fa", &salt(b"b"), 0, &[1, 2], &[3]),
            of(0, b"f", &salt(b"ab"), 0, &[1, 2], &[3]),
            of(0, b"f", &with(&|s| s.adapter = Some(0)), 0, &[1, 2], &[3]),
            of(0, b"f", &with(&|s| s.adapter = Some(1)), 0, &[1, 2], &[3]),
            of(
                0,
                b"f",
                &with(&|s| s.media = vec![[0; 32]]),
                0,
                &[1, 2],
                &[3],
            ),
            of(
                0,
                b"f",
                &with(&|s| s.media = vec![[0; 32]; 2]),
                0,
                &[1, 2],
                &[3],
            ),
        ];
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }
}
