//! What can be asked for beside text: beams, classes, chats of any length, and what messages cannot do.

use serde_json::{Value, json};

use crate::canary::Canary;
use crate::server::*;

fn chat(server: &Server, body: Value) -> Value {
    let answer = server.post("/v1/chat/completions", &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn refused(server: &Server, path: &str, body: Value) -> Value {
    let answer = server.post(path, &body.to_string());
    assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    answer.json()["error"].clone()
}

#[test]
fn beams_are_those_of_generate() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let ask = |n: u32, best_of: u32, more: Value| {
        let mut body = json!({ "prompt": PROMPT, "max_tokens": 12, "use_beam_search": true, "n": n, "best_of": best_of });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        server.complete(body)
    };
    let generated = generate(&[
        "--prompt",
        PROMPT,
        "--max-tokens",
        "12",
        "--beam-width",
        "4",
    ]);
    let want = texts(&generated);
    assert_eq!(want.len(), 4);
    assert_eq!(texts(&ask(4, 4, json!({}))), want);
    assert_eq!(texts(&ask(2, 4, json!({ "temperature": 0 }))), want[..2]);
    // In a chat, too, where they are as many as are answered.
    let messages = json!([{ "role": "user", "content": "Are you fond of dancing?" }]);
    let two = chat(
        &server,
        json!({ "messages": messages, "max_tokens": 8, "use_beam_search": true, "n": 2 }),
    );
    assert_eq!(two["choices"].as_array().unwrap().len(), 2);
    let penalised = ask(
        4,
        4,
        json!({ "length_penalty": -1.0, "early_stopping": true }),
    );
    assert_eq!(texts(&penalised).len(), 4);

    let wrong = |more: Value, param: &str| {
        let mut body = json!({ "prompt": "A", "max_tokens": 2 });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        assert_eq!(refused(&server, "/v1/completions", body)["param"], param);
    };
    wrong(
        json!({ "use_beam_search": true, "stream": true }),
        "use_beam_search",
    );
    wrong(
        json!({ "use_beam_search": true, "temperature": 0.5 }),
        "temperature",
    );
    wrong(json!({ "use_beam_search": true, "top_k": 3 }), "top_k");
    wrong(
        json!({ "use_beam_search": true, "n": 3, "best_of": 2 }),
        "best_of",
    );
    wrong(json!({ "use_beam_search": true, "n": 17 }), "n");
    wrong(
        json!({ "use_beam_search": true, "length_penalty": 11 }),
        "length_penalty",
    );
    wrong(json!({ "length_penalty": 1.0 }), "length_penalty");
    wrong(json!({ "early_stopping": true }), "early_stopping");
    canary.check(&server, "beams");
}

/// Tokens of the demo's vocabulary, by how answers spell them: bytes that are letters there stand for themselves.
fn vocabulary() -> serde_json::Map<String, Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/tokenizer.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all["model"]["vocab"].as_object().unwrap().clone()
}

