//! Downloads from a hub of our own on this machine: what is fetched, what is not, and what is refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod server;
#[path = "../../model/tests/support/mod.rs"]
mod support;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plimsoll_host::hub::{Fetching, HubId, download};
use plimsoll_host::{HostError, Kind, LoadOptions, load, locate};
use ring::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use server::{Answer, COMMIT, Files, Home, Seen, Server, files, repository};
use support::{Gguf, f16_file, llama_tensors};

const WEIGHTS: &str = "model.safetensors";

fn hex(algorithm: &'static Algorithm, bytes: &[u8]) -> String {
    let sum = digest(algorithm, bytes);
    sum.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// What a hub calls a content: Git's own name for small files, SHA-256 for large ones.
fn tag(file: &str, bytes: &[u8]) -> String {
    if file.ends_with(".json") {
        let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
        return hex(&SHA1_FOR_LEGACY_USE_ONLY, &blob);
    }
    hex(&SHA256, bytes)
}

fn all() -> Files {
    let mut all = files();
    all.insert("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec());
    all.insert("generation_config.json", b"{\"top_k\": 5}".to_vec());
    all
}

fn name(seen: &Seen) -> &str {
    let file = seen.path.strip_prefix("/org/name/resolve/");
    file.and_then(|f| f.split_once('/')).map_or("", |f| f.1)
}

/// As a good hub answers.
fn good(files: &Files, seen: &Seen) -> Answer {
    let mut answer = repository(files, seen);
    if let Some(bytes) = files.get(name(seen)) {
        answer.headers.retain(|(n, _)| n != "etag");
        answer = answer.with("etag", format!("\"{}\"", tag(name(seen), bytes)));
    }
    answer
}

/// A hub that answers as a good one, save where `odd` says otherwise of the weights themselves.
fn odd_hub(odd: impl Fn(&Seen, Answer) -> Answer + Send + Sync + 'static) -> Server {
    let all = all();
    Server::new(move |seen| {
        let answer = good(&all, seen);
        // What a plan reads of the header is left alone.
        let plan = seen.range.is_some_and(|r| r.0 == 0);
        if name(seen) == WEIGHTS && seen.method == "GET" && !plan {
            return odd(seen, answer);
        }
        answer
    })
}

fn get(options: &LoadOptions, model: &str) -> Result<PathBuf, HostError> {
    let loaded = load(&locate(model)?, options)?;
    download(&HubId::parse(model)?, &loaded, options, &|_| ())
}

/// Requests for bytes of weights beyond a plan's.
fn of_weights(server: &Server) -> Vec<Seen> {
    let all = server.requests().into_iter();
    all.filter(|s| name(s) == WEIGHTS && s.method == "GET" && s.range.is_none_or(|r| r.0 > 0))
        .collect()
}

#[test]
fn files_lie_where_others_find_them_and_are_fetched_once() {
    let (home, server) = (Home::new(), odd_hub(|_, a| a));
    let options = home.options(&server, &[]);
    let folder = get(&options, "org/name").unwrap();
    let repo = home.0.join("hub/models--org--name");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    for (file, bytes) in all() {
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), bytes, "{file}");
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(folder.join(file)).unwrap(),
            PathBuf::from(format!("../../blobs/{}", tag(file, &bytes)))
        );
    }
    let blobs = std::fs::read_dir(repo.join("blobs")).unwrap();
    assert_eq!(blobs.count(), all().len());
    assert_eq!(
        std::fs::read_to_string(repo.join("refs/main")).unwrap(),
        COMMIT
    );
    let absent = repo.join(".no_exist").join(COMMIT);
    assert!(absent.join("chat_template.jinja").is_file());

    // Again: nobody is asked, of what is not there neither; nor offline.
    let n = server.requests().len();
    assert_eq!(get(&options, "org/name").unwrap(), folder);
    let mut offline = options.clone();
    offline.offline = true;
    assert_eq!(get(&offline, "org/name").unwrap(), folder);
    let env = home.options(&server, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(get(&env, "org/name").unwrap(), folder);
    assert_eq!(server.requests().len(), n);
    // A blob that somebody removed under its link is fetched again, and it alone.
    std::fs::remove_file(folder.join(WEIGHTS).canonicalize().unwrap()).unwrap();
    assert_eq!(get(&options, "org/name").unwrap(), folder);
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), all()[WEIGHTS]);
    assert_eq!(of_weights(&server).len(), 2);
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let size = all()[WEIGHTS].len() as u64;
    // Each answer ends after 3,000 bytes, whatever it promised.
    let server = odd_hub(|_, mut a| {
        let length = a.body.len().to_string();
        a.body.truncate(3000);
        a.with("content-length", length)
    });
    let home = Home::new();
    let options = home.options(&server, &[]);
    let folder = get(&options, "org/name").unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), all()[WEIGHTS]);
    let asked: Vec<_> = of_weights(&server).iter().map(|s| s.range).collect();
    assert!(asked.len() > 2, "{asked:?}");
    let wanted = |i: usize| (i > 0).then_some((3000 * i as u64, size - 1));
    assert!((0..asked.len()).all(|i| asked[i] == wanted(i)), "{asked:?}");
}

