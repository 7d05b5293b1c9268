//! Tools: what a client offers, what an answer must be that calls them, and calls found in an answer.

use std::collections::BTreeSet;

use plimsoll_runtime::guide::{Grammar, MAX_GRAMMAR_BYTES};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::wire::{Asked, Object, ToolChoice};

/// Longest name of a function, as OpenAI has it.
const MAX_NAME_CHARS: usize = 64;
/// Most calls of one answer that must have some.
const MAX_CALLS: usize = 16;
/// What stands around a call in the answers of models that follow Hermes: Qwen's and many others.
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The tools of a request, checked.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// As a template reads them.
    pub(crate) described: Vec<Value>,
    /// What an answer must be, where it must be calls.
    pub(crate) grammar: Option<Grammar>,
    /// How calls are found in an answer, where there may be any.
    pub(crate) calls: Option<Calls>,
}

/// Checks the tools of a request.
pub(crate) fn tools(asked: &Asked) -> Result<Tools, ApiError> {
    let given = asked.tools.as_ref().map_or(&[][..], |t| &t.0);
    if given.is_empty() {
        return match asked.tool_choice {
            None | Some(ToolChoice::None) => Ok(Tools::default()),
            Some(_) => Err(ApiError::value(
                "tool_choice",
                "tool_choice needs tools: send at least one",
            )),
        };
    }
    let mut names = BTreeSet::new();
    let mut described = Vec::with_capacity(given.len());
    let mut schemas = Vec::with_capacity(given.len());
    let mut bytes = 0;
    for (i, Object(tool)) in given.iter().enumerate() {
        let f = &tool.function.0;
        let place = |field: &str| format!("tools[{i}].function.{field}");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if f.name.is_empty() || f.name.len() > MAX_NAME_CHARS || !f.name.chars().all(plain) {
            let message =
                format!("a function's name has 1 to {MAX_NAME_CHARS} letters, digits, _ and -");
            return Err(ApiError::value(place("name"), message));
        }
        if !names.insert(f.name.clone()) {
            let message = format!("two functions are called {:?}", f.name);
            return Err(ApiError::value(place("name"), message));
        }
        let none = json!({ "type": "object", "properties": {} });
        let schema = f.parameters.as_ref().map_or(none, |p| p.0.clone());
        if !schema.is_object() {
            return Err(ApiError::value(
                place("parameters"),
                "parameters are a JSON schema: send an object",
            ));
        }
        let mut function = Map::new();
        function.insert("name".to_owned(), f.name.as_str().into());
        if let Some(text) = &f.description {
            function.insert("description".to_owned(), text.as_str().into());
        }
        function.insert("parameters".to_owned(), schema.clone());
        let one = json!({ "type": "function", "function": function });
        bytes += one.to_string().len();
        if bytes > MAX_GRAMMAR_BYTES {
            let message = format!("tools have more than {MAX_GRAMMAR_BYTES} bytes together");
            return Err(ApiError::value("tools", message));
        }
        described.push(one);
        schemas.push((f.name.clone(), schema));
    }
    let (grammar, kind) = match asked.tool_choice.as_ref().unwrap_or(&ToolChoice::Auto) {
        ToolChoice::None => return Ok(Tools::default()),
        ToolChoice::Auto => (None, Kind::Auto(names)),
        ToolChoice::Named(name) => {
            let Some((_, schema)) = schemas.into_iter().find(|s| s.0 == *name) else {
                let name: String = name.chars().take(MAX_NAME_CHARS).collect();
                let message = format!("there is no tool {name:?} among tools");
                return Err(ApiError::value("tool_choice", message));
            };
            (Some(Grammar::JsonSchema(schema)), Kind::Named(name.clone()))
        }
        ToolChoice::Required => {
            let several = asked.parallel_tool_calls.unwrap_or(true);
            let schema = required(schemas, several)?;
            (Some(Grammar::JsonSchema(schema)), Kind::Required)
        }
    };
    Ok(Tools {
        described,
        grammar,
        calls: Some(Calls {
            kind,
            held: String::new(),
            begun: false,
        }),
    })
}

/// The schema of one call of any function, or of several.
fn required(schemas: Vec<(String, Value)>, several: bool) -> Result<Value, ApiError> {
    let mut all = Vec::with_capacity(schemas.len());
    for (i, (name, schema)) in schemas.into_iter().enumerate() {
        if refers(&schema) {
            return Err(ApiError::value(
                format!("tools[{i}].function.parameters"),
                "$ref is not supported where any tool may be called: write the schema in its place",
            ));
        }
        all.push(json!({
            "type": "object",
            "properties": { "name": { "const": name }, "parameters": schema },
            "required": ["name", "parameters"],
            "additionalProperties": false,
        }));
    }
    let one = json!({ "anyOf": all });
    Ok(if several {
        json!({ "type": "array", "items": one, "minItems": 1, "maxItems": MAX_CALLS })
    } else {
        one
    })
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Array(all) => all.iter().any(refers),
        Value::Object(all) => all.contains_key("$ref") || all.values().any(refers),
        _ => false,
    }
}

#[derive(Clone, Debug)]
enum Kind {
    /// The answer is this function's arguments.
    Named(String),
    /// The answer is a call, or a list of calls.
    Required,
    /// The answer may have calls of these functions.
    Auto(BTreeSet<String>),
}

