use serde_json::{Value, json};

use super::*;
use crate::testing::{Folder, Meta};

/// A fixed sequence of numbers below `n`.
fn numbers(seed: u64, n: u64, len: usize) -> Vec<u32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 16) as u32 % n as u32
        })
        .collect()
}

/// GPT-2's names of bytes: those that print are themselves, the others come after 255.
fn byte_names() -> Vec<char> {
    let prints = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 255;
    (0..256)
        .map(|b| {
            if !prints(b) {
                next += 1;
            }
            char::from_u32(if prints(b) { b } else { next }).unwrap()
        })
        .collect()
}

/// A BPE over bytes, with some merges and two special tokens.
fn byte_level() -> Value {
    let names = byte_names();
    let text = |s: &str| s.bytes().map(|b| names[b as usize]).collect::<String>();
    let mut vocab = serde_json::Map::new();
    for n in &names {
        vocab.insert(n.to_string(), vocab.len().into());
    }
    let mut merges = Vec::new();
    for (a, b) in [
        ("h", "e"),
        ("l", "l"),
        (" ", "w"),
        ("he", "ll"),
        ("hell", "o"),
        (" w", "o"),
    ] {
        let (a, b) = (text(a), text(b));
        vocab.insert(format!("{a}{b}"), vocab.len().into());
        merges.push(json!([a, b]));
    }
    // The first two bytes of many emoji, and a whole one.
    for bytes in [&[0xf0, 0x9f][..], &[0xf0, 0x9f, 0x98, 0x80]] {
        let name: String = bytes.iter().map(|&b: &u8| names[b as usize]).collect();
        vocab.insert(name, vocab.len().into());
    }
    let n = vocab.len();
    let special = |i: usize, content: &str| json!({"id": n + i, "content": content, "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false});
    json!({
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges}
    })
}

/// A SentencePiece-like BPE with bytes for what it lacks, that begins prompts with `<s>`, as LLaMA 2's.
fn metaspace() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut add = |s: String| {
        let n = vocab.len();
        vocab.insert(s, n.into());
    };
    for s in ["<unk>", "<s>", "</s>"] {
        add(s.to_owned());
    }
    for b in 0..256 {
        add(format!("<0x{b:02X}>"));
    }
    for s in [
        "▁", "h", "e", "l", "o", "w", "r", "d", "é", "he", "ll", "hell", "hello", "▁w", "▁wo",
        "▁hello", "▁▁",
    ] {
        add(s.to_owned());
    }
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["▁", "w"], ["▁w", "o"], ["▁", "hello"], ["▁", "▁"]]}
    })
}

fn tokenizer(json: &Value, config: &TokenizerConfig) -> Result<Tokenizer, TextError> {
    Tokenizer::from_json(&serde_json::to_vec(json).unwrap(), "tokenizer.json", config)
}

fn plain(json: &Value) -> Tokenizer {
    tokenizer(json, &TokenizerConfig::default()).unwrap()
}

#[test]
fn encodes_and_decodes() {
    for (json, texts) in [
        (byte_level(), ["hello world", " é 😀\n", ""]),
        (metaspace(), ["hello world", "  é 😀\n", ""]),
    ] {
        let t = plain(&json);
        for text in texts {
            let ids = t.encode(text, false).unwrap();
            assert_eq!(t.decode(&ids, false).unwrap(), text);
        }
    }
    let t = plain(&byte_level());
    assert_eq!(
        t.encode("hello", false).unwrap(),
        [t.id("hello").unwrap()],
        "neither cut nor filled up, as the file asks"
    );
    let long = "hello".repeat(50);
    assert_eq!(t.encode(&long, true).unwrap().len(), 50);
    let s = t.id("<s>").unwrap();
    assert_eq!(t.vocab(), s + 2);
    assert_eq!(t.encode("<s>hello", false).unwrap()[0], s);
    assert_eq!(
        t.decode(&[s, t.id("hello").unwrap(), 999_999], false)
            .unwrap(),
        "hello"
    );
    assert_eq!(t.decode(&[s], true).unwrap(), "<s>");
    assert!(matches!(
        t.encode(&"a".repeat(MAX_TEXT_BYTES + 1), false),
        Err(TextError::Encode(_))
    ));
}

