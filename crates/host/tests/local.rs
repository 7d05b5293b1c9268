//! MODEL arguments that are paths or names: groups I, J and K of the reliability notes, as far as
//! they concern files.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[path = "../../model/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use plimsoll_host::{
    Env, HeaderKind, HostError, Kind, LoadOptions, Loaded, ModelRef, load, locate,
};
use support::{Gguf, LLAMA_CONFIG, f16_file, llama_tensors, safetensors_raw};

/// A folder that is gone after the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plimsoll-local-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn llama(&self) -> &Self {
        self.write("config.json", LLAMA_CONFIG);
        self.write("model.safetensors", f16_file(&llama_tensors()));
        self
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn try_load(path: &Path) -> Result<Loaded, HostError> {
    let options = LoadOptions {
        offline: true,
        ..LoadOptions::new(Env::of([]))
    };
    load(&locate(path.to_str().unwrap())?, &options)
}

fn refused(path: &Path) -> HostError {
    let err = try_load(path).unwrap_err();
    assert!(!err.what.is_empty() && !err.next.is_empty(), "{err:?}");
    err
}

#[test]
fn every_form_of_one_model_gives_the_same_spec() {
    let dir = Dir::new();
    dir.llama();
    let folder = try_load(&dir.0).unwrap();
    assert_eq!(folder.headers, HeaderKind::Safetensors);
    assert_eq!((folder.files.len(), folder.files[0].tensors), (1, 21));
    let config = try_load(&dir.0.join("config.json")).unwrap();
    assert_eq!(config.headers, HeaderKind::None);
    // Header-derived weights equal config-derived ones to the byte.
    assert_eq!(folder.spec.stored_bytes(), config.spec.stored_bytes());
    assert_eq!(folder.spec.tensors, config.spec.tensors);
    let file = try_load(&dir.0.join("model.safetensors")).unwrap();
    assert_eq!(file.spec, folder.spec);
    let gguf = dir.write("x/model.gguf", Gguf::llama().file());
    let gguf = try_load(&gguf).unwrap();
    assert_eq!(gguf.headers, HeaderKind::Gguf);
    assert_eq!(gguf.spec.layers, config.spec.layers);
    assert_eq!(try_load(&dir.0.join("x")).unwrap().spec, gguf.spec);
}

#[test]
fn shards_with_and_without_an_index() {
    let dir = Dir::new();
    dir.write("config.json", LLAMA_CONFIG);
    let tensors = llama_tensors();
    let (a, b) = tensors.split_at(10);
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    dir.write(names[0], f16_file(a));
    dir.write(names[1], f16_file(b));
    dir.write("consolidated.safetensors", f16_file(a));
    let without = try_load(&dir.0).unwrap();
    assert_eq!(without.files.len(), 2);

    let index = |total: u64| {
        let map: Vec<String> = tensors
            .iter()
            .enumerate()
            .map(|(i, (n, _))| format!("\"{n}\":\"{}\"", names[usize::from(i >= 10)]))
            .collect();
        format!(
            r#"{{"metadata":{{"total_size":{total}}},"weight_map":{{{}}}}}"#,
            map.join(",")
        )
    };
    let bytes = without.spec.stored_bytes().unwrap().get();
    let path = dir.write("model.safetensors.index.json", index(bytes));
    let with = try_load(&dir.0).unwrap();
    assert_eq!(with.spec, without.spec);
    assert_eq!(try_load(&path).unwrap().spec, with.spec);
    assert_eq!(
        try_load(&dir.0.join(names[1])).unwrap().spec,
        with.spec,
        "one shard stands for all"
    );

    // A total that is not right is said, not trusted.
    dir.write("model.safetensors.index.json", index(bytes + 1));
    let odd = try_load(&dir.0).unwrap();
    assert!(
        odd.spec
            .notes
            .iter()
            .any(|n| n.contains("the shards count")),
        "{:?}",
        odd.spec.notes
    );

    std::fs::remove_file(dir.0.join(names[1])).unwrap();
    let err = refused(&dir.0);
    assert_eq!(err.kind(), Kind::Corrupt);
    assert!(err.to_string().contains(names[1]), "{err}");
    dir.write(names[1], f16_file(&b[1..]));
    assert!(refused(&dir.0).to_string().contains("does not hold it"));
}

#[test]
fn i7_a_config_and_weights_of_different_models() {
    let dir = Dir::new();
    dir.llama();
    dir.write(
        "config.json",
        LLAMA_CONFIG.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    );
    let err = refused(&dir.0);
    assert_eq!(err.kind(), Kind::Corrupt);
    assert!(
        err.to_string()
            .contains("model.layers.2.self_attn.q_proj.weight"),
        "{err}"
    );
}

