//! The OpenAPI document: schemas from the types that are read and written, routes from the table below. OpenAPI 3.1 has
//! the JSON Schema of 2020-12, which is what the schemas are in.

use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::memory::Memory;
use crate::planning::Schemas;
use crate::prepare::Route;
use crate::reply;
use crate::wire::{
    Asked, AskedLogprobs, Biases, Content, Detokenize, Json, List, MAX_PARTS, MAX_PROMPTS,
    Messages, Object, Prompts, Strings, Tokenize, ToolChoice, Whole,
};

/// Whom a route lets in.
#[derive(Clone, Copy, PartialEq)]
enum Lets {
    Everybody,
    Keys,
    Admins,
}

/// What a route takes.
enum Takes {
    Nothing,
    /// JSON of this schema, such as the example.
    Json(Value, Value),
}

struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    tag: &'static str,
    lets: Lets,
    takes: Takes,
    /// What comes, by media type.
    gives: Vec<(&'static str, Value)>,
    /// Errors beside those that any route has.
    errors: &'static [u16],
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
const COMPONENTS: &str = "/components/schemas";

/// What each status of an error means.
const ERRORS: [(u16, &str); 14] = [
    (400, "The request makes no sense; `param` names the field."),
    (401, "There is no valid key."),
    (
        403,
        "The key is no admin's, or a browser asks for a page of elsewhere.",
    ),
    (404, "There is no such route, model or file."),
    (405, "The route has other methods."),
    (408, "The body came too slowly."),
    (413, "The body is too large."),
    (414, "The target is too long."),
    (415, "The body is not said to be JSON."),
    (422, "The plan takes too long."),
    (
        429,
        "Too many ask at once; `Retry-After` says when to come back.",
    ),
    (500, "The server made a mistake."),
    (
        503,
        "The server takes nothing now; where another try helps, `Retry-After` says when.",
    ),
    (504, "The request took longer than it may."),
];
/// Errors of any route with a body.
const OF_BODIES: [u16; 6] = [400, 404, 408, 413, 415, 503];

fn generator(contract: Contract) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = COMPONENTS.into();
    settings.meta_schema = None;
    settings.contract = contract;
    settings.into_generator()
}

/// The document of a server, with the routes of its planner where it has one.
pub(crate) fn document(planner: Option<&Schemas>) -> Value {
    let mut asked = generator(Contract::Deserialize);
    let mut given = generator(Contract::Serialize);
    given.subschema_for::<reply::Failure<'_>>();
    let mut all = operations(&mut asked, &mut given);
    if let Some(planner) = planner {
        all.extend(plans(planner, &mut asked, &mut given));
    }
    let paths = paths(&all);
    let mut schemas = given.take_definitions(true);
    for (name, schema) in asked.take_definitions(true) {
        let other = schemas.insert(name, schema);
        debug_assert!(other.is_none(), "two schemas have one name: {other:?}");
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Plimsoll",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's interface to one model, and where its memory goes.",
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "generate", "description": "Completions and chats" },
            { "name": "tokens", "description": "Text to tokens and back" },
            { "name": "models", "description": "What is served" },
            { "name": "watch", "description": "Memory, metrics and health" },
            { "name": "plan", "description": "What would fit elsewhere" },
            { "name": "page", "description": "The page, and what the server says of itself" },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "key": {
                "type": "http",
                "scheme": "bearer",
                "description": "Where the server was started with keys.",
            } },
        },
    })
}

