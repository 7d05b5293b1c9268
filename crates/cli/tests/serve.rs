//! `plimsoll serve` as clients meet it: the real server, on the demo model, over real connections.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const PROMPT: &str = "She had not been an hour in the house before";

/// A server that is gone after the test.
struct Server {
    child: Child,
    address: String,
    /// What it said until it was ready.
    card: String,
    errors: BufReader<std::process::ChildStderr>,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(["serve", "--port", "0", "--threads", "1"])
            .args(args)
            .env("NO_COLOR", "1")
            .env_remove("PLIMSOLL_API_KEY")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut card = String::new();
        let address = loop {
            let before = card.len();
            let read = errors.read_line(&mut card).unwrap();
            assert!(read > 0, "it ended: {card}");
            // The curl line ends the card.
            let line = &card[before..];
            if let Some(rest) = line.trim_start().strip_prefix("curl http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
        };
        Self {
            child,
            address,
            card,
            errors,
        }
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let timeout = Some(Duration::from_secs(60));
        socket.set_read_timeout(timeout).unwrap();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        )
        .unwrap();
        socket
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut raw = Vec::new();
        let mut socket = self.send(method, path, headers, body);
        socket.read_to_end(&mut raw).unwrap();
        Answer::read(&raw)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "")
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, "Content-Type: application/json\r\n", body)
    }

    fn complete(&self, body: Value) -> Value {
        let answer = self.post("/v1/completions", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// Nothing runs, and nobody holds a page.
    fn is_free(&self) -> bool {
        let m = self.get("/v1/memory").json();
        m["requests"] == json!({ "running": 0, "waiting": 0, "preempted": 0 })
            && m["kv_pages"]["held"] == 0
    }

    fn wait_until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !is(self) {
            assert!(began.elapsed() < Duration::from_secs(30), "never {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// How it ended, and what it said then.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl Answer {
    fn read(raw: &[u8]) -> Self {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let headers = String::from_utf8(raw[..end].to_vec()).unwrap();
        let headers = headers.to_ascii_lowercase();
        let mut rest = &raw[end + 4..];
        let mut body = Vec::new();
        if headers.contains("transfer-encoding: chunked") {
            loop {
                let line = rest.windows(2).position(|w| w == b"\r\n").unwrap();
                let size = std::str::from_utf8(&rest[..line]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&rest[line + 2..line + 2 + size]);
                rest = &rest[line + 2 + size + 2..];
            }
        } else {
            body.extend_from_slice(rest);
        }
        Self {
            status: headers.split(' ').nth(1).unwrap().parse().unwrap(),
            headers,
            body: String::from_utf8(body).unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The chunks of a stream, which must end as streams do.
    fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.headers.contains("content-type: text/event-stream"));
        let events: Vec<&str> = self.body.split_terminator("\n\n").collect();
        let (done, events) = events.split_last().unwrap();
        assert_eq!(*done, "data: [DONE]");
        let json = |e: &&str| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap();
        events.iter().map(json).collect()
    }
}

/// The texts of a stream's choices, and their finish reasons.
fn streamed(chunks: &[Value], n: usize) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut reasons) = (vec![String::new(); n], vec![String::new(); n]);
    for choice in chunks.iter().filter_map(|c| c["choices"].get(0)) {
        let at = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        assert_eq!(reasons[at], "", "nothing follows a finish reason");
        let text = choice["text"]
            .as_str()
            .or(choice["delta"]["content"].as_str());
        texts[at].push_str(text.unwrap_or_default());
        reasons[at].push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    (texts, reasons)
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    let text = |c: &Value| c["text"].as_str().unwrap().to_owned();
    choices.map(text).collect()
}

fn generate(args: &[&str]) -> Value {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["generate", "demo", "--json", "--threads", "1"])
        .args(args)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The demo model with a chat template, in a folder that is gone after the test.
struct ChatModel(PathBuf);

impl ChatModel {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plimsoll-serve-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "model.safetensors",
        ] {
            std::fs::copy(from.join(name), path.join(name)).unwrap();
        }
        let template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
        std::fs::write(path.join("chat_template.jinja"), template).unwrap();
        Self(path)
    }
}