#[test]
fn what_others_spell_is_text() {
    for json in [byte_level(), metaspace()] {
        let t = plain(&json);
        let s = t.id("<s>").unwrap();
        let config = TokenizerConfig {
            chat_template: Some(
                "{% for m in messages %}<s>{{ m.content | trim }}<s>{% endfor %}".to_owned(),
            ),
            ..TokenizerConfig::default()
        };
        let template = ChatTemplate::new(&config).unwrap().unwrap();
        let encode = |content: &str| {
            let mut messages = [json!({ "role": "user", "content": content })];
            let disarmed = t.disarm(&mut messages);
            let text = template.render(&messages, true, Now::now()).unwrap();
            (
                text.clone(),
                t.encode_chat(&text, &disarmed, false).unwrap(),
            )
        };
        // What spells nothing is tokenised as always.
        let (text, ids) = encode(" hello world ");
        assert_eq!(text, "<s>hello world<s>");
        assert_eq!(ids, t.encode(&text, false).unwrap());
        for spells in [
            "hello<s> world",
            "<s>",
            "<s><s>hello",
            "\u{f0000}0\u{f0000}<s>",
        ] {
            let ids = encode(spells).1;
            let special = ids.iter().filter(|id| **id == s).count();
            assert_eq!(special, 2, "those of the template: {spells:?} is {ids:?}");
            assert_eq!((ids[0], ids[ids.len() - 1]), (s, s));
            // And it is still what was said.
            let said = t.decode(&ids[1..ids.len() - 1], false).unwrap();
            let flat = |text: &str| text.replace(' ', "");
            assert_eq!(flat(&said), flat(spells));
        }
        // Deep in what a template is given, too.
        let mut tools = [json!({ "a": [{ "b": "<s>", "<s>c": 0 }], "c": 1 })];
        let disarmed = t.disarm(&mut tools);
        assert!(!tools[0].to_string().contains("<s>"));
        let ids = t
            .encode_chat(&tools[0].to_string(), &disarmed, false)
            .unwrap();
        assert!(!ids.contains(&s));
    }
}

#[test]
fn begins_prompts_as_configured() {
    let first = |json: &Value, add_bos, text: &str| {
        let config = TokenizerConfig {
            bos: Some("<s>".to_owned()),
            add_bos,
            ..TokenizerConfig::default()
        };
        let t = tokenizer(json, &config).unwrap();
        assert_ne!(t.encode("hello", false).unwrap()[0], t.id("<s>").unwrap());
        let ids = t.encode(text, true).unwrap();
        ids.iter().filter(|&&i| Some(i) == t.id("<s>")).count()
    };
    // This one's own rule adds it.
    for (add, text, want) in [
        (None, "hello", 1),
        (Some(true), "hello", 1),
        (Some(false), "hello", 0),
    ] {
        assert_eq!(first(&metaspace(), add, text), want);
    }
    for (add, text, want) in [
        (None, "hello", 0),
        (Some(true), "hello", 1),
        (Some(true), "<s>hello", 1),
        (Some(false), "<s>hello", 1),
    ] {
        assert_eq!(first(&byte_level(), add, text), want);
    }
}

