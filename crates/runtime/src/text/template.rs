//! [`ChatTemplate`]: a model's Jinja template, which makes one prompt of messages.
//!
//! As transformers renders it (`utils/chat_template_utils.py`): blocks are trimmed, `tojson` escapes no HTML,
//! `raise_exception` and `strftime_now` are there, and so are the methods and constants of Python. A
//! template comes from strangers: fuel bounds its time and memory, and its output has a limit.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context, escape_formatter};
use plimsoll_model::json::printable;
use serde_json::Value;

use super::{MAX_TEXT_BYTES, TextError, TokenizerConfig, corrupt};

/// Instructions of one rendering: some hundred for a message, so enough for thousands of them. Data counts too, at
/// 64 bytes each.
const FUEL: u64 = 4_000_000;
/// Macros and includes inside each other.
const MAX_DEPTH: usize = 64;

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// What `strftime_now` takes for now.
pub type Now = SystemTime;

/// Refuses to grow without bound.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT_BYTES {
            return Err(io::Error::other(format!(
                "the prompt has more than {MAX_TEXT_BYTES} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ChatTemplate {
    /// The template of a configuration, if it has one.
    ///
    /// # Errors
    /// [`TextError::Corrupt`] where it is no template.
    pub fn new(config: &TokenizerConfig) -> Result<Option<Self>, TextError> {
        let Some(source) = &config.chat_template else {
            return Ok(None);
        };
        let mut env = Environment::new();
        env.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|e| corrupt("chat_template", e))?,
        );
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(MAX_DEPTH);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => out.write_str("None").map_err(Error::from),
            ValueKind::Bool if value.is_true() => out.write_str("True").map_err(Error::from),
            ValueKind::Bool => out.write_str("False").map_err(Error::from),
            _ => escape_formatter(out, state, value),
        });
        env.add_filter("tojson", to_json);
        env.add_function("raise_exception", |message: String| -> Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let source = without_generation(source);
        env.add_template_owned("chat_template", source)
            .map_err(|e| corrupt("chat_template", printable(&describe(&e))))?;
        Ok(Some(Self {
            environment: env,
            bos: config.bos.clone().unwrap_or_default(),
            eos: config.eos.clone().unwrap_or_default(),
        }))
    }

    /// The prompt for `messages`, objects with a `role` and a `content`; with `add_generation_prompt` it ends
    /// where the assistant begins.
    ///
    /// # Errors
    /// [`TextError::Chat`] with the template's own words.
    pub fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        now: Now,
    ) -> Result<String, TextError> {
        self.render_with(messages, &[], add_generation_prompt, now)
    }

    /// As [`render`](Self::render), with tools, as JSON schemas of functions.
    ///
    /// # Errors
    /// [`TextError::Chat`].
    pub fn render_with(
        &self,
        messages: &[Value],
        tools: &[Value],
        add_generation_prompt: bool,
        now: Now,
    ) -> Result<String, TextError> {
        let chat = |e: &Error| TextError::Chat(printable(&describe(e)));
        // Days are enough of a clock for a date; read once, so that a prompt has one.
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut env = self.environment.clone();
        env.add_function("strftime_now", move |format: String| {
            strftime(&format, seconds)
        });
        let template = env.get_template("chat_template").map_err(|e| chat(&e))?;
        // No list where there are none: templates ask whether it is there.
        let tools = (!tools.is_empty()).then_some(minijinja::value::Serde(tools));
        let values = context! {
            messages => minijinja::value::Serde(messages),
            tools => tools,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let mut out = Limited(Vec::new());
        template
            .render_captured_to(values, &mut out)
            .map_err(|e| chat(&e))?;
        String::from_utf8(out.0).map_err(|_| TextError::Chat("it gives no UTF-8".to_owned()))
    }
}

/// An error with its line, and what caused it.
fn describe(e: &Error) -> String {
    let mut text = e.detail().unwrap_or("").to_owned();
    if text.is_empty() {
        text = e.kind().to_string();
    }
    if let Some(line) = e.line() {
        text.push_str(&format!(" (line {line})"));
    }
    if let Some(cause) = std::error::Error::source(e) {
        text.push_str(&format!(": {cause}"));
    }
    text
}