#[test]
fn a_download_that_fails_is_taken_up_by_the_next_run() {
    let rounds = AtomicU64::new(0);
    let server = odd_hub(
        move |_, mut a| match rounds.fetch_add(1, Ordering::Relaxed) {
            0 => {
                let length = a.body.len().to_string();
                a.body.truncate(3000);
                a.with("content-length", length)
            }
            1..=4 => Answer::new("503 Busy"),
            _ => a,
        },
    );
    let home = Home::new();
    let options = home.options(&server, &[]);
    let err = get(&options, "org/name").unwrap_err();
    assert_eq!(err.kind(), Kind::Temporary);
    assert!(err.next.contains("kept"), "{err:?}");
    let before = of_weights(&server).len();
    let folder = get(&options, "org/name").unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), all()[WEIGHTS]);
    let last = of_weights(&server);
    assert_eq!(last.len(), before + 1);
    assert_eq!(last[before].range.unwrap().0, 3000);
}

#[test]
fn a_download_that_hangs_goes_on_elsewhere_or_ends() {
    let size = all()[WEIGHTS].len() as u64;
    // It promises all, sends so much, and then nothing, on a connection that stays open.
    let hangs_after = |mut a: Answer, sent: usize| {
        let length = a.body.len().to_string();
        a.body.truncate(sent);
        a.hangs = true;
        a.with("content-length", length)
    };
    let rounds = AtomicU64::new(0);
    let once = odd_hub(move |_, a| match rounds.fetch_add(1, Ordering::Relaxed) {
        0 => hangs_after(a, 3000),
        _ => a,
    });
    let home = Home::new();
    let folder = get(&home.options(&once, &[]), "org/name").unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), all()[WEIGHTS]);
    let asked: Vec<_> = of_weights(&once).iter().map(|s| s.range).collect();
    assert_eq!(asked, [None, Some((3000, size - 1))]);

    let always = odd_hub(move |_, a| hangs_after(a, 0));
    let home = Home::new();
    let began = Instant::now();
    let err = get(&home.options(&always, &[]), "org/name").unwrap_err();
    assert_eq!(err.kind(), Kind::Temporary, "{err:?}");
    // The limit is a second without a byte, a few times.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_server_that_ignores_ranges_begins_again() {
    let whole = all()[WEIGHTS].clone();
    let rounds = AtomicU64::new(0);
    let server = odd_hub(move |_, mut a| {
        if rounds.fetch_add(1, Ordering::Relaxed) == 0 {
            let length = a.body.len().to_string();
            a.body.truncate(3000);
            return a.with("content-length", length);
        }
        a.status = "200 OK";
        a.headers.retain(|(n, _)| n != "content-range");
        a.body(whole.clone())
    });
    let home = Home::new();
    let folder = get(&home.options(&server, &[]), "org/name").unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), all()[WEIGHTS]);
    assert_eq!(of_weights(&server).len(), 3);
}

#[test]
fn a_wrong_checksum_is_refused_and_nothing_of_it_is_kept() {
    for file in [WEIGHTS, "tokenizer.json"] {
        let all = all();
        let server = Server::new(move |seen| {
            let mut answer = good(&all, seen);
            if name(seen) == file && seen.range.is_none() {
                *answer.body.last_mut().unwrap() ^= 1;
            }
            answer
        });
        let home = Home::new();
        let err = get(&home.options(&server, &[]), "org/name").unwrap_err();
        assert_eq!(err.kind(), Kind::Corrupt, "{err:?}");
        assert!(err.place.contains(file) && err.what.contains("checksum"));
        let repo = home.0.join("hub/models--org--name");
        assert!(!repo.join("snapshots").join(COMMIT).join(file).exists());
        for blob in std::fs::read_dir(repo.join("blobs")).unwrap() {
            let blob = blob.unwrap().file_name().into_string().unwrap();
            assert!(!blob.contains("incomplete"), "{blob}");
        }
    }
}

