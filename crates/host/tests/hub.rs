//! The hub client against a server of our own on this machine: never the live hub.
//!
//! Group K of the reliability notes, the remote lines of group J, and the cache's layout.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod server;
#[path = "../../model/tests/support/mod.rs"]
mod support;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use plimsoll_host::{HeaderKind, HostError, Kind, load, locate};
use server::{Answer, COMMIT, Files, Home, Seen, Server, files, hub, repository, serve};
use support::{Gguf, LLAMA_CONFIG, f16_file, llama_tensors};

/// The error of a server that answers everything like this.
fn refused(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> HostError {
    let err = Home::new()
        .load(&Server::new(handler), "org/name")
        .unwrap_err();
    assert!(!err.next.is_empty(), "{err:?}");
    err
}

#[test]
fn a_model_costs_a_few_kilobytes_and_is_then_cached() {
    let (home, server) = (Home::new(), hub(files()));
    let loaded = home.load(&server, "org/name").unwrap();
    assert_eq!(loaded.headers, HeaderKind::Safetensors);
    assert!(loaded.spec.from_headers);
    assert_eq!(
        loaded.files[0].size,
        f16_file(&llama_tensors()).len() as u64
    );
    assert!(loaded.traffic < 100_000, "{} bytes", loaded.traffic);
    assert!(
        loaded.origin.contains("org/name@0123456789ab"),
        "{}",
        loaded.origin
    );
    let n = server.requests().len();
    assert_eq!(n, 3, "config, index, header");

    // The second time nobody is asked; offline neither.
    let again = home.load(&server, "org/name").unwrap();
    assert_eq!((again.spec.clone(), again.traffic), (loaded.spec, 0));
    let mut offline = home.options(&server, &[]);
    offline.offline = true;
    assert_eq!(
        load(&locate("org/name").unwrap(), &offline).unwrap().spec,
        again.spec
    );
    assert_eq!(server.requests().len(), n);
    // Unless that is asked for.
    let mut refresh = home.options(&server, &[]);
    refresh.refresh = true;
    load(&locate("org/name").unwrap(), &refresh).unwrap();
    assert!(server.requests().len() > n);
}

#[cfg(unix)]
#[test]
fn the_cache_is_laid_out_as_the_python_library_does() {
    let (home, server) = (Home::new(), hub(files()));
    home.load(&server, "org/name").unwrap();
    let repo = home.0.join("hub/models--org--name");
    assert_eq!(
        std::fs::read_to_string(repo.join("refs/main")).unwrap(),
        COMMIT
    );
    let link = repo.join("snapshots").join(COMMIT).join("config.json");
    assert_eq!(
        std::fs::read_link(&link).unwrap(),
        PathBuf::from("../../blobs/abc123")
    );
    assert_eq!(std::fs::read_to_string(&link).unwrap(), LLAMA_CONFIG);
    assert_eq!(
        std::fs::read_to_string(repo.join("blobs/abc123")).unwrap(),
        LLAMA_CONFIG
    );
    assert!(
        home.0
            .join("plimsoll/headers/models--org--name")
            .join(COMMIT)
            .join("model.safetensors")
            .is_file()
    );
    // No temporary file is left.
    for dir in ["blobs", "refs"] {
        for entry in std::fs::read_dir(repo.join(dir)).unwrap() {
            assert!(
                !entry
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with('.')
            );
        }
    }
}

#[test]
fn what_others_downloaded_is_found() {
    let home = Home::new();
    let snapshot = home.0.join("hub/models--org--name/snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(home.0.join("hub/models--org--name/refs/refs/pr")).unwrap();
    for (name, bytes) in files() {
        std::fs::write(snapshot.join(name), bytes).unwrap();
    }
    // The library writes no line end; somebody's editor did.
    std::fs::write(
        home.0.join("hub/models--org--name/refs/refs/pr/1"),
        format!("{COMMIT}\n"),
    )
    .unwrap();
    let server = Server::new(|_| Answer::new("500 Oops"));
    for model in [
        format!("org/name@{COMMIT}"),
        "org/name@refs/pr/1".to_owned(),
    ] {
        assert_eq!(
            home.load(&server, &model).unwrap().headers,
            HeaderKind::Safetensors
        );
    }
    assert!(server.requests().is_empty());
    // A revision that is not cached is asked for.
    assert_eq!(
        home.load(&server, "org/name").unwrap_err().kind(),
        Kind::Temporary
    );
    // Without the weights, offline: the config alone, and that is said.
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let mut options = home.options(&server, &[]);
    options.offline = true;
    let loaded = load(&locate(&format!("org/name@{COMMIT}")).unwrap(), &options).unwrap();
    assert_eq!(loaded.headers, HeaderKind::None);
    assert!(
        loaded.spec.notes.iter().any(|n| n.contains("not cached")),
        "{:?}",
        loaded.spec.notes
    );
}

#[test]
fn shards_are_read_by_their_headers() {
    let tensors = llama_tensors();
    let (a, b) = tensors.split_at(9);
    let map: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(i, (n, _))| {
            format!(
                "\"{n}\":\"model-0000{}-of-00002.safetensors\"",
                1 + usize::from(i >= 9)
            )
        })
        .collect();
    let mut all = files();
    all.remove("model.safetensors");
    all.insert(
        "model.safetensors.index.json",
        format!("{{\"weight_map\":{{{}}}}}", map.join(",")).into_bytes(),
    );
    all.insert("model-00001-of-00002.safetensors", f16_file(a));
    all.insert("model-00002-of-00002.safetensors", f16_file(b));
    let (home, server) = (Home::new(), hub(all.clone()));
    let loaded = home.load(&server, "org/name").unwrap();
    assert_eq!(loaded.files.len(), 2);
    assert_eq!(server.requests().len(), 4);
    assert_eq!(home.load(&server, "org/name").unwrap().spec, loaded.spec);
    assert_eq!(server.requests().len(), 4);

    // Headers that would cost too much are left out, and that is said.
    let mut options = Home::new().options(&hub(all.clone()), &[]);
    options.traffic = 3000;
    let server = hub(all.clone());
    options.env = Home::new().options(&server, &[]).env;
    let poor = load(&locate("org/name").unwrap(), &options).unwrap();
    assert_eq!(poor.headers, HeaderKind::None);
    assert!(poor.traffic <= 3000);
    assert!(
        poor.spec
            .notes
            .iter()
            .any(|n| n.contains("limit of 3000 bytes")),
        "{:?}",
        poor.spec.notes
    );

    all.remove("model-00002-of-00002.safetensors");
    let err = Home::new().load(&hub(all), "org/name").unwrap_err();
    assert_eq!(err.kind(), Kind::Corrupt);
    assert!(
        err.place.contains("model-00002-of-00002.safetensors"),
        "{err}"
    );
}

#[test]
fn a_header_larger_than_the_guess_is_fetched_in_two_steps() {
    let tensors: Vec<(String, Vec<u64>)> = llama_tensors();
    let mut list: Vec<(&str, &str, &[u64], u64)> = tensors
        .iter()
        .map(|(n, s)| {
            (
                n.as_str(),
                "F16",
                s.as_slice(),
                2 * s.iter().product::<u64>(),
            )
        })
        .collect();
    let names: Vec<String> = (0..2000)
        .map(|i| format!("extra.{i}.{}", "x".repeat(40)))
        .collect();
    list.extend(names.iter().map(|n| (n.as_str(), "F16", &[1][..], 2)));
    let mut all = files();
    all.insert("model.safetensors", support::safetensors(&list));
    let (home, server) = (Home::new(), hub(all));
    let loaded = home.load(&server, "org/name").unwrap();
    assert_eq!(loaded.files[0].tensors, 2021);
    let ranges: Vec<_> = server.requests().iter().filter_map(|r| r.range).collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert_eq!(ranges[0].1 + 1, ranges[1].0, "no byte twice");
}

#[test]
fn gguf_files_are_read_by_ranges() {
    let big = Gguf::llama()
        .strings("x.words", 200_000, |i| format!("word{i}"))
        .file();
    let mut all = Files::new();
    all.insert("sub/model-Q4_0.gguf", big);
    all.insert("config.json", b"{\"model_type\": \"llama\"}".to_vec());
    let (home, server) = (Home::new(), hub(all.clone()));
    let loaded = home.load(&server, "org/name:sub/model-Q4_0.gguf").unwrap();
    assert_eq!(
        (loaded.headers, loaded.spec.layers.len()),
        (HeaderKind::Gguf, 2)
    );
    assert!(
        loaded.origin.contains(":sub/model-Q4_0.gguf"),
        "{}",
        loaded.origin
    );
    let n = server.requests().len();
    assert!(n > 1 && n < 8, "{n} requests");
    let again = home.load(&server, "org/name:sub/model-Q4_0.gguf").unwrap();
    assert_eq!((again.spec, again.traffic), (loaded.spec, 0));
    assert_eq!(server.requests().len(), n);
    let mut poor = Home::new().options(&server, &[]);
    poor.gguf_traffic = 2 << 20;
    let err = load(&locate("org/name:sub/model-Q4_0.gguf").unwrap(), &poor).unwrap_err();
    assert!(err.to_string().contains("traffic limit"), "{err}");
    let err = home.load(&server, "org/name:sub/other.gguf").unwrap_err();
    assert_eq!(err.kind(), Kind::NotFound);
    let err = home.load(&server, "org/name:config.json").unwrap_err();
    assert_eq!(err.kind(), Kind::Usage);
}

#[test]
fn a_repository_of_gguf_files_alone() {
    let list = |names: &[&str]| {
        let files: Vec<String> = names
            .iter()
            .map(|n| format!("{{\"rfilename\":\"{n}\"}}"))
            .collect();
        format!("{{\"siblings\":[{}]}}", files.join(","))
    };
    let server = |names: &[&str]| {
        let (list, gguf) = (list(names), Gguf::llama().file());
        Server::new(move |seen| {
            if seen.path == "/api/models/org/name/revision/main" {
                return Answer::new("200 OK").body(list.clone());
            }
            let files = Files::from([("a.gguf", gguf.clone())]);
            repository(&files, seen)
        })
    };
    let one = Home::new()
        .load(
            &server(&["README.md", "a.gguf", "mmproj-x.gguf"]),
            "org/name",
        )
        .unwrap();
    assert_eq!(one.headers, HeaderKind::Gguf);
    let err = Home::new()
        .load(&server(&["a.gguf", "b.gguf"]), "org/name")
        .unwrap_err();
    assert_eq!(err.kind(), Kind::Usage);
    assert!(
        err.why.contains("b.gguf") && err.next.contains("org/name:a.gguf"),
        "{err:?}"
    );
    let err = Home::new()
        .load(&server(&["README.md"]), "org/name")
        .unwrap_err();
    assert_eq!(err.kind(), Kind::NotFound);
    // A hostile list cannot lead out of the repository.
    assert!(
        Home::new()
            .load(&server(&["../../x.gguf"]), "org/name")
            .is_err()
    );
}

#[test]
fn k6_statuses_are_told_apart() {
    let kind = |status: &'static str, code: &'static str| {
        refused(move |_| Answer::new(status).with("x-error-code", code)).kind()
    };
    assert_eq!(kind("401 Unauthorized", ""), Kind::Forbidden);
    assert_eq!(kind("403 Forbidden", "GatedRepo"), Kind::Forbidden);
    assert_eq!(kind("404 Not Found", "RepoNotFound"), Kind::NotFound);
    assert_eq!(kind("404 Not Found", "RevisionNotFound"), Kind::NotFound);
    assert_eq!(kind("404 Not Found", ""), Kind::NotFound);
    for status in [
        "408 Timeout",
        "429 Too Many",
        "500 Oops",
        "502 Bad",
        "503 Busy",
        "504 Late",
    ] {
        assert_eq!(kind(status, ""), Kind::Temporary, "{status}");
    }
    assert_eq!(kind("418 Teapot", ""), Kind::Io);
    let gated = refused(|_| Answer::new("403 Forbidden").with("x-error-code", "GatedRepo"));
    assert!(
        gated.next.contains("HF_TOKEN") && gated.next.contains("/org/name"),
        "{gated:?}"
    );
    let busy = refused(|_| Answer::new("429 Too Many").with("retry-after", "17"));
    assert!(busy.next.contains("17"), "{busy:?}");
}

#[test]
fn k6_servers_that_are_down_slow_or_cut_off() {
    let nobody = {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        Server {
            address: format!("http://{port}"),
            seen: Arc::default(),
        }
    };
    assert_eq!(
        Home::new().load(&nobody, "org/name").unwrap_err().kind(),
        Kind::Temporary
    );
    let slow = refused(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        Answer::new("200 OK")
    });
    assert_eq!(slow.kind(), Kind::Temporary);
    let cut = refused(|_| {
        Answer::new("200 OK")
            .with("content-length", "500")
            .body("{\"a\":")
    });
    assert_eq!(cut.kind(), Kind::Temporary);
    assert!(cut.to_string().contains("connection ended early"), "{cut}");
    let noise = refused(|_| Answer::new("what?"));
    assert_eq!(noise.kind(), Kind::Io, "{noise:?}");
}

