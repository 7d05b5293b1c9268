//! Templates, long texts, and tools that are called badly: what is left of group D.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::canary::Canary;
use crate::parameters::each;
use crate::server::*;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What a hostile request may take, here where others compile meanwhile.
const SOON: Duration = Duration::from_secs(20);

fn says(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 2 })
}

/// D5, D6.
#[test]
fn templates_and_what_they_are_given_are_the_servers() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let many: serde_json::Map<_, _> = (0..90_000).map(|i| (format!("{i:05}"), json!(0))).collect();
    let mut deep = json!("x");
    for _ in 0..64 {
        deep = json!({ "a": deep });
    }
    let own = json!({ "add_generation_prompt": false, "tokenize": true, "messages": [] });
    let refused: Vec<(Value, u16, &str)> = vec![
        (json!({ "chat_template": "x" }), 400, "chat_template"),
        (
            json!({ "chat_template": "{% for i in range(1000000000) %}x{% endfor %}" }),
            400,
            "chat_template",
        ),
        (
            json!({ "chat_template_kwargs": own }),
            400,
            "chat_template_kwargs",
        ),
        (
            json!({ "chat_template_kwargs": many }),
            400,
            "chat_template_kwargs",
        ),
        (
            json!({ "chat_template_kwargs": deep }),
            400,
            "chat_template_kwargs",
        ),
        (json!({ "documents": [] }), 400, "documents"),
        (json!({ "tokenize": true }), 400, "tokenize"),
        (json!({ "bos_token": "x" }), 400, "bos_token"),
    ];
    each(&server, CHAT, &refused);
    for (fields, ..) in refused {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let answer = server.post("/tokenize", &body.to_string());
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
    // The one thing of them that may be said.
    each(
        &server,
        CHAT,
        &[
            (json!({ "add_generation_prompt": false }), 200, ""),
            (
                json!({ "add_generation_prompt": "no" }),
                400,
                "add_generation_prompt",
            ),
        ],
    );
    canary.check(&server, "D5, D6");
}

/// A template that does what the first message says, good and bad.
const OBEDIENT: &str = "{% set c = messages[0].content %}
{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}
{% if c == 'loop' %}{% for i in range(1000000000) %}x{% endfor %}
{% elif c == 'nested' %}{% for i in range(9999) %}{% for j in range(9999) %}{{ i * j }}{% endfor %}{% endfor %}
{% elif c == 'repeat' %}{{ 'a' * 1000000000 }}
{% elif c == 'double' %}{% set n = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}
{% elif c == 'macro' %}{{ f(1) }}
{% elif c == 'long' %}{% for m in range(20) %}{{ 'abcdefgh' * 130000 }}{% endfor %}
{% elif c == 'raise' %}{{ raise_exception('no such chats') }}
{% elif c == 'undefined' %}{{ messages[7].a.b.c }}
{% elif c == 'method' %}{{ c.__class__.__mro__() }}
{% elif c == 'now' %}{{ strftime_now('%Y %Q %' ~ '%d' * 1000) }}
{% else %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}";