/// All pieces of what follows `prompt`.
fn pieces(t: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Vec<String> {
    let mut d = Detokenizer::new(prompt, false);
    let mut out: Vec<String> = ids.iter().map(|&i| d.push(t, i).unwrap()).collect();
    out.push(d.finish(t).unwrap());
    out
}

#[test]
fn pieces_are_the_whole_text() {
    for (json, seed) in [(byte_level(), 1), (metaspace(), 2)] {
        let t = plain(&json);
        let prompt = t.encode("hello", true).unwrap();
        let before = t.decode(&prompt, false).unwrap();
        for text in [
            "hello world",
            "é",
            "a😀b😀",
            " hello  hello",
            "\n\nx",
            "wörld — 日本語 👩‍👩‍👧",
        ] {
            // What follows has its own leading space.
            let ids = t.encode(&format!("hello{text}"), true).unwrap();
            let ids = &ids[prompt.len()..];
            let whole = t.decode(&[&prompt[..], ids].concat(), false).unwrap();
            let pieces = pieces(&t, &prompt, ids);
            assert_eq!(pieces.concat(), whole[before.len()..], "{text:?} of {seed}");
            assert!(
                !pieces.concat().contains('\u{fffd}'),
                "{text:?}: {pieces:?}"
            );
        }
    }
}

#[test]
fn any_tokens_give_whole_characters() {
    let t = plain(&byte_level());
    for seed in 0..300 {
        let ids = numbers(seed, u64::from(t.vocab()), 40);
        let whole = t.decode(&ids, false).unwrap();
        let pieces = pieces(&t, &[], &ids);
        // What is broken may be replaced by more or fewer signs; what is whole comes through in order.
        let clean = |s: &str| s.replace('\u{fffd}', "");
        assert_eq!(clean(&pieces.concat()), clean(&whole), "seed {seed}");
    }
}

#[test]
fn characters_wait_for_their_bytes_but_not_for_ever() {
    let t = plain(&byte_level());
    let byte = |b: u8| t.id(&byte_names()[b as usize].to_string()).unwrap();
    let emoji: Vec<u32> = "😀".bytes().map(byte).collect();
    assert_eq!(pieces(&t, &[], &emoji), ["", "", "", "😀", ""]);
    let cut = &emoji[..3];
    let p = pieces(&t, &[], cut);
    assert_eq!(
        (p[..3].concat().as_str(), p[3].as_str()),
        ("", "\u{fffd}"),
        "broken only where the text ends"
    );
    // Bytes that never become a character: shown after some tokens, in bounded time.
    let junk = vec![byte(0x80); 5_000];
    let start = std::time::Instant::now();
    let p = pieces(&t, &[], &junk);
    assert!(p.iter().filter(|s| !s.is_empty()).count() > 500);
    assert_eq!(p.concat().chars().count(), 5_000);
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
fn damaged_tokenizers_are_errors() {
    let good = byte_level();
    let bytes = serde_json::to_vec(&good).unwrap();
    let change = |at: &str, to: Value| {
        let mut json = good.clone();
        *json.pointer_mut(at).unwrap() = to;
        json
    };
    let config = TokenizerConfig::default();
    for bytes in [
        &b""[..],
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        &bytes[..bytes.len() / 2],
    ] {
        let e = Tokenizer::from_json(bytes, "folder/tokenizer.json", &config).unwrap_err();
        assert!(e.to_string().starts_with("folder/tokenizer.json: "), "{e}");
    }
    for (at, to) in [
        ("/model/merges", json!([["h", "nothing"]])),
        ("/model/type", json!("Other")),
        ("/model/vocab", json!({"a": -1})),
        ("/model/vocab", json!({})),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": false}),
        ),
        ("/pre_tokenizer", json!({"type": "Nothing"})),
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        ("/added_tokens", json!([{"id": "x"}])),
        ("/decoder", json!({"type": "Strip", "content": "long"})),
    ] {
        let e = tokenizer(&change(at, to.clone()), &config);
        assert!(
            matches!(e, Err(TextError::Corrupt { .. })),
            "{at} {to}: {e:?}"
        );
    }
    // What loads must not panic when it is used.
    for (at, to) in [
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}),
        ),
        (
            "/pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
        ),
        ("/model/vocab", json!({"a": 4_294_967_295_u32})),
    ] {
        if let Ok(t) = tokenizer(&change(at, to), &config) {
            let text = "a".repeat(5_000) + "b";
            let ids = t.encode(&text, true).unwrap_or_default();
            t.decode(&ids, true).ok();
        }
    }
}