/// The template without transformers' own `generation` blocks, which only mark what the assistant says.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tail)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = tail;
        let Some((inside, _)) = tail.split_once("%}") else {
            continue;
        };
        let word = inside.trim_matches(['-', '+']).trim();
        let with = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inside.replacen(word, with, 1));
        rest = &tail[inside.len()..];
    }
    out.push_str(rest);
    out
}

/// JSON as Python's `json.dumps` writes it, with an `indent` where asked.
fn to_json(value: &minijinja::Value, options: Kwargs) -> Result<minijinja::Value, Error> {
    let bad = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| bad(&e))?;
    let mut out = Vec::new();
    let done = match indent {
        Some(n) => {
            let indent = " ".repeat(n.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            write_json(&value, &mut out, format)
        }
        None => write_json(&value, &mut out, OneLine),
    };
    done.map_err(|e| bad(&e))?;
    let text = String::from_utf8(out).map_err(|e| bad(&e))?;
    Ok(minijinja::Value::from_safe_string(text))
}

fn write_json(
    value: &Value,
    out: &mut Vec<u8>,
    format: impl serde_json::ser::Formatter,
) -> serde_json::Result<()> {
    serde::Serialize::serialize(
        value,
        &mut serde_json::Serializer::with_formatter(out, format),
    )
}

