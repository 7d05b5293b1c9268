//! Keys, tenants, what each may have, and who finds whose prefixes.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::server::*;

/// A file of tenants that is gone after the test.
struct TenantsFile(PathBuf);

impl TenantsFile {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plimsoll-tenants-{}-{n}.toml", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        file.write(text);
        let owner = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&file.0, owner).unwrap();
        file
    }

    fn write(&self, text: &str) {
        let mut file = std::fs::File::create(&self.0).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TenantsFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn with_key(key: &str) -> String {
    format!("Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n")
}

fn complete_as(server: &Server, key: &str, body: &Value) -> Answer {
    server.ask("POST", "/v1/completions", &with_key(key), &body.to_string())
}

/// Prompt tokens that were found in the prefix cache.
fn cached(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let usage = &answer.json()["usage"]["prompt_tokens_details"];
    usage["cached_tokens"].as_u64().unwrap()
}

const TWO: &str = "# Who may come.\r\n[alice]\r\nkeys = ['sk-alice', 'sk-alice-2']\r\nadmin = true\r\n[bob]\r\nkeys = ['sk-bob']\r\n";

#[test]
fn nobody_finds_anothers_prefixes() {
    let file = TenantsFile::new(TWO);
    let server = Server::start(&["--tenants", file.path(), "--api-key", "sk-root"]);
    let plain = json!({ "prompt": PROMPT.repeat(4), "max_tokens": 4, "temperature": 0 });
    let salted = |salt: &str| {
        let mut body = plain.clone();
        body["cache_salt"] = salt.into();
        body
    };
    let first = complete_as(&server, "sk-alice", &plain);
    assert_eq!(cached(&first), 0);
    // Nor does it show in anything that the answer says.
    let other = complete_as(&server, "sk-bob", &plain);
    assert_eq!(cached(&other), 0);
    assert_eq!(cached(&complete_as(&server, "sk-root", &plain)), 0);
    let again = complete_as(&server, "sk-alice-2", &plain);
    assert!(cached(&again) > 0, "both keys are the same tenant's");
    for answer in [&other, &again] {
        assert_eq!(texts(&answer.json()), texts(&first.json()));
    }
    // A salt of one's own.
    assert_eq!(cached(&complete_as(&server, "sk-alice", &salted("a"))), 0);
    assert!(cached(&complete_as(&server, "sk-alice", &salted("a"))) > 0);
    assert_eq!(cached(&complete_as(&server, "sk-alice", &salted("ab"))), 0);
    assert_eq!(cached(&complete_as(&server, "sk-bob", &salted("a"))), 0);
    // What is prepended to the prompt is no salt.
    let mut moved = salted("a");
    moved["prompt"] = format!("b{}", PROMPT.repeat(4)).into();
    assert_eq!(cached(&complete_as(&server, "sk-alice", &moved)), 0);
    for salt in [
        json!(""),
        json!("a b"),
        json!("ä"),
        json!("a\u{0}"),
        json!("\n"),
        json!(7),
        json!("s".repeat(129)),
    ] {
        let mut body = plain.clone();
        body["cache_salt"] = salt;
        let answer = complete_as(&server, "sk-alice", &body);
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.json()["error"]["param"], "cache_salt");
    }
    assert!(cached(&complete_as(&server, "sk-alice", &salted(&"s".repeat(128)))) == 0);
}

#[test]
fn prefixes_are_shared_where_they_are_meant_to_be() {
    let file = TenantsFile::new(TWO);
    let server = Server::start(&["--tenants", file.path(), "--prefix-cache-scope", "global"]);
    let body = json!({ "prompt": PROMPT.repeat(4), "max_tokens": 4, "temperature": 0 });
    assert_eq!(cached(&complete_as(&server, "sk-alice", &body)), 0);
    assert!(cached(&complete_as(&server, "sk-bob", &body)) > 0);
    let mut salted = body;
    salted["cache_salt"] = "mine".into();
    assert_eq!(cached(&complete_as(&server, "sk-alice", &salted)), 0);
    assert!(cached(&complete_as(&server, "sk-bob", &salted)) > 0);
}

