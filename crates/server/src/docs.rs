//! The page at `/docs`: the OpenAPI document as HTML. It is written once, from the document alone, so that neither can
//! say what the other does not; it needs no script, and what stands in it is from this program's own sources.

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::{Map, Value};

const FRAME: &str = include_str!("../../../web/page/docs.html");
const PLACE: &str = "<!-- document -->";

/// The page of a document.
pub(crate) fn page(document: &Value) -> String {
    let writer = Writer {
        document,
        schemas: object(&document["components"]["schemas"]),
    };
    FRAME.replacen(PLACE, &writer.whole(), 1)
}

struct Writer<'a> {
    document: &'a Value,
    schemas: &'a Map<String, Value>,
}

/// A route by one method.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    what: &'a Value,
}

impl Operation<'_> {
    fn id(&self) -> String {
        escaped(text(&self.what["operationId"]))
    }

    fn name(&self) -> String {
        let (method, path) = (escaped(self.method), escaped(self.path));
        format!(
            "<span class=\"method {method}\">{}</span> <code>{path}</code>",
            method.to_uppercase()
        )
    }
}

impl<'a> Writer<'a> {
    fn whole(&self) -> String {
        let info = &self.document["info"];
        let mut out = self.contents();
        out.push_str("<div class=\"told\">\n<h1>HTTP interface</h1>\n");
        let _ = writeln!(
            out,
            "<p>{} Version {}; for programs, the same is at <a href=\"/openapi.json\">/openapi.json</a> (OpenAPI {}).</p>",
            prose(text(&info["description"])),
            escaped(text(&info["version"])),
            escaped(text(&self.document["openapi"])),
        );
        out.push_str(
            "<p class=\"quiet\">In the examples <code>$URL</code> is where this page is from, as <code>http://127.0.0.1:8000</code>. \
             A server with keys asks for <code>-H \"Authorization: Bearer $KEY\"</code> wherever a route says so.</p>\n",
        );
        for (name, description, operations) in self.groups() {
            let _ = writeln!(
                out,
                "<section aria-labelledby=\"{name}\"><h2 id=\"{name}\">{description}</h2>"
            );
            for operation in &operations {
                self.operation(operation, &mut out);
            }
            out.push_str("</section>\n");
        }
        self.named_schemas(&mut out);
        out.push_str("</div>");
        out
    }

