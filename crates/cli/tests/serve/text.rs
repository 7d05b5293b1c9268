//! What is answered, whole and streamed.

use serde_json::{Value, json};

use crate::server::*;

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

#[test]
fn tokens_that_come_at_once_are_all_told() {
    // More of them in a step than are taken out of a mailbox at a time.
    let server = Server::start(&["--max-num-seqs", "128"]);
    let mut body = json!({
        "prompt": PROMPT, "max_tokens": 12, "temperature": 1, "seed": 4, "ignore_eos": true, "n": 128,
    });
    let want = texts(&server.complete(body.clone()));
    body["stream"] = true.into();
    for _ in 0..3 {
        let chunks = server.post("/v1/completions", &body.to_string()).chunks();
        assert_eq!(streamed(&chunks, 128).0, want);
    }
}
