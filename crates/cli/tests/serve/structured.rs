//! Answers that keep to a grammar, and calls of tools.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::canary::Canary;
use crate::parameters::each;
use crate::server::{Answer, ChatModel, PROMPT, Server, soon, texts};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 99 },
            "sort": { "enum": ["cat", "dog"] },
        },
        "required": ["name", "age", "sort"],
        "additionalProperties": false,
    })
}

/// By the words of the schema, not by what made the answer.
fn keeps_to_schema(text: &str) -> bool {
    let Ok(v) = serde_json::from_str::<Value>(text) else {
        return false;
    };
    v.as_object().is_some_and(|o| o.len() == 3)
        && v["name"].as_str().is_some_and(|n| n.chars().count() <= 12)
        && v["age"].as_u64().is_some_and(|a| a <= 99)
        && (v["sort"] == "cat" || v["sort"] == "dog")
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Who is it?" }],
        "max_tokens": 100,
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn answer(server: &Server, body: &Value) -> Value {
    let answer = soon(server, CHAT, body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn answers_keep_to_schemas_and_expressions_alone_or_not() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema(), "strict": true } });
    let mut alone = Vec::new();
    for seed in 0..4 {
        let body = chat(json!({ "response_format": format, "seed": seed, "temperature": 1.5 }));
        let got = answer(&server, &body);
        let text = got["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(keeps_to_schema(&text), "{text}");
        assert_eq!(got["choices"][0]["finish_reason"], "stop");
        alone.push(text);
    }
    assert!(alone.iter().any(|t| *t != alone[0]), "{alone:?}");
    // All of it at once, and as a stream.
    let again: Vec<String> = std::thread::scope(|s| {
        let ask = |seed: usize| {
            let body = chat(
                json!({ "response_format": format, "seed": seed, "temperature": 1.5, "stream": true }),
            );
            let chunks = server.post(CHAT, &body.to_string()).chunks();
            crate::server::streamed(&chunks, 1).0.remove(0)
        };
        let all: Vec<_> = (0..4).map(|i| s.spawn(move || ask(i))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(again, alone);
    // Sequences of one prompt part ways, each in its own place.
    let body = chat(json!({ "response_format": format, "n": 8, "seed": 3, "temperature": 1.5 }));
    let got = answer(&server, &body);
    for c in got["choices"].as_array().unwrap() {
        assert!(
            keeps_to_schema(c["message"]["content"].as_str().unwrap()),
            "{c}"
        );
    }
    for (more, fits) in [
        (
            json!({ "structured_outputs": { "regex": "[a-c]{2}-[0-9]{3}" } }),
            (|t: &str| {
                t.len() == 6
                    && t.as_bytes()[2] == b'-'
                    && t[3..].bytes().all(|b| b.is_ascii_digit())
            }) as fn(&str) -> bool,
        ),
        (
            json!({ "guided_choice": ["Elizabeth \"Lizzy\"", "Mr. Darcy\n"] }),
            |t: &str| t == "Elizabeth \"Lizzy\"" || t == "Mr. Darcy\n",
        ),
        (
            json!({ "guided_grammar": "start: (\"a\" \"b\")+ \"c\"" }),
            |t: &str| {
                t.strip_suffix('c')
                    .is_some_and(|t| !t.is_empty() && t.replace("ab", "").is_empty())
            },
        ),
    ] {
        let mut body = json!({ "prompt": PROMPT, "max_tokens": 60, "seed": 1, "temperature": 1 });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let got = server.complete(body);
        let cut = got["choices"][0]["finish_reason"] == "length";
        let text = texts(&got).remove(0);
        assert!(
            fits(&text) || cut && more.get("guided_grammar").is_some(),
            "{more}: {text:?}"
        );
    }
    let got = answer(
        &server,
        &chat(json!({ "response_format": { "type": "json_object" }, "seed": 5 })),
    );
    let choice = &got["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'));
    assert!(choice["finish_reason"] == "length" || serde_json::from_str::<Value>(text).is_ok());
    canary.check(&server, "case 1 of grammars and tools");
}

#[test]
fn grammars_that_are_none_or_too_much_are_refused_soon() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let g = |name: &str, v: Value| json!({ name: v });
    let mut deep = json!({});
    for _ in 0..50 {
        deep = json!({ "type": "object", "properties": { "a": deep } });
    }
    let bad = [
        (g("guided_regex", json!("")), "guided_regex"),
        (g("guided_regex", json!("(a")), "guided_regex"),
        (g("guided_regex", json!("(?=a)b")), "guided_regex"),
        (g("guided_regex", json!("(a)\\1")), "guided_regex"),
        (g("guided_regex", json!("a".repeat(4097))), "guided_regex"),
        (g("guided_json", json!({ "type": "foo" })), "guided_json"),
        (
            g("guided_json", json!({ "type": "string", "pattern": "(" })),
            "guided_json",
        ),
        (
            g("guided_json", json!({ "$ref": "http://169.254.169.254/x" })),
            "guided_json",
        ),
        (g("guided_json", json!(false)), "guided_json"),
        (g("guided_json", json!({ "not": {} })), "guided_json"),
        (
            g(
                "guided_json",
                json!({ "description": "x".repeat(65 << 10) }),
            ),
            "guided_json",
        ),
        (g("guided_json", deep), "guided_json"),
        (g("guided_choice", json!([])), "guided_choice"),
        (g("guided_choice", json!([""])), "guided_choice"),
        (g("guided_choice", json!(vec!["x"; 1025])), "guided_choice"),
        (g("guided_grammar", json!("")), "guided_grammar"),
        (
            g("guided_grammar", json!("start: nothing")),
            "guided_grammar",
        ),
        (g("structured_outputs", json!({})), "structured_outputs"),
        (
            g(
                "structured_outputs",
                json!({ "regex": "a", "choice": ["b"] }),
            ),
            "structured_outputs",
        ),
        (
            json!({ "guided_regex": "a", "response_format": { "type": "json_object" } }),
            "guided_regex",
        ),
        (
            json!({ "guided_regex": "a", "use_beam_search": true, "n": 2 }),
            "use_beam_search",
        ),
        (
            json!({ "guided_regex": "a", "ignore_eos": true }),
            "ignore_eos",
        ),
        (
            json!({ "response_format": { "type": "json_schema" } }),
            "response_format.json_schema",
        ),
        (
            json!({ "response_format": { "type": "text", "json_schema": { "name": "x" } } }),
            "response_format.json_schema",
        ),
        (
            json!({ "response_format": { "type": "xml" } }),
            "response_format.type",
        ),
    ];
    for (fields, param) in bad {
        let began = Instant::now();
        each(&server, COMPLETIONS, &[(fields, 400, param)]);
        assert!(began.elapsed() < Duration::from_secs(5), "{param}");
    }
    canary.check(&server, "case 2 of grammars and tools");
    // Taken, or refused: whichever, soon and by a defined status.
    for regex in [
        "(a+)+b",
        "(a|a)*c",
        ".{1,100000}",
        "a{1000}{1000}",
        "((a{1000}){1000}){1000}",
        &"[\\s\\S]*".repeat(400),
    ] {
        let began = Instant::now();
        let body = json!({ "prompt": "x", "max_tokens": 3, "guided_regex": regex });
        let status = server.post(COMPLETIONS, &body.to_string()).status;
        assert!(status == 200 || status == 400, "{regex}: {status}");
        assert!(began.elapsed() < Duration::from_secs(5), "{regex}");
    }
    // A dead end at the third token: this request alone ends, with an error that says why.
    let ids = crate::server::ids(&server, "c");
    let body = json!({ "prompt": "x", "max_tokens": 9, "guided_regex": "abc", "logit_bias": {}, "min_tokens": 8 });
    assert!(!ids.is_empty());
    let ended = server.post(COMPLETIONS, &body.to_string());
    assert_eq!(ended.status, 500, "{}", ended.body);
    assert_eq!(ended.json()["error"]["code"], "grammar_failed");
    // Many, one after another: each leaves when it ends.
    for i in 0..40 {
        let body = json!({ "prompt": "x", "max_tokens": 1, "guided_regex": format!("a{i}") });
        assert_eq!(
            server.post(COMPLETIONS, &body.to_string()).status,
            200,
            "{i}"
        );
    }
    let body = json!({ "prompt": vec!["x"; 9], "n": 2, "max_tokens": 1, "guided_regex": "a" });
    let refused = server.post(COMPLETIONS, &body.to_string());
    assert_eq!(
        (
            refused.status,
            &*refused.json()["error"]["param"].to_string()
        ),
        (400, "\"n\"")
    );
    canary.check(&server, "case 3 of grammars and tools");
}

#[test]
fn tools_are_called_and_what_is_wrong_with_them_is_named() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name, "description": "d", "parameters": schema() } });
    let named = json!({ "type": "function", "function": { "name": "g" } });
    let body = chat(json!({ "tools": [tool("f"), tool("g")], "tool_choice": named, "seed": 1 }));
    let got = answer(&server, &body);
    let choice = &got["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert!(choice["message"]["content"].is_null());
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
    assert_eq!(call["function"]["name"], "g");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    assert!(keeps_to_schema(arguments), "{arguments}");
    // The same as a stream, put together as clients do.
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let chunks = server.post(CHAT, &streamed.to_string()).chunks();
    let deltas = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["tool_calls"].get(0));
    let deltas: Vec<&Value> = deltas.collect();
    assert!(deltas.len() > 3 && deltas.iter().all(|d| d["index"] == 0));
    assert_eq!(deltas[0]["function"]["name"], "g");
    assert!(deltas[1].get("id").is_none());
    let joined: String = deltas
        .iter()
        .map(|d| d["function"]["arguments"].as_str().unwrap())
        .collect();
    assert_eq!(joined, arguments);
    let last = chunks
        .iter()
        .rev()
        .find_map(|c| c["choices"][0]["finish_reason"].as_str());
    assert_eq!(last, Some("tool_calls"));
    for parallel in [true, false] {
        let body = chat(
            json!({ "tools": [tool("f"), tool("g")], "tool_choice": "required", "parallel_tool_calls": parallel, "seed": 2, "max_tokens": 600 }),
        );
        let got = answer(&server, &body);
        let choice = &got["choices"][0];
        if choice["finish_reason"] == "length" {
            assert!(parallel, "{got}");
            continue;
        }
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert!(parallel || calls.len() == 1);
        for call in calls {
            assert!(call["function"]["name"] == "f" || call["function"]["name"] == "g");
            assert!(
                keeps_to_schema(call["function"]["arguments"].as_str().unwrap()),
                "{call}"
            );
        }
        assert_eq!(choice["finish_reason"], "tool_calls");
    }
    // Prose is no call.
    let got = answer(
        &server,
        &chat(json!({ "tools": [tool("f")], "max_tokens": 4 })),
    );
    assert!(got["choices"][0]["message"].get("tool_calls").is_none());
    let user = json!({ "role": "user", "content": "x" });
    let made = |arguments: &str| json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "f", "arguments": arguments } }] });
    let told = json!({ "role": "tool", "tool_call_id": "1", "content": "42" });
    let m = |all: Value| json!({ "messages": all });
    each(
        &server,
        CHAT,
        &[
            (m(json!([user, made("{}"), told])), 200, ""),
            (
                m(json!([user, made("{")])),
                400,
                "messages[1].tool_calls[0].function.arguments",
            ),
            (
                m(json!([user, made("[]")])),
                400,
                "messages[1].tool_calls[0].function.arguments",
            ),
            (
                m(json!([user, { "role": "tool", "content": "42" }])),
                400,
                "messages[1].tool_call_id",
            ),
            (
                m(json!([{ "role": "user", "content": "x", "tool_call_id": "1" }])),
                400,
                "messages[0].tool_call_id",
            ),
            (json!({ "tools": [] }), 200, ""),
            (json!({ "tools": null }), 200, ""),
            (json!({ "tools": vec![tool("f"); 129] }), 400, "tools"),
            (
                json!({ "tools": [tool("f"), tool("f")] }),
                400,
                "tools[1].function.name",
            ),
            (
                json!({ "tools": [tool("")] }),
                400,
                "tools[0].function.name",
            ),
            (
                json!({ "tools": [tool("a b")] }),
                400,
                "tools[0].function.name",
            ),
            (
                json!({ "tools": [tool(&"a".repeat(65))] }),
                400,
                "tools[0].function.name",
            ),
            (
                json!({ "tools": [{ "type": "web" }] }),
                400,
                "tools[0].type",
            ),
            (
                json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": 5 } }] }),
                400,
                "tools[0].function.parameters",
            ),
            (
                json!({ "tools": [{ "type": "function", "function": { "name": "f", "description": "x".repeat(65 << 10) } }] }),
                400,
                "tools",
            ),
            (json!({ "tool_choice": "required" }), 400, "tool_choice"),
            (json!({ "tool_choice": "none" }), 200, ""),
            (
                json!({ "tools": [tool("f")], "tool_choice": "any" }),
                400,
                "tool_choice",
            ),
            (
                json!({ "tools": [tool("f")], "tool_choice": named }),
                400,
                "tool_choice",
            ),
            (
                json!({ "tools": [tool("g")], "tool_choice": named, "response_format": { "type": "json_object" } }),
                400,
                "tools",
            ),
            (
                json!({ "tools": [{ "type": "function", "function": { "name": "g", "parameters": { "type": "foo" } } }], "tool_choice": named }),
                400,
                "tools",
            ),
            (
                json!({ "tools": [{ "type": "function", "function": { "name": "g", "parameters": { "properties": { "a": { "type": "string", "pattern": "(" } } } } }], "tool_choice": named }),
                400,
                "tools",
            ),
            (
                json!({ "tools": [{ "type": "function", "function": { "name": "g", "parameters": { "$ref": "http://x/y" } } }], "tool_choice": "required" }),
                400,
                "tools[0].function.parameters",
            ),
        ],
    );
    canary.check(&server, "case 4 of grammars and tools");
}