#[test]
fn safetensors_need_their_config() {
    let dir = Dir::new();
    let file = dir.write("model.safetensors", f16_file(&llama_tensors()));
    let err = refused(&file);
    assert!(err.to_string().contains("config.json"), "{err}");
    // What is no safetensors file is told first.
    let lfs = dir.write(
        "lfs.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n",
    );
    assert!(refused(&lfs).to_string().contains("Git LFS pointer"));
}

#[test]
fn i1_i2_broken_weights_name_file_and_offset() {
    let dir = Dir::new();
    dir.llama();
    let whole = f16_file(&llama_tensors());
    for (bytes, part) in [
        (whole[..whole.len() - 1].to_vec(), "truncated"),
        (whole[..7].to_vec(), "7 bytes"),
        (whole[..100].to_vec(), "header should be"),
        ([&whole[..], &[0]].concat(), "follow the last tensor"),
        (safetensors_raw("[]", 0), "not with `{`"),
    ] {
        dir.write("model.safetensors", bytes);
        let err = refused(&dir.0);
        assert_eq!(err.kind(), Kind::Corrupt);
        assert!(err.place.contains("model.safetensors, byte "), "{err}");
        assert!(err.why.contains(part), "{err}");
    }
    dir.write("model.safetensors", "");
    assert!(refused(&dir.0).to_string().contains("empty"));
}

#[test]
fn i10_pickles_are_refused_and_never_opened() {
    let dir = Dir::new();
    for name in [
        "pytorch_model.bin",
        "model.pt",
        "model.PTH",
        "x.ckpt",
        "x.pkl",
        "pytorch_model.bin.index.json",
    ] {
        let path = dir.write(name, b"\x80\x02");
        let err = refused(&path);
        assert!(
            err.why.contains("pickle is a program") && err.next.contains("safetensors"),
            "{err:?}"
        );
    }
    // Not there: still the reason, not only that it is missing.
    assert!(
        locate("missing/model.bin")
            .unwrap_err()
            .why
            .contains("pickle")
    );
    // Beside a config they are not needed.
    dir.write("config.json", LLAMA_CONFIG);
    let loaded = try_load(&dir.0).unwrap();
    assert!(
        loaded.spec.notes.iter().any(|n| n.contains("pickles")),
        "{:?}",
        loaded.spec.notes
    );
    // A pickle behind a safetensors file is data after the last tensor.
    let mut bytes = f16_file(&llama_tensors());
    bytes.extend(b"\x80\x02}q\x00.");
    dir.write("model.safetensors", bytes);
    assert!(refused(&dir.0).why.contains("follow the last tensor"));
}

#[test]
fn i11_things_that_are_no_files() {
    let dir = Dir::new();
    dir.llama();
    let err = refused(&dir.write("empty.json", ""));
    assert!(err.to_string().contains("empty"));
    std::fs::create_dir(dir.0.join("model-folder")).unwrap();
    assert_eq!(refused(&dir.0.join("model-folder")).kind(), Kind::NotFound);
    let page = dir.write("page.json", "<!DOCTYPE html><title>404</title>");
    assert!(refused(&page).to_string().contains("web page"));
    let gzip = dir.write("a.gguf", b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert!(refused(&gzip).to_string().contains("gzip"));
    assert!(
        refused(&dir.write("b.gguf", "GG"))
            .to_string()
            .contains("magic")
    );
    assert_eq!(
        refused(Path::new("/nowhere/config.json")).kind(),
        Kind::NotFound
    );
}

#[cfg(unix)]
#[test]
fn i11_pipes_devices_and_sockets_are_not_opened() {
    let dir = Dir::new();
    let fifo = dir.0.join("config.json");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    if made.is_ok_and(|s| s.success()) {
        assert!(refused(&fifo).to_string().contains("named pipe"));
        assert!(refused(&dir.0).to_string().contains("named pipe"));
    }
    let socket = dir.0.join("x.gguf");
    let _keep = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket).to_string().contains("socket"));
    assert!(
        refused(Path::new("/dev/zero"))
            .to_string()
            .contains("device")
    );
}

