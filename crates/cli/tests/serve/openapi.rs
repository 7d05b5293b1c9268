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

/// Every method and path of the router.
fn routes() -> BTreeSet<(String, String)> {
    let source = include_str!("../../../server/src/routes.rs");
    let routes = source.split(".route(\"").skip(1).map(|rest| {
        let (path, rest) = rest.split_once('"').unwrap();
        let method = METHODS
            .into_iter()
            .find(|m| rest.starts_with(&format!(", {m}(")));
        (method.unwrap().to_owned(), path.replace("{*", "{"))
    });
    routes.collect()
}

#[test]
fn every_route_is_in_the_document_and_no_other() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(routes(), operations(&document));
}

/// What `page` has in `name="..."`, wherever that stands.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    let all = page.split(&*start).skip(1);
    all.map(|rest| rest.split('"').next().unwrap()).collect()
}

#[test]
fn the_page_of_the_interface_has_all_of_the_document() {
    let server = Server::start(&["--api-key", "right"]);
    let document = server.get("/openapi.json").json();
    let answer = server.get("/docs");
    assert_eq!(answer.status, 200);
    let page = &answer.body;
    let ids = attributes(page, "id");
    let unique: BTreeSet<&&str> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "an id is there twice");
    // Every route of the router, with its own part of the page, up to the next one.
    let part = |id: &str| {
        let start = page.find(&format!("<article class=\"panel\" id=\"{id}\">"));
        let start = start.unwrap_or_else(|| panic!("{id} is not on the page"));
        page[start..].split("</article>").next().unwrap()
    };
    for (method, path) in routes() {
        let operation = &document["paths"][&path][&method];
        let part = part(operation["operationId"].as_str().unwrap());
        assert!(part.contains(&format!("<code>{path}</code>")), "{path}");
        assert!(part.contains(&format!(">{}</span>", method.to_uppercase())));
        for status in operation["responses"].as_object().unwrap().keys() {
            assert!(part.contains(&format!(">{status}</th>")), "{path} {status}");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            assert!(part.contains(&format!("<code>{name}</code>")), "{path}");
        }
        let example = &operation["requestBody"]["content"]["application/json"]["example"];
        if example.is_object() {
            let example = example.to_string().replace('"', "&quot;");
            assert!(part.contains(&example), "{path}: {example}");
        }
    }
    // Every schema with every field, and every code.
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let part = part(name);
        let kinds = ["anyOf", "oneOf"].map(|k| schema[k].as_array().cloned().unwrap_or_default());
        for one in [schema].into_iter().chain(kinds.iter().flatten()) {
            for field in one["properties"].as_object().into_iter().flatten() {
                assert!(part.contains(&format!("<code>{}</code>", field.0)));
            }
            if let Some(word) = one["const"].as_str() {
                assert!(part.contains(&format!("<code>{word}</code>")), "{name}");
            }
        }
    }
    for link in attributes(page, "href") {
        if let Some(id) = link.strip_prefix('#') {
            assert!(ids.contains(&id), "{link} leads nowhere");
        } else {
            assert!(link.starts_with('/') && !link.starts_with("//"), "{link}");
        }
    }
    // As strict as the other page, and linked from it.
    let policy = |answer: &Answer| {
        let lines = answer.headers.lines();
        let of = |l: &&str| l.starts_with("content-security-policy:");
        lines.filter(of).map(str::to_owned).collect::<Vec<_>>()
    };
    let index = server.get("/");
    assert_eq!(policy(&answer), policy(&index));
    assert_eq!(policy(&answer).len(), 1);
    assert!(index.body.contains("href=\"/docs\""));
    for part in ["<style", "style=", "onclick", "onload", "<script>"] {
        assert!(!page.contains(part), "{part}");
    }
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

/// Objects of a schema have the fields that it names and no others.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}

/// Whether `value` is what `schema` says, to the field.
fn check(document: &Value, schema: &Value, value: &Value, what: &str) {
    let schema = alone(document, resolved(document, schema));
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let wrong: Vec<String> = validator
        .iter_errors(value)
        .map(|e| e.to_string())
        .collect();
    assert!(wrong.is_empty(), "{what}: {wrong:?} in {value}");
}