/// Few tokens, stop strings, biases and ends that do not go with a grammar; clients that leave; grammars that take long.
#[test]
fn ends_of_answers_that_keep_to_grammars() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    // E6: cut off after a token, which fits.
    let one = json!({ "prompt": PROMPT, "max_tokens": 1, "guided_regex": "[a-c]{9}" });
    let got = server.complete(one);
    assert_eq!(got["choices"][0]["finish_reason"], "length");
    let text = texts(&got).remove(0);
    assert!(!text.is_empty() && text.chars().all(|c| ('a'..='c').contains(&c)));
    // A stop string ends it, though its grammar would go on.
    let stop =
        json!({ "prompt": PROMPT, "max_tokens": 30, "guided_regex": "a{3}b{9}", "stop": "bb" });
    let got = server.complete(stop);
    assert_eq!(got["choices"][0]["finish_reason"], "stop");
    assert_eq!(texts(&got), ["aaa"]);
    // Biases say what is likely, not what is allowed.
    let a = crate::server::ids(&server, "a");
    let bias: serde_json::Map<_, _> = a.iter().map(|t| (t.to_string(), json!(-100))).collect();
    let biased =
        json!({ "prompt": PROMPT, "max_tokens": 9, "guided_regex": "a", "logit_bias": bias });
    assert_eq!(texts(&server.complete(biased)), ["a"]);
    canary.check(&server, "E6");
    // E8: all places, and nobody reads on.
    let wide = json!({ "prompt": PROMPT, "max_tokens": 900, "n": 8, "stream": true, "guided_regex": "[a-z ]{4000}" });
    let json = "Content-Type: application/json\r\n";
    let socket = server.send("POST", COMPLETIONS, json, &wide.to_string());
    server.wait_until("running", |s| !s.is_free());
    let small = json!({ "prompt": PROMPT, "max_tokens": 2, "guided_regex": "a+" }).to_string();
    assert_eq!(server.post(COMPLETIONS, &small).status, 429);
    drop(socket);
    server.wait_until("free", Server::is_free);
    let mut all = wide;
    (all["max_tokens"], all["stream"]) = (2.into(), false.into());
    assert_eq!(soon(&server, COMPLETIONS, &all).status, 200);
    canary.check(&server, "E8");
    // E2: 1500 properties, and 50 references that lead to themselves in turn.
    let wide: serde_json::Map<_, _> = (0..1500)
        .map(|i| (format!("p{i}"), json!({ "type": "string" })))
        .collect();
    let turns: serde_json::Map<_, _> = (0..50)
        .map(|i| (format!("a{i}"), json!({ "anyOf": [{ "type": "null" }, { "type": "array", "items": { "$ref": format!("#/$defs/a{}", (i + 1) % 50) } }] })))
        .collect();
    for (schema, want) in [
        (json!({ "type": "object", "properties": wide }), 400),
        (json!({ "$ref": "#/$defs/a0", "$defs": turns }), 200),
        (json!({ "$ref": "#" }), 400),
    ] {
        let began = Instant::now();
        let body = json!({ "prompt": "x", "max_tokens": 20, "guided_json": schema });
        let answer = server.post(COMPLETIONS, &body.to_string());
        assert_eq!(answer.status, want, "{}", answer.body);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    canary.check(&server, "E2");
}