impl Drop for ChatModel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn text_is_the_same_whole_streamed_and_generated() {
    let server = Server::start(&[]);
    assert!(server.card.contains("KV cache: "), "{}", server.card);
    for n in [1, 2] {
        let samples = n.to_string();
        let own = generate(&[
            "-p",
            PROMPT,
            "-n",
            "24",
            "--seed",
            "7",
            "--samples",
            &samples,
        ]);
        let mut body = json!({
            "model": "demo", "prompt": PROMPT, "max_tokens": 24, "seed": 7, "n": n,
        });
        let whole = server.complete(body.clone());
        assert_eq!(texts(&whole), texts(&own));
        assert_eq!(whole["object"], "text_completion");
        let tokens: u64 = own["output_tokens"].as_u64().unwrap();
        assert_eq!(whole["usage"]["prompt_tokens"], own["prompt_tokens"]);
        assert_eq!(whole["usage"]["completion_tokens"], tokens);
        let sum = tokens + own["prompt_tokens"].as_u64().unwrap();
        assert_eq!(whole["usage"]["total_tokens"], sum);

        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let chunks = server.post("/v1/completions", &body.to_string()).chunks();
        let (text, reasons) = streamed(&chunks, n);
        assert_eq!(text, texts(&own));
        for (i, reason) in reasons.iter().enumerate() {
            assert_eq!(whole["choices"][i]["finish_reason"], **reason);
        }
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert!(others.iter().all(|c| c["usage"].is_null()));
        assert_eq!(last["usage"]["completion_tokens"], tokens);
        assert_eq!(last["usage"]["total_tokens"], sum);
    }
    // Of several prompts each has its choices, in their order; of the same seed the same ones.
    let ids = server.post("/tokenize", &json!({ "prompt": PROMPT }).to_string());
    let ids = ids.json()["tokens"].clone();
    let one = |prompt: Value| {
        server.complete(json!({ "prompt": prompt, "max_tokens": 8, "seed": 3, "n": 2 }))
    };
    let (text, list) = (texts(&one(PROMPT.into())), texts(&one(json!([ids, ids]))));
    assert_eq!(list, [&*text, &*text].concat());
    // Two of four draws, the likeliest.
    let best = server
        .complete(json!({ "prompt": PROMPT, "max_tokens": 8, "seed": 3, "n": 2, "best_of": 4 }));
    let own = generate(&[
        "-p",
        PROMPT,
        "-n",
        "8",
        "--seed",
        "3",
        "--samples",
        "2",
        "--best-of",
        "4",
    ]);
    assert_eq!(texts(&best), texts(&own));
    server.wait_until("free", Server::is_free);
}

