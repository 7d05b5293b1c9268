//! What requests may look like: groups C and D, case by case over one server.

use serde_json::{Value, json};

use crate::canary::Canary;
use crate::server::{PROMPT, Server, ids, texts};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Each case: fields, the status, and the field that an error names.
pub(crate) fn each(server: &Server, path: &str, cases: &[(Value, u16, &str)]) {
    for (fields, status, param) in cases {
        let mut body = if path == CHAT {
            json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 2 })
        } else {
            json!({ "prompt": "Hi", "max_tokens": 2 })
        };
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
            if value == "absent" {
                body.as_object_mut().unwrap().remove(name);
            }
        }
        let answer = server.post(path, &body.to_string());
        let shown: String = fields.to_string().chars().take(120).collect();
        assert_eq!(answer.status, *status, "{path} {shown}: {}", answer.body);
        if *status != 200 {
            let error = answer.json()["error"].clone();
            assert_eq!(
                error["param"].as_str().unwrap_or_default(),
                *param,
                "{shown}: {error}"
            );
            assert!(error["message"].as_str().unwrap().len() > 10, "{error}");
        }
    }
}

#[test]
fn numbers_below_at_and_above_their_limits() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let mut cases = Vec::new();
    // Good values, then bad ones.
    for (name, good, bad) in [
        (
            "n",
            json!([1, 1.0, 3]),
            json!([0, -1, 129, 1e9, 2_147_483_648_u64, 1.5]),
        ),
        ("best_of", json!([1, 3]), json!([0, 129])),
        (
            "max_tokens",
            json!([1, 1.0, 5]),
            json!([0, -1, 1_000_000, 9_223_372_036_854_775_808_u64, 0.5]),
        ),
        ("min_tokens", json!([0, 2]), json!([3, -1])),
        (
            "temperature",
            json!([0, 1e-45, 2, 2.0]),
            json!([-0.1, 2.1, 1e308]),
        ),
        ("top_p", json!([1e-9, 1]), json!([0, -0.5, 1.001])),
        (
            "top_k",
            json!([-1, 0, 1, 2048, 4_000_000]),
            json!([-2, 1.5]),
        ),
        ("min_p", json!([0, 1]), json!([-0.1, 1.1])),
        ("presence_penalty", json!([-2, 2]), json!([-2.01, 2.01])),
        ("frequency_penalty", json!([-2, 2]), json!([-2.01, 2.01])),
        (
            "repetition_penalty",
            json!([0.01, 100]),
            json!([0, 1e-30, 1e30, -1]),
        ),
        (
            "seed",
            json!([i64::MIN, u64::MAX, 0, 7.0]),
            json!([1e30, 0.5]),
        ),
        (
            "priority",
            json!([i32::MIN, i32::MAX, 0]),
            json!([2_147_483_648_u64, 0.5]),
        ),
        ("logprobs", json!([0, 20]), json!([-1, 21, 1.0])),
    ] {
        for value in good.as_array().unwrap() {
            cases.push((json!({ name: value }), 200, ""));
        }
        let wrong = [json!("5"), json!([1]), json!({}), json!(true)];
        for value in bad.as_array().unwrap().iter().chain(&wrong) {
            let named = match (name, value.as_f64()) {
                // Its sequences are none, or too many.
                ("best_of", Some(_)) => "n",
                _ => name,
            };
            cases.push((json!({ name: value }), 400, named));
        }
        cases.push((json!({ name: null }), 200, ""));
        cases.push((json!({ name: "absent" }), 200, ""));
    }
    each(&server, COMPLETIONS, &cases);
    canary.check(&server, "parameters, part 1");
    each(
        &server,
        COMPLETIONS,
        &[
            (json!({ "n": 3, "best_of": 2 }), 400, "best_of"),
            (json!({ "length_penalty": 1.0 }), 400, "length_penalty"),
            (
                json!({ "use_beam_search": true, "n": 2, "length_penalty": 11 }),
                400,
                "length_penalty",
            ),
            (
                json!({ "use_beam_search": true, "n": 3, "best_of": 2 }),
                400,
                "best_of",
            ),
            (
                json!({ "use_beam_search": true, "n": 2, "stream": true }),
                400,
                "use_beam_search",
            ),
            (json!({ "use_beam_search": 1 }), 400, "use_beam_search"),
            (json!({ "ignore_eos": true, "max_tokens": 9 }), 200, ""),
            (json!({ "ignore_eos": 1 }), 400, "ignore_eos"),
            (
                json!({ "min_tokens": 17, "max_tokens": null }),
                400,
                "min_tokens",
            ),
            (json!({ "stop": "" }), 400, "stop"),
            (json!({ "stop": [""] }), 400, "stop"),
            (json!({ "stop": vec!["x"; 17] }), 400, "stop"),
            (json!({ "stop": "x".repeat(257) }), 400, "stop"),
            (json!({ "stop": null }), 200, ""),
            (json!({ "stop_token_ids": [2048] }), 400, "stop_token_ids"),
            (json!({ "stop_token_ids": [-1] }), 400, "stop_token_ids"),
            (json!({ "stop_token_ids": [2047.0] }), 200, ""),
            (json!({ "logit_bias": { "2047": 100, "0": -100 } }), 200, ""),
            (json!({ "logit_bias": { "2048": 1 } }), 400, "logit_bias"),
            (json!({ "logit_bias": { "1": 101 } }), 400, "logit_bias"),
            (json!({ "logit_bias": { "x": 1 } }), 400, "logit_bias"),
            (json!({ "logit_bias": [] }), 400, "logit_bias"),
            (
                json!({ "stream_options": [true] , "stream": true}),
                400,
                "stream_options",
            ),
        ],
    );
    canary.check(&server, "parameters, part 2");
    // Of a search, the best first; twice the same.
    let search =
        json!({ "prompt": PROMPT, "max_tokens": 6, "use_beam_search": true, "n": 2, "best_of": 4 });
    let found = texts(&server.complete(search.clone()));
    assert_eq!(found.len(), 2);
    assert_ne!(found[0], found[1]);
    assert_eq!(texts(&server.complete(search)), found);
    // Keys that stand twice.
    for body in [
        "{\"prompt\":\"x\",\"n\":1,\"n\":1000000000}",
        "{\"prompt\":\"x\",\"stream\":true,\"stream_options\":{\"include_usage\":true,\"include_usage\":false}}",
    ] {
        assert_eq!(server.post(COMPLETIONS, body).status, 400, "{body}");
    }
    canary.check(&server, "parameters, part 3");
}