#[test]
fn bytes_come_from_another_host_without_the_token() {
    let all = all();
    let files = all.clone();
    let store = Server::new(move |seen| {
        let file = seen.path.trim_start_matches("/store/").to_owned();
        // A store that signs its addresses for one method.
        if seen.method != "GET" {
            return Answer::new("403 Forbidden");
        }
        let path = format!("/org/name/resolve/x/{file}");
        let seen = Seen {
            path,
            ..seen.clone()
        };
        repository(&files, &seen)
    });
    let to = store.address.clone();
    let hub = Server::new(move |seen| {
        let Some(bytes) = all.get(name(seen)).filter(|_| name(seen) == WEIGHTS) else {
            return good(&all, seen);
        };
        Answer::new("302 Found")
            .with("x-repo-commit", COMMIT)
            .with("x-linked-etag", format!("\"{}\"", tag(WEIGHTS, bytes)))
            .with("x-linked-size", bytes.len().to_string())
            .with("location", format!("{to}/store/{WEIGHTS}"))
    });
    let home = Home::new();
    let options = home.options(&hub, &[("HF_TOKEN", "hf_verysecret")]);
    get(&options, "org/name").unwrap();
    let secret = Some("Bearer hf_verysecret");
    assert!(hub.requests().iter().all(|r| r.token.as_deref() == secret));
    assert!(store.requests().iter().all(|r| r.token.is_none()));
    assert!(!store.requests().is_empty());
}

#[test]
fn what_the_hub_does_not_show_is_refused_with_a_next_step() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let server = odd_hub(move |_, _| Answer::new(status));
        let err = get(&Home::new().options(&server, &[]), "org/name").unwrap_err();
        assert_eq!(err.kind(), Kind::Forbidden);
        assert!(err.next.contains("HF_TOKEN"), "{err:?}");
        assert_eq!(of_weights(&server).len(), 1, "it is not asked again");
    }
    let mut without = all();
    without.remove("tokenizer.json");
    let server = Server::new(move |seen| good(&without, seen));
    let err = get(&Home::new().options(&server, &[]), "org/name").unwrap_err();
    assert_eq!(err.kind(), Kind::NotFound);
    assert!(err.what.contains("tokenizer.json"), "{err:?}");
    assert!(of_weights(&server).is_empty(), "known before the weights");
    let all_files = all();
    let server = Server::new(move |seen| {
        let answer = good(&all_files, seen);
        if name(seen) != "tokenizer.json" {
            return answer;
        }
        answer.with("x-linked-size", (1_u64 << 40).to_string())
    });
    let err = get(&Home::new().options(&server, &[]), "org/name").unwrap_err();
    assert!(err.what.contains("too large"), "{err:?}");
    let pickles = Files::from([("config.json", all()["config.json"].clone())]);
    let server = Server::new(move |seen| good(&pickles, seen));
    let err = get(&Home::new().options(&server, &[]), "org/name").unwrap_err();
    assert!(err.what.contains("no weights"), "{err:?}");
}

#[test]
fn offline_means_cached_or_refused() {
    let (home, server) = (Home::new(), odd_hub(|_, a| a));
    let mut options = home.options(&server, &[]);
    options.offline = true;
    assert_eq!(get(&options, "org/name").unwrap_err().kind(), Kind::Offline);
    // A plan has cached config and headers, and no file that runs.
    options.offline = false;
    load(&locate("org/name").unwrap(), &options).unwrap();
    let n = server.requests().len();
    options.offline = true;
    let err = get(&options, "org/name").unwrap_err();
    assert_eq!(err.kind(), Kind::Offline);
    assert!(err.what.contains("tokenizer.json") && err.next.contains("HF_HUB_OFFLINE"));
    assert_eq!(server.requests().len(), n);
}

#[test]
fn many_at_once_download_once() {
    let (home, server) = (Home::new(), odd_hub(|_, a| a));
    let options = home.options(&server, &[]);
    std::thread::scope(|s| {
        let runs: Vec<_> = (0..4)
            .map(|_| s.spawn(|| get(&options, "org/name").unwrap()))
            .collect();
        for run in runs {
            let folder = run.join().unwrap();
            assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), all()[WEIGHTS]);
        }
    });
    assert_eq!(of_weights(&server).len(), 1);
}