/// D7, L template: fuel is what a template may take, and nobody else is held up meanwhile.
#[test]
fn templates_that_do_not_end_are_ended() {
    let model = ChatModel::new();
    let path = model.0.join("chat_template.jinja");
    std::fs::write(&path, OBEDIENT).unwrap();
    let server = Server::start(&[model.0.to_str().unwrap()]);
    let canary = Canary::new(&server);
    assert_eq!(server.post(CHAT, &says("Hi").to_string()).status, 200);
    let mut slowest = (Duration::ZERO, "");
    for what in [
        "loop",
        "nested",
        "repeat",
        "double",
        "macro",
        "long",
        "raise",
        "undefined",
        "method",
    ] {
        let began = Instant::now();
        let answer = server.post(CHAT, &says(what).to_string());
        let took = began.elapsed();
        assert_eq!(answer.status, 400, "{what}: {}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["param"], "messages", "{what}: {error}");
        assert!(answer.body.len() < 600, "{what}: {}", answer.body);
        assert!(took < SOON, "{what}: {took:?}");
        if what == "raise" {
            assert!(answer.body.contains("no such chats"), "{}", answer.body);
        }
        slowest = slowest.max((took, what));
        canary.check(&server, what);
    }
    // Just under what it may take: a date of a thousand days, and more messages than anybody sends.
    let date = json!({ "messages": [{ "role": "user", "content": "now" }] });
    let date = server.post("/tokenize", &date.to_string());
    assert_eq!(date.status, 200, "{}", date.body);
    let many = vec![json!({ "role": "user", "content": "a" }); 4096];
    let many = server.post("/tokenize", &json!({ "messages": many }).to_string());
    assert_eq!(many.status, 200, "{}", many.body);
    assert!(many.json()["count"].as_u64().unwrap() > 1000);
    // While one is rendered, others are.
    let (most, what) = slowest;
    std::thread::scope(|s| {
        let hostile = s.spawn(|| server.post(CHAT, &says(what).to_string()).status);
        std::thread::sleep(most / 10);
        let began = Instant::now();
        assert_eq!(server.post(CHAT, &says("Hi").to_string()).status, 200);
        let took = began.elapsed();
        assert!(
            took < most.max(Duration::from_secs(1)) / 2,
            "{took:?} beside {most:?}"
        );
        assert_eq!(hostile.join().unwrap(), 400);
    });
    canary.check(&server, "D7");
}

/// D7: what is no template, or too much of one, is refused before anything is served.
#[test]
fn templates_that_are_none_are_refused_at_the_start() {
    let model = ChatModel::new();
    for (what, source) in [
        ("unclosed", "{% if %}".to_owned()),
        ("nested", "{% if true %}".repeat(50_000)),
        ("brackets", format!("{{{{ {}", "(".repeat(50_000))),
        ("2 MiB", "x".repeat(2 << 20)),
    ] {
        std::fs::write(model.0.join("chat_template.jinja"), source).unwrap();
        let began = Instant::now();
        let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(["serve", model.0.to_str().unwrap(), "--port", "0"])
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(65), "{what}: {said}");
        assert!(said.contains("chat_template"), "{what}: {said}");
        assert!(said.len() < 2000, "{what}: {said}");
        assert!(began.elapsed() < SOON, "{what}");
    }
}