#[test]
fn stop_strings_cut_wherever_tokens_begin() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": PROMPT, "max_tokens": 24, "temperature": 0 });
    let with = |more: Value| {
        let mut body = body.clone();
        let more = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        body
    };
    let whole = server.complete(with(json!({ "logprobs": 0 })));
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let tokens = whole["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .unwrap();
    // The end of one token and the beginning of the next.
    let (a, b) = (tokens[9].as_str().unwrap(), tokens[10].as_str().unwrap());
    let stop = format!("{}{}", &a[a.len() - 1..], &b[..2]);
    let want = &text[..text.find(&stop).unwrap()];
    let cut = with(json!({ "stop": ["never this", stop] }));
    let answer = server.complete(cut.clone());
    assert_eq!(texts(&answer), [want]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let mut stream = cut;
    stream["stream"] = true.into();
    let chunks = server.post("/v1/completions", &stream.to_string()).chunks();
    let want = (vec![want.to_owned()], vec!["stop".to_owned()]);
    assert_eq!(streamed(&chunks, 1), want);
    // What could have become one is text when nothing follows.
    let mut almost = with(json!({ "stop": format!("{}\u{1}", &text[text.len() - 2..]) }));
    assert_eq!(texts(&server.complete(almost.clone())), [text]);
    almost["stream"] = true.into();
    let chunks = server.post("/v1/completions", &almost.to_string()).chunks();
    assert_eq!(streamed(&chunks, 1).0, [text]);
    // What ends a text by its id is no part of it.
    let id = server.post("/tokenize", &json!({ "prompt": text }).to_string());
    let id = id.json()["tokens"][3].clone();
    let first = with(json!({ "stop_token_ids": [id], "logprobs": 0 }));
    let answer = server.complete(first);
    let tokens = answer["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .unwrap();
    let (_, before) = tokens.split_last().unwrap();
    let before: String = before.iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(texts(&answer), [before]);
}

#[test]
fn log_probabilities_have_their_shapes() {
    let model = ChatModel::new();
    let server = Server::start(&[model.0.to_str().unwrap(), "--served-model-name", "chat"]);
    // Longer than a block: the second time, the prefix cache has it.
    let prompt = format!("{PROMPT} {PROMPT} {PROMPT}");
    let mut body = json!({
        "model": "chat", "prompt": prompt, "max_tokens": 6, "seed": 1, "logprobs": 2, "echo": true,
    });
    let whole = server.complete(body.clone());
    let own = generate(&[
        "-p",
        &prompt,
        "-n",
        "6",
        "--seed",
        "1",
        "--logprobs",
        "2",
        "--prompt-logprobs",
        "2",
    ]);
    let all = &whole["choices"][0]["logprobs"];
    let told = own["prompt_logprobs"].as_array().unwrap().iter();
    let told = told.chain(own["choices"][0]["logprobs"].as_array().unwrap());
    let mut text = String::new();
    for (i, t) in told.enumerate() {
        assert_eq!(all["tokens"][i], t["token"]);
        assert_eq!(all["token_logprobs"][i], t["logprob"]);
        assert_eq!(all["text_offset"][i], text.chars().count());
        let top = t["top"].as_array().unwrap().iter();
        for top in top {
            let token = top["token"].as_str().unwrap();
            assert_eq!(all["top_logprobs"][i][token], top["logprob"]);
        }
        text.push_str(t["token"].as_str().unwrap());
    }
    assert_eq!(whole["choices"][0]["text"], *text);
    let count = all["tokens"].as_array().unwrap().len();
    assert_eq!(count, 6 + ids(&server, &prompt).len());
    // In pieces, the same columns.
    body["stream"] = true.into();
    let chunks = server.post("/v1/completions", &body.to_string()).chunks();
    assert_eq!(streamed(&chunks, 1).0, [text]);
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let pieces = chunks.iter().map(|c| &c["choices"][0]["logprobs"][column]);
        let joined: Vec<&Value> = pieces.filter_map(Value::as_array).flatten().collect();
        let want: Vec<&Value> = all[column].as_array().unwrap().iter().collect();
        assert_eq!(joined, want, "{column}");
    }

    let mut body = json!({
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Who" }, { "type": "text", "text": "is she?" }] },
        ],
        "max_completion_tokens": 5, "seed": 1, "logprobs": true, "top_logprobs": 3, "n": 2,
    });
    let answer = server.post("/v1/chat/completions", &body.to_string());
    let whole = answer.json();
    assert_eq!(answer.status, 200, "{whole}");
    assert_eq!(whole["object"], "chat.completion");
    let prompt = "system: Be brief.\nuser: Who\nis she?\nassistant:";
    let own = generate(&[
        "-p",
        prompt,
        "-n",
        "5",
        "--seed",
        "1",
        "--samples",
        "2",
        "--logprobs",
        "3",
    ]);
    let mut contents = Vec::new();
    for i in 0..2 {
        let choice = &whole["choices"][i];
        assert_eq!(choice["index"], i);
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!(choice["message"]["content"], own["choices"][i]["text"]);
        contents.push(choice["message"]["content"].as_str().unwrap().to_owned());
        let told = own["choices"][i]["logprobs"].as_array().unwrap();
        for (entry, t) in choice["logprobs"]["content"]
            .as_array()
            .unwrap()
            .iter()
            .zip(told)
        {
            assert_eq!(
                (&entry["token"], &entry["logprob"]),
                (&t["token"], &t["logprob"])
            );
            assert_eq!(
                entry["bytes"],
                json!(t["token"].as_str().unwrap().as_bytes())
            );
            assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
            assert_eq!(entry["top_logprobs"][0]["token"], t["top"][0]["token"]);
        }
    }
    body["stream"] = true.into();
    let chunks = server
        .post("/v1/chat/completions", &body.to_string())
        .chunks();
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks.iter().all(|c| c.get("usage").is_none()));
    let reasons = vec!["length".to_owned(); 2];
    assert_eq!(streamed(&chunks, 2), (contents, reasons));
    let entries = chunks
        .iter()
        .map(|c| &c["choices"][0]["logprobs"]["content"]);
    assert_eq!(entries.filter_map(Value::as_array).flatten().count(), 10);
}