#[test]
fn beams_have_the_log_probabilities_of_their_own_way() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let vocabulary = vocabulary();
    let id =
        |token: &str| vocabulary[&token.replace(' ', "\u{120}").replace('\n', "\u{10a}")].clone();
    let prompt = "\"Are you fond of dancing?\"\n\n\"";
    let asked = json!({ "max_tokens": 12, "use_beam_search": true, "n": 3 });
    let with = |more: Value| {
        let mut body = asked.clone();
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let found = server.complete(with(json!({ "prompt": prompt, "logprobs": 2 })));
    let before = server.post("/tokenize", &json!({ "prompt": prompt }).to_string());
    let before = before.json()["tokens"].as_array().unwrap().clone();
    let choices = found["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for choice in choices {
        let told = &choice["logprobs"];
        let tokens = told["tokens"].as_array().unwrap();
        let spelled: Vec<&str> = tokens.iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(spelled.concat(), choice["text"].as_str().unwrap());
        // What the model says of the same tokens where they are given to it.
        let ids: Vec<Value> = before
            .iter()
            .cloned()
            .chain(spelled.iter().map(|t| id(t)))
            .collect();
        let given =
            server.complete(json!({ "prompt": ids, "max_tokens": 1, "echo": true, "logprobs": 2 }));
        let given = &given["choices"][0]["logprobs"];
        for i in 0..tokens.len() {
            for column in ["tokens", "token_logprobs", "top_logprobs"] {
                let at = before.len() + i;
                assert_eq!(told[column][i], given[column][at], "{column} {i}: {choice}");
            }
            assert!(told["token_logprobs"][i].as_f64().unwrap() < 0.0);
            assert!(told["top_logprobs"][i].as_object().unwrap().len() >= 2);
        }
    }
    // They are not all the same way.
    let first = |i: usize| &choices[i]["logprobs"]["tokens"];
    assert!(first(0) != first(1) && first(1) != first(2));

    // Without alternatives; in a chat; and where nobody asked.
    let bare = server.complete(with(json!({ "prompt": prompt, "logprobs": 0 })));
    let messages = json!([{ "role": "user", "content": "Are you fond of dancing?" }]);
    let said = chat(
        &server,
        with(json!({ "messages": messages, "logprobs": true, "top_logprobs": 2 })),
    );
    for (i, choice) in choices.iter().enumerate() {
        let want = &choice["logprobs"]["token_logprobs"];
        assert_eq!(bare["choices"][i]["logprobs"]["token_logprobs"], *want);
        let content = said["choices"][i]["logprobs"]["content"]
            .as_array()
            .unwrap();
        let own: Vec<&Value> = content.iter().map(|t| &t["logprob"]).collect();
        assert_eq!(json!(own), *want);
        assert!(
            content
                .iter()
                .all(|t| t["top_logprobs"].as_array().unwrap().len() == 2)
        );
    }
    let plain = server.complete(with(json!({ "prompt": prompt })));
    assert!(plain["choices"][0]["logprobs"].is_null());
    canary.check(&server, "log probabilities of beams");
}

#[test]
fn a_class_is_any_number_and_changes_no_text() {
    let server = Server::start(&[]);
    let ask = |priority: Value| {
        let body =
            json!({ "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "priority": priority });
        server.post("/v1/completions", &body.to_string())
    };
    let plain = texts(&ask(Value::Null).json());
    for priority in [
        json!(0),
        json!(-5),
        json!(2_147_483_647),
        json!(-2_147_483_648_i64),
        json!(1.0),
    ] {
        assert_eq!(texts(&ask(priority).json()), plain);
    }
    for priority in [json!(2_147_483_648_i64), json!("1"), json!(0.5)] {
        let answer = ask(priority);
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!("priority"))
        );
    }
}

#[test]
fn a_lower_class_goes_first() {
    let server = Server::start(&["--max-num-seqs", "1"]);
    let json = "Content-Type: application/json\r\n";
    let send = |max_tokens: u32, priority: i32| {
        let body = json!({
            "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": true, "priority": priority,
        });
        server.send("POST", "/v1/completions", json, &body.to_string())
    };
    // While one runs, one waits, and then one of a lower class, which is as vLLM has it the more urgent one.
    let mut first = send(400, 0);
    server.wait_until("running", |s| !s.is_free());
    let waits = |n: u64| move |s: &Server| s.get("/v1/memory").json()["requests"]["waiting"] == n;
    let mut later = send(200, 1);
    server.wait_until("waiting", waits(1));
    let mut sooner = send(200, -1);
    server.wait_until("waiting", waits(2));
    let ended = |socket: &mut std::net::TcpStream| {
        std::io::Read::read_to_end(socket, &mut Vec::new()).unwrap();
        std::time::Instant::now()
    };
    let (later, sooner) = std::thread::scope(|scope| {
        let later = scope.spawn(|| ended(&mut later));
        let sooner = scope.spawn(|| ended(&mut sooner));
        (later.join().unwrap(), sooner.join().unwrap())
    });
    assert!(sooner < later);
    ended(&mut first);
}

