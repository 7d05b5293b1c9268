//! What tests share, those in `tests/` too: folders, and small model files written by hand.

#![allow(dead_code, reason = "each use needs a part")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of its own, removed in the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plimsoll-runtime-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a safetensors file: name, type, shape, data.
    pub(crate) fn safetensors(&self, name: &str, tensors: &[(&str, &str, &[u64], Vec<u8>)]) {
        let mut header = serde_json::Map::new();
        let mut data: Vec<u8> = Vec::new();
        for (name, dtype, shape, bytes) in tensors {
            let begin = data.len();
            data.extend(bytes);
            let entry = serde_json::json!({
                "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()],
            });
            header.insert((*name).to_owned(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(data);
        std::fs::write(self.0.join(name), file).unwrap();
    }

    /// Writes a GGUF file: metadata; then name, ggml's number of the type, shape (outermost first), data.
    pub(crate) fn gguf(
        &self,
        name: &str,
        metadata: &[(&str, Meta)],
        tensors: &[(&str, u32, &[u64], Vec<u8>)],
    ) {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            string(&mut out, key);
            value.write(&mut out);
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, kind, shape, bytes) in tensors {
            string(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            for d in shape.iter().rev() {
                out.extend(d.to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        std::fs::write(self.0.join(name), out).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A metadata value of a GGUF file.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
}

impl Meta {
    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(9_u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(n) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Self::F32(x) => {
                out.extend(6_u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Self::Bool(b) => {
                out.extend(7_u32.to_le_bytes());
                out.push((*b).into());
            }
            Self::Text(s) => {
                out.extend(8_u32.to_le_bytes());
                string(out, s);
            }
            Self::Texts(all) => {
                array(out, 8, all.len());
                for s in all {
                    string(out, s);
                }
            }
            Self::Floats(all) => {
                array(out, 6, all.len());
                out.extend(all.iter().flat_map(|x| x.to_le_bytes()));
            }
            Self::Ints(all) => {
                array(out, 5, all.len());
                out.extend(all.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// A fixed sequence of numbers around 0.
pub(crate) fn numbers(seed: u64, n: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32 / (1_u64 << 23) as f32) - 1.0
        })
        .collect()
}