/// A plan takes a thread that reads requests of others: it counts in the rate of whoever asks.
#[test]
fn plans_count_in_the_rates_of_who_asks() {
    let file = TenantsFile::new(
        "[slow]\nkeys=['sk-slow']\nrequests-per-minute=2\n[one]\nkeys=['sk-one']\nmax-requests=1\n[other]\nkeys=['sk-other']\n",
    );
    let server = Server::start(&["--tenants", file.path()]);
    let plan =
        |path: &str, key: &str| server.ask("POST", path, &with_key(key), "{\"model\":\"gpt2\"}");
    let code = |answer: &Answer| answer.json()["error"]["code"].clone();
    assert_eq!(plan("/api/plan", "sk-slow").status, 200);
    assert_eq!(plan("/api/plan/grid", "sk-slow").status, 200);
    for path in ["/api/plan", "/api/plan/grid"] {
        let refused = plan(path, "sk-slow");
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert_eq!(code(&refused), "rate_limit_exceeded");
        let after = refused
            .headers
            .lines()
            .find_map(|l| l.strip_prefix("retry-after: "));
        assert!((1..=30).contains(&after.unwrap().parse::<u64>().unwrap()));
        assert_eq!(plan(path, "sk-other").status, 200);
    }
    // So do both kinds together, and what is in flight is let go of.
    let body = json!({ "prompt": "A", "max_tokens": 1 });
    assert_eq!(complete_as(&server, "sk-slow", &body).status, 429);
    let long = json!({ "prompt": "A", "max_tokens": 900, "ignore_eos": true, "stream": true });
    let mut stream = server.send(
        "POST",
        "/v1/completions",
        &with_key("sk-one"),
        &long.to_string(),
    );
    stream.read_exact(&mut [0; 16]).unwrap();
    let refused = plan("/api/plan", "sk-one");
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(code(&refused), "too_many_requests");
    drop(stream);
    server.wait_until("let in", |_| plan("/api/plan", "sk-one").status == 200);
    assert_eq!(plan("/api/plan", "sk-one").status, 200, "it is let go of");
    // What plans choose from is not work.
    let choices = server.ask("GET", "/api/choices", &with_key("sk-slow"), "");
    assert_eq!(choices.status, 200);
}

#[test]
fn each_process_keys_its_addresses_by_a_secret_of_its_own() {
    let key = || {
        // The log tells it, for replays; it has all prompts too.
        let log = TenantsFile::new("");
        let server = Server::start(&["--log", log.path()]);
        // Signals are for a server that serves.
        assert_eq!(server.get("/health").status, 200);
        server.signal("-TERM");
        let (ended, said) = server.ended();
        assert!(ended.success(), "{ended}: {said}");
        let text = std::fs::read_to_string(log.path()).unwrap();
        let head: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let key = head["kv"]["key"].as_array().unwrap().clone();
        assert_eq!(key.len(), 16);
        assert_ne!(key, vec![json!(0); 16]);
        key
    };
    assert_ne!(key(), key());
}