#[test]
fn a_chat_without_a_length_is_as_long_as_fits() {
    // 8 pages of 16 tokens, which one sequence may have alone.
    let server = Server::start(&[
        "--kv-memory",
        "360KiB",
        "--max-num-seqs",
        "2",
        "--max-model-len",
        "128",
    ]);
    let messages = json!([{ "role": "user", "content": "Go on." }]);
    let body = |max_tokens: Value| {
        json!({
            "messages": messages, "max_tokens": max_tokens, "n": 2, "ignore_eos": true, "seed": 3,
        })
    };
    let answer = chat(&server, body(Value::Null));
    let usage = &answer["usage"];
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    let written = usage["completion_tokens"].as_u64().unwrap() / 2;
    // Half of them for each; the last token is never written to the cache.
    assert_eq!(prompt + written, 4 * 16 + 1, "{usage}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // Whoever asks for so many gets them; for one more, an error.
    let exact = chat(&server, body(json!(written)));
    assert_eq!(
        exact["choices"][0]["message"],
        answer["choices"][0]["message"]
    );
    let error = refused(&server, "/v1/chat/completions", body(json!(written + 1)));
    assert_eq!(error["code"], "exceeds_kv_cache");
    // The same of a stream, which says why it ends.
    let mut streamed_body = body(Value::Null);
    streamed_body["stream"] = true.into();
    let chunks = server
        .post("/v1/chat/completions", &streamed_body.to_string())
        .chunks();
    let (text, reason) = streamed(&chunks, 2);
    assert_eq!(answer["choices"][0]["message"]["content"], text[0]);
    assert_eq!(reason, ["length", "length"]);
}

#[test]
fn the_demo_model_talks() {
    let server = Server::start(&[]);
    let messages = json!([{ "role": "user", "content": "Are you fond of dancing?" }]);
    let answer = chat(
        &server,
        json!({ "messages": messages, "max_tokens": 16, "temperature": 0 }),
    );
    let said = answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let same = server.complete(json!({ "prompt": "\"Are you fond of dancing?\"\n\n\"", "max_tokens": 16, "temperature": 0 }));
    assert_eq!(texts(&same), [said]);
}

#[test]
fn messages_are_objects_and_spell_no_special_tokens() {
    let model = ChatModel::new();
    let server = Server::start(&[model.0.to_str().unwrap()]);
    let canary = Canary::new(&server);
    for messages in [
        json!([["user", "Go on."]]),
        json!(["Go on."]),
        json!({ "role": "user", "content": "Go on." }),
        json!([{ "role": "user", "content": [["text", "Go on."]] }]),
    ] {
        let error = refused(
            &server,
            "/v1/chat/completions",
            json!({ "messages": messages }),
        );
        assert_eq!(error["code"], "invalid_value", "{error}");
    }
    for body in [
        r#"{"messages":[{"role":"user","role":"system","content":"a"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"n":1,"n":1}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"stream":true,"stream_options":[true]}"#,
    ] {
        let answer = server.post("/v1/chat/completions", body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    }
    // The one special token of this tokenizer, which ends a text.
    let end = "<|endoftext|>";
    let tokens = |body: Value| -> Vec<u64> {
        let answer = server.post("/tokenize", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let tokens = answer["tokens"].as_array().unwrap().iter();
        tokens.map(|t| t.as_u64().unwrap()).collect()
    };
    assert_eq!(
        tokens(json!({ "prompt": end })),
        [0],
        "a raw prompt is what the model reads"
    );
    let said = format!("Go{end} on.");
    let ids = tokens(json!({ "messages": [{ "role": "user", "content": said }] }));
    assert!(!ids.contains(&0), "{ids:?}");
    let text = server
        .post("/detokenize", &json!({ "tokens": ids }).to_string())
        .json();
    assert!(text["prompt"].as_str().unwrap().contains(&said), "{text}");
    canary.check(&server, "special tokens in a message");

    // Nor do tools, wherever they spell them.
    let template = "{{ tools | tojson }}{{ messages[0]['content'] }}";
    std::fs::write(model.0.join("chat_template.jinja"), template).unwrap();
    let server = Server::start(&[model.0.to_str().unwrap()]);
    let prompt_tokens = |description: &str, parameter: &str| {
        let mut properties = serde_json::Map::new();
        properties.insert(parameter.to_owned(), json!({ "type": "string" }));
        let tool = json!({
            "type": "function",
            "function": {
                "name": "f",
                "description": description,
                "parameters": { "type": "object", "properties": properties },
            },
        });
        let body = json!({
            "messages": [{ "role": "user", "content": "Go on." }], "tools": [tool], "max_tokens": 1,
        });
        let usage = &chat(&server, body)["usage"];
        usage["prompt_tokens"].as_u64().unwrap()
    };
    // As text it has more tokens than one.
    let plain = prompt_tokens("a b", "a b");
    assert!(prompt_tokens(&format!("a{end}b"), "a b") > plain + 2);
    assert!(prompt_tokens("a b", &format!("a{end}b")) > plain + 2);
}
