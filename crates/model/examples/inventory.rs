//! Prints what a `config.json` says that its checkpoint stores, one JSON object per tensor.
//!
//! `cargo run -p plimsoll-model --example inventory -- config.json [--all]`: name, shape, type, bytes
//! and role, experts written out. The multi-token-prediction layers, which transformers neither
//! loads nor writes, only with `--all`.

use std::io::{BufWriter, Write as _};

use plimsoll_model::{Assume, Role, from_config};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut path = None;
    let mut all = false;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--all" => all = true,
            _ => path = Some(arg),
        }
    }
    let path = path.ok_or("usage: inventory CONFIG.JSON [--all]")?;
    let config = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let spec = from_config(&config, Assume::Nothing)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for tensor in &spec.tensors {
        if tensor.role == Role::Mtp && !all {
            continue;
        }
        for (name, shape) in tensor.stored() {
            let elements = shape
                .iter()
                .try_fold(1_u64, |n, d| n.checked_mul(*d))
                .ok_or("too large")?;
            let row = serde_json::json!({
                "name": name,
                "shape": shape,
                "dtype": tensor.dtype.name(),
                "bytes": tensor.row_bytes(elements)?.get(),
                "role": tensor.role.name(),
            });
            writeln!(out, "{row}")?;
        }
    }
    Ok(())
}