#[test]
fn changed_tokenizers_load_or_fail_but_never_panic_or_grow() {
    let mut loaded = 0;
    for json in [byte_level(), metaspace()] {
        let good = serde_json::to_vec(&json).unwrap();
        for seed in 0..300 {
            let mut bytes = good.clone();
            for n in numbers(seed, 1 << 31, 3).chunks(3) {
                let at = n[0] as usize % bytes.len();
                match n[1] % 4 {
                    0 => bytes[at] ^= 1 << (n[2] % 8),
                    1 => bytes[at] = b"0129{}[]\",:nu-e"[n[2] as usize % 15],
                    2 => drop(bytes.drain(at..bytes.len().min(at + 1 + n[2] as usize % 20))),
                    _ => bytes.insert(at, b"0129{}[]\",:nu-e"[n[2] as usize % 15]),
                }
            }
            let Ok(t) = Tokenizer::from_json(&bytes, "changed", &TokenizerConfig::default()) else {
                continue;
            };
            loaded += 1;
            if let Ok(ids) = t.encode("hello wörld <s> 12", true) {
                t.decode(&ids, false).ok();
            }
        }
    }
    assert!(loaded > 50, "{loaded}");
    // Ids far apart must not become a table that long.
    for id in [1_u32 << 31, u32::MAX - 1, u32::MAX] {
        let mut json = byte_level();
        json["model"]["vocab"]["zz"] = id.into();
        if let Ok(t) = tokenizer(&json, &TokenizerConfig::default()) {
            assert_eq!(t.vocab(), id + 1);
        }
        let mut json = byte_level();
        json["added_tokens"][0]["id"] = id.into();
        tokenizer(&json, &TokenizerConfig::default()).ok();
    }
}

#[test]
fn long_texts_without_spaces_are_encoded_in_time() {
    for json in [byte_level(), metaspace()] {
        let t = plain(&json);
        for text in [
            "a".repeat(1 << 20),
            "^".repeat(1 << 20),
            "hello".repeat(200_000),
        ] {
            let start = std::time::Instant::now();
            let ids = t.encode(&text, true).unwrap();
            assert!(ids.len() > 100_000);
            // Debug builds of three agents at once; what is quadratic takes hours.
            assert!(start.elapsed().as_secs() < 60);
        }
    }
}