/// The body of `route`: its fields of [`Asked`], those for the other route left out.
fn asked_by(route: Route, g: &mut SchemaGenerator) -> Value {
    let mut schema = Asked::json_schema(g);
    let needed = match route {
        Route::Completion => "prompt",
        Route::Chat => "messages",
    };
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        for (name, _) in Asked::default().elsewhere(route) {
            fields.shift_remove(name);
        }
        let described = |own: &mut Value, mut one: Value| {
            one["description"] = own["description"].take();
            *own = one;
        };
        if let Some(own) = fields.get_mut("logprobs") {
            let one = match route {
                Route::Completion => {
                    json!({ "type": ["integer", "null"], "minimum": 0, "maximum": plimsoll_runtime::sample::MAX_LOGPROBS })
                }
                Route::Chat => json!({ "type": ["boolean", "null"] }),
            };
            described(own, one);
        }
        if route == Route::Completion {
            fields.shift_remove("top_logprobs");
            fields.shift_remove("tool_choice");
        }
        // It may be left out elsewhere; here it is neither missing nor null.
        if let Some(own) = fields.get_mut(needed) {
            let one = match route {
                Route::Completion => g.subschema_for::<Prompts>().to_value(),
                Route::Chat => {
                    let mut one = Messages::json_schema(g);
                    one.insert("minItems".to_owned(), 1.into());
                    one.to_value()
                }
            };
            described(own, one);
        }
    }
    schema.insert("required".to_owned(), json!([needed]));
    let name = match route {
        Route::Completion => "CompletionRequest",
        Route::Chat => "ChatRequest",
    };
    g.definitions_mut()
        .insert(name.to_owned(), schema.to_value());
    json!({ "$ref": format!("#{COMPONENTS}/{name}") })
}