#[test]
fn k6_bodies_that_are_no_config() {
    let page = refused(|_| Answer::new("200 OK").body("<!DOCTYPE html><h1>Log in</h1>"));
    assert_eq!(page.kind(), Kind::Corrupt);
    assert!(page.to_string().contains("web page"), "{page}");
    let json = refused(|_| Answer::new("200 OK").body("{\"a\":1,\"a\":2}"));
    assert!(json.to_string().contains("occurs twice"), "{json}");
    // By its own word too large; and without a word, without an end.
    let big = refused(|_| Answer::new("200 OK").with("content-length", "99999999999"));
    assert!(big.to_string().contains("too large"), "{big}");
    let endless = refused(|_| {
        let chunk = format!("{:x}\r\n{}\r\n", 6_000_000, "x".repeat(6_000_000));
        Answer::new("200 OK")
            .with("transfer-encoding", "chunked")
            .body(chunk)
    });
    assert!(endless.to_string().contains("too large"), "{endless}");
}

/// The error where the config is good and `model.safetensors` is served by `f`.
fn bad_weights(f: impl Fn(&[u8], &Seen) -> Answer + Send + Sync + 'static) -> HostError {
    let all = files();
    refused(move |seen| {
        if seen.path.ends_with("/model.safetensors") {
            f(&all["model.safetensors"], seen)
        } else {
            repository(&all, seen)
        }
    })
}