    /// Operations by their tags: name and description of each tag first.
    fn groups(&self) -> Vec<(String, String, Vec<Operation<'a>>)> {
        let tags = list(&self.document["tags"]).iter();
        let group = |tag: &'a Value| {
            let name = text(&tag["name"]);
            let mut of_tag = Vec::new();
            for (path, methods) in object(&self.document["paths"]) {
                for (method, what) in object(methods) {
                    if text(&what["tags"][0]) == name {
                        of_tag.push(Operation { method, path, what });
                    }
                }
            }
            let description = prose(text(&tag["description"]));
            (escaped(name), description, of_tag)
        };
        tags.map(group)
            .filter(|(.., of_tag)| !of_tag.is_empty())
            .collect()
    }

    fn contents(&self) -> String {
        let mut out = String::from("<nav class=\"contents\" aria-label=\"Routes\">\n");
        for (name, description, operations) in self.groups() {
            let _ = writeln!(out, "<a class=\"group\" href=\"#{name}\">{description}</a>");
            for o in &operations {
                let _ = writeln!(out, "<a href=\"#{}\">{}</a>", o.id(), o.name());
            }
        }
        if self.schemas.contains_key("ErrorCode") {
            out.push_str("<a class=\"group\" href=\"#ErrorCode\">Error codes</a>\n");
        }
        out.push_str("<a class=\"group\" href=\"#schemas\">Schemas</a>\n</nav>\n");
        out
    }

    fn operation(&self, o: &Operation<'_>, out: &mut String) {
        let _ = writeln!(
            out,
            "<article class=\"panel\" id=\"{}\"><h3>{}</h3>",
            o.id(),
            o.name()
        );
        let key = if list(&o.what["security"]).is_empty() {
            "Open to everybody."
        } else {
            "Asks for a key, where the server has any."
        };
        let more = text(&o.what["description"]);
        let _ = writeln!(
            out,
            "<p>{}. <span class=\"quiet\">{key} {}</span></p>",
            prose(text(&o.what["summary"])),
            prose(more)
        );
        self.parameters(list(&o.what["parameters"]), out);
        for (media, body) in object(&o.what["requestBody"]["content"]) {
            let _ = writeln!(
                out,
                "<p>Takes {} as <code>{}</code>.</p>",
                self.kind(&body["schema"]),
                escaped(media)
            );
            self.unfolded(&body["schema"], out);
            let example = &body["example"];
            // A quote would end the shell's word.
            let data = example.to_string().replace('\'', "'\\''");
            let line = format!(
                "curl \"$URL{}\" -H 'Content-Type: {media}' -d '{data}'",
                o.path
            );
            let _ = writeln!(out, "<pre class=\"code\">{}</pre>", escaped(&line));
        }
        if o.method == "get" && list(&o.what["parameters"]).is_empty() {
            let line = format!("curl \"$URL{}\"", o.path);
            let _ = writeln!(out, "<pre class=\"code\">{}</pre>", escaped(&line));
        }
        self.answers(o, out);
        out.push_str("</article>\n");
    }

    fn parameters(&self, parameters: &[Value], out: &mut String) {
        if parameters.is_empty() {
            return;
        }
        out.push_str("<div class=\"scroll\"><table class=\"words\"><thead><tr><th>Parameter</th><th>In</th><th>Type</th><th>Meaning</th></tr></thead><tbody>\n");
        for p in parameters {
            let _ = writeln!(
                out,
                "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td></tr>",
                escaped(text(&p["name"])),
                escaped(text(&p["in"])),
                self.kind(&p["schema"]),
                prose(text(&p["description"]))
            );
        }
        out.push_str("</tbody></table></div>\n");
    }

    fn answers(&self, o: &Operation<'_>, out: &mut String) {
        let answers = object(&o.what["responses"]);
        for body in object(&answers["200"]["content"]).values() {
            self.unfolded(&body["schema"], out);
        }
        out.push_str("<div class=\"scroll\"><table class=\"words\"><thead><tr><th>Status</th><th>Body</th><th>When</th></tr></thead><tbody>\n");
        for (status, answer) in answers {
            let mut bodies = Vec::new();
            let mut when = match &**status {
                "200" => String::new(),
                _ => prose(text(&answer["description"])),
            };
            for (media, body) in object(&answer["content"]) {
                let schema = &body["schema"];
                bodies.push(match media.as_str() {
                    "application/json" => self.kind(schema),
                    _ => format!("<code>{}</code>", escaped(media)),
                });
                // Of what has a name it stands where that is.
                when.push_str(&prose(text(&schema["description"])));
            }
            let _ = writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{when}</td></tr>",
                escaped(status),
                bodies.join(" or ")
            );
        }
        out.push_str("</tbody></table></div>\n");
    }

    /// The fields of what is referred to, folded away.
    fn unfolded(&self, schema: &Value, out: &mut String) {
        let Some((name, schema)) = self.referred(schema) else {
            return;
        };
        let name = escaped(name);
        let _ = writeln!(
            out,
            "<details><summary>Fields of <code>{name}</code></summary>"
        );
        self.shape(schema, out);
        out.push_str("</details>\n");
    }

    fn named_schemas(&self, out: &mut String) {
        out.push_str("<section aria-labelledby=\"schemas\"><h2 id=\"schemas\">Schemas</h2>\n");
        for (name, schema) in self.schemas {
            let name = escaped(name);
            let _ = writeln!(
                out,
                "<article class=\"panel\" id=\"{name}\"><h3><code>{name}</code></h3><p>{}</p>",
                prose(text(&schema["description"]))
            );
            self.shape(schema, out);
            out.push_str("</article>\n");
        }
        out.push_str("</section>\n");
    }

    /// What a schema is: its fields, its values, or its kinds.
    fn shape(&self, schema: &Value, out: &mut String) {
        let kinds = kinds(schema);
        if schema["properties"].is_object() {
            self.fields(schema, out);
        } else if kinds.iter().any(|k| k["const"].is_string()) {
            values(kinds, out);
        } else if kinds.iter().any(|k| k["properties"].is_object()) {
            for kind in kinds {
                out.push_str("<p class=\"quiet\">One of:</p>\n");
                self.shape(kind, out);
            }
        } else {
            let _ = writeln!(out, "<p>{}</p>", self.kind(schema));
        }
    }

    fn fields(&self, schema: &Value, out: &mut String) {
        let fields = object(&schema["properties"]);
        let needed = list(&schema["required"]);
        // What is less usual is said.
        let mostly = needed.len() * 2 > fields.len();
        out.push_str("<div class=\"scroll\"><table class=\"words\"><thead><tr><th>Field</th><th>Type</th><th>Meaning</th></tr></thead><tbody>\n");
        for (name, field) in fields {
            let is_needed = needed.iter().any(|n| text(n) == name);
            let word = match (mostly, is_needed) {
                (true, false) => " <span class=\"quiet\">may be left out</span>",
                (false, true) => " <b>required</b>",
                _ => "",
            };
            let _ = writeln!(
                out,
                "<tr><th scope=\"row\"><code>{}</code>{word}</th><td>{}</td><td>{}</td></tr>",
                escaped(name),
                self.kind(field),
                prose(text(&field["description"]))
            );
        }
        out.push_str("</tbody></table></div>\n");
    }

    fn referred(&self, schema: &'a Value) -> Option<(&'a str, &'a Value)> {
        let name = schema["$ref"].as_str()?.rsplit('/').next()?;
        self.schemas.get(name).map(|schema| (name, schema))
    }

    /// The type of a value in a few words, with its limits.
    fn kind(&self, schema: &Value) -> String {
        if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
            let name = escaped(name);
            return format!("<a href=\"#{name}\">{name}</a>");
        }
        if let Some(value) = schema.get("const") {
            return format!("<code>{}</code>", escaped(&value.to_string()));
        }
        if let Some(all) = schema["enum"].as_array() {
            let all = all
                .iter()
                .map(|v| format!("<code>{}</code>", escaped(&v.to_string())));
            return all.collect::<Vec<_>>().join(" or ");
        }
        let kinds = kinds(schema);
        if !kinds.is_empty() {
            let all: Vec<String> = kinds.iter().map(|k| self.kind(k)).collect();
            return all.join(" or ");
        }
        let one = |name: &str| match name {
            "array" if schema["prefixItems"].is_array() => {
                let all = list(&schema["prefixItems"]).iter().map(|i| self.kind(i));
                format!("list of {}", all.collect::<Vec<_>>().join(", "))
            }
            "array" => format!("list of {}", self.kind(&schema["items"])),
            "object" if schema["properties"].is_object() => {
                let fields = object(&schema["properties"]);
                let one = |(name, field): (&String, &Value)| {
                    format!("<code>{}</code>: {}", escaped(name), self.kind(field))
                };
                format!(
                    "{{ {} }}",
                    fields.iter().map(one).collect::<Vec<_>>().join(", ")
                )
            }
            "object" if schema["additionalProperties"].is_object() => {
                format!("object of {}", self.kind(&schema["additionalProperties"]))
            }
            name => escaped(name),
        };
        let kind = match &schema["type"] {
            Value::String(name) => one(name),
            Value::Array(names) => {
                let all: Vec<String> = names.iter().map(|n| one(text(n))).collect();
                all.join(" or ")
            }
            _ => "anything".to_owned(),
        };
        format!("{kind}{}", limits(schema))
    }
}