#[cfg(unix)]
#[test]
fn i9_links_lead_nowhere_outside() {
    use std::os::unix::fs::symlink;
    let dir = Dir::new();
    let outside = Dir::new();
    let weights = outside.write("w.safetensors", f16_file(&llama_tensors()));
    let config = outside.write("c.json", LLAMA_CONFIG);
    // A config may be a link: the hub's cache has nothing else.
    symlink(&config, dir.0.join("config.json")).unwrap();
    assert!(try_load(&dir.0).is_ok());
    symlink(&weights, dir.0.join("model.safetensors")).unwrap();
    let err = refused(&dir.0);
    assert!(err.to_string().contains("link out of its folder"), "{err}");
    std::fs::remove_file(dir.0.join("model.safetensors")).unwrap();
    // A link inside the folder, a broken one, and two that lead to each other.
    dir.write("real/w", f16_file(&llama_tensors()));
    symlink("real/w", dir.0.join("model.safetensors")).unwrap();
    assert_eq!(try_load(&dir.0).unwrap().headers, HeaderKind::Safetensors);
    for target in ["gone", "model.safetensors"] {
        std::fs::remove_file(dir.0.join("model.safetensors")).unwrap();
        symlink(target, dir.0.join("model.safetensors")).unwrap();
        refused(&dir.0);
    }
    symlink("nowhere", dir.0.join("broken.json")).unwrap();
    let err = refused(&dir.0.join("broken.json"));
    assert!(err.to_string().contains("symbolic link"), "{err}");
    // The layout of the hub's cache.
    let repo = Dir::new();
    repo.write("blobs/abc", f16_file(&llama_tensors()));
    repo.write("snapshots/c0/config.json", LLAMA_CONFIG);
    let snapshot = repo.0.join("snapshots/c0");
    symlink("../../blobs/abc", snapshot.join("model.safetensors")).unwrap();
    assert_eq!(
        try_load(&snapshot).unwrap().headers,
        HeaderKind::Safetensors
    );
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    symlink(&weights, snapshot.join("model.safetensors")).unwrap();
    assert!(
        refused(&snapshot)
            .to_string()
            .contains("link out of its folder")
    );
}

#[test]
fn k1_configs_that_are_no_config() {
    let dir = Dir::new();
    let depth = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(17 << 20));
    for (bytes, part) in [
        (&b"\xef\xbb\xbf{}"[..], "byte-order mark"),
        (b"{\"a\":\"\xff\"}", "not UTF-8"),
        (
            b"{\"hidden_size\":1,\"hidden_size\":2}",
            "`hidden_size` occurs twice",
        ),
        (depth.as_bytes(), "recursion limit"),
        (big.as_bytes(), "at most 16777216"),
        (b"{\"a\":", "EOF"),
        (b"[]", "array"),
        (b"null", "null"),
        (b"{}", "model_type"),
    ] {
        let err = refused(&dir.write("config.json", bytes));
        assert_eq!(err.kind(), Kind::Corrupt, "{err}");
        assert!(err.to_string().contains(part), "{part}: {err}");
    }
    for (from, to, part) in [
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 9223372036854775808",
            "num_hidden_layers",
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": null",
            "num_hidden_layers",
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 0",
            "num_attention_heads",
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": \"4\"",
            "num_attention_heads",
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 5",
            "heads",
        ),
        (
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 0",
            "num_key_value_heads",
        ),
        ("\"hidden_size\": 64", "\"hidden_size\": -64", "hidden_size"),
        ("\"hidden_size\": 64", "\"hidden_size\": NaN", "hidden_size"),
        ("LlamaForCausalLM", "NobodyKnowsThis", "llama"),
    ] {
        let text = LLAMA_CONFIG.replace(from, to);
        if to == "NobodyKnowsThis" {
            // model_type still says llama.
            assert!(try_load(&dir.write("config.json", text)).is_ok());
            continue;
        }
        let err = refused(&dir.write("config.json", text));
        assert!(err.to_string().contains(part), "{part}: {err}");
    }
}

#[test]
fn k2_code_of_a_model_folder_is_never_run() {
    let dir = Dir::new();
    let text = LLAMA_CONFIG.replace(
        "\"vocab_size\"",
        "\"auto_map\": {\"AutoModel\": \"evil.py\"}, \"vocab_size\"",
    );
    let loaded = try_load(&dir.write("config.json", text)).unwrap();
    assert!(
        loaded
            .spec
            .notes
            .iter()
            .any(|n| n.contains("auto_map") && n.contains("never run"))
    );
}

#[cfg(unix)]
#[test]
fn unreadable_files_say_so() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = Dir::new();
    let path = dir.write("config.json", LLAMA_CONFIG);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o0)).unwrap();
    // Root reads everything; then there is nothing to see here.
    if std::fs::read(&path).is_err() {
        assert_eq!(refused(&path).kind(), Kind::Forbidden);
    }
}

