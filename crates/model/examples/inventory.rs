//! Prints what a checkpoint of a `config.json` stores, one JSON object per tensor.
//!
//!     cargo run --release -p plimsoll-model --example inventory -- config.json
//!
//! Each line has `name`, `dtype` as safetensors spells it, and `shape`. Scripts under `tools/`
//! write header-only checkpoints from it.

#![allow(clippy::print_stdout, reason = "the list is what this program is for")]

use std::error::Error;
use std::io::Write as _;

use plimsoll_model::{Assume, from_config};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: inventory CONFIG")?;
    let spec = from_config(
        &serde_json::from_slice(&std::fs::read(path)?)?,
        Assume::Nothing,
    )?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for tensor in &spec.tensors {
        let dtype = tensor.dtype.name().to_ascii_uppercase();
        for (name, shape) in tensor.stored() {
            let line = serde_json::json!({"name": name, "dtype": dtype, "shape": shape});
            writeln!(out, "{line}")?;
        }
    }
    Ok(out.flush()?)
}