fn kinds(schema: &Value) -> &[Value] {
    match list(&schema["anyOf"]) {
        [] => list(&schema["oneOf"]),
        kinds => kinds,
    }
}

/// Values that each have a meaning.
fn values(kinds: &[Value], out: &mut String) {
    let has_status = kinds.iter().any(|k| k["x-status"].is_u64());
    let head = if has_status { "<th>Status</th>" } else { "" };
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><table class=\"words\"><thead><tr><th>Value</th>{head}<th>Meaning</th></tr></thead><tbody>"
    );
    for kind in kinds {
        let status = match kind["x-status"].as_u64() {
            Some(status) => format!("<td>{status}</td>"),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\"><code>{}</code></th>{status}<td>{}</td></tr>",
            escaped(text(&kind["const"])),
            prose(text(&kind["description"]))
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn limits(schema: &Value) -> String {
    let names = [
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("minItems", "items at least"),
        ("maxItems", "items at most"),
        ("minLength", "characters at least"),
        ("maxLength", "characters at most"),
        ("maxProperties", "fields at most"),
    ];
    let mut out = String::new();
    for (name, words) in names {
        // A number that is no less than nothing needs no word.
        if let Some(limit) = schema
            .get(name)
            .filter(|l| l.as_f64() != Some(0.0) || name != "minimum")
        {
            let _ = write!(out, ", {words} {}", escaped(&limit.to_string()));
        }
    }
    if out.is_empty() {
        return out;
    }
    format!("<span class=\"quiet\">{out}</span>")
}

/// Text of ours in HTML: what stands in backticks is code.
fn prose(text: &str) -> String {
    // As rustdoc writes links.
    let text = text.replace("[`", "`").replace("`]", "`");
    let mut out = String::new();
    for (i, part) in text.split('`').enumerate() {
        if i % 2 == 1 {
            let _ = write!(out, "<code>{}</code>", escaped(part));
        } else {
            out.push_str(&escaped(part));
        }
    }
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn object(value: &Value) -> &Map<String, Value> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.as_object().unwrap_or(&NONE)
}
