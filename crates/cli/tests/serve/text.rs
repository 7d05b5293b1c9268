//! What is answered, whole and streamed.

use serde_json::{Value, json};

use crate::canary::Canary;
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

const COMPLETIONS: &str = "/v1/completions";
const COLUMNS: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

/// The columns of one choice's log probabilities, put together from the pieces of a stream.
fn columns(chunks: &[Value], index: u64) -> Vec<Vec<Value>> {
    let of = |c: &&Value| c["choices"][0]["index"] == index;
    let own: Vec<&Value> = chunks.iter().filter(of).collect();
    let column = |name: &&str| {
        let pieces = own.iter().map(|c| &c["choices"][0]["logprobs"][*name]);
        let lists = pieces.filter_map(Value::as_array);
        lists.flatten().cloned().collect()
    };
    COLUMNS.iter().map(column).collect()
}

/// C12: wherever stop strings lie, and whatever else is told.
#[test]
fn stop_strings_of_any_kind_cut_whole_and_streamed_alike() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let base = json!({ "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "logprobs": 2 });
    let whole = server.complete(base.clone());
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let tokens = whole["choices"][0]["logprobs"]["tokens"].clone();
    let token = |i: usize| tokens[i].as_str().unwrap();
    assert!(text.is_ascii() && text.len() > 20, "{text:?}");
    let mut cut = 0;
    for stops in [
        // The first token, the first character, and all there is.
        vec![token(0)],
        vec![&text[..1]],
        vec![text],
        // Over two tokens, and over three.
        vec![&text[token(0).len() - 1..token(0).len() + 1]],
        vec![&text[2..text.len().min(14)]],
        // One that begins another, ends it, or lies inside it, in either order.
        vec![&text[4..9], &text[4..7]],
        vec![&text[4..7], &text[4..9]],
        vec![&text[4..9], &text[6..9]],
        vec![&text[3..9], &text[5..7]],
        vec![&text[5..7], &text[3..9]],
        // What the prompt has, and the answer has not.
        vec![PROMPT],
        vec!["She had not been"],
        // Ones that never come.
        vec!["\u{1f642}", "\u{0}", "never"],
    ] {
        // Said again in other words: the one that is complete first.
        let found = stops
            .iter()
            .filter_map(|s| text.find(s).map(|at| (at + s.len(), at)))
            .min();
        for included in [false, true] {
            let want = match (found, included) {
                (None, _) => text,
                (Some((end, _)), true) => &text[..end],
                (Some((_, at)), false) => &text[..at],
            };
            let reason = if found.is_some() { "stop" } else { "length" };
            let mut body = base.clone();
            body["stop"] = json!(stops);
            body["include_stop_str_in_output"] = included.into();
            let answer = server.complete(body.clone());
            let choice = &answer["choices"][0];
            assert_eq!(choice["text"], want, "{stops:?}");
            assert_eq!(choice["finish_reason"], reason, "{stops:?}");
            // As many places in each column as there were tokens, those of what was cut off among them.
            let count = answer["usage"]["completion_tokens"].as_u64().unwrap();
            for name in COLUMNS {
                let column = choice["logprobs"][name].as_array().unwrap();
                assert_eq!(column.len() as u64, count, "{name} of {stops:?}");
            }
            let mut stream = body;
            stream["stream"] = true.into();
            let chunks = server.post(COMPLETIONS, &stream.to_string()).chunks();
            let streamed = streamed(&chunks, 1);
            assert_eq!((&*streamed.0[0], &*streamed.1[0]), (want, reason));
            let told = columns(&chunks, 0);
            for (name, column) in COLUMNS.iter().zip(&told) {
                assert_eq!(json!(column), choice["logprobs"][*name], "{stops:?}");
            }
            cut += usize::from(found.is_some());
        }
    }
    assert!(cut > 15, "{cut}");
    // A prompt that is told again is not cut.
    let mut echo = base.clone();
    (echo["echo"], echo["stop"]) = (true.into(), json!("She had not been"));
    assert_eq!(texts(&server.complete(echo)), [format!("{PROMPT}{text}")]);
    // In a chat, log probabilities are a list of tokens.
    let chat = json!({
        "messages": [{ "role": "user", "content": "Who is it?" }], "max_tokens": 12, "temperature": 0,
        "logprobs": true, "top_logprobs": 1,
    });
    let ask = |body: &Value| {
        let answer = server.post("/v1/chat/completions", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let said = ask(&chat)["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut stopped = chat;
    stopped["stop"] = json!([&said[2..5]]);
    let answer = ask(&stopped);
    let choice = &answer["choices"][0];
    let at = said.find(&said[2..5]).unwrap();
    assert_eq!(choice["message"]["content"], said[..at]);
    let list = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(
        list.len() as u64,
        answer["usage"]["completion_tokens"].as_u64().unwrap()
    );
    canary.check(&server, "C12");
}

/// C16: each choice of each prompt has its own text and columns, in their order.
#[test]
fn echoes_streams_and_log_probabilities_of_many_keep_apart() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let prompts = [PROMPT, "It is a truth", "\u{e9}"];
    let mut body = json!({
        "prompt": prompts, "max_tokens": 5, "temperature": 1.2, "seed": 5, "n": 3, "logprobs": 2,
        "echo": true, "ignore_eos": true,
    });
    let whole = server.complete(body.clone());
    let all = texts(&whole);
    assert_eq!(all.len(), 9);
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let chunks = server.post(COMPLETIONS, &body.to_string()).chunks();
    let (texts, reasons) = streamed(&chunks, 9);
    assert_eq!(texts, all);
    assert_eq!(reasons, vec!["length"; 9]);
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    for i in 0..9_usize {
        let choice = &whole["choices"][i];
        assert_eq!(choice["index"], i);
        let prompt = prompts[i / 3];
        assert!(all[i].starts_with(prompt), "{i}: {}", all[i]);
        let told = columns(&chunks, i as u64);
        for (name, column) in COLUMNS.iter().zip(&told) {
            assert_eq!(json!(column), choice["logprobs"][*name], "{name} of {i}");
        }
        // The prompt's tokens and five more; nothing comes before the first.
        let [tokens, logprobs, tops, offsets] = &told[..] else {
            panic!("four columns");
        };
        assert_eq!(tokens.len(), ids(&server, prompt).len() + 5);
        assert!(logprobs[0].is_null() && tops[0].is_null());
        assert!(logprobs[1..].iter().all(|l| l.as_f64().unwrap() <= 0.0));
        let offsets: Vec<u64> = offsets.iter().map(|o| o.as_u64().unwrap()).collect();
        assert!(offsets[0] == 0 && offsets.is_sorted(), "{offsets:?}");
    }
    assert_ne!(all[0], all[1]);
    canary.check(&server, "C16");
}

/// C14: all there may be of them, of a prompt that fills the context; more than there is room for is refused.
#[test]
fn log_probabilities_of_long_prompts_have_their_room() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let prompt: Vec<u64> = (0..1000).map(|i| 1 + i * 7 % 2000).collect();
    let body = |n: u64| {
        json!({
            "prompt": prompt, "max_tokens": 2, "temperature": 0, "logprobs": 20, "echo": true, "n": n,
        })
    };
    let whole = server.complete(body(1));
    let logprobs = &whole["choices"][0]["logprobs"];
    for name in COLUMNS {
        assert_eq!(logprobs[name].as_array().unwrap().len(), 1002, "{name}");
    }
    for (i, top) in logprobs["top_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let Some(top) = top.as_object() else {
            assert_eq!(i, 0, "only the first has none");
            continue;
        };
        // Those that look alike are one; the one that came may be beside them.
        assert!((1..=21).contains(&top.len()), "{i}: {top:?}");
        assert!(top.values().all(|l| l.as_f64().unwrap() <= 0.0));
    }
    canary.check(&server, "C14");
    let never = server.post(COMPLETIONS, &body(16).to_string());
    assert_eq!(never.status, 400, "{}", never.body);
    assert_eq!(never.json()["error"]["code"], "answer_too_large");
    // At once: as many as have room, and the others are told to come back.
    let asked = body(1).to_string();
    let all: Vec<Answer> = std::thread::scope(|s| {
        let all: Vec<_> = (0..12)
            .map(|_| s.spawn(|| server.post(COMPLETIONS, &asked)))
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut refused = 0;
    for answer in &all {
        match answer.status {
            200 => assert_eq!(answer.json()["choices"], whole["choices"]),
            429 => refused += 1,
            other => panic!("{other}: {}", answer.body),
        }
    }
    assert!(refused < 12);
    // JSON has no number for what cannot come at all.
    let only = json!({ "prompt": "x", "max_tokens": 1, "logprobs": 20, "guided_choice": ["a"] });
    let only = server.complete(only);
    let top = only["choices"][0]["logprobs"]["top_logprobs"][0].clone();
    for logprob in top.as_object().unwrap().values() {
        let logprob = logprob.as_f64().unwrap();
        assert!((-9999.0..=0.0).contains(&logprob), "{top}");
    }
    server.wait_until("free", Server::is_free);
}

/// D10: a character that lies in several tokens is told when it is whole; only an end leaves a part of one.
#[test]
fn characters_are_told_whole() {
    let server = Server::start(&["--memory", "1GiB"]);
    let canary = Canary::new(&server);
    let written = "\u{e9}\u{2603}\u{1f642}\u{4e2d}\u{1f469}\u{200d}\u{1f4bb}.";
    let body = |max_tokens: usize, more: Value| {
        let mut body = json!({
            "prompt": PROMPT, "max_tokens": max_tokens, "guided_choice": [written], "logprobs": 1,
        });
        let more = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        body
    };
    let count = ids(&server, written).len();
    assert!(
        count > written.chars().count(),
        "tokens are parts of characters"
    );
    let both = |body: Value| {
        let whole = soon(&server, COMPLETIONS, &body);
        assert_eq!(whole.status, 200, "{}", whole.body);
        let whole = whole.json();
        let mut stream = body;
        stream["stream"] = true.into();
        let chunks = soon(&server, COMPLETIONS, &stream).chunks();
        let (text, reason) = streamed(&chunks, 1);
        assert_eq!(text, texts(&whole));
        assert_eq!(whole["choices"][0]["finish_reason"], *reason[0]);
        let texts = chunks.iter().filter_map(|c| c["choices"].get(0));
        let pieces = texts.map(|c| c["text"].as_str().unwrap().to_owned());
        (text[0].clone(), pieces.collect::<Vec<String>>())
    };
    for end in 1..=count + 8 {
        let (text, pieces) = both(body(end, json!({})));
        let whole = text.trim_end_matches('\u{fffd}');
        assert!(written.starts_with(whole), "{end}: {text:?}");
        let (last, before) = pieces.split_last().unwrap();
        // The text that is left over comes before the reason.
        let before = before.split_last().map_or(before, |b| b.1);
        assert!(
            before.iter().all(|p| !p.contains('\u{fffd}')),
            "{end}: {pieces:?}"
        );
        assert!(!last.contains('\u{fffd}') || text.ends_with('\u{fffd}'));
        if whole == written {
            assert_eq!(text, written);
        }
    }
    // A stop string whose bytes are several tokens.
    let (text, pieces) = both(body(60, json!({ "stop": ["\u{1f642}"] })));
    assert_eq!(text, "\u{e9}\u{2603}", "{pieces:?}");
    canary.check(&server, "D10");
}