fn get(
    path: &'static str,
    summary: &'static str,
    tag: &'static str,
    lets: Lets,
    gives: (&'static str, Value),
) -> Operation {
    Operation {
        method: "get",
        path,
        summary,
        tag,
        lets,
        takes: Takes::Nothing,
        gives: vec![gives],
        errors: &[],
    }
}

fn post(
    path: &'static str,
    summary: &'static str,
    tag: &'static str,
    takes: Takes,
    gives: Vec<(&'static str, Value)>,
    errors: &'static [u16],
) -> Operation {
    Operation {
        method: "post",
        path,
        summary,
        tag,
        lets: Lets::Keys,
        takes,
        gives,
        errors,
    }
}

/// What a planner answers.
fn plans(
    planner: &Schemas,
    asked: &mut SchemaGenerator,
    given: &mut SchemaGenerator,
) -> [Operation; 3] {
    let takes = (planner.asked)(asked).to_value();
    let example =
        json!({ "model": "qwen3-8b", "gpu": "h100-80g-sxm", "users": 16, "context": "8k" });
    let takes = || Takes::Json(takes.clone(), example.clone());
    let mut gives = |of: fn(&mut SchemaGenerator) -> Schema| (JSON, of(given).to_value());
    [
        get(
            "/api/choices",
            "What plans choose from",
            "plan",
            Lets::Keys,
            gives(planner.choices),
        ),
        post(
            "/api/plan",
            "A plan, by the names of `plimsoll plan`'s flags, as `plimsoll plan --json` prints it",
            "plan",
            takes(),
            vec![gives(planner.plan)],
            &[422, 429],
        ),
        post(
            "/api/plan/grid",
            "What fits at many loads, by the same names",
            "plan",
            takes(),
            vec![gives(planner.grid)],
            &[422, 429],
        ),
    ]
}

fn operations(asked: &mut SchemaGenerator, given: &mut SchemaGenerator) -> Vec<Operation> {
    let text = || json!({ "type": "string" });
    let object = || json!({ "type": "object" });
    let health = given
        .subschema_for::<reply::Health<&str, String>>()
        .to_value();
    let reply = given.subschema_for::<reply::Reply<'_>>().to_value();
    let model = given.subschema_for::<reply::Model<'_>>().to_value();
    let models = given.subschema_for::<reply::Models<'_>>().to_value();
    let memory = given.subschema_for::<Memory>().to_value();
    let version = given.subschema_for::<reply::Version>().to_value();
    let tokenized = given.subschema_for::<reply::Tokenized>().to_value();
    let detokenized = given.subschema_for::<reply::Detokenized>().to_value();
    let tokenize = asked.subschema_for::<Tokenize>().to_value();
    let detokenize = asked.subschema_for::<Detokenize>().to_value();
    // No type: some read the schema of a stream as that of all its text, others as that of each event.
    let events = |of: &str| json!({ "description": of });
    let of_replies = "Events, where `stream` is true: the data of each is a `Reply`, or an `Error` where it breaks off; of the last it is `[DONE]`.";
    let both = |schema: Value| vec![(JSON, schema), (EVENTS, events(of_replies))];
    let open = Lets::Everybody;
    vec![
        get("/", "The page", "page", open, ("text/html", text())),
        get(
            "/docs",
            "This document, to be read",
            "page",
            open,
            ("text/html", text()),
        ),
        Operation {
            errors: &[404],
            ..get(
                "/assets/{name}",
                "A file of the page",
                "page",
                open,
                ("*/*", json!(true)),
            )
        },
        get(
            "/openapi.json",
            "This document",
            "page",
            open,
            (JSON, object()),
        ),
        Operation {
            errors: &[503],
            ..get(
                "/health",
                "Whether it takes requests",
                "watch",
                open,
                (JSON, health.clone()),
            )
        },
        get(
            "/health/live",
            "Whether it runs",
            "watch",
            open,
            (JSON, health.clone()),
        ),
        Operation {
            errors: &[503],
            ..get(
                "/health/ready",
                "Whether it takes requests",
                "watch",
                open,
                (JSON, health),
            )
        },
        get(
            "/v1/models",
            "The models: one",
            "models",
            Lets::Keys,
            (JSON, models),
        ),
        Operation {
            errors: &[404],
            ..get(
                "/v1/models/{name}",
                "The model",
                "models",
                Lets::Keys,
                (JSON, model),
            )
        },
        get(
            "/version",
            "The server's version",
            "models",
            Lets::Keys,
            (JSON, version),
        ),
        post(
            "/v1/completions",
            "Goes on with a prompt",
            "generate",
            Takes::Json(
                asked_by(Route::Completion, asked),
                json!({ "prompt": "She had not been", "max_tokens": 8, "temperature": 0 }),
            ),
            both(reply.clone()),
            &[429, 504],
        ),
        post(
            "/v1/chat/completions",
            "Answers a chat",
            "generate",
            Takes::Json(
                asked_by(Route::Chat, asked),
                json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 8 }),
            ),
            both(reply),
            &[429, 504],
        ),
        post(
            "/tokenize",
            "The tokens of a prompt or a chat",
            "tokens",
            Takes::Json(tokenize, json!({ "prompt": "She had not been" })),
            vec![(JSON, tokenized)],
            &[],
        ),
        post(
            "/detokenize",
            "The text of tokens",
            "tokens",
            Takes::Json(detokenize, json!({ "tokens": [1, 2, 3] })),
            vec![(JSON, detokenized)],
            &[],
        ),
        get(
            "/metrics",
            "Metrics, as Prometheus reads them",
            "watch",
            Lets::Admins,
            ("text/plain", text()),
        ),
        get(
            "/v1/memory",
            "Whose memory is what, now",
            "watch",
            Lets::Admins,
            (JSON, memory),
        ),
        Operation {
            errors: &[429],
            ..get(
                "/v1/memory/stream",
                "The same, again and again",
                "watch",
                Lets::Admins,
                (
                    EVENTS,
                    events("Events without end: the data of each is a `Memory`."),
                ),
            )
        },
    ]
}

