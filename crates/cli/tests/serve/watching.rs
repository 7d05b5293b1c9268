//! What whoever watches a server is told: `/metrics`, and the map of its memory.

use std::io::{BufRead as _, BufReader, Read as _};
use std::time::{Duration, Instant};

use plimsoll_server::memory::{Memory, Phase, Way};
use serde_json::{Value, json};

use crate::exposition::*;
use crate::server::*;

pub(crate) fn scrape(server: &Server) -> Exposition {
    let answer = server.get("/metrics");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(answer.headers.contains(kind), "{}", answer.headers);
    Exposition::read(&answer.body)
}

fn memory(server: &Server) -> Memory {
    let answer = server.get("/v1/memory");
    assert_eq!(answer.status, 200, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

fn begin(server: &Server, body: &Value) -> std::net::TcpStream {
    let json = "Content-Type: application/json\r\n";
    server.send("POST", "/v1/completions", json, &body.to_string())
}

#[test]
fn metrics_count_what_was_asked() {
    let server = Server::start(&["--served-model-name", "a \"b\\c"]);
    let empty = scrape(&server);
    let mut http = 1.0;
    for name in ["vllm:prompt_tokens_total", "plimsoll:requests_total"] {
        assert_eq!(empty.sum(name, &[]), 0.0);
    }
    let (mut prompt, mut generated, mut sequences) = (0, 0, 0);
    for (body, n) in [
        (json!({ "prompt": PROMPT, "max_tokens": 5 }), 1),
        (
            json!({ "prompt": PROMPT.repeat(4), "max_tokens": 7, "ignore_eos": true }),
            1,
        ),
        (
            json!({ "prompt": PROMPT.repeat(4), "max_tokens": 9, "n": 3, "seed": 1 }),
            3,
        ),
        (json!({ "prompt": [PROMPT, "He"], "max_tokens": 1 }), 2),
    ] {
        let usage = server.complete(body)["usage"].clone();
        prompt += usage["prompt_tokens"].as_u64().unwrap();
        generated += usage["completion_tokens"].as_u64().unwrap();
        sequences += n;
        http += 1.0;
    }
    let long = json!({ "prompt": PROMPT, "max_tokens": 2_000_000 });
    assert_eq!(
        server.post("/v1/completions", &long.to_string()).status,
        400
    );
    assert_eq!(server.get("/nowhere").status, 404);
    http += 2.0;
    // A request is counted when its answer was let go of and a step when it is done: a moment after the client has read.
    let mut now = scrape(&server);
    for _ in 0..200 {
        let steps = now.sum("plimsoll:engine_steps_total", &[]);
        let counted = now.sum("vllm:iteration_tokens_total_count", &[]);
        if now.sum("plimsoll:http_requests_total", &[]) >= http && steps == counted {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        // The scrape before is one more.
        http += 1.0;
        now = scrape(&server);
    }
    now.follows(&empty);
    let model = [("model_name", "a \"b\\c")];
    let vllm = |name: &str| now.sum(&format!("vllm:{name}"), &model);
    #[allow(clippy::cast_precision_loss, reason = "small")]
    {
        assert_eq!(vllm("prompt_tokens_total"), prompt as f64);
        assert_eq!(vllm("generation_tokens_total"), generated as f64);
        assert_eq!(vllm("request_prompt_tokens_sum"), prompt as f64);
        assert_eq!(vllm("request_generation_tokens_sum"), generated as f64);
        // The first token of each sequence has none before it.
        let between = (generated - sequences) as f64;
        assert_eq!(vllm("inter_token_latency_seconds_count"), between);
    }
    for name in [
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "request_params_n",
        "request_params_max_tokens",
        "request_num_preemptions",
    ] {
        assert_eq!(vllm(&format!("{name}_count")), 5.0, "{name}");
    }
    assert_eq!(vllm("request_params_n_sum"), 7.0);
    assert_eq!(vllm("request_params_max_tokens_sum"), 23.0);
    // Parts of a whole are not longer than it.
    let whole = vllm("e2e_request_latency_seconds_sum");
    let parts = vllm("request_queue_time_seconds_sum") + vllm("request_inference_time_seconds_sum");
    assert!(parts <= whole, "{parts} of {whole}");
    let inference = vllm("request_inference_time_seconds_sum");
    let parts = vllm("request_prefill_time_seconds_sum") + vllm("request_decode_time_seconds_sum");
    assert!((parts - inference).abs() < 1e-6);
    assert_eq!(vllm("request_success_total"), 5.0);
    assert_eq!(now.sum("plimsoll:requests_total", &[]), 5.0);
    assert!(vllm("prefix_cache_hits_total") > 0.0);
    assert_eq!(
        vllm("prefix_cache_queries_total"),
        vllm("prompt_tokens_total")
    );
    assert_eq!(
        vllm("iteration_tokens_total_count"),
        now.sum("plimsoll:engine_steps_total", &[])
    );
    // Every HTTP request but the scrape itself has ended in one way.
    assert_eq!(now.sum("plimsoll:http_requests_total", &[]), http);
    let ended = |route, outcome| {
        now.sum(
            "plimsoll:http_requests_total",
            &[("route", route), ("outcome", outcome)],
        )
    };
    assert_eq!(ended("/v1/completions", "ok"), 4.0);
    assert_eq!(ended("/v1/completions", "client_error"), 1.0);
    assert_eq!(ended("none", "client_error"), 1.0);
    assert_eq!(
        now.sum(
            "plimsoll:refusals_total",
            &[("code", "context_length_exceeded")]
        ),
        1.0
    );
    assert_eq!(
        now.sum("plimsoll:refusals_total", &[("code", "unknown_url")]),
        1.0
    );
    // The plan is what is committed, and pages add up.
    for region in ["weights", "kv_cache", "activations", "workspace"] {
        let of = |what: &str| {
            now.sum(
                &format!("plimsoll:memory_{what}_bytes"),
                &[("region", region)],
            )
        };
        assert_eq!(of("planned"), of("committed"), "{region}");
        assert!(
            of("high_water") <= of("committed") && of("high_water") > 0.0,
            "{region}"
        );
    }
    assert!(now.sum("plimsoll:memory_high_water_bytes", &[("region", "reserve")]) > 0.0);
    let pages = now.sum("plimsoll:kv_pages", &[]);
    let config = &now.0["vllm:cache_config_info"].samples[0].1;
    assert_eq!(config["num_gpu_blocks"].parse::<f64>().unwrap(), pages);
    assert_eq!(config["block_size"], "16");
}

#[test]
fn whoever_leaves_is_counted_where_he_was() {
    let server = Server::start(&[]);
    let before = scrape(&server);
    let body = json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "stream": true });
    let mut socket = begin(&server, &body);
    socket.read_exact(&mut [0; 1000]).unwrap();
    let during = scrape(&server);
    assert_eq!(during.sum("vllm:num_requests_running", &[]), 1.0);
    assert!(during.sum("vllm:kv_cache_usage_perc", &[]) > 0.0);
    assert!(during.sum("plimsoll:open_connections", &[]) >= 2.0);
    let held = during.sum("plimsoll:kv_held_bytes", &[]);
    assert_eq!(
        held,
        during.sum("plimsoll:kv_owner_bytes", &[("owner", "default")])
    );
    assert!(during.sum("plimsoll:kv_held_bytes", &[("class", "token_states")]) > 0.0);
    drop(socket);
    server.wait_until("free", Server::is_free);
    server.wait_until("counted", |s| {
        scrape(s).or_zero("plimsoll:http_requests_total", &[("outcome", "left")]) > 0.0
    });
    let after = scrape(&server);
    after.follows(&during);
    during.follows(&before);
    assert_eq!(
        after.sum("plimsoll:cancellations_total", &[("phase", "decode")]),
        1.0
    );
    assert_eq!(after.sum("plimsoll:cancellations_total", &[]), 1.0);
    assert_eq!(
        after.sum(
            "vllm:request_success_total",
            &[("finished_reason", "abort")]
        ),
        1.0
    );
    assert_eq!(after.sum("vllm:request_success_total", &[]), 1.0);
}

#[test]
fn memory_says_whose_every_page_is() {
    let server = Server::start(&[]);
    let body = json!({
        "prompt": PROMPT.repeat(8), "max_tokens": 900, "ignore_eos": true, "stream": true, "n": 2, "seed": 4
    });
    let mut socket = begin(&server, &body);
    let mut some = vec![0; 3000];
    socket.read_exact(&mut some).unwrap();
    let text = String::from_utf8(some).unwrap();
    let id = text
        .split("\"id\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    std::thread::sleep(Duration::from_millis(150));
    let answer = server.get("/v1/memory");
    assert!(!answer.body.contains("house"), "nothing of a text is told");
    let m: Memory = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        serde_json::to_value(&m).unwrap(),
        answer.json(),
        "the shape is whole"
    );
    assert!(m.age_ms < 1000, "{}", m.age_ms);
    assert_eq!((m.entries.len(), m.entries_left_out), (1, 0));
    let entry = &m.entries[0];
    assert_eq!((entry.id.as_str(), entry.tenant.as_str()), (id, "default"));
    assert_eq!((entry.state, entry.sequences), (Phase::Decode, 2));
    assert!(entry.generated_tokens > 0 && entry.prompt_tokens > 64);
    // Both sequences have the prompt's whole blocks.
    assert_eq!(entry.shared_pages, entry.prompt_tokens / 16);
    let p = &m.kv_pages;
    assert_eq!(p.free + p.held + p.cached + p.in_transit, p.total);
    assert_eq!((p.shared, p.beam), (entry.shared_pages, 0));
    // Each writes on in the last block of its own.
    let copied = u64::from(!entry.prompt_tokens.is_multiple_of(16));
    assert_eq!(p.copied_on_write, copied);
    let of = |want: &dyn Fn(&str, i64) -> bool| -> u64 {
        let runs = m.page_map.runs.chunks(3);
        let state = |s: i64| m.page_map.states[usize::try_from(s).unwrap()].as_str();
        let some = runs.filter(|r| want(state(r[0]), r[1]));
        some.map(|r| r[2].unsigned_abs()).sum()
    };
    assert_eq!(of(&|_, _| true), p.total);
    assert_eq!(
        of(&|s, owner| s == "held" && owner == 0),
        entry.pages - entry.shared_pages
    );
    assert_eq!(
        of(&|s, owner| s == "shared" && owner == -1),
        entry.shared_pages
    );
    let w = &m.waste;
    let classes = w.token_states_bytes + w.reserved_bytes + w.internal_bytes + w.external_bytes;
    assert_eq!(classes, p.held * p.page_bytes);
    assert_eq!(m.owners[0].held_pages, p.held);
    assert!(
        m.regions
            .iter()
            .any(|r| r.region == "reserve" && r.high_water_bytes > Some(0))
    );
    drop(socket);
    server.wait_until("free", Server::is_free);
    std::thread::sleep(Duration::from_millis(150));
    let m = memory(&server);
    assert_eq!((m.entries.len(), m.kv_pages.shared), (0, 0));
    assert!(m.kv_pages.cached > 0, "prefixes stay");
}

#[test]
fn the_last_refusals_and_preemptions_are_told() {
    let server = Server::start(&[
        "--kv-memory",
        "1MiB",
        "--max-model-len",
        "256",
        "--swap-space",
        "1MiB",
        "--preempt",
        "swap",
    ]);
    let total = memory(&server).kv_pages.total;
    let each = json!({ "prompt": PROMPT, "max_tokens": 200, "ignore_eos": true });
    let wide = 256.min(2 * total / 13);
    let sockets: Vec<_> = (0..wide).map(|_| begin(&server, &each)).collect();
    let began = Instant::now();
    let m = loop {
        let m = memory(&server);
        if !m.preemptions.is_empty() {
            break m;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "nobody gave way of {wide}"
        );
    };
    let last = m.preemptions.last().unwrap();
    assert_eq!((last.kind, last.tenant.as_str()), (Way::Swap, "default"));
    assert!(last.pages_needed > last.pages_available);
    assert!(last.id.starts_with("cmpl-") && last.by.starts_with("cmpl-"));
    assert!(last.swapped_pages > 0 && last.cost_ns > 0);
    for mut socket in sockets {
        let _ = socket.read_to_end(&mut Vec::new());
    }
    let now = scrape(&server);
    let swaps = now.sum("plimsoll:preemptions_total", &[("kind", "swap")]);
    assert!(swaps > 0.0);
    assert_eq!(
        now.sum("vllm:num_preemptions_total", &[]),
        now.sum("plimsoll:preemptions_total", &[])
    );
    assert!(now.sum("plimsoll:swapped_bytes_total", &[("direction", "out")]) > 0.0);
    assert!(now.sum("plimsoll:preemption_believed_nanoseconds_total", &[]) > 0.0);
    assert!(
        now.sum("vllm:request_num_preemptions_sum", &[])
            == now.sum("vllm:num_preemptions_total", &[])
    );
    let small = Server::start(&["--kv-memory", "200KiB", "--max-model-len", "64"]);
    let wide = json!({ "prompt": PROMPT, "max_tokens": 40, "n": 16 });
    let refused = small.post("/v1/completions", &wide.to_string());
    assert_eq!(refused.status, 400, "{}", refused.body);
    let m = memory(&small);
    let last = m.refusals.last().unwrap();
    assert_eq!(m.counters.refused, 1);
    assert_eq!(json!(last.code), refused.json()["error"]["code"]);
    assert!(last.reason.len() > 20 && last.tenant == "default");
    for _ in 0..70 {
        small.post("/v1/completions", "{");
    }
    let m = memory(&small);
    assert_eq!((m.refusals.len(), m.counters.refused), (64, 71));
}

#[test]
fn the_memory_is_told_again_and_again_to_a_few() {
    let server = Server::start(&[]);
    let watch = || server.send("GET", "/v1/memory/stream", "", "");
    let mut reader = BufReader::new(watch());
    let mut times = Vec::new();
    let mut line = String::new();
    while times.len() < 3 {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        if let Some(event) = line.strip_prefix("data: ") {
            let m: Memory = serde_json::from_str(event).unwrap();
            assert_eq!(m.kv_pages.free, m.kv_pages.total);
            times.push(Instant::now());
        }
    }
    let apart = times[2] - times[0];
    let second = Duration::from_secs(1);
    assert!(apart > second && apart < 4 * second, "{apart:?}");
    let mut others: Vec<_> = (0..3).map(|_| BufReader::new(watch())).collect();
    for other in &mut others {
        let mut line = String::new();
        other.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    }
    let fifth = server.get("/v1/memory/stream");
    assert_eq!(fifth.status, 429, "{}", fifth.body);
    assert_eq!(fifth.json()["error"]["code"], "too_many_watchers");
    drop(reader);
    server.wait_until("a place for another", |_| {
        let mut line = String::new();
        BufReader::new(watch()).read_line(&mut line).unwrap();
        line.starts_with("HTTP/1.1 200")
    });
    // Whoever watches holds nobody up.
    server.signal("-TERM");
    let began = Instant::now();
    let (status, _) = server.ended();
    assert!(status.success() && began.elapsed() < 5 * second);
}

fn top(args: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("top")
        .args(args)
        .env_remove("PLIMSOLL_API_KEY")
        .env_remove("NO_COLOR")
        .output()
        .unwrap()
}

#[test]
fn top_draws_a_server_once() {
    let server = Server::start(&["--api-key", "sk-1"]);
    let url = format!("http://{}/v1", server.address);
    let shown = top(&[&url, "--once", "--api-key", "sk-1"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success(), "{text}");
    assert!(text.starts_with("demo at http://127.0.0.1:"), "{text}");
    for part in [
        "0 run, 0 wait, 0 gave way",
        "weights",
        "reserve",
        "pages of",
        "first token",
    ] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "plain text for a pipe");
    let ends = |args: &[&str], code: i32, says: &str| {
        let out = top(args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{text}");
        assert!(text.contains(says) && text.contains("\n  try: "), "{text}");
        assert!(text.lines().count() <= 4, "{text}");
    };
    ends(&[&url, "--once"], 4, "does not let this key look");
    ends(&[&url, "--api-key", "sk-1"], 2, "stdout is no terminal");
    ends(&["ftp://x", "--once"], 2, "this is no address");
    ends(
        &["http://127.0.0.1:1", "--once"],
        69,
        "the server cannot be reached",
    );
}

/// Every name that a panel asks for is a sample that there is, once the server has answered something.
#[test]
fn the_dashboard_asks_for_what_there_is() {
    let server = Server::start(&[]);
    server.complete(json!({ "prompt": PROMPT, "max_tokens": 2 }));
    server.post("/v1/completions", "{");
    let samples: Vec<String> = scrape(&server)
        .0
        .into_values()
        .flat_map(|f| f.samples)
        .map(|s| s.0)
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../grafana/dashboard.json");
    let board: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let panels = board["panels"].as_array().unwrap();
    assert!(panels.len() >= 10);
    let mut asked = 0;
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let names = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
            let names: Vec<&str> = names.filter(|n| n.contains(':')).collect();
            assert!(!names.is_empty(), "{title}: {query}");
            for name in names {
                assert!(samples.iter().any(|s| s == name), "{title} asks for {name}");
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked}");
}