/// Whoever keeps to a grammar and gives way in between writes what he would have alone.
#[test]
fn grammars_hold_for_who_gives_way() {
    let body = |i: u64| json!({ "prompt": format!("{PROMPT} {i}"), "max_tokens": 90, "seed": i, "temperature": 1.2, "guided_regex": "[a-z]{3}(, [a-z]+){60,}" });
    let roomy = Server::start(&[]);
    let want: Vec<_> = (0..6).map(|i| texts(&roomy.complete(body(i)))).collect();
    for way in ["--preempt swap --swap-space 1MiB", "--preempt recompute"] {
        let flags = way
            .split(' ')
            .chain(["--max-model-len", "256", "--kv-memory", "1MiB"]);
        let server = Server::start(&flags.collect::<Vec<_>>());
        // Others, who want more pages than there are.
        let other = json!({ "prompt": PROMPT, "max_tokens": 200, "ignore_eos": true }).to_string();
        let json = "Content-Type: application/json\r\n";
        let others: Vec<_> = (0..40)
            .map(|_| server.send("POST", COMPLETIONS, json, &other))
            .collect();
        let ask = &|i| texts(&server.complete(body(i)));
        let got: Vec<_> = std::thread::scope(|s| {
            let all: Vec<_> = (0..6).map(|i| s.spawn(move || ask(i))).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(got, want, "{way}");
        drop(others);
        let gave = server.get("/v1/memory").json()["preemptions"].clone();
        assert!(
            !gave.as_array().unwrap().is_empty(),
            "{way}: nobody gave way"
        );
    }
}

/// E6: an answer that nothing ends cannot be kept to a grammar.
#[test]
fn a_model_without_an_end_has_no_grammars() {
    let model = ChatModel::new();
    for name in ["config.json", "generation_config.json"] {
        let path = model.0.join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config
            .as_object_mut()
            .unwrap()
            .remove("eos_token_id")
            .unwrap();
        std::fs::write(path, config.to_string()).unwrap();
    }
    let server = Server::start(&[model.0.to_str().unwrap()]);
    let canary = Canary::new(&server);
    let named = json!({ "type": "function", "function": { "name": "g" } });
    let tools = json!([{ "type": "function", "function": { "name": "g" } }]);
    let format = json!({ "type": "json_object" });
    each(
        &server,
        CHAT,
        &[
            (json!({ "guided_regex": "a" }), 400, "guided_regex"),
            (json!({ "guided_choice": ["a"] }), 400, "guided_choice"),
            (json!({ "response_format": format }), 400, "response_format"),
            (
                json!({ "tools": tools, "tool_choice": named }),
                400,
                "tools",
            ),
            (json!({ "tools": tools }), 200, ""),
            (json!({ "response_format": { "type": "text" } }), 200, ""),
        ],
    );
    let refused = chat(json!({ "guided_regex": "a" })).to_string();
    let refused = server.post(CHAT, &refused).json()["error"].clone();
    assert_eq!(refused["code"], "unsupported_parameter");
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("no end token")
    );
    canary.check(&server, "E6, no end token");
}

/// E8: of eight answers that keep to a grammar seven leave, and their places are others'; the eighth goes on.
#[test]
fn whoever_leaves_gives_his_place_in_a_grammar_back() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let body = |max_tokens: u64, n: u64, stream: bool| json!({ "prompt": PROMPT, "max_tokens": max_tokens, "n": n, "stream": stream, "seed": 1, "guided_regex": "[a-z ]{4000}" });
    let want = texts(&server.complete(body(300, 1, false)));
    let json = "Content-Type: application/json\r\n";
    let long = body(300, 1, true).to_string();
    let mut all: Vec<_> = (0..8)
        .map(|_| server.send("POST", COMPLETIONS, json, &long))
        .collect();
    let running = |n: u64| move |s: &Server| s.get("/v1/memory").json()["requests"]["running"] == n;
    server.wait_until("running", running(8));
    assert_eq!(
        server
            .post(COMPLETIONS, &body(1, 1, false).to_string())
            .status,
        429
    );
    let mut last = all.pop().unwrap();
    drop(all);
    let seven = soon(&server, COMPLETIONS, &body(2, 7, false));
    assert_eq!(seven.status, 200, "{}", seven.body);
    let mut raw = Vec::new();
    std::io::Read::read_to_end(&mut last, &mut raw).unwrap();
    let chunks = Answer::read(&raw).chunks();
    assert_eq!(crate::server::streamed(&chunks, 1).0, want);
    drop(last);
    assert_eq!(soon(&server, COMPLETIONS, &body(2, 8, false)).status, 200);
    canary.check(&server, "E8");
}