/// A space after each comma and colon.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A time in UTC as C's `strftime` writes it; what is not known stays as it is.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // From days to a date, years beginning in March (H. Hinnant, `civil_from_days`).
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let at = |list: &[&'static str], i: u64| list[i as usize % list.len()];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let text = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('B') => at(&MONTHS, month - 1).to_owned(),
            Some('b') => at(&MONTHS, month - 1)[..3].to_owned(),
            Some('d') => format!("{day:02}"),
            Some('A') => at(&DAYS, days).to_owned(),
            Some('a') => at(&DAYS, days)[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
        out.push_str(&text);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let config = TokenizerConfig {
            bos: Some("<s>".to_owned()),
            eos: Some("</s>".to_owned()),
            chat_template: Some(source.to_owned()),
            ..TokenizerConfig::default()
        };
        ChatTemplate::new(&config).unwrap().unwrap()
    }

    fn render(source: &str, messages: &[Value]) -> Result<String, TextError> {
        let now = UNIX_EPOCH + Duration::from_secs(1_709_210_096);
        template(source).render(messages, true, now)
    }

    fn chat() -> [Value; 2] {
        [
            json!({"role": "system", "content": " Be <brief>. "}),
            json!({"role": "user", "content": "Hi"}),
        ]
    }

    /// The texts are those of Jinja 3 as transformers sets it up.
    #[test]
    fn renders_as_transformers_does() {
        let chatml = "{% for m in messages %}\n    {{ '<|im_start|>' + m['role'] + '\\n' + m.content.strip() + '<|im_end|>' }}\n{% endfor %}\n{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        let text = render(chatml, &chat()).unwrap();
        assert_eq!(
            text,
            "    <|im_start|>system\nBe <brief>.<|im_end|>\n    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
        let text = render("{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if loop.last %}{{ ns.n }}{{ messages[0] | tojson }}{% endif %}{% endfor %}{{ eos_token }}", &chat()).unwrap();
        assert_eq!(
            text,
            r#"<s>2{"role": "system", "content": " Be <brief>. "}</s>"#
        );
        let text = render("{% for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration %};{% break %}{% endfor %}{{ strftime_now('%d %b %Y %H:%M:%S, %A %q') }}", &chat()).unwrap();
        assert_eq!(text, "system;29 Feb 2024 12:34:56, Thursday %q");
        let text = render("{{ messages | tojson(indent=4) }}|{{ messages[0].content.split('b') | length }}|{{ messages[0]['content'][1:-2] }}|{{ 3 > 2 and true }}|{{ none }}", &chat()).unwrap();
        assert_eq!(
            text,
            "[\n    {\n        \"role\": \"system\",\n        \"content\": \" Be <brief>. \"\n    },\n    {\n        \"role\": \"user\",\n        \"content\": \"Hi\"\n    }\n]|2|Be <brief>|True|None"
        );
    }

    /// Published templates, with what Jinja makes of them (`tools/oracles/chat_templates.py`).
    #[test]
    #[ignore = "set TEMPLATES to what tools/oracles/chat_templates.py writes"]
    fn published_templates_give_the_prompts_of_jinja() {
        let all = std::fs::read_to_string(std::env::var("TEMPLATES").unwrap()).unwrap();
        let all: Value = serde_json::from_str(&all).unwrap();
        let mut compared = 0;
        for (name, t) in all["templates"].as_object().unwrap() {
            let mut results = t["results"].as_array().unwrap().iter();
            for chat in all["chats"].as_array().unwrap() {
                for prompt in [true, false] {
                    let now = UNIX_EPOCH + Duration::from_secs(all["now"].as_u64().unwrap());
                    let t = template(t["source"].as_str().unwrap());
                    let got = t.render(chat.as_array().unwrap(), prompt, now).ok();
                    // Null where the template refuses.
                    assert_eq!(got.as_deref(), results.next().unwrap().as_str(), "{name}");
                    compared += 1;
                }
            }
        }
        println!("{compared} prompts agree");
        assert!(compared > 0);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, want) in [
            (0, "Thu 1970-01-01"),
            (59, "Sun 1970-03-01"),
            (11_016, "Tue 2000-02-29"),
            (11_017, "Wed 2000-03-01"),
            (47_540, "Sun 2100-02-28"),
            (47_541, "Mon 2100-03-01"),
        ] {
            assert_eq!(strftime("%a %Y-%m-%d", days * 86_400 + 86_399), want);
        }
    }

    #[test]
    fn a_template_says_why_it_refuses() {
        let e = render("{% if messages[0].role == 'system' %}\n{{ raise_exception('no system messages') }}{% endif %}", &chat()).unwrap_err();
        assert!(e.to_string().contains("no system messages (line 2)"), "{e}");
        let e = render("{{ messages[0].content.nothing() }}", &chat()).unwrap_err();
        assert!(matches!(e, TextError::Chat(_)), "{e}");
        let e = render("{{ messages[7].a }}", &chat()).unwrap_err();
        assert!(matches!(e, TextError::Chat(_)), "{e}");
    }

    #[test]
    fn hostile_templates_end() {
        for source in [
            "{% for i in range(1000000000) %}x{% endfor %}",
            "{% for i in range(9999) %}{% for j in range(9999) %}{{ i * j }}{% endfor %}{% endfor %}",
            "{{ 'a' * 1000000000 }}",
            "{% set x = 'aaaaaaaaaaaaaaaa' %}{% for i in range(60) %}{% set x = x ~ x %}{% endfor %}{{ x }}",
            "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
            "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
            "{% for m in range(20) %}{{ 'abcdefgh' * 130000 }}{% endfor %}",
        ] {
            let start = std::time::Instant::now();
            let e = match render(source, &chat()) {
                // The scope of a loop ends with it, so this one never grows.
                Ok(text) => {
                    assert!(text.len() < 100, "{source}");
                    continue;
                }
                Err(e) => e,
            };
            assert!(matches!(e, TextError::Chat(_)), "{source}: {e}");
            assert!(start.elapsed() < Duration::from_secs(20), "{source}");
        }
        for source in [
            "{% if %}".to_owned(),
            "{% for".to_owned(),
            "{% if true %}".repeat(50_000),
            "{{ ".to_owned() + &"(".repeat(50_000),
            "{% nonsense %}".to_owned(),
        ] {
            let config = TokenizerConfig {
                chat_template: Some(source),
                ..TokenizerConfig::default()
            };
            assert!(matches!(
                ChatTemplate::new(&config),
                Err(TextError::Corrupt { .. })
            ));
        }
    }
}
