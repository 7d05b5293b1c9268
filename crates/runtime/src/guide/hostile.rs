//! Grammars that strangers could send: each is taken or refused, soon, on a stack that holds.

use std::time::{Duration, Instant};

use serde_json::json;

use super::tests::{tokenizer, tokenizer_with};
use super::*;

/// To compile one.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });

fn nested(depth: usize) -> Value {
    (0..depth).fold(
        json!({"type": "null"}),
        |inner, _| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]}),
    )
}

#[test]
fn options_of_a_client_do_not_count() {
    let (t, end) = tokenizer();
    let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
    let strict = json!({"type": "array", "uniqueItems": true, "contains": {"type": "null"}});
    let mut lenient = strict.clone();
    lenient["x-guidance"] = json!({"lenient": true});
    let e = grammars.compile(&Grammar::JsonSchema(strict), 1);
    assert!(matches!(e, Err(GrammarError::Grammar(_))), "{e:?}");
    let e = grammars.compile(&Grammar::JsonSchema(lenient), 1);
    assert!(matches!(e, Err(GrammarError::Grammar(_))), "{e:?}");
}

#[test]
fn brackets_are_counted() {
    let at = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
    let lark = |n: usize| Grammar::Lark(format!("start: {}", at(n).replace('a', "\"a\"")));
    for deep in [0, MAX_BRACKETS] {
        assert_eq!(check(&Grammar::Regex(at(deep))), Ok(()));
        assert_eq!(check(&lark(deep)), Ok(()));
    }
    for deep in [MAX_BRACKETS + 1, 2000] {
        assert!(check(&Grammar::Regex(at(deep))).is_err());
        assert!(check(&lark(deep)).is_err());
    }
}

#[test]
fn long_tokens_are_left_out() {
    let at = |n: usize| "a".repeat(n);
    let more = [at(MAX_TOKEN_BYTES), at(MAX_TOKEN_BYTES + 1), at(5000)];
    let (t, end) = tokenizer_with(&more);
    let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
    let mut guide = grammars
        .compile(&Grammar::Regex("a+".to_owned()), 1)
        .unwrap();
    let mask = guide.mask().unwrap();
    let allowed: Vec<bool> = (end - 3..end).map(|t| mask.allows(t)).collect();
    assert_eq!(allowed, [true, false, false]);
}

#[test]
fn no_text_is_said_so() {
    let (t, end) = tokenizer();
    let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
    let none = Grammar::Lark("start: start \"x\"".to_owned());
    let e = grammars.compile(&none, 1).unwrap_err();
    assert_eq!(e, GrammarError::Grammar("it allows no text".to_owned()));
}

/// What no answer could get through is refused before one begins; all choices that may be sent can be answered.
#[test]
fn too_wide_ones_are_refused_at_once() {
    let (t, end) = tokenizer();
    let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
    let wide = |n: usize| {
        let all = (0..n).map(|i| (format!("p{i}"), json!({"type": "string"})));
        Grammar::JsonSchema(json!({"type": "object", "properties": all.collect::<Value>()}))
    };
    assert!(grammars.compile(&wide(MAX_PROPERTIES), 1).is_ok());
    let e = grammars.compile(&wide(MAX_PROPERTIES + 1), 1).unwrap_err();
    assert!(e.to_string().contains("513 properties"), "{e}");
    let lark = Grammar::Lark(format!("start: {}", ["\"x\""; 2_700].join(" | ")));
    let e = grammars.compile(&lark, 1).unwrap_err().to_string();
    assert!(e.contains("items"), "{e}");
    let choices: Vec<String> = (0..MAX_CHOICES).map(|i| format!("cc{i:05}")).collect();
    let mut guide = grammars.compile(&Grammar::Choice(choices), 1).unwrap();
    for token in b"cc00712".map(u32::from) {
        assert!(guide.mask().unwrap().allows(token), "{token}");
        guide.push(token).unwrap();
    }
    assert!(guide.mask().unwrap().allows(end));
    let e = grammars.compile(&wide(1), MAX_GUIDES + 1).unwrap_err();
    assert_eq!(e, GrammarError::TooMany(MAX_GUIDES + 1));
}