#[test]
fn what_nobody_asked_for_is_cut_to_what_the_pool_holds() {
    // A pool that one answer of the whole context fits in, and eight do not.
    let server = Server::start(&["--kv-memory", "1MiB", "--max-model-len", "256"]);
    let chat =
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "ignore_eos": true, "n": 8 });
    let answer = server.post(CHAT, &chat.to_string());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let total = answer["usage"]["total_tokens"].as_u64().unwrap();
    let mut more = chat.clone();
    more["max_tokens"] = (answer["usage"]["completion_tokens"].as_u64().unwrap() / 8 + 1).into();
    let refused = server.post(CHAT, &more.to_string());
    assert_eq!(refused.status, 400, "{total}: {}", refused.body);
    server.wait_until("free", Server::is_free);
}

#[test]
fn messages_and_texts_that_spell_special_tokens() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let m = |m: Value| json!({ "messages": m });
    let user = json!({ "role": "user", "content": "Hi" });
    each(
        &server,
        CHAT,
        &[
            (m(json!([user])), 200, ""),
            (m(json!([])), 400, "messages"),
            (m(json!("absent")), 400, "messages"),
            (m(json!(null)), 400, "messages"),
            (m(json!(vec![user.clone(); 4097])), 400, "messages"),
            (m(json!([["user", "Hi"]])), 400, "messages[0]"),
            (m(json!([user, ["user", "Hi"]])), 400, "messages[1]"),
            (
                m(json!([{ "role": "developer", "content": "Be brief." }, user])),
                200,
                "",
            ),
            (
                m(json!([{ "role": "king", "content": "x" }])),
                400,
                "messages[0].role",
            ),
            (m(json!([{ "role": "user" }])), 400, "messages[0].content"),
            (
                m(json!([{ "role": "user", "content": null }])),
                400,
                "messages[0].content",
            ),
            (
                m(json!([{ "role": "user", "content": 5 }])),
                400,
                "messages[0].content",
            ),
            (
                m(
                    json!([{ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }]),
                ),
                200,
                "",
            ),
            (
                m(json!([{ "role": "user", "content": [["text", "a"]] }])),
                400,
                "messages[0].content[0]",
            ),
            (
                m(
                    json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "file:///" } }] }]),
                ),
                400,
                "messages[0].content",
            ),
        ],
    );
    canary.check(&server, "parameters, part 4");
    each(
        &server,
        COMPLETIONS,
        &[
            (json!({ "prompt": "" }), 400, "prompt"),
            (json!({ "prompt": [] }), 400, "prompt"),
            (json!({ "prompt": [[]] }), 400, "prompt"),
            (json!({ "prompt": [""] }), 400, "prompt"),
            (json!({ "prompt": " \n " }), 200, ""),
            (json!({ "prompt": [1.0, 2] }), 400, "prompt[0]"),
            (json!({ "prompt": [[1], [2]] }), 200, ""),
            (json!({ "prompt": [-1] }), 400, "prompt[0]"),
            (json!({ "prompt": [2048] }), 400, "prompt"),
            (json!({ "prompt": [4_294_967_297_u64] }), 400, "prompt[0]"),
            (json!({ "prompt": [1.5] }), 400, "prompt[0]"),
            (json!({ "prompt": [1, "x"] }), 400, "prompt"),
        ],
    );
    // The end token that a message spells is text: other tokens, and the same text; a prompt's is the token.
    let tokens = |body: Value| {
        let answer = server.post("/tokenize", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["tokens"].as_array().unwrap().clone()
    };
    let spelled = "a<|endoftext|><|endoftext|>é";
    let special = tokens(json!({ "prompt": spelled }));
    assert_eq!(special.iter().filter(|t| **t == json!(0)).count(), 2);
    let chat = tokens(m(json!([{ "role": "user", "content": spelled }])));
    assert!(!chat.contains(&json!(0)), "{chat:?}");
    let back = server.post("/detokenize", &json!({ "tokens": chat }).to_string());
    assert!(back.json()["prompt"].as_str().unwrap().contains(spelled));
    canary.check(&server, "parameters, part 5");
}

