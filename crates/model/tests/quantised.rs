//! Quantised checkpoints: names, shapes and types against the libraries that define the layouts.
//!
//! The golden files are written by `tools/oracles/quant_shapes.py`.

mod inventory;

use inventory::{Inventory, differences, expected, golden_files, inventory, read};
use plimsoll_model::{Assume, from_config};

/// bitsandbytes stores a JSON text beside each matrix, in which the offset of a nested scale has as
/// many digits as it needs: such a tensor's length is compared to a few bytes, and then made equal.
fn level_texts(want: &Inventory, have: &mut Inventory) {
    for (name, (shape, _)) in have.iter_mut() {
        if let (true, Some((w, _))) = (name.contains("quant_state"), want.get(name))
            && shape[0].abs_diff(w[0]) <= if name.contains("nf4") { 4 } else { 0 }
        {
            shape.clone_from(w);
        }
    }
}

#[test]
fn layouts_equal_their_libraries() {
    let files = golden_files("quantised");
    assert!(files.len() >= 28, "{} layouts", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let golden = read(&path);
        let want = expected(&golden["tensors"]);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match from_config(&golden["config"], Assume::Nothing) {
            Ok(spec) => {
                let mut have = inventory(&spec);
                level_texts(&want, &mut have);
                let found = differences(&want, &have);
                if !found.is_empty() {
                    wrong.push(format!("{name}:\n    {}", found.join("\n    ")));
                }
            }
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