#[test]
fn i12_a_file_that_shrinks_gives_an_error_with_the_offset() {
    use plimsoll_model::read_at::ReadAt as _;
    let dir = Dir::new();
    let path = dir.write("x", vec![1_u8; 1000]);
    let source = plimsoll_host::FileSource::open(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(500).unwrap();
    let mut buf = [0; 100];
    assert!(source.read_at(400, &mut buf).is_ok());
    let err = source.read_at(450, &mut buf).unwrap_err();
    assert!(
        err.to_string()
            .contains("the file ends at 500; it had 1000 bytes"),
        "{err}"
    );
}

#[test]
fn j_split_gguf_files() {
    let part = |no: u16, names: &[(&str, &[u64])], meta: bool| {
        let mut g = if meta {
            Gguf::decoder("llama", 1, 64, 4, 2, 128)
        } else {
            Gguf::default()
        };
        g = g.u16("split.no", no).u16("split.count", 2).raw(
            b"split.tensors.count",
            5,
            &3_i32.to_le_bytes(),
        );
        for (n, shape) in names {
            g = g.tensor(n, shape, 0);
        }
        g.file()
    };
    let dir = Dir::new();
    let first = dir.write(
        "m-00001-of-00002.gguf",
        part(0, &[("token_embd.weight", &[64, 96])], true),
    );
    let err = refused(&first);
    assert_eq!(err.kind(), Kind::NotFound);
    assert!(err.place.contains("m-00002-of-00002.gguf"), "{err}");
    let rest: &[(&str, &[u64])] = &[
        ("blk.0.attn_k.weight", &[64, 32]),
        ("output_norm.weight", &[64]),
    ];
    let second = dir.write("m-00002-of-00002.gguf", part(1, rest, false));
    for path in [&first, &second, &dir.0] {
        let loaded = try_load(path).unwrap();
        assert_eq!((loaded.files.len(), loaded.spec.tensors.len()), (2, 3));
    }
    dir.write("m-00002-of-00002.gguf", part(0, rest, false));
    assert!(refused(&first).to_string().contains("should be part 2"));
    std::fs::rename(&first, dir.0.join("renamed.gguf")).unwrap();
    assert!(
        refused(&dir.0.join("renamed.gguf"))
            .to_string()
            .contains("such a file is called")
    );
}

#[test]
fn names_are_found_or_guessed_at() {
    assert!(matches!(locate("llama-13b"), Ok(ModelRef::BuiltIn(_))));
    assert!(matches!(locate("LLAMA-13B"), Ok(ModelRef::BuiltIn(_))));
    assert!(matches!(locate("some/model@main"), Ok(ModelRef::Hub(_))));
    let err = locate("lama-13b").unwrap_err();
    assert_eq!(err.kind(), Kind::NotFound);
    assert!(
        err.next.contains("did you mean") && err.next.contains("llama-13b"),
        "{err:?}"
    );
    // What is called after a model, and what nothing is called.
    let next = |name: &str| locate(name).unwrap_err().next;
    assert!(next("kimi-k2-preview-0905").contains("`kimi-k2`"));
    assert!(next("metaphor").starts_with("give a built-in name"));
    let err = locate("gpt-4").unwrap_err();
    assert!(
        err.what.contains("no shape of gpt-4 has been published"),
        "{err}"
    );
    for path in [
        "./nothing",
        "/nowhere",
        "nothing.json",
        "x/nothing.gguf",
        "~/x",
        "../x",
    ] {
        assert_eq!(locate(path).unwrap_err().kind(), Kind::NotFound, "{path}");
    }
    assert_eq!(locate("").unwrap_err().kind(), Kind::Usage);
    let err = locate("a\u{1b}[31m\nb").unwrap_err();
    assert!(
        !err.to_string().contains('\u{1b}') && !err.to_string().contains('\n'),
        "{err:?}"
    );
    assert!(locate("a\0b").is_err() && locate(&"x".repeat(100_000)).is_err());
}

#[test]
fn k7_offline_opens_no_socket() {
    // The endpoint is a port that nobody listens on: a connection would be refused, a kind apart.
    let env = Env::of([
        ("HF_ENDPOINT", "http://127.0.0.1:9"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_HOME", "/nonexistent"),
    ]);
    let err = load(&locate("org/name").unwrap(), &LoadOptions::new(env)).unwrap_err();
    assert_eq!(err.kind(), Kind::Offline);
    assert!(err.to_string().contains("HF_HUB_OFFLINE"), "{err}");
}