fn paths(operations: &[Operation]) -> Map<String, Value> {
    let mut all = Map::new();
    for o in operations {
        let mut answers = Map::new();
        let given = o
            .gives
            .iter()
            .map(|(kind, schema)| ((*kind).to_owned(), json!({ "schema": schema })));
        let given: Map<String, Value> = given.collect();
        answers.insert(
            "200".to_owned(),
            json!({ "description": o.summary, "content": given }),
        );
        let takes = matches!(o.takes, Takes::Json(..));
        for (status, description) in ERRORS {
            let has = match status {
                // What is screened is screened on all routes.
                400 | 403 | 414 | 500 => true,
                401 => o.lets != Lets::Everybody,
                _ => o.errors.contains(&status) || takes && OF_BODIES.contains(&status),
            };
            if !has {
                continue;
            }
            let name = if o.path.starts_with("/health") && status == 503 {
                "Health"
            } else {
                "Error"
            };
            let schema = json!({ "$ref": format!("#{COMPONENTS}/{name}") });
            let mut answer =
                json!({ "description": description, "content": { JSON: { "schema": schema } } });
            if [429, 503].contains(&status) {
                let seconds = json!({ "type": "integer", "minimum": 1 });
                answer["headers"] =
                    json!({ "Retry-After": { "description": "Seconds.", "schema": seconds } });
            }
            answers.insert(status.to_string(), answer);
        }
        let mut one = json!({
            "summary": o.summary,
            "operationId": format!("{}{}", o.method, o.path.replace(['/', '.', '{', '}'], "_")),
            "tags": [o.tag],
            "responses": answers,
            "security": if o.lets == Lets::Everybody { json!([]) } else { json!([{ "key": [] }]) },
        });
        if o.lets == Lets::Admins {
            one["description"] = "Where there are keys, only for those of admins.".into();
        }
        if let Takes::Json(schema, example) = &o.takes {
            let content = json!({ JSON: { "schema": schema, "example": example } });
            one["requestBody"] = json!({ "required": true, "content": content });
        }
        if o.path.contains("{name}") {
            one["parameters"] = json!([{ "name": "name", "in": "path", "required": true, "description": "Its name.", "schema": { "type": "string" } }]);
        }
        let path = all.entry(o.path).or_insert_with(|| json!({}));
        path[o.method] = one;
    }
    all
}

/// Schemas of what `wire` reads by hand.
macro_rules! schema {
    ($type:ty, $name:literal, $g:ident => $schema:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema($g: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema!(Whole, "Whole", _g => json_schema!({ "type": "integer", "minimum": i64::MIN, "maximum": u64::MAX }));
schema!(Json, "Json", _g => json_schema!({}));
schema!(AskedLogprobs, "AskedLogprobs", _g => json_schema!({ "type": ["boolean", "integer"] }));
schema!(Strings, "Strings", _g => json_schema!({
    "anyOf": [
        { "type": "string" },
        { "type": "array", "items": { "type": "string" }, "maxItems": plimsoll_runtime::text::MAX_STOPS },
    ],
}));
schema!(Biases, "Biases", _g => json_schema!({
    "type": "object",
    "propertyNames": { "pattern": "^[0-9]{1,10}$" },
    "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
    "maxProperties": plimsoll_runtime::sample::MAX_BIASES,
}));
schema!(Prompts, "Prompts", _g => {
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX }, "minItems": 1 });
    json_schema!({
        "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": MAX_PROMPTS },
            ids,
            { "type": "array", "items": ids, "minItems": 1, "maxItems": MAX_PROMPTS },
        ],
    })
});
schema!(Content, "Content", _g => {
    let part = json!({
        "type": "object",
        "properties": { "type": { "const": "text" }, "text": { "type": "string" } },
        "required": ["type", "text"],
        "additionalProperties": false,
    });
    json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": part, "maxItems": MAX_PARTS }] })
});
schema!(ToolChoice, "ToolChoice", _g => {
    let function = json!({
        "type": "object",
        "properties": { "name": { "type": "string" } },
        "required": ["name"],
        "additionalProperties": false,
    });
    json_schema!({
        "anyOf": [
            { "enum": ["none", "auto", "required"] },
            {
                "type": "object",
                "properties": { "type": { "const": "function" }, "function": function },
                "required": ["type", "function"],
                "additionalProperties": false,
            },
        ],
    })
});

impl<T: JsonSchema> JsonSchema for Object<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        T::json_schema(g)
    }
}

impl<T: JsonSchema, const N: usize> JsonSchema for List<T, N> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "List".into()
    }
    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": g.subschema_for::<T>(), "maxItems": N })
    }
}