/// D8, D9: texts that are hard on a tokenizer, as prompts, messages and to be counted.
#[test]
fn hard_texts_are_made_tokens_in_time_or_refused_unread() {
    let server = Server::start(&[]);
    // As many bytes as are read at most, for this model: the error of more says so.
    let more = json!({ "prompt": "a".repeat(1_000_000) }).to_string();
    let more = server.post("/tokenize", &more);
    assert_eq!(more.status, 400, "{}", more.body);
    let message = more.json()["error"]["message"].as_str().unwrap().to_owned();
    let most = message.split("more than ").nth(1).unwrap();
    let most: usize = most.split(' ').next().unwrap().parse().unwrap();
    let pieces = [
        "^",
        "a",
        "a1",
        "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "e\u{301}\u{323}",
        "\u{202e}x\u{202c}",
        "\u{1112}\u{1161}\u{11ab}",
        "\u{fffd}",
        "\n",
        "<|endoftext",
        "<|endoftext|>",
    ];
    // What one such text takes is planned, and the allocator keeps it: many take no more.
    std::thread::scope(|s| {
        for piece in pieces {
            let text = json!({ "prompt": piece.repeat(most / piece.len()) }).to_string();
            let server = &server;
            s.spawn(move || server.post("/tokenize", &text));
        }
    });
    let canary = Canary::new(&server);
    for piece in pieces {
        let began = Instant::now();
        let text = piece.repeat(most / piece.len());
        // Just under: counted, and the same text back where the context holds so many.
        let answer = server.post("/tokenize", &json!({ "prompt": text }).to_string());
        assert_eq!(answer.status, 200, "{piece:?}: {}", answer.body);
        let tokens = answer.json()["tokens"].as_array().unwrap().clone();
        let back = json!({ "tokens": tokens[..tokens.len().min(1024)] }).to_string();
        let back = server.post("/detokenize", &back).json()["prompt"].clone();
        let back = back.as_str().unwrap().trim_end_matches('\u{fffd}');
        assert!(
            text.starts_with(back) && back.len() > 500 || piece == "\u{fffd}",
            "{piece:?}: {back}"
        );
        // No context holds it.
        let long = server.post(COMPLETIONS, &json!({ "prompt": text }).to_string());
        let status = if tokens.len() < 1024 { 200 } else { 400 };
        assert_eq!(long.status, status, "{piece:?}: {}", long.body);
        // The template trims.
        let chat = says(&format!("x{text}x"));
        let chat = server.post(CHAT, &chat.to_string());
        assert_eq!(chat.status, 400, "{piece:?}: {}", chat.body);
        // Far over: refused unread, wherever it stands.
        let text = format!("x{}x", piece.repeat(450_000 / piece.len()));
        for (path, body, param) in [
            (COMPLETIONS, json!({ "prompt": text }), "prompt"),
            ("/tokenize", json!({ "prompt": text }), "prompt"),
            (CHAT, says(&text), "messages"),
            (
                "/tokenize",
                json!({ "messages": says(&text)["messages"] }),
                "messages",
            ),
        ] {
            let answer = server.post(path, &body.to_string());
            assert_eq!(answer.status, 400, "{path} {piece:?}: {}", answer.body);
            let error = answer.json()["error"].clone();
            assert_eq!(error["code"], "context_length_exceeded", "{piece:?}");
            assert_eq!(error["param"], param, "{piece:?}");
            assert!(answer.body.contains("not read here"), "{}", answer.body);
        }
        assert!(began.elapsed() < SOON, "{piece:?}: {:?}", began.elapsed());
    }
    canary.check(&server, "D8");

    // What is no list of tokens, and one that no sequence holds.
    for (tokens, status) in [
        (json!([]), 200),
        (json!(vec![7; 1024]), 200),
        (json!(vec![7; 1025]), 400),
        (json!(vec![7; 400_000]), 400),
        (json!([2047]), 200),
        (json!([2048]), 400),
        (json!([-1]), 400),
        (json!([1.5]), 400),
        (json!([4_294_967_297_u64]), 400),
        (json!(["a"]), 400),
        (json!("a"), 400),
        (json!(null), 400),
    ] {
        let answer = server.post("/detokenize", &json!({ "tokens": tokens }).to_string());
        assert_eq!(answer.status, status, "{}", answer.body);
        if status == 400 {
            let error = answer.json()["error"].clone();
            let param = error["param"].as_str().unwrap();
            assert!(param.starts_with("tokens"), "{error}");
        }
    }
    canary.check(&server, "D9");
}