#[test]
fn j_servers_that_get_ranges_wrong() {
    // Ignored ranges are read as far as needed, then the line is cut.
    let all = files();
    let server = Server::new(move |seen| {
        let whole = Seen {
            range: None,
            ..seen.clone()
        };
        repository(&all, &whole)
    });
    let loaded = Home::new().load(&server, "org/name").unwrap();
    assert_eq!(loaded.headers, HeaderKind::Safetensors);
    assert!(loaded.traffic < 70_000, "{}", loaded.traffic);

    let lies = |range: &'static str| {
        bad_weights(move |bytes, _| {
            Answer::new("206 Partial Content")
                .with("content-range", range)
                .body(&bytes[..100])
        })
    };
    for range in [
        "",
        "bytes 0-99",
        "bytes 1-100/9999",
        "bytes 0-98/9999",
        "bytes 0-99/50",
        "bytes 99-0/9999",
        "bytes 0-99/*",
    ] {
        assert_eq!(lies(range).kind(), Kind::Io, "{range}");
    }
    let empty = bad_weights(|_, _| Answer::new("416 Range").with("content-range", "bytes */0"));
    assert_eq!(empty.kind(), Kind::Corrupt);
    // A size that is not true: the header then promises more than there is.
    let size = bad_weights(|bytes, _| {
        Answer::new("206 Partial Content")
            .with("content-range", "bytes 0-99/100")
            .body(&bytes[..100])
    });
    assert_eq!(size.kind(), Kind::Corrupt);
    let short = bad_weights(|bytes, _| {
        Answer::new("206 Partial Content")
            .with("content-length", "5000")
            .with("content-range", format!("bytes 0-4999/{}", bytes.len()))
            .body(&bytes[..100])
    });
    assert_eq!(short.kind(), Kind::Temporary);
}