/// C1, C2, C6: sequences of a request and of a body, and tokens of a context, at their limits and beyond.
#[test]
fn sequences_and_contexts_at_their_limits() {
    let server = Server::start(&["--max-num-seqs", "256", "--max-model-len", "64"]);
    let canary = Canary::new(&server);
    let sequences = |prompts: usize, n: u64| {
        let body = json!({ "prompt": vec!["Hi"; prompts], "n": n, "max_tokens": 1 });
        server.post(COMPLETIONS, &body.to_string())
    };
    for (prompts, n) in [(1, 128), (1, 256), (128, 2)] {
        let answer = sequences(prompts, n);
        assert_eq!(answer.status, 200, "{prompts} x {n}: {}", answer.body);
        let count = texts(&answer.json()).len() as u64;
        assert_eq!(count, prompts as u64 * n);
    }
    for (prompts, n) in [(1, 257), (128, 3), (128, 128), (2, u64::from(u32::MAX))] {
        let answer = sequences(prompts, n);
        assert_eq!(answer.status, 400, "{prompts} x {n}: {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], "n");
    }
    canary.check(&server, "C1, C2");

    let prompt = ids(&server, PROMPT);
    let p = prompt.len();
    let full: Vec<Value> = prompt.iter().cycle().take(64).cloned().collect();
    let ask = |prompt: Value, max_tokens: Value| {
        let body = json!({ "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true });
        server.post(COMPLETIONS, &body.to_string())
    };
    for (prompt, max_tokens, want) in [
        (json!(prompt), json!(64 - p), 64 - p),
        (json!(full[..63]), json!(1), 1),
        (json!(full[..63]), json!(null), 1),
    ] {
        let answer = ask(prompt, max_tokens);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["usage"]["completion_tokens"], want);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    for (prompt, max_tokens, has, param) in [
        (json!(prompt), json!(65 - p), p, "max_tokens"),
        (json!(full[..63]), json!(2), 63, "max_tokens"),
        (json!(full), json!(1), 64, "prompt"),
        (json!(full), json!(null), 64, "prompt"),
        (json!(vec![7; 128]), json!(1), 128, "prompt"),
    ] {
        let answer = ask(prompt, max_tokens);
        assert_eq!(answer.status, 400, "{}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "context_length_exceeded");
        assert_eq!(error["param"], param);
        assert_eq!(
            (&error["n_prompt_tokens"], &error["n_ctx"]),
            (&json!(has), &json!(64))
        );
    }
    // Other errors have neither.
    let other = ask(json!([2048]), json!(1)).json();
    assert!(other["error"].get("n_ctx").is_none(), "{other}");
    let chat = json!({ "messages": [{ "role": "user", "content": PROMPT.repeat(9) }] });
    let long = server.post(CHAT, &chat.to_string());
    assert_eq!(long.status, 400, "{}", long.body);
    assert_eq!(long.json()["error"]["param"], "messages");
    canary.check(&server, "C6");
}

/// C10, C11, C18, C21: lists at their limits, and fields that are refused by name, or taken and not looked at.
#[test]
fn lists_at_their_limits_and_fields_that_are_not_there() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let biases = |n: usize| -> Value {
        let all: serde_json::Map<_, _> = (0..n).map(|i| (i.to_string(), json!(-100))).collect();
        all.into()
    };
    let many: serde_json::Map<_, _> = (0..90_000).map(|i| (format!("{i:05}"), json!(0))).collect();
    let long = "x".repeat(900_000);
    each(
        &server,
        COMPLETIONS,
        &[
            (json!({ "logit_bias": biases(1024) }), 200, ""),
            (json!({ "logit_bias": biases(1025) }), 400, "logit_bias"),
            (json!({ "logit_bias": { "-1": 1 } }), 400, "logit_bias"),
            (json!({ "logit_bias": { "": 1 } }), 400, "logit_bias"),
            (json!({ "logit_bias": { "1.0": 1 } }), 400, "logit_bias"),
            (
                json!({ "logit_bias": { "1099511627776": 1 } }),
                400,
                "logit_bias",
            ),
            (json!({ "logit_bias": { "1": -100.1 } }), 400, "logit_bias"),
            (
                json!({ "logit_bias": { "1": 1, "01": 2 } }),
                400,
                "logit_bias",
            ),
            // C11: there is neither. Ids that may come are said by a bias or a grammar.
            (json!({ "allowed_token_ids": [] }), 400, "allowed_token_ids"),
            (
                json!({ "allowed_token_ids": [2048, 4_294_967_296_u64] }),
                400,
                "allowed_token_ids",
            ),
            (json!({ "bad_words": ["the"] }), 400, "bad_words"),
            // C18.
            (json!({ "suffix": "x" }), 400, "suffix"),
            (json!({ "suffix": long }), 400, "suffix"),
            (json!({ "suffix": "" }), 200, ""),
            (json!({ "user": long }), 200, ""),
            (json!({ "metadata": many }), 200, ""),
        ],
    );
    canary.check(&server, "C10, C11, C18");
    // Of 1024 tokens that are all but forbidden none comes.
    let body = json!({ "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0 });
    let mut biased = body.clone();
    biased["logit_bias"] = biases(1024);
    let tokens = |body: Value| {
        server.complete(body)["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .clone()
    };
    let is_forbidden = |t: &Value| {
        let found = ids(&server, t.as_str().unwrap());
        found.len() == 1 && found[0].as_u64().unwrap() < 1024
    };
    assert!(tokens(body).iter().any(is_forbidden));
    let with = tokens(biased);
    assert!(!with.iter().any(is_forbidden), "{with:?}");
    canary.check(&server, "C10");

    // C21: a name is compared with the one that is served, and nothing else is done with it.
    let model = |path: &str, model: Value| {
        let mut body = if path == CHAT {
            json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 1 })
        } else {
            json!({ "prompt": "Hi" })
        };
        if path == COMPLETIONS {
            body["max_tokens"] = 1.into();
        }
        if model != json!("absent") {
            body["model"] = model;
        }
        server.post(path, &body.to_string())
    };
    for path in [COMPLETIONS, CHAT, "/tokenize"] {
        for good in [json!("absent"), json!(null), json!("demo")] {
            assert_eq!(model(path, good.clone()).status, 200, "{path} {good}");
        }
        for (bad, status) in [
            (json!(""), 404),
            (json!("Demo"), 404),
            (json!(" demo"), 404),
            (json!("demo\u{0}"), 404),
            (json!("gpt-4"), 404),
            (json!("../../etc/passwd"), 404),
            (json!(long), 404),
            (json!(5), 400),
            (json!(["demo"]), 400),
        ] {
            let answer = model(path, bad);
            assert_eq!(answer.status, status, "{path}: {}", answer.body);
            let error = answer.json()["error"].clone();
            assert_eq!(error["param"], "model");
            assert!(answer.body.len() < 600, "{}", answer.body);
            if status == 404 {
                assert_eq!(error["code"], "model_not_found");
                assert!(error["message"].as_str().unwrap().contains("\"demo\""));
            }
        }
    }
    canary.check(&server, "C21");
}
