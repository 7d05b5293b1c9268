//! The OpenAPI document: all of the server is in it, and nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::server::*;

const METHODS: [&str; 2] = ["get", "post"];

/// Every method and path of the document.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(|m| (m.clone(), path.clone()))
    });
    all.collect()
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(place) => document.pointer(place.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// A schema that stands alone: with those that it refers to.
fn alone(document: &Value, schema: &Value) -> Value {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    whole
}

#[test]
fn every_route_is_in_the_document_and_no_other() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let source = include_str!("../../../server/src/routes.rs");
    let routes = source.split(".route(\"").skip(1).map(|rest| {
        let (path, rest) = rest.split_once('"').unwrap();
        let method = METHODS
            .into_iter()
            .find(|m| rest.starts_with(&format!(", {m}(")));
        (method.unwrap().to_owned(), path.replace("{*", "{"))
    });
    assert_eq!(routes.collect::<BTreeSet<_>>(), operations(&document));
}

#[test]
fn every_field_is_in_the_document_and_no_other() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").json();
    let mut described: BTreeSet<String> = BTreeSet::new();
    for name in ["CompletionRequest", "ChatRequest"] {
        let schema = &document["components"]["schemas"][name];
        assert_eq!(schema["additionalProperties"], false, "{name}");
        described.extend(schema["properties"].as_object().unwrap().keys().cloned());
    }
    // serde's own names, from the source: those of a rename, else of the field.
    let source = include_str!("../../../server/src/wire.rs");
    let fields = source.split_once("pub(crate) struct Asked {").unwrap().1;
    let fields = fields.split_once("\n}\n").unwrap().0;
    let mut renamed = None;
    let mut known = BTreeSet::new();
    for line in fields.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("#[serde(rename = \"") {
            renamed = name.split('"').next();
        } else if let Some((name, _)) = line.split_once(": Option<") {
            let name = name.trim_start_matches("pub(crate) ");
            known.insert(renamed.take().unwrap_or(name).to_owned());
        }
    }
    assert!(known.contains("prompt_cache_key") && known.len() > 50);
    assert_eq!(described, known);
    // What a route refuses is not described there.
    for (path, name, fields) in [
        (
            "/v1/completions",
            "CompletionRequest",
            json!({ "messages": [], "max_completion_tokens": 1, "add_generation_prompt": true, "top_logprobs": 1 }),
        ),
        (
            "/v1/chat/completions",
            "ChatRequest",
            json!({ "prompt": "A", "echo": true, "best_of": 1 }),
        ),
    ] {
        let own = &document["components"]["schemas"][name]["properties"];
        for (field, value) in fields.as_object().unwrap() {
            assert!(own.get(field).is_none(), "{path}: {field}");
            let mut body = json!({ "prompt": "A" });
            if path.contains("chat") {
                body = json!({ "messages": [{ "role": "user", "content": "A" }] });
            }
            body[field] = value.clone();
            let answer = server.post(path, &body.to_string());
            assert_eq!(
                answer.json()["error"]["code"],
                "unsupported_parameter",
                "{field}"
            );
        }
    }
}

#[test]
fn examples_are_answered_as_the_document_says() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").json();
    let check = |schema: &Value, value: &Value, what: &str| {
        let schema = alone(&document, resolved(&document, schema));
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(value)
            .map(|e| e.to_string())
            .collect();
        assert!(wrong.is_empty(), "{what}: {wrong:?} in {value}");
    };
    for (method, path) in operations(&document) {
        let operation = &document["paths"][&path][&method];
        let what = format!("{method} {path}");
        let given = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let example = &operation["requestBody"]["content"]["application/json"];
        let answer = if method == "post" {
            check(&example["schema"], &example["example"], &what);
            server.post(&path, &example["example"].to_string())
        } else if given.is_object() {
            let models = server.get("/v1/models").json();
            server.get(&path.replace("{name}", models["data"][0]["id"].as_str().unwrap()))
        } else {
            continue;
        };
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        check(given, &answer.json(), &what);
        if method == "get" {
            continue;
        }
        let wrong = server.post(&path, r#"{"no_such_field":1}"#);
        assert_eq!(wrong.status, 400, "{what}");
        let error = &operation["responses"]["400"]["content"]["application/json"]["schema"];
        check(error, &wrong.json(), &what);
    }
}