#[test]
fn hostile_grammars_end() {
    let chain = |n: usize| {
        let mut defs = serde_json::Map::new();
        for i in 0..n {
            defs.insert(
                format!("a{i}"),
                json!({"$ref": format!("#/$defs/a{}", i + 1)}),
            );
        }
        defs.insert(format!("a{n}"), json!({"type": "null"}));
        json!({"$ref": "#/$defs/a0", "$defs": defs})
    };
    let rules = |n: usize| {
        let mut all = "start: r0\n".to_owned();
        for i in 0..n {
            all.push_str(&format!("r{i}: r{}\n", i + 1));
        }
        all + &format!("r{n}: \"x\"\n")
    };
    let many = |n: usize| {
        (0..n).map(|i| json!({"type": "object", "properties": {format!("p{i}"): {"type": "string"}, "k": {"enum": [i, i + 1]}}, "required": ["k"]})).collect::<Vec<_>>()
    };
    let one_of = json!({"oneOf": many(60)});
    let maze =
        json!({"allOf": (0..12).map(|i| json!({"anyOf": many(4 + i % 2)})).collect::<Vec<_>>()});
    let properties: serde_json::Map<_, _> = (0..1500)
        .map(|i| (format!("p{i}"), json!({"type": "string"})))
        .collect();
    let regexes = [
        "(a+)+b".to_owned(),
        "(a|a)*c".to_owned(),
        ".{1,100000}".to_owned(),
        "a{1000}{1000}".to_owned(),
        "(a{1,100}){1,100}".to_owned(),
        r"[\s\S]*".repeat(500),
        "(.*a){20}".to_owned(),
        "(a|b)*a(a|b){18}".to_owned(),
        "(?=a)b".to_owned(),
        r"(a)\1".to_owned(),
        "a".repeat(4096),
        "a?".repeat(2048),
        format!("a{}", "*".repeat(4000)),
        "(".to_owned(),
        "(".repeat(2000),
        r"\p{L}{1000}".to_owned(),
        "[".to_owned(),
        "\\".to_owned(),
        "^$".to_owned(),
        "[a&&b]".to_owned(),
    ];
    let schemas = [
        nested(30),
        nested(60),
        json!({"type": "object", "properties": properties}),
        json!({"enum": (0..6000).map(|i| format!("e{i}")).collect::<Vec<_>>()}),
        json!({"type": "array", "maxItems": 1_000_000_000}),
        json!({"type": "array", "minItems": 1_000_000_000}),
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "string", "maxLength": 1_000_000_000}),
        json!({"type": "string", "pattern": "(a+)+b"}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "pattern": "(.*a){20}", "minLength": 500, "maxLength": 5000}),
        json!({"type": "string", "format": "no-such"}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/none"}),
        json!({"$ref": "http://localhost:1/x"}),
        json!({"$ref": "file:///etc/passwd"}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"allOf": [{"$ref": "#"}, {"type": "object"}]}),
        json!({"type": "foo"}),
        json!({"not": {}}),
        json!({"properties": 7}),
        json!({"type": "object", "patternProperties": {"(a|a)*": {}, "(b+)+": false}}),
        json!({"type": "number", "multipleOf": 1e-9, "minimum": -1e300, "maximum": 1e300}),
        json!({"x-guidance": {"lenient": true}, "not": {}}),
        json!(false),
        json!([1]),
        one_of,
        maze,
        chain(1500),
        chain(500),
        chain(50),
    ];
    let larks = [
        "start: start \"x\"".to_owned(),
        "start: start".to_owned(),
        "start: a\na: b\nb: a".to_owned(),
        "start: \"a\" | \"a\" | start start".to_owned(),
        "start: \"a\"\nunused: \"b\"".to_owned(),
        "start: nothing".to_owned(),
        "nothing: \"a\"".to_owned(),
        "start: ".to_owned(),
        "start: /[^\\s\\S]/".to_owned(),
        "start: \"\"".to_owned(),
        "root ::= \"x\"".to_owned(),
        "start: <|no_such|>".to_owned(),
        "start: <[9999999]>".to_owned(),
        "%import common.WORD\nstart: WORD".to_owned(),
        "start: %json {\"$ref\": \"http://localhost:1/\"}".to_owned(),
        "start: @other".to_owned(),
        "start: x{1000000}\nx: \"x\"".to_owned(),
        rules(4000),
        rules(1000),
        rules(500),
        rules(100),
        "start: ".to_owned() + &"(".repeat(30_000),
        format!("start: {}\"x\"", "\"y\"? ".repeat(10_000)),
        format!("start: {}\"x\"", "\"y\"? ".repeat(3_200)),
        format!("start: {}", ["\"x\""; 2_700].join(" | ")),
        format!("start: x{}\nx: \"x\"", "+".repeat(5000)),
        format!("start: {}", ["\"x\""; 10_000].join(" | ")),
    ];
    let all = std::iter::empty()
        .chain(regexes.into_iter().map(Grammar::Regex))
        .chain(schemas.into_iter().map(Grammar::JsonSchema))
        .chain(larks.into_iter().map(Grammar::Lark))
        .chain([
            Grammar::Choice(Vec::new()),
            Grammar::Choice(vec![String::new()]),
            Grammar::Choice((0..8000).map(|i| format!("c{i}")).collect()),
            Grammar::Choice(vec!["x".repeat(70_000)]),
            Grammar::Regex(String::new()),
            Grammar::Regex("a".repeat(4097)),
            Grammar::Lark("start: \"x\"\n".repeat(6000)),
            Grammar::JsonSchema(json!({"description": "x".repeat(70_000)})),
        ])
        .collect::<Vec<_>>();
    let (t, end) = tokenizer();
    let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
    let mut taken = 0;
    for grammar in all {
        let short: String = format!("{grammar:?}").chars().take(120).collect();
        let began = Instant::now();
        let compiled = grammars.compile(&grammar, 1);
        let took = began.elapsed();
        println!("{took:>9.1?} {short} -> {:?}", compiled.as_ref().err());
        assert!(took < LIMIT, "{short} took {took:?}");
        let Ok(mut guide) = compiled else { continue };
        taken += 1;
        // A walk through it, by whatever is allowed.
        for step in 0..200_usize {
            let began = Instant::now();
            let Ok(mask) = guide.mask() else { break };
            let fits: Vec<u32> = (0..end).filter(|t| mask.allows(*t)).collect();
            let Some(token) = fits.get(step * 7919 % fits.len().max(1)) else {
                break;
            };
            // An allowed token may still be too much work.
            if guide.push(*token).is_err() {
                break;
            }
            let took = began.elapsed();
            assert!(took < LIMIT, "{short}: step {step} took {took:?}");
        }
    }
    assert_eq!(grammars.taken.load(Ordering::Relaxed), 0);
    assert!(taken > 15, "{taken}");
}