#[test]
fn configurations_say_what_ends_and_begins() {
    let tokenizer_json = serde_json::to_string(&byte_level()).unwrap();
    let read = |files: &[(&str, &str)]| {
        let mut files = files.to_vec();
        files.push(("tokenizer.json", &tokenizer_json));
        let folder = Folder::new();
        for (name, text) in files {
            std::fs::write(folder.0.join(name), text).unwrap();
        }
        let weights = ("x", "F32", &[1][..], vec![0; 4]);
        folder.safetensors("model.safetensors", &[weights]);
        let checkpoint = Checkpoint::open(&folder.0, &["model.safetensors"]).unwrap();
        let all = ModelText::of(&checkpoint)?;
        let config = TokenizerConfig::from_folder(&folder.0)?;
        assert_eq!(all.template.is_some(), config.chat_template.is_some());
        let tokenizer = Tokenizer::from_folder(&folder.0, &config)?;
        let generation = GenerationConfig::from_folder(&folder.0, &tokenizer, &config)?;
        Ok::<_, TextError>((config, generation))
    };
    let (config, generation) = read(&[]).unwrap();
    assert_eq!(
        (config, generation),
        (TokenizerConfig::default(), GenerationConfig::default())
    );
    let end = plain(&byte_level()).id("</s>").unwrap();
    let (config, generation) = read(&[
        ("tokenizer_config.json", r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "add_bos_token": true, "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#),
        ("config.json", r#"{"eos_token_id": 9}"#),
        ("generation_config.json", r#"{"eos_token_id": [7, 3, 7], "temperature": 0.6, "top_k": -1, "top_p": 0.9}"#),
    ])
    .unwrap();
    assert_eq!(
        (
            config.bos.as_deref(),
            config.add_bos,
            config.chat_template.as_deref()
        ),
        (Some("<s>"), Some(true), Some("d"))
    );
    assert_eq!(generation.eos, [3, 7, end]);
    assert_eq!(
        (generation.temperature, generation.top_k, generation.top_p),
        (Some(0.6), Some(0), Some(0.9))
    );
    let (config, generation) = read(&[
        ("config.json", r#"{"text_config": {"eos_token_id": 9}}"#),
        ("chat_template.jinja", "from the file"),
        (
            "tokenizer_config.json",
            r#"{"chat_template": "from the config"}"#,
        ),
    ])
    .unwrap();
    assert_eq!(
        (generation.eos, config.chat_template.as_deref()),
        (vec![9], Some("from the file"))
    );
    for (name, text) in [
        ("generation_config.json", r#"{"temperature": NaN}"#),
        ("generation_config.json", r#"{"eos_token_id": "2"}"#),
        (
            "generation_config.json",
            r#"{"eos_token_id": [4294967296]}"#,
        ),
        ("generation_config.json", r#"{"top_k": 1.5}"#),
        ("generation_config.json", r#"{"top_p": 1, "top_p": 2}"#),
        ("generation_config.json", "[]"),
        ("generation_config.json", "{"),
        ("tokenizer_config.json", r#"{"bos_token": 3}"#),
        ("tokenizer_config.json", r#"{"add_bos_token": "yes"}"#),
        ("tokenizer_config.json", r#"{"chat_template": 1}"#),
        ("config.json", r#"{"eos_token_id": -1}"#),
    ] {
        let e = read(&[(name, text)]).unwrap_err();
        assert!(e.to_string().contains(name), "{text}: {e}");
    }
}

/// The tokens of a `tokenizer.json`, by id, and which of them are special.
fn tokens(json: &Value) -> (Vec<String>, Vec<i32>) {
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut all = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        all[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut types: Vec<i32> = all
        .iter()
        .map(|t| if t.starts_with("<0x") { 6 } else { 1 })
        .collect();
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        if id == all.len() {
            all.push(added["content"].as_str().unwrap().to_owned());
            types.push(3);
        }
        types[id] = 3;
    }
    (all, types)
}

fn gguf_text(metadata: &[(&str, Meta)]) -> Result<ModelText, TextError> {
    let folder = Folder::new();
    let mut all = vec![("general.architecture", Meta::Text("llama".into()))];
    all.extend(metadata.iter().cloned());
    folder.gguf("m.gguf", &all, &[("x", 0, &[1], vec![0; 4])]);
    let checkpoint = Checkpoint::open(&folder.0, &["m.gguf"]).unwrap();
    ModelText::of(&checkpoint)
}

/// Texts of pieces that have and have not tokens.
fn texts() -> impl Iterator<Item = String> {
    let parts = [
        "hello", " ", "world", "  ", "é", "\n", "12", "<s>", "hell", "o", "w", "日", "'s", "he",
        "lll",
    ];
    (0..200).map(move |seed| {
        numbers(seed, parts.len() as u64, 9)
            .into_iter()
            .map(|i| parts[i as usize])
            .collect()
    })
}

#[test]
fn gguf_tokenizers_are_those_of_the_folder() {
    let json = byte_level();
    let (tokens_, types) = tokens(&json);
    let merges = json["model"]["merges"].as_array().unwrap();
    let merges = merges
        .iter()
        .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
        .collect();
    let end = tokens_.len() as u32 - 1;
    let gpt2 = [
        ("tokenizer.ggml.model", Meta::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens_)),
        ("tokenizer.ggml.token_type", Meta::Ints(types)),
        ("tokenizer.ggml.merges", Meta::Texts(merges)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(end - 1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(end)),
        (
            "tokenizer.chat_template",
            Meta::Text("{{ messages[0].content }}{{ eos_token }}".into()),
        ),
    ];
    let text = gguf_text(&gpt2).unwrap();
    assert_eq!(text.generation.eos, [end]);
    let prompt = text
        .template
        .unwrap()
        .render(&[json!({"content": "a"})], true, Now::now())
        .unwrap();
    assert_eq!(prompt, "a</s>");
    let folder = plain(&json);
    let mut longer = 0;
    for t in texts() {
        let want = folder.encode(&t, false).unwrap();
        longer += usize::from(t.len() > want.len());
        assert_eq!(text.tokenizer.encode(&t, false).unwrap(), want, "{t:?}");
        assert_eq!(
            text.tokenizer.decode(&want, true).unwrap(),
            folder.decode(&want, true).unwrap()
        );
    }
    assert!(longer > 150, "merges apply");

    let json = metaspace();
    let (tokens_, types) = tokens(&json);
    // Scores as SentencePiece has them: the merges' order, downwards; what is no merge has none of them.
    let merges = json["model"]["merges"].as_array().unwrap();
    let place = |t: &String| {
        merges
            .iter()
            .position(|m| format!("{}{}", m[0].as_str().unwrap(), m[1].as_str().unwrap()) == *t)
    };
    let scores = tokens_
        .iter()
        .map(|t| place(t).map_or(0.0, |i| -(i as f32)))
        .collect();
    let llama = [
        ("tokenizer.ggml.model", Meta::Text("llama".into())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens_)),
        ("tokenizer.ggml.scores", Meta::Floats(scores)),
        ("tokenizer.ggml.token_type", Meta::Ints(types)),
        ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ];
    let text = gguf_text(&llama).unwrap();
    let folder = plain(&json);
    for t in texts() {
        for special in [false, true] {
            let want = folder.encode(&t, special).unwrap();
            // The folder's own rule adds a second one where the text begins with it.
            let want = if special && want.starts_with(&[1, 1]) {
                &want[1..]
            } else {
                &want[..]
            };
            assert_eq!(text.tokenizer.encode(&t, special).unwrap(), want, "{t:?}");
            assert_eq!(
                text.tokenizer.decode(want, false).unwrap(),
                folder.decode(want, false).unwrap()
            );
        }
    }
    let mut without = llama.to_vec();
    without.push(("tokenizer.ggml.add_space_prefix", Meta::Bool(false)));
    without.push(("tokenizer.ggml.add_bos_token", Meta::Bool(false)));
    let t = gguf_text(&without).unwrap().tokenizer;
    assert_eq!(t.encode("hello", true).unwrap(), [t.id("hello").unwrap()]);
}

#[test]
fn damaged_gguf_tokenizers_are_errors() {
    let good = [
        ("tokenizer.ggml.model", Meta::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::Text("llama-bpe".into())),
        (
            "tokenizer.ggml.tokens",
            Meta::Texts(vec!["a".into(), "b".into(), "ab".into()]),
        ),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["a b".into()])),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
    ];
    assert_eq!(
        gguf_text(&good)
            .unwrap()
            .tokenizer
            .encode("ab", false)
            .unwrap(),
        [2]
    );
    let change = |key: &str, value: Meta| {
        let mut all: Vec<_> = good.iter().filter(|m| m.0 != key).cloned().collect();
        all.push((key, value));
        gguf_text(&all).unwrap_err().to_string()
    };
    for (key, value, says) in [
        ("tokenizer.ggml.model", Meta::Text("bert".into()), "`bert`"),
        (
            "tokenizer.ggml.pre",
            Meta::Text("new-rule".into()),
            "`new-rule`",
        ),
        ("tokenizer.ggml.tokens", Meta::Texts(vec![]), "0 tokens"),
        (
            "tokenizer.ggml.tokens",
            Meta::Texts(vec!["a".into(), "b".into(), "a".into()]),
            "both `a`",
        ),
        (
            "tokenizer.ggml.merges",
            Meta::Texts(vec!["a c".into()]),
            "m.gguf",
        ),
        (
            "tokenizer.ggml.merges",
            Meta::Texts(vec!["ab".into()]),
            "m.gguf",
        ),
        (
            "tokenizer.ggml.merges",
            Meta::Texts(vec!["é".into()]),
            "m.gguf",
        ),
        (
            "tokenizer.ggml.eos_token_id",
            Meta::U32(3),
            "there are 3 tokens",
        ),
        ("tokenizer.ggml.token_type", Meta::Ints(vec![1]), "1 types"),
        (
            "tokenizer.ggml.scores",
            Meta::Floats(vec![f32::NAN; 3]),
            "not a number",
        ),
    ] {
        let e = change(key, value);
        assert!(e.contains(says) && e.contains("m.gguf"), "{key}: {e}");
    }
}

/// Tokens and texts of SentencePiece itself (`tools/oracles/sentencepiece_tokens.py`).
#[test]
fn scores_merge_as_sentencepiece_does() {
    let golden: Value = serde_json::from_str(include_str!("golden/sentencepiece.json")).unwrap();
    let list = |key: &str| golden[key].as_array().unwrap().clone();
    let text = gguf_text(&[
        ("tokenizer.ggml.model", Meta::Text("llama".into())),
        (
            "tokenizer.ggml.tokens",
            Meta::Texts(
                list("tokens")
                    .iter()
                    .map(|t| t.as_str().unwrap().to_owned())
                    .collect(),
            ),
        ),
        (
            "tokenizer.ggml.scores",
            Meta::Floats(
                list("scores")
                    .iter()
                    .map(|s| s.as_f64().unwrap() as f32)
                    .collect(),
            ),
        ),
        (
            "tokenizer.ggml.token_type",
            Meta::Ints(
                list("types")
                    .iter()
                    .map(|t| t.as_i64().unwrap() as i32)
                    .collect(),
            ),
        ),
        ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
    ])
    .unwrap();
    for case in list("texts") {
        let t = case["text"].as_str().unwrap();
        let want: Vec<u32> = case["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i.as_u64().unwrap() as u32)
            .collect();
        assert_eq!(text.tokenizer.encode(t, false).unwrap(), want, "{t:?}");
        assert_eq!(
            text.tokenizer.decode(&want, false).unwrap(),
            case["decoded"].as_str().unwrap(),
            "{t:?}"
        );
        assert_eq!(
            text.tokenizer.encode(t, true).unwrap(),
            [&[1], &want[..]].concat()
        );
    }
}

/// Real vocabularies: `models/ggml-vocab-*.gguf` of llama.cpp, with texts and the tokens that the models' own
/// tokenizers give them.
#[test]
#[ignore = "set VOCABULARIES to the folder `models` of llama.cpp"]
fn real_vocabularies_give_the_tokens_of_their_models() {
    let folder = std::path::PathBuf::from(std::env::var("VOCABULARIES").unwrap());
    let mut agreed = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(file) = name.strip_suffix(".inp") else {
            continue;
        };
        let checkpoint = Checkpoint::open(&folder, &[file]).unwrap();
        let text = match ModelText::of(&checkpoint) {
            Ok(text) => text,
            // Kinds and rules that are not known are told, not guessed.
            Err(e) => {
                assert!(
                    e.to_string()
                        .contains("use the model's Hugging Face folder"),
                    "{e}"
                );
                continue;
            }
        };
        let read =
            |end: &str| std::fs::read_to_string(folder.join(format!("{file}{end}"))).unwrap();
        let (texts, ids) = (read(".inp"), read(".out"));
        for (t, want) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
            let want: Vec<u32> = want
                .split_whitespace()
                .map(|x| x.parse().unwrap())
                .collect();
            assert_eq!(
                text.tokenizer.encode(t, false).unwrap(),
                want,
                "{file}: {t:?}"
            );
            assert_eq!(text.tokenizer.decode(&want, true).unwrap(), t, "{file}");
        }
        println!("{file}: {} texts", ids.lines().count());
        agreed += 1;
    }
    assert!(agreed > 0, "no vocabulary in {}", folder.display());
}

/// Each token's bytes are what it adds to a text.
#[test]
fn tokens_are_bytes() {
    for json in [byte_level(), metaspace()] {
        let t = plain(&json);
        let bytes = t.token_bytes().unwrap();
        for text in texts() {
            let text = text.replace("<s>", "");
            let ids = t.encode(&text, false).unwrap();
            let got: Vec<u8> = ids
                .iter()
                .flat_map(|id| bytes[*id as usize].clone())
                .collect();
            // Some vocabularies begin a text with a space.
            let got = String::from_utf8(got).unwrap();
            assert!(got == text || got == format!(" {text}"), "{text:?} {got:?}");
        }
    }
}