/// D13: what begins as a call and is none is text, whole and streamed; however long, and in no time.
#[test]
fn calls_that_are_broken_are_text() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": {} } });
    let answers = |written: &str, max_tokens: u64| {
        let mut body = says("Call it.");
        for (name, value) in [
            ("tools", json!([tool])),
            ("guided_choice", json!([written])),
            ("max_tokens", json!(max_tokens)),
            ("seed", json!(1)),
        ] {
            body[name] = value;
        }
        let whole = server.post(CHAT, &body.to_string());
        assert_eq!(whole.status, 200, "{}", whole.body);
        body["stream"] = true.into();
        let chunks = soon(&server, CHAT, &body).chunks();
        (whole.json()["choices"][0].clone(), chunks)
    };
    let called = |chunks: &[Value]| {
        let delta = |c: &Value| c["choices"][0]["delta"]["tool_calls"].get(0).cloned();
        chunks.iter().filter_map(delta).collect::<Vec<Value>>()
    };
    // One that is whole, so that the others are known to be looked at.
    let (whole, chunks) = answers(
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>",
        200,
    );
    assert_eq!(whole["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(
        whole["message"]["tool_calls"][0]["function"]["arguments"],
        "{\"a\":1}"
    );
    assert_eq!(called(&chunks).len(), 1);
    let huge = format!(
        "{{\"name\":\"f\",\"arguments\":{{\"a\":\"{}",
        "x ".repeat(300)
    );
    for (written, max_tokens, reason) in [
        (
            "<tool_call>{\"name\":\"f\",\"arguments\":{</tool_call>",
            200,
            "stop",
        ),
        ("<tool_call>{\"name\":\"f\"}</tool_call>", 200, "stop"),
        (
            "<tool_call>{\"name\":\"f\",\"arguments\":\"a\"}</tool_call>",
            200,
            "stop",
        ),
        (
            "<tool_call>{\"name\":\"nobody\",\"arguments\":{}}</tool_call>",
            200,
            "stop",
        ),
        ("<tool_call></tool_call>", 200, "stop"),
        ("{\"name\":\"f\",\"arguments\":[]}", 200, "stop"),
        ("{\"name\":5,\"arguments\":{}}", 200, "stop"),
        (&"<tool_call>".repeat(60), 900, "stop"),
        // Cut off in the middle of its arguments.
        (&huge, 200, "length"),
    ] {
        let (whole, chunks) = answers(written, max_tokens);
        assert_eq!(whole["finish_reason"], reason, "{written}: {whole}");
        assert!(whole["message"].get("tool_calls").is_none(), "{whole}");
        let text = whole["message"]["content"].as_str().unwrap();
        match reason {
            "stop" => assert_eq!(text, written),
            _ => assert!(written.starts_with(text) && text.len() > 100, "{text}"),
        }
        assert!(called(&chunks).is_empty(), "{written}");
        let (texts, reasons) = streamed(&chunks, 1);
        assert_eq!((&*texts[0], &*reasons[0]), (text, reason));
    }
    canary.check(&server, "D13");
}

/// D9: answers of `/tokenize` are long, and take the room that there is for requests until they are read.
#[test]
fn answers_of_tokenize_take_room() {
    let server = Server::start(&["--max-connections", "32"]);
    let json = "Content-Type: application/json\r\n";
    let text = "\u{1f642}".repeat((64 << 10) / 4);
    let long = json!({ "prompt": text, "return_token_strs": true }).to_string();
    let answer = server.post("/tokenize", &long);
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() > 500_000, "{}", answer.body.len());
    // One that has all places, so that others wait.
    let blocks =
        json!({ "prompt": PROMPT, "max_tokens": 900, "n": 16, "ignore_eos": true, "stream": true });
    let first = server.send("POST", COMPLETIONS, json, &blocks.to_string());
    let count = |s: &Server, what: &str| {
        let all = s.get("/v1/memory").json();
        all["requests"][what].as_u64().unwrap()
    };
    server.wait_until("busy", |s| count(s, "running") == 1);
    // Their log probabilities take room from the start, until less is left than 300 kB.
    let mut held = Vec::new();
    for tokens in [1000, 1000, 1000, 1000, 1000, 500, 250, 125, 60, 30, 15] {
        let before = count(&server, "waiting");
        let body =
            json!({ "prompt": vec![7; tokens], "max_tokens": 1, "echo": true, "logprobs": 20 });
        let socket = server.send("POST", COMPLETIONS, json, &body.to_string());
        let soon = Some(Duration::from_millis(1));
        socket.set_read_timeout(soon).unwrap();
        server.wait_until("waiting or refused", |s| {
            count(s, "waiting") > before || socket.peek(&mut [0]).is_ok()
        });
        held.push(socket);
    }
    let refused = server.post("/tokenize", &long);
    assert_eq!(refused.status, 429, "{}", refused.body.len());
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    assert!(refused.headers.contains("retry-after: "));
    let short = json!({ "prompt": "Hi" }).to_string();
    assert_eq!(server.post("/tokenize", &short).status, 200);
    drop((first, held));
    server.wait_until("free", Server::is_free);
    server.wait_until("roomy", |s| s.post("/tokenize", &long).status == 200);
}
