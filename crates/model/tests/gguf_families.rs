//! GGUF headers of published shapes against the families: the inventory that a family gives for the
//! config made of a header's metadata must hold, role by role, the elements that the header holds.
//!
//! The headers are written by `tools/oracles/gguf_headers.py` from files that llama.cpp itself loads;
//! neither side knows of the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll_model::gguf::{self, Header};
use plimsoll_model::read_at::{ReadAt, ReadError};
use plimsoll_model::{Assume, ModelSpec, from_config};

/// The header of a file whose data is not there.
struct Headless {
    size: u64,
    head: Vec<u8>,
}

impl ReadAt for Headless {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(0);
        let have = &self.head[(offset as usize).min(self.head.len())..];
        let n = have.len().min(buf.len());
        buf[..n].copy_from_slice(&have[..n]);
        Ok(())
    }
}

/// Gemma 4's scalar of each layer, which llama.cpp takes as given and the oracle's files leave out, and the divisors of
/// angles, which are the converter's own.
const ONE_SIDED: [&str; 2] = ["layer_scalar", "rope_freqs.weight"];

fn elements(spec: &ModelSpec) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    let both = |name: &str| !ONE_SIDED.iter().any(|end| name.ends_with(end));
    for t in spec.tensors.iter().filter(|t| both(&t.name)) {
        *sums.entry(t.role.name()).or_insert(0) += t.elements().unwrap() * t.copies();
    }
    sums
}

#[test]
fn families_and_files_agree_role_by_role() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
    let (mut agree, mut refused) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        let (size, head) = bytes.split_first_chunk::<8>().unwrap();
        let source = Headless {
            size: u64::from_le_bytes(*size),
            head: head.to_vec(),
        };
        let header = Header::read(&source).unwrap();
        assert_eq!(header.data_start, head.len() as u64, "{name}");
        let data: u64 = header
            .tensors
            .iter()
            .map(|t| (t.end - t.begin).next_multiple_of(header.alignment))
            .sum();
        assert_eq!(header.data_start + data, source.size, "{name}");
        let (config, spec) = match gguf::spec(&header, Assume::Nothing) {
            Ok(both) => both,
            Err(err) => {
                refused.push((name, err.to_string()));
                continue;
            }
        };
        let family = from_config(&config, Assume::Nothing).unwrap();
        assert_eq!(elements(&family), elements(&spec), "{name}");
        if !name.starts_with("gemma-4") {
            assert_eq!(family.parameters(), spec.parameters(), "{name}");
        }
        assert_eq!(family.layers, spec.layers, "{name}");
        assert_eq!(
            family.tied_embeddings,
            header.tensor("output.weight").is_none(),
            "{name}"
        );
        agree.push(name);
    }
    assert!(agree.len() >= 23, "{agree:?}");
    assert!(refused.is_empty(), "{refused:?}");
}