/// L grammar: just within each limit there is an answer, and just beyond it one error; neither takes long.
#[test]
fn grammars_at_their_limits_and_beyond() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let choices = |n: usize| -> Vec<String> { (0..n).map(|i| format!("c{i}")).collect() };
    let rules = |n: usize| {
        let all = (1..n).map(|i| format!("r{i}: \"x\"\n"));
        format!("start: \"a\"\n{}", all.collect::<String>())
    };
    let brackets = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
    let properties = |n: usize| {
        let all: serde_json::Map<_, _> = (0..n).map(|i| (format!("p{i}"), json!({}))).collect();
        json!({ "type": "object", "properties": all, "required": ["p0"] })
    };
    let described = |n: usize| json!({ "type": "object", "description": "x".repeat(n) });
    // What stands around the description.
    let around = described(0).to_string().len();
    for (name, within, beyond) in [
        (
            "guided_regex",
            json!("a".repeat(4096)),
            json!("a".repeat(4097)),
        ),
        ("guided_regex", json!(brackets(64)), json!(brackets(65))),
        ("guided_choice", json!(choices(1024)), json!(choices(1025))),
        ("guided_grammar", json!(rules(512)), json!(rules(513))),
        (
            "guided_grammar",
            json!(format!("start: \"a\"\n//{}", "x".repeat((16 << 10) - 13))),
            json!(format!("start: \"a\"\n//{}", "x".repeat((16 << 10) - 12))),
        ),
        ("guided_json", properties(512), properties(513)),
        (
            "guided_json",
            described((64 << 10) - around),
            described((64 << 10) - around + 1),
        ),
    ] {
        for (value, status) in [(within, 200), (beyond, 400)] {
            let began = Instant::now();
            let body = json!({ "prompt": "x", "max_tokens": 2, name: value });
            let answer = soon(&server, COMPLETIONS, &body);
            assert_eq!(answer.status, status, "{name}: {}", answer.body);
            if status == 400 {
                assert_eq!(answer.json()["error"]["param"], name);
            }
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "{name}: {took:?}");
        }
    }
    canary.check(&server, "L grammar");
}