#[test]
fn a_lock_of_another_process_is_waited_for() {
    let (home, server) = (Home::new(), odd_hub(|_, a| a));
    let options = home.options(&server, &[]);
    let loaded = load(&locate("org/name").unwrap(), &options).unwrap();
    let locks = home.0.join("hub/.locks/models--org--name");
    std::fs::create_dir_all(&locks).unwrap();
    let path = locks.join(format!("{}.lock", tag(WEIGHTS, &all()[WEIGHTS])));
    let lock = std::fs::File::create(path).unwrap();
    lock.lock().unwrap();
    let held = Mutex::new(Some(lock));
    let waited = Cell::new(false);
    let told = |at: Fetching<'_>| match at {
        Fetching::Waiting(file) => {
            assert_eq!(file, WEIGHTS);
            assert!(of_weights(&server).is_empty());
            waited.set(true);
            // The other process ends.
            held.lock().unwrap().take();
        }
        Fetching::Bytes { file, done, all } => assert!(done <= all && !file.is_empty()),
    };
    download(&HubId::parse("org/name").unwrap(), &loaded, &options, &told).unwrap();
    assert!(waited.get());
}

#[cfg(unix)]
#[test]
fn a_disk_without_room_is_told_first() {
    let (home, server) = (Home::new(), odd_hub(|_, a| a));
    let options = home.options(&server, &[]);
    let mut loaded = load(&locate("org/name").unwrap(), &options).unwrap();
    loaded.files[0].size = 1 << 60;
    let id = HubId::parse("org/name").unwrap();
    let err = download(&id, &loaded, &options, &|_| ()).unwrap_err();
    assert_eq!(err.kind(), Kind::Io);
    assert!(err.what.contains("no room") && err.why.contains(&(1_u64 << 60).to_string()));
    assert!(of_weights(&server).is_empty());
}

#[test]
fn a_gguf_file_comes_alone() {
    let gguf = Gguf::llama().file();
    let files = Files::from([("sub/x-Q4_0.gguf", gguf.clone())]);
    let server = Server::new(move |seen| good(&files, seen));
    let home = Home::new();
    let options = home.options(&server, &[]);
    for _ in 0..2 {
        let folder = get(&options, "org/name:sub/x-Q4_0.gguf").unwrap();
        assert_eq!(std::fs::read(folder.join("sub/x-Q4_0.gguf")).unwrap(), gguf);
    }
    assert!(
        server
            .requests()
            .iter()
            .all(|s| name(s) == "sub/x-Q4_0.gguf")
    );
}

#[test]
fn a_repository_of_one_gguf_file_needs_no_file_name() {
    let gguf = Gguf::llama().file();
    let files = Files::from([("x.gguf", gguf.clone())]);
    let server = Server::new(move |seen| {
        if seen.path.starts_with("/api/models/") {
            return Answer::new("200 OK").body("{\"siblings\":[{\"rfilename\":\"x.gguf\"}]}");
        }
        good(&files, seen)
    });
    let home = Home::new();
    let mut options = home.options(&server, &[]);
    let folder = get(&options, "org/name").unwrap();
    assert_eq!(std::fs::read(folder.join("x.gguf")).unwrap(), gguf);
    options.offline = true;
    assert_eq!(get(&options, "org/name").unwrap(), folder);
}

#[test]
fn shards_come_with_their_index() {
    let tensors = llama_tensors();
    let (a, b) = tensors.split_at(9);
    let shard = |i: usize| format!("model-0000{}-of-00002.safetensors", 1 + usize::from(i >= 9));
    let map: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(i, (n, _))| format!("\"{n}\":\"{}\"", shard(i)))
        .collect();
    let mut all = all();
    all.remove(WEIGHTS);
    let index = format!("{{\"weight_map\":{{{}}}}}", map.join(","));
    all.insert("model.safetensors.index.json", index.into_bytes());
    all.insert("model-00001-of-00002.safetensors", f16_file(a));
    all.insert("model-00002-of-00002.safetensors", f16_file(b));
    let files = all.clone();
    let server = Server::new(move |seen| good(&files, seen));
    let home = Home::new();
    let options = home.options(&server, &[]);
    let folder = get(&options, "org/name").unwrap();
    for (file, bytes) in &all {
        assert_eq!(&std::fs::read(folder.join(file)).unwrap(), bytes, "{file}");
    }
    // Where one shard is missing, it alone comes, and a plan still knows all.
    let n = server.requests().len();
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    get(&options, "org/name").unwrap();
    let asked = server.requests().split_off(n);
    assert!(
        asked.iter().all(|s| name(s).contains("00002-of")),
        "{asked:?}"
    );
    assert_eq!(asked.len(), 1, "the blob is there: {asked:?}");
}