#[test]
fn rates_and_caps_say_when_to_come_back() {
    let file = TenantsFile::new(
        "[slow]\nkeys=['sk-slow']\nrequests-per-minute=2\n[few]\nkeys=['sk-few']\ntokens-per-minute=40\n\
         [one]\nkeys=['sk-one']\nmax-requests=1\n[small]\nkeys=['sk-small']\nkv-cap='5%'\n[other]\nkeys=['sk-other']\nkv-floor='50%'\n",
    );
    let server = Server::start(&["--tenants", file.path(), "--max-model-len", "512"]);
    let short = json!({ "prompt": "A", "max_tokens": 2, "temperature": 0 });
    let refused = |answer: &Answer, code: &str| {
        assert_eq!(answer.status, 429, "{}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], code);
        assert_eq!(error["type"], "rate_limit_error");
        let after = answer
            .headers
            .lines()
            .find_map(|l| l.strip_prefix("retry-after: "));
        after.unwrap().parse::<u64>().unwrap()
    };
    for _ in 0..2 {
        assert_eq!(complete_as(&server, "sk-slow", &short).status, 200);
    }
    let after = refused(
        &complete_as(&server, "sk-slow", &short),
        "rate_limit_exceeded",
    );
    assert!(
        (1..=30).contains(&after),
        "{after}: a request comes back every 30 s"
    );
    // A body that is refused for a mistake costs nothing; tokens count when they come.
    for _ in 0..3 {
        let wrong = json!({ "prompt": "A", "max_tokens": 0 });
        assert_eq!(complete_as(&server, "sk-few", &wrong).status, 400);
    }
    let long = json!({ "prompt": "A", "max_tokens": 60, "ignore_eos": true, "temperature": 0 });
    assert_eq!(complete_as(&server, "sk-few", &long).status, 200);
    let after = refused(
        &complete_as(&server, "sk-few", &short),
        "rate_limit_exceeded",
    );
    assert!(
        (20..=40).contains(&after),
        "{after}: it owes some 20 of its 40"
    );
    // The others feel nothing of it.
    assert_eq!(complete_as(&server, "sk-other", &short).status, 200);
    // One at once, until it leaves.
    let endless = json!({ "prompt": "A", "max_tokens": 500, "ignore_eos": true, "stream": true });
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with_key("sk-one"),
        &endless.to_string(),
    );
    let mut first = [0; 15];
    running.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    refused(&complete_as(&server, "sk-one", &short), "too_many_requests");
    drop(running);
    server.wait_until("let in again", |s| {
        complete_as(s, "sk-one", &short).status == 200
    });
    // What can never fit its part of the cache is refused at once.
    let most = json!({ "prompt": "A", "max_tokens": 500, "n": 4 });
    let answer = complete_as(&server, "sk-small", &most);
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(answer.json()["error"]["code"], "exceeds_kv_cache");
    assert_eq!(complete_as(&server, "sk-other", &most).status, 200);
}

#[test]
fn only_admins_see_what_others_do() {
    let file = TenantsFile::new(TWO);
    let server = Server::start(&["--tenants", file.path()]);
    let get = |path: &str, key: &str| server.ask("GET", path, &with_key(key), "").status;
    for path in ["/v1/memory", "/metrics"] {
        assert_eq!(get(path, "sk-alice"), 200);
        assert_eq!(get(path, "sk-bob"), 403);
        assert_eq!(get(path, "sk-eve"), 401);
    }
    assert_eq!(get("/v1/memory/stream", "sk-bob"), 403);
    assert_eq!(get("/v1/models", "sk-bob"), 200);
    assert_eq!(get("/health", ""), 200);
}

/// Whom a route lets in.
#[derive(Clone, Copy, PartialEq)]
enum Lets {
    Everybody,
    Keys,
    Admins,
}

/// Every route of the server.
const ROUTES: [(&str, &str, Lets); 19] = [
    ("GET", "/", Lets::Everybody),
    ("GET", "/assets/{name}", Lets::Everybody),
    ("GET", "/openapi.json", Lets::Everybody),
    ("GET", "/docs", Lets::Everybody),
    ("GET", "/health", Lets::Everybody),
    ("GET", "/health/live", Lets::Everybody),
    ("GET", "/health/ready", Lets::Everybody),
    ("GET", "/v1/models", Lets::Keys),
    ("GET", "/v1/models/{*name}", Lets::Keys),
    ("POST", "/v1/completions", Lets::Keys),
    ("POST", "/v1/chat/completions", Lets::Keys),
    ("POST", "/tokenize", Lets::Keys),
    ("POST", "/detokenize", Lets::Keys),
    ("GET", "/version", Lets::Keys),
    ("GET", "/api/choices", Lets::Keys),
    ("POST", "/api/plan", Lets::Keys),
    ("POST", "/api/plan/grid", Lets::Keys),
    ("GET", "/metrics", Lets::Admins),
    ("GET", "/v1/memory", Lets::Admins),
];
/// It has no end, so it is only asked by whom it refuses.
const STREAM: (&str, &str, Lets) = ("GET", "/v1/memory/stream", Lets::Admins);