fn ids(server: &Server, prompt: &str) -> Vec<Value> {
    let ids = server.post("/tokenize", &json!({ "prompt": prompt }).to_string());
    ids.json()["tokens"].as_array().unwrap().clone()
}

#[test]
fn whoever_leaves_takes_all_with_him() {
    let server = Server::start(&["--max-num-seqs", "2"]);
    let body = json!({
        "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "stream": true, "n": 2,
    });
    let long = body.to_string();
    let headers = "Content-Type: application/json\r\n";
    // Mid-stream.
    let mut socket = server.send("POST", "/v1/completions", headers, &long);
    let mut some = [0; 512];
    socket.read_exact(&mut some).unwrap();
    assert!(!server.is_free());
    // In the queue: the first has all places.
    let queued = server.send("POST", "/v1/completions", headers, &long);
    let waiting = |s: &Server| s.get("/v1/memory").json()["requests"]["waiting"].clone();
    server.wait_until("queued", |s| waiting(s) == 1);
    drop(queued);
    server.wait_until("out of the queue", |s| waiting(s) == 0);
    assert!(!server.is_free(), "the first goes on");
    drop(socket);
    server.wait_until("free", Server::is_free);
    // One that waits for a whole answer.
    let mut whole = body;
    whole["stream"] = false.into();
    let socket = server.send("POST", "/v1/completions", headers, &whole.to_string());
    server.wait_until("running", |s| !s.is_free());
    drop(socket);
    server.wait_until("free again", Server::is_free);
    // Not by having been done: it takes longer than that.
    let steps = server.get("/v1/memory").json()["engine_steps"]
        .as_u64()
        .unwrap();
    assert!(steps < 1800, "{steps}");
}