#[test]
fn j_a_file_that_changes_between_two_ranges() {
    let file = Gguf::llama()
        .strings("x.words", 200_000, |i| format!("word{i}"))
        .file();
    for what in ["etag", "size", "gone"] {
        let file = file.clone();
        let server = Server::new(move |seen| {
            let first = seen.range.is_none_or(|r| r.0 == 0);
            let mut answer = serve(&file, seen);
            if !first {
                match what {
                    "etag" => answer
                        .headers
                        .iter_mut()
                        .filter(|(n, _)| n == "etag")
                        .for_each(|(_, v)| *v = "\"new\"".into()),
                    "size" => answer = serve(&file[..file.len() - 1], seen),
                    _ => answer = Answer::new("404 Not Found"),
                }
            }
            answer
        });
        let err = Home::new().load(&server, "org/name:x.gguf").unwrap_err();
        assert_eq!(err.kind(), Kind::Temporary, "{what}: {err:?}");
        assert!(err.to_string().contains("changed while"), "{err}");
    }
}

#[test]
fn redirects_are_followed_and_the_token_stays_home() {
    let store = {
        let all = files();
        Server::new(move |seen| {
            let name = seen.path.trim_start_matches("/store/").to_owned();
            all.get(name.as_str())
                .map_or_else(|| Answer::new("404 Not Found"), |b| serve(b, seen))
        })
    };
    let to = store.address.clone();
    let hub = Server::new(move |seen| {
        let Some((_, file)) = seen
            .path
            .strip_prefix("/org/name/resolve/")
            .and_then(|r| r.split_once('/'))
        else {
            return Answer::new("404 Not Found");
        };
        if file.ends_with("index.json") {
            return Answer::new("404 Not Found").with("x-error-code", "EntryNotFound");
        }
        Answer::new("302 Found")
            .with("x-repo-commit", COMMIT)
            .with("x-linked-etag", "\"linked\"")
            .with("location", format!("{to}/store/{file}"))
    });
    let home = Home::new();
    let options = home.options(&hub, &[("HF_TOKEN", "hf_verysecret")]);
    let loaded = load(&locate("org/name").unwrap(), &options).unwrap();
    assert_eq!(loaded.headers, HeaderKind::Safetensors);
    assert!(
        hub.requests()
            .iter()
            .all(|r| r.token.as_deref() == Some("Bearer hf_verysecret"))
    );
    assert!(!store.requests().is_empty());
    assert!(
        store.requests().iter().all(|r| r.token.is_none()),
        "the token left its host"
    );
    assert!(home.0.join("hub/models--org--name/blobs/linked").exists());
    // Nothing that we print or store holds it.
    assert!(!format!("{options:?} {loaded:?}").contains("verysecret"));
}

