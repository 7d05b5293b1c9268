//! Lists the files of `src/families/`, so that adding a family is adding one file.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    let dir = Path::new("src/families");
    println!("cargo::rerun-if-changed=src/families");
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("src/families exists in the source tree")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
        .filter(|name| name != "mod")
        .collect();
    names.sort();
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut text = String::new();
    for name in &names {
        let path = Path::new(&root).join(dir).join(format!("{name}.rs"));
        writeln!(text, "#[path = {path:?}]\nmod {name};").expect("writing to a String cannot fail");
    }
    writeln!(
        text,
        "/// Every family, in the order of the file names.\npub static FAMILIES: &[Family] = &["
    )
    .expect("writing to a String cannot fail");
    for name in &names {
        writeln!(text, "    {name}::FAMILY,").expect("writing to a String cannot fail");
    }
    text.push_str("];\n");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("families.rs"), text).expect("OUT_DIR is writable");
}