/// Looks for calls in one answer, while it is written.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    kind: Kind,
    /// What may be a call, or the beginning of one.
    held: String,
    /// Whether what is held is a call, or text was let through before it.
    begun: bool,
}

/// A call: a function and its arguments, as JSON in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Calls {
    /// The function that the answer's text is arguments of, where that is known before.
    pub(crate) fn named(&self) -> Option<&str> {
        match &self.kind {
            Kind::Named(name) => Some(name),
            _ => None,
        }
    }

    /// More of the answer; what of it is surely text.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if !matches!(self.kind, Kind::Auto(_)) || self.is_call() {
            return String::new();
        }
        let at = match self.held.find(OPEN) {
            Some(at) => at,
            None => {
                let start = self.held.trim_start();
                if !self.begun && (start.is_empty() || start.starts_with('{')) {
                    // A call that is nothing but JSON stands alone.
                    return String::new();
                }
                // The tag may come in pieces.
                let tail = (1..OPEN.len())
                    .rev()
                    .find(|n| self.held.ends_with(&OPEN[..*n]));
                self.held.len() - tail.unwrap_or(0)
            }
        };
        let rest = self.held.split_off(at);
        let text = std::mem::replace(&mut self.held, rest);
        self.begun |= !text.trim().is_empty();
        if self.is_call() && text.trim().is_empty() {
            // Space before a call is no text.
            return String::new();
        }
        text
    }

    fn is_call(&self) -> bool {
        self.held.starts_with(OPEN)
    }

    /// The answer is over: what of it is text after all, and its calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        let calls = match &self.kind {
            Kind::Named(name) => Some(vec![Call {
                name: name.clone(),
                arguments: held.clone(),
            }]),
            Kind::Required => serde_json::from_str(&held).ok().and_then(|v| match v {
                Value::Array(all) => all.iter().map(call).collect(),
                one => call(&one).map(|c| vec![c]),
            }),
            Kind::Auto(names) => {
                let calls = if held.starts_with(OPEN) {
                    tagged(&held)
                } else {
                    let value = serde_json::from_str(held.trim()).ok();
                    value.and_then(|v| Some(vec![call(&v)?]))
                };
                // Of a function that nobody offered, it is text.
                calls.filter(|all| all.iter().all(|c| names.contains(&c.name)))
            }
        };
        match calls.filter(|c| !c.is_empty()) {
            Some(calls) => (String::new(), calls),
            None => (held, Vec::new()),
        }
    }
}

/// Calls in their tags, with nothing but space between; a last one may lack its end.
fn tagged(text: &str) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix(OPEN)?;
        let (inside, after) = rest.split_once(CLOSE).unwrap_or((rest, ""));
        calls.push(call(&serde_json::from_str(inside.trim()).ok()?)?);
        rest = after.trim_start();
    }
    Some(calls)
}

/// A call as models write it: Hermes has `arguments`, Llama 3 `parameters`.
fn call(value: &Value) -> Option<Call> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
    arguments.is_object().then(|| Call {
        name,
        arguments: arguments.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto() -> Calls {
        Calls {
            kind: Kind::Auto(["f".to_owned(), "g".to_owned()].into()),
            held: String::new(),
            begun: false,
        }
    }

    /// Whole, and character by character.
    fn read(answer: &str) -> (String, Vec<Call>) {
        let mut results = Vec::new();
        for step in [usize::MAX, 1] {
            let mut calls = auto();
            let mut text = String::new();
            let chars: Vec<char> = answer.chars().collect();
            for piece in chars.chunks(step.min(chars.len().max(1))) {
                text.push_str(&calls.push(&piece.iter().collect::<String>()));
            }
            let (rest, found) = calls.finish();
            text.push_str(&rest);
            results.push((text, found));
        }
        assert_eq!(results[0], results[1], "{answer}");
        results.remove(0)
    }

    #[test]
    fn finds_calls_and_leaves_text() {
        let f = |arguments: &str| Call {
            name: "f".to_owned(),
            arguments: arguments.to_owned(),
        };
        for (answer, text, calls) in [
            ("", "", vec![]),
            ("Hello <b> {", "Hello <b> {", vec![]),
            (
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                "",
                vec![f("{\"a\":1}")],
            ),
            (
                "I will. <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>",
                "I will. ",
                vec![f("{}"), f("{}")],
            ),
            (" {\"name\": \"f\", \"parameters\": {}}", "", vec![f("{}")]),
            // Broken, cut, or of nobody's function: text as it came.
            (
                "<tool_call>{\"name\":\"f\",\"arguments\":{</tool_call>",
                "<tool_call>{\"name\":\"f\",\"arguments\":{</tool_call>",
                vec![],
            ),
            (
                "{\"name\": \"f\", \"param",
                "{\"name\": \"f\", \"param",
                vec![],
            ),
            (
                "{\"name\": \"h\", \"parameters\": {}}",
                "{\"name\": \"h\", \"parameters\": {}}",
                vec![],
            ),
            ("a <tool_ca", "a <tool_ca", vec![]),
        ] {
            assert_eq!(read(answer), (text.to_owned(), calls), "{answer}");
        }
        // A model that loops: linear.
        let long = "<tool_call>".repeat(50_000);
        assert_eq!(read(&long).0, long);
    }
}