/// What every route answers when it is asked as the document says, and when it is asked wrongly, has exactly the
/// fields that its schema names.
#[test]
fn every_answer_has_the_fields_of_its_schema_and_no_other() {
    let model = ChatModel::new();
    let server = Server::start(&[model.0.to_str().unwrap()]);
    let mut document = server.get("/openapi.json").json();
    close(&mut document["components"]["schemas"]);
    let document = document;
    let mut unasked = routes();
    for (method, path) in operations(&document) {
        let operation = &document["paths"][&path][&method];
        let what = format!("{method} {path}");
        let content = &operation["responses"]["200"]["content"];
        let given = &content["application/json"]["schema"];
        unasked.remove(&(method.clone(), path.clone()));
        if content["text/event-stream"].is_object() {
            continue;
        }
        if method == "get" {
            let models = server.get("/v1/models").json();
            let name = models["data"][0]["id"].as_str().unwrap();
            let name = if path.starts_with("/assets") {
                "main.js"
            } else {
                name
            };
            let answer = server.get(&path.replace("{name}", name));
            assert_eq!(answer.status, 200, "{what}: {}", answer.body);
            if given.is_object() {
                check(&document, given, &answer.json(), &what);
            }
            continue;
        }
        let example = &operation["requestBody"]["content"]["application/json"];
        check(&document, &example["schema"], &example["example"], &what);
        let answer = server.post(&path, &example["example"].to_string());
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        check(&document, given, &answer.json(), &what);
        let wrong = server.post(&path, r#"{"no_such_field":1}"#);
        assert_eq!(wrong.status, 400, "{what}");
        let error = &operation["responses"]["400"]["content"]["application/json"]["schema"];
        check(&document, error, &wrong.json(), &what);
    }
    assert!(unasked.is_empty(), "{unasked:?}");
    // Generated text, in all its forms, whole and in events.
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let (completions, chats) = ("/v1/completions", "/v1/chat/completions");
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"], "additionalProperties": false } } });
    for (path, body) in [
        (completions, json!({ "prompt": PROMPT, "max_tokens": 3 })),
        (
            completions,
            json!({ "prompt": PROMPT, "max_tokens": 3, "logprobs": 2, "echo": true, "n": 2 }),
        ),
        (chats, json!({ "messages": messages, "max_tokens": 3 })),
        (
            chats,
            json!({ "messages": messages, "max_tokens": 3, "logprobs": true, "top_logprobs": 2 }),
        ),
        (
            chats,
            json!({ "messages": messages, "max_tokens": 64, "tools": [tool], "tool_choice": "required" }),
        ),
    ] {
        let what = body.to_string();
        let answer = server.post(path, &what);
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        check(&document, &schema("Reply"), &answer.json(), &what);
        let mut streamed = body;
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({ "include_usage": true });
        for event in server.post(path, &streamed.to_string()).chunks() {
            check(&document, &schema("Reply"), &event, &what);
        }
    }
    // The first event of a stream without end.
    let mut socket = server.send("GET", "/v1/memory/stream", "", "");
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("\n\n") {
        let mut some = [0; 4096];
        let n = std::io::Read::read(&mut socket, &mut some).unwrap();
        assert!(n > 0);
        said.extend_from_slice(&some[..n]);
    }
    let said = String::from_utf8(said).unwrap();
    let event = said.split("data: ").nth(1).unwrap();
    let event: Value = serde_json::from_str(event.split("\n\n").next().unwrap()).unwrap();
    check(&document, &schema("Memory"), &event, "/v1/memory/stream");
    let health = server.get("/no/such/route");
    check(&document, &schema("Error"), &health.json(), "no route");
}

/// A planner's answers of every kind: what does not fit, what no engine takes, what is asked wrongly.
#[test]
fn every_plan_has_the_fields_of_its_schema_and_no_other() {
    let server = Server::start(&[]);
    let mut document = server.get("/openapi.json").json();
    close(&mut document["components"]["schemas"]);
    for asked in [
        json!({ "model": "gpt2" }),
        json!({ "model": "llama-3.1-405b", "gpu": "l4", "gpus": 1, "users": 4, "context": "4k", "engine": "llama.cpp" }),
        json!({ "model": "llama-3.1-405b", "gpu": "l4", "gpus": 2, "users": "8" }),
        json!({ "model": "deepseek-v3", "gpu": "h200", "engine": "vllm", "kv_cache_dtype": "fp8" }),
        json!({ "model": "gpt2", "gpu": "l4", "engine": "plimsoll", "weights": "int8" }),
    ] {
        let what = asked.to_string();
        for path in ["/api/plan", "/api/plan/grid"] {
            let operation = &document["paths"][path]["post"];
            let media = "application/json";
            check(
                &document,
                &operation["requestBody"]["content"][media]["schema"],
                &asked,
                &what,
            );
            let answer = server.post(path, &what);
            assert_eq!(answer.status, 200, "{what}: {}", answer.body);
            let given = &operation["responses"]["200"]["content"][media]["schema"];
            check(&document, given, &answer.json(), &what);
        }
    }
}
