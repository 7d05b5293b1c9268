//! What requests may look like: groups C and D, case by case over one server.

use serde_json::{Value, json};

use crate::canary::Canary;
use crate::server::{PROMPT, Server, texts};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Each case: fields, the status, and the field that an error names.
fn each(server: &Server, path: &str, cases: &[(Value, u16, &str)]) {
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