#[test]
fn a_mistake_is_one_error_and_changes_nothing_for_others() {
    let model = ChatModel::new();
    let server = Server::start(&[model.0.to_str().unwrap(), "--served-model-name", "demo"]);
    let canary = json!({ "prompt": PROMPT, "max_tokens": 8, "temperature": 0 });
    let want = texts(&server.complete(canary.clone()));
    let deep = format!(
        "{{\"prompt\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let many = |n: usize, one: &str| vec![one; n].join(",");
    let deeper = |name: &str| {
        format!(
            "{{\"prompt\":\"x\",\"{name}\":{}{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        )
    };
    let prompts = format!("{{\"prompt\":[{}]}}", many(129, "\"x\""));
    let biases: Vec<String> = (0..1025).map(|i| format!("\"{i}\":1")).collect();
    let biases = format!(
        "{{\"prompt\":\"x\",\"logit_bias\":{{{}}}}}",
        biases.join(",")
    );
    let huge = format!("{{\"prompt\":\"{}\"}}", "a ".repeat(100_000));
    let c = "/v1/completions";
    let chat = "/v1/chat/completions";
    let x = |more: &str| format!("{{\"prompt\":\"x\",{more}}}");
    let m = |more: &str| format!("{{\"messages\":{more}}}");
    let user = "[{\"role\":\"user\",\"content\":\"x\"}]";
    let cases: Vec<(&str, String, u16, &str, &str)> = vec![
        (c, String::new(), 400, "invalid_json", ""),
        (c, "null".into(), 400, "invalid_json", ""),
        (c, "[]".into(), 400, "invalid_json", ""),
        (c, "\u{feff}{}".into(), 400, "invalid_json", ""),
        (c, "{\"prompt\":\"x\"".into(), 400, "invalid_json", ""),
        (c, "{\"prompt\":\"x\"} {}".into(), 400, "invalid_json", ""),
        (
            c,
            "{\"prompt\":\"\\ud800\"}".into(),
            400,
            "invalid_json",
            "",
        ),
        (c, x("\"temperature\":NaN"), 400, "invalid_json", ""),
        (c, x("\"temperature\":1e400"), 400, "invalid_json", ""),
        (c, deep, 400, "invalid_value", "prompt[0][0]"),
        (c, deeper("tools"), 400, "invalid_json", ""),
        (
            c,
            x(&format!("\"metadata\":{}", "[".repeat(100_000))),
            400,
            "invalid_json",
            "",
        ),
        (c, x("\"n\":1,\"n\":2"), 400, "invalid_value", ""),
        (c, x("\"foo\":1"), 400, "unsupported_parameter", "foo"),
        (
            c,
            x("\"tools\":[{}]"),
            400,
            "unsupported_parameter",
            "tools",
        ),
        (c, "{}".into(), 400, "missing_field", "prompt"),
        (c, "{\"prompt\":[]}".into(), 400, "invalid_value", "prompt"),
        (
            c,
            "{\"prompt\":\"\"}".into(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            c,
            "{\"prompt\":[\"a\",1]}".into(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            c,
            "{\"prompt\":[2048]}".into(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            c,
            "{\"prompt\":[-1]}".into(),
            400,
            "invalid_value",
            "prompt[0]",
        ),
        (c, prompts, 400, "invalid_value", "prompt"),
        (c, huge, 400, "context_length_exceeded", "prompt"),
        (
            c,
            x("\"max_tokens\":1024"),
            400,
            "context_length_exceeded",
            "max_tokens",
        ),
        (c, x("\"max_tokens\":0"), 400, "invalid_value", "max_tokens"),
        (
            c,
            x("\"max_tokens\":-1"),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            c,
            x("\"max_tokens\":1.5"),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            c,
            x("\"min_tokens\":17"),
            400,
            "invalid_value",
            "min_tokens",
        ),
        (c, x("\"n\":0"), 400, "invalid_value", "n"),
        (c, x("\"n\":17"), 400, "invalid_value", "n"),
        (c, x("\"n\":1000000000"), 400, "invalid_value", "n"),
        (c, x("\"n\":\"5\""), 400, "invalid_value", "n"),
        (
            c,
            x("\"n\":2,\"best_of\":1"),
            400,
            "invalid_value",
            "best_of",
        ),
        (
            c,
            x("\"best_of\":2,\"stream\":true"),
            400,
            "invalid_value",
            "best_of",
        ),
        (
            c,
            x("\"temperature\":2.1"),
            400,
            "invalid_value",
            "temperature",
        ),
        (
            c,
            x("\"temperature\":1e308"),
            400,
            "invalid_value",
            "temperature",
        ),
        (c, x("\"top_p\":0"), 400, "invalid_value", "top_p"),
        (c, x("\"top_k\":-2"), 400, "invalid_value", "top_k"),
        (c, x("\"min_p\":1.1"), 400, "invalid_value", "min_p"),
        (
            c,
            x("\"presence_penalty\":2.01"),
            400,
            "invalid_value",
            "presence_penalty",
        ),
        (
            c,
            x("\"repetition_penalty\":0"),
            400,
            "invalid_value",
            "repetition_penalty",
        ),
        (
            c,
            x("\"logit_bias\":{\"2048\":1}"),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            c,
            x("\"logit_bias\":{\"a\":1}"),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            c,
            x("\"logit_bias\":{\"1\":101}"),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (c, biases, 400, "invalid_value", "logit_bias"),
        (
            c,
            x("\"seed\":18446744073709551616"),
            400,
            "invalid_value",
            "seed",
        ),
        (c, x("\"stop\":\"\""), 400, "invalid_value", "stop"),
        (
            c,
            x(&format!("\"stop\":[{}]", many(17, "\"a\""))),
            400,
            "invalid_value",
            "stop",
        ),
        (
            c,
            x("\"stop_token_ids\":[2048]"),
            400,
            "invalid_value",
            "stop_token_ids",
        ),
        (c, x("\"logprobs\":21"), 400, "invalid_value", "logprobs"),
        (c, x("\"logprobs\":true"), 400, "invalid_value", "logprobs"),
        (
            c,
            x("\"stream_options\":{}"),
            400,
            "invalid_value",
            "stream_options",
        ),
        (
            c,
            x("\"model\":\"../../etc/passwd\""),
            404,
            "model_not_found",
            "model",
        ),
        (chat, m("[]"), 400, "invalid_value", "messages"),
        (chat, "{}".into(), 400, "missing_field", "messages"),
        (
            chat,
            m("[{\"role\":\"king\",\"content\":\"x\"}]"),
            400,
            "invalid_value",
            "messages[0].role",
        ),
        (
            chat,
            m("[{\"role\":\"user\",\"content\":null}]"),
            400,
            "invalid_value",
            "messages[0].content",
        ),
        (
            chat,
            m(
                "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"http://169.254.169.254\"}}]}]",
            ),
            400,
            "invalid_value",
            "messages[0].content",
        ),
        (
            chat,
            m(&format!("{user},\"top_logprobs\":2")),
            400,
            "invalid_value",
            "top_logprobs",
        ),
        (
            chat,
            m(&format!("{user},\"echo\":true")),
            400,
            "unsupported_parameter",
            "echo",
        ),
        (
            chat,
            m(&format!("{user},\"chat_template\":\"x\"")),
            400,
            "unsupported_parameter",
            "chat_template",
        ),
        (
            chat,
            m(&format!(
                "{user},\"response_format\":{{\"type\":\"json_object\"}}"
            )),
            400,
            "unsupported_parameter",
            "response_format",
        ),
        (
            chat,
            m(&format!(
                "{user},\"max_tokens\":1,\"max_completion_tokens\":2"
            )),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            "/detokenize",
            "{\"tokens\":[2048]}".into(),
            400,
            "invalid_value",
            "tokens",
        ),
        ("/tokenize", "{}".into(), 400, "invalid_value", "prompt"),
        ("/v1/nothing", "{}".into(), 404, "unknown_url", ""),
        ("/v1/models", "{}".into(), 405, "method_not_allowed", ""),
    ];
    for (path, body, status, code, param) in &cases {
        let answer = server.post(path, body);
        let body: String = body.chars().take(80).collect();
        assert_eq!(answer.status, *status, "{body}: {}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], *code, "{body}: {error}");
        assert_eq!(
            error["param"].as_str().unwrap_or_default(),
            *param,
            "{body}: {error}"
        );
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    let json = "Content-Type: application/json\r\n";
    for (method, path, headers, body, status) in [
        ("POST", c, "", "{}", 415),
        ("POST", c, "Content-Type: text/plain\r\n", "{}", 415),
        ("GET", c, "", "", 405),
        ("GET", "//v1/models", "", "", 404),
        ("GET", "/v1/models/other", "", "", 404),
        ("GET", "/v1/models/demo", "", "", 200),
    ] {
        let answer = server.ask(method, path, headers, body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let allow = answer.headers.contains("allow: post");
        assert_eq!(allow, status == 405, "{}", answer.headers);
    }
    // Too much is refused before it is read.
    let mut socket = TcpStream::connect(&server.address).unwrap();
    write!(
        socket,
        "POST {c} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{json}Content-Length: 5000000\r\n\r\n{{"
    )
    .unwrap();
    let mut raw = Vec::new();
    socket.read_to_end(&mut raw).unwrap();
    assert_eq!(Answer::read(&raw).status, 413);
    assert_eq!(texts(&server.complete(canary)), want);
    server.wait_until("free", Server::is_free);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let args = ["--max-num-seqs", "1", "--max-num-queued-reqs", "1"];
    let server = Server::start(&args);
    let long = json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true }).to_string();
    let json = "Content-Type: application/json\r\n";
    let _running = server.send("POST", "/v1/completions", json, &long);
    let count = |s: &Server, what: &str| s.get("/v1/memory").json()["requests"][what].clone();
    server.wait_until("running", |s| count(s, "running") == 1);
    // Two prompts of one body, of which only one has a place: neither stays.
    let two = json!({ "prompt": [PROMPT, PROMPT], "max_tokens": 900 }).to_string();
    assert_eq!(server.post("/v1/completions", &two).status, 429);
    let steps = |s: &Server| s.get("/v1/memory").json()["engine_steps"].as_u64().unwrap();
    let then = steps(&server);
    server.wait_until("a step on", |s| steps(s) > then + 1);
    assert_eq!(count(&server, "waiting"), 0);
    let _waiting = server.send("POST", "/v1/completions", json, &long);
    server.wait_until("waiting", |s| count(s, "waiting") == 1);
    let refused = server.post("/v1/completions", &long);
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    assert!(refused.headers.contains("retry-after: "));
    assert!(refused.headers.contains("retry-after-ms: "));
    // Health does not wait for anybody.
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn told_to_stop_it_ends_what_it_began() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": PROMPT, "max_tokens": 700, "ignore_eos": true, "stream": true });
    let json = "Content-Type: application/json\r\n";
    let mut socket = server.send("POST", "/v1/completions", json, &body.to_string());
    let mut raw = vec![0; 512];
    socket.read_exact(&mut raw).unwrap();
    server.signal("-TERM");
    server.wait_until("draining", |s| s.get("/health/ready").status == 503);
    assert_eq!(server.get("/health/live").status, 200);
    let refused = server.post("/v1/completions", "{\"prompt\":\"x\"}");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    assert!(refused.headers.contains("retry-after: "));
    socket.read_to_end(&mut raw).unwrap();
    let chunks = Answer::read(&raw).chunks();
    assert_eq!(streamed(&chunks, 1).1, ["length"]);
    drop(socket);
    let (status, said) = server.ended();
    assert!(status.success(), "{status:?} {said}");
    assert!(said.contains("used at most"), "{said}");

    // Told twice, it waits for nobody.
    let server = Server::start(&[]);
    let mut socket = server.send("POST", "/v1/completions", json, &body.to_string());
    socket.read_exact(&mut [0; 512]).unwrap();
    server.signal("-INT");
    server.wait_until("draining", |s| s.get("/health/ready").status == 503);
    server.signal("-INT");
    let (status, said) = server.ended();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("E-SERVE-003"), "{said}");
}

#[test]
fn only_whoever_has_the_key_comes_in() {
    let server = Server::start(&["--api-key", "open-sesame"]);
    let with = |auth: &str| format!("Content-Type: application/json\r\n{auth}");
    let body = json!({ "prompt": PROMPT, "max_tokens": 1 }).to_string();
    let routes = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/demo"),
        ("GET", "/v1/memory"),
        ("GET", "/version"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ];
    for (method, path) in routes {
        for bad in [
            "",
            "Authorization: Bearer wrong-sesame\r\n",
            "Authorization: Bearer open-sesam\r\n",
            "Authorization: Bearer open-sesame2\r\n",
            "Authorization: Basic open-sesame\r\n",
            "Authorization: open-sesame\r\n",
            "Authorization: Bearer\r\n",
            "Authorization: Bearer open-sesame\r\nAuthorization: Bearer x\r\n",
        ] {
            let answer = server.ask(method, path, &with(bad), &body);
            assert_eq!(answer.status, 401, "{path} {bad}: {}", answer.body);
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
            assert!(answer.headers.contains("www-authenticate: bearer"));
        }
    }
    for open in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(server.get(open).status, 200);
    }
    let key = with("Authorization: Bearer open-sesame\r\n");
    assert_eq!(
        server.ask("POST", "/v1/completions", &key, &body).status,
        200
    );
    assert!(!server.card.contains("open-sesame"));
}

#[test]
fn it_does_not_start_where_it_must_not() {
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .arg("serve")
            .args(args)
            .env_remove("PLIMSOLL_API_KEY")
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = run(&["--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("E-SERVE-001") && said.contains("--allow-anonymous"));
    let (code, said) = run(&["--api-key", ""]);
    assert_eq!(code, Some(2), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = run(&["--port", &port]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("E-SERVE-002"), "{said}");
}