#[test]
fn redirects_that_lead_astray() {
    let own = Arc::new(Mutex::new(0));
    let count = Arc::clone(&own);
    let turn = refused(move |seen| {
        *count.lock().unwrap() += 1;
        Answer::new("302 Found").with("location", seen.path.clone())
    });
    assert!(turn.to_string().contains("redirects more than"), "{turn}");
    assert!(*own.lock().unwrap() <= 6);
    for location in [
        "file:///etc/passwd",
        "",
        "ftp://x/y",
        "gopher:",
        "http://user@host/",
        "\u{1b}[31m",
    ] {
        let err = refused(move |_| Answer::new("302 Found").with("location", location));
        assert_eq!(err.kind(), Kind::Io, "{location}");
        assert!(!err.to_string().contains('\u{1b}'));
    }
}

#[test]
fn k9_no_error_holds_the_token() {
    for status in [
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "429 Busy",
        "500 Oops",
        "302 Found",
    ] {
        let server = Server::new(move |_| Answer::new(status));
        let options = Home::new().options(&server, &[("HF_TOKEN", "hf_verysecret")]);
        let err = load(&locate("org/name").unwrap(), &options).unwrap_err();
        assert!(!format!("{err} {err:?}").contains("verysecret"), "{status}");
    }
}

#[test]
fn a_cache_that_is_broken_or_read_only_is_no_obstacle() {
    let (home, server) = (Home::new(), hub(files()));
    home.load(&server, "org/name").unwrap();
    // A stored header that was cut, changed, or never was one is fetched again.
    let head = home
        .0
        .join("plimsoll/headers/models--org--name")
        .join(COMMIT)
        .join("model.safetensors");
    let good = std::fs::read(&head).unwrap();
    for bad in [&good[..good.len() - 1], &good[..10], b"garbage", b""] {
        std::fs::write(&head, bad).unwrap();
        assert_eq!(
            home.load(&server, "org/name").unwrap().headers,
            HeaderKind::Safetensors
        );
        assert_eq!(std::fs::read(&head).unwrap(), good);
    }
    // A commit that is none.
    std::fs::write(
        home.0.join("hub/models--org--name/refs/main"),
        "../../../etc",
    )
    .unwrap();
    assert!(home.load(&server, "org/name").is_ok());
    // Files where folders should be: nothing can be stored.
    let blocked = Home::new();
    std::fs::write(blocked.0.join("hub"), "x").unwrap();
    std::fs::write(blocked.0.join("plimsoll"), "x").unwrap();
    assert_eq!(
        blocked.load(&server, "org/name").unwrap().headers,
        HeaderKind::Safetensors
    );
    // An ETag that is a path is not used as a name.
    let all = files();
    let evil = Server::new(move |seen| {
        let mut answer = repository(&all, seen);
        answer.headers.retain(|(n, _)| n != "etag");
        answer.with("etag", "\"../../../evil\"")
    });
    let home = Home::new();
    home.load(&evil, "org/name").unwrap();
    assert!(!home.0.join("hub").exists());
}

#[test]
fn two_processes_at_once_do_not_disturb_each_other() {
    let (home, server) = (Home::new(), hub(files()));
    std::thread::scope(|s| {
        let runs: Vec<_> = (0..8)
            .map(|_| s.spawn(|| home.load(&server, "org/name").unwrap().spec))
            .collect();
        let specs: Vec<_> = runs.into_iter().map(|r| r.join().unwrap()).collect();
        assert!(specs.windows(2).all(|w| w[0] == w[1]));
    });
    let link = home
        .0
        .join("hub/models--org--name/snapshots")
        .join(COMMIT)
        .join("config.json");
    assert_eq!(std::fs::read_to_string(link).unwrap(), LLAMA_CONFIG);
}