#[test]
fn every_route_asks_for_its_key() {
    let source = include_str!("../../../server/src/routes.rs");
    let mut written: Vec<&str> = source
        .split(".route(\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    let mut tried: Vec<&str> = ROUTES.iter().chain([&STREAM]).map(|r| r.1).collect();
    written.sort_unstable();
    tried.sort_unstable();
    assert_eq!(tried, written, "each route of the server is tried here");

    let file = TenantsFile::new(TWO);
    let server = Server::start(&["--tenants", file.path()]);
    let wrong = [
        String::new(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: sk-alice\r\n".to_owned(),
        "Authorization: Basic sk-alice\r\n".to_owned(),
        "Authorization: Bearer sk-alic\r\n".to_owned(),
        "Authorization: Bearer sk-alice \r\nAuthorization: Bearer sk-alice\r\n".to_owned(),
        "Authorization: Bearer sk-älice\r\n".to_owned(),
        "X-Api-Key: sk-alice\r\n".to_owned(),
        format!("Authorization: Bearer {}\r\n", "k".repeat(8 << 10)),
    ];
    for (method, route, lets) in ROUTES.into_iter().chain([STREAM]) {
        let path = route.replace("{*name}", "x").replace("{name}", "x");
        for headers in &wrong {
            let answer = server.ask(method, &path, headers, "");
            if lets == Lets::Everybody {
                assert!(![401, 403].contains(&answer.status), "{route} {headers}");
                continue;
            }
            assert_eq!(answer.status, 401, "{route} {headers}: {}", answer.body);
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
            assert!(answer.headers.contains("www-authenticate: bearer"));
            assert!(!answer.body.contains("sk-"), "{}", answer.body);
        }
        let bob = server.ask(method, &path, &with_key("sk-bob"), "");
        assert_eq!(bob.status == 403, lets == Lets::Admins, "{route}");
        assert_ne!(bob.status, 401, "{route}");
        if route != STREAM.1 {
            let alice = server.ask(method, &path, &with_key("sk-alice"), "");
            assert!(![401, 403].contains(&alice.status), "{route}");
            assert!(!alice.body.contains("sk-"), "{}", alice.body);
        }
    }
    let asked = server.get("/v1/models?api_key=sk-alice&key=sk-alice");
    assert_eq!(asked.status, 401, "a key in the target is none");
    // A key of 1 MiB is no header.
    let long = format!("Authorization: Bearer {}\r\n", "k".repeat(1 << 20));
    let raw =
        server.raw(format!("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{long}\r\n").as_bytes());
    assert!(raw.is_empty() || statuses(&raw) == [431], "{raw}");
    assert_eq!(server.get("/health").status, 200);
    assert!(!server.card.contains("sk-"), "{}", server.card);
    server.signal("-TERM");
    let (_, said) = server.ended();
    assert!(said.contains("path=/v1/models"), "{said}");
    assert!(!said.contains("sk-"), "no key is in the log: {said}");
}

#[test]
fn keys_change_while_answers_go_on() {
    let file = TenantsFile::new(TWO);
    let mut server = Server::start(&["--tenants", file.path()]);
    let body = json!({ "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": true, "stream": true });
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with_key("sk-bob"),
        &body.to_string(),
    );
    let mut first = [0; 15];
    running.read_exact(&mut first).unwrap();
    let try_all = |server: &Server| {
        ["sk-alice", "sk-bob", "sk-new"]
            .map(|k| server.ask("GET", "/v1/models", &with_key(k), "").status)
    };
    assert_eq!(try_all(&server), [200, 200, 401]);
    file.write("[alice]\nkeys = ['sk-alice']\nadmin = true\n[bob]\nkeys = ['sk-new']\n");
    server.signal("-HUP");
    assert!(server.says("2 keys").contains("2 keys"));
    assert_eq!(try_all(&server), [200, 401, 200]);
    // A mistake changes nothing, and shows no key.
    file.write("[alice]\nkeys = 'sk-broken'\n");
    server.signal("-HUP");
    let said = server.says("README");
    assert!(
        said.contains("stay as they were") && said.contains("line 2"),
        "{said}"
    );
    assert!(!said.contains("sk-"), "{said}");
    assert_eq!(try_all(&server), [200, 401, 200]);
    let mut rest = first.to_vec();
    running.read_to_end(&mut rest).unwrap();
    let chunks = Answer::read(&rest).chunks();
    assert_eq!(streamed(&chunks, 1).1, ["length"]);
}
