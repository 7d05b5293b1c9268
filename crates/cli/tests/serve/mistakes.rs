//! Mistakes of clients.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::server::*;

#[test]
fn a_mistake_is_one_error_and_changes_nothing_for_others() {
    let model = ChatModel::new();
    let server = Server::start(&[model.0.to_str().unwrap(), "--served-model-name", "demo"]);
    let canary = json!({ "prompt": PROMPT, "max_tokens": 8, "temperature": 0 });
    let want = texts(&server.complete(canary.clone()));
    let deep = format!(
        "{{\"prompt\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let many = |n: usize, one: &str| vec![one; n].join(",");
    let deeper = |name: &str| {
        format!(
            "{{\"prompt\":\"x\",\"{name}\":{}{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        )
    };
    let prompts = format!("{{\"prompt\":[{}]}}", many(129, "\"x\""));
    let biases: Vec<String> = (0..1025).map(|i| format!("\"{i}\":1")).collect();
    let biases = format!(
        "{{\"prompt\":\"x\",\"logit_bias\":{{{}}}}}",
        biases.join(",")
    );
    let huge = format!("{{\"prompt\":\"{}\"}}", "a ".repeat(100_000));
    let c = "/v1/completions";
    let chat = "/v1/chat/completions";
    let x = |more: &str| format!("{{\"prompt\":\"x\",{more}}}");
    let m = |more: &str| format!("{{\"messages\":{more}}}");
    let user = "[{\"role\":\"user\",\"content\":\"x\"}]";
    let cases: Vec<(&str, String, u16, &str, &str)> = vec![
        (c, String::new(), 400, "invalid_json", ""),
        (c, "null".into(), 400, "invalid_json", ""),
        (c, "[]".into(), 400, "invalid_json", ""),
        (c, "\u{feff}{}".into(), 400, "invalid_json", ""),
        (c, "{\"prompt\":\"x\"".into(), 400, "invalid_json", ""),
        (c, "{\"prompt\":\"x\"} {}".into(), 400, "invalid_json", ""),
        (
            c,
            "{\"prompt\":\"\\ud800\"}".into(),
            400,
            "invalid_json",
            "",
        ),
        (c, x("\"temperature\":NaN"), 400, "invalid_json", ""),
        (c, x("\"temperature\":1e400"), 400, "invalid_json", ""),
        (c, deep, 400, "invalid_value", "prompt[0][0]"),
        (c, deeper("audio"), 400, "invalid_json", ""),
        (
            c,
            x(&format!("\"metadata\":{}", "[".repeat(100_000))),
            400,
            "invalid_json",
            "",
        ),
        (c, x("\"n\":1,\"n\":2"), 400, "invalid_value", ""),
        (c, x("\"foo\":1"), 400, "unsupported_parameter", "foo"),
        (
            c,
            x("\"suffix\":\"x\""),
            400,
            "unsupported_parameter",
            "suffix",
        ),
        (c, "{}".into(), 400, "missing_field", "prompt"),
        (c, "{\"prompt\":[]}".into(), 400, "invalid_value", "prompt"),
        (
            c,
            "{\"prompt\":\"\"}".into(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            c,
            "{\"prompt\":[\"a\",1]}".into(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            c,
            "{\"prompt\":[2048]}".into(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            c,
            "{\"prompt\":[-1]}".into(),
            400,
            "invalid_value",
            "prompt[0]",
        ),
        (c, prompts, 400, "invalid_value", "prompt"),
        (c, huge, 400, "context_length_exceeded", "prompt"),
        (
            c,
            x("\"max_tokens\":1024"),
            400,
            "context_length_exceeded",
            "max_tokens",
        ),
        (c, x("\"max_tokens\":0"), 400, "invalid_value", "max_tokens"),
        (
            c,
            x("\"max_tokens\":-1"),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            c,
            x("\"max_tokens\":1.5"),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            c,
            x("\"min_tokens\":17"),
            400,
            "invalid_value",
            "min_tokens",
        ),
        (c, x("\"n\":0"), 400, "invalid_value", "n"),
        (c, x("\"n\":17"), 400, "invalid_value", "n"),
        (c, x("\"n\":1000000000"), 400, "invalid_value", "n"),
        (c, x("\"n\":\"5\""), 400, "invalid_value", "n"),
        (
            c,
            x("\"n\":2,\"best_of\":1"),
            400,
            "invalid_value",
            "best_of",
        ),
        (
            c,
            x("\"best_of\":2,\"stream\":true"),
            400,
            "invalid_value",
            "best_of",
        ),
        (
            c,
            x("\"temperature\":2.1"),
            400,
            "invalid_value",
            "temperature",
        ),
        (
            c,
            x("\"temperature\":1e308"),
            400,
            "invalid_value",
            "temperature",
        ),
        (c, x("\"top_p\":0"), 400, "invalid_value", "top_p"),
        (c, x("\"top_k\":-2"), 400, "invalid_value", "top_k"),
        (c, x("\"min_p\":1.1"), 400, "invalid_value", "min_p"),
        (
            c,
            x("\"presence_penalty\":2.01"),
            400,
            "invalid_value",
            "presence_penalty",
        ),
        (
            c,
            x("\"repetition_penalty\":0"),
            400,
            "invalid_value",
            "repetition_penalty",
        ),
        (
            c,
            x("\"logit_bias\":{\"2048\":1}"),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            c,
            x("\"logit_bias\":{\"a\":1}"),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            c,
            x("\"logit_bias\":{\"1\":101}"),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (c, biases, 400, "invalid_value", "logit_bias"),
        (
            c,
            x("\"seed\":18446744073709551616"),
            400,
            "invalid_value",
            "seed",
        ),
        (c, x("\"stop\":\"\""), 400, "invalid_value", "stop"),
        (
            c,
            x(&format!("\"stop\":[{}]", many(17, "\"a\""))),
            400,
            "invalid_value",
            "stop",
        ),
        (
            c,
            x("\"stop_token_ids\":[2048]"),
            400,
            "invalid_value",
            "stop_token_ids",
        ),
        (c, x("\"logprobs\":21"), 400, "invalid_value", "logprobs"),
        (c, x("\"logprobs\":true"), 400, "invalid_value", "logprobs"),
        (
            c,
            x("\"stream_options\":{}"),
            400,
            "invalid_value",
            "stream_options",
        ),
        (
            c,
            x("\"model\":\"../../etc/passwd\""),
            404,
            "model_not_found",
            "model",
        ),
        (chat, m("[]"), 400, "invalid_value", "messages"),
        (chat, "{}".into(), 400, "missing_field", "messages"),
        (
            chat,
            m("[{\"role\":\"king\",\"content\":\"x\"}]"),
            400,
            "invalid_value",
            "messages[0].role",
        ),
        (
            chat,
            m("[{\"role\":\"user\",\"content\":null}]"),
            400,
            "invalid_value",
            "messages[0].content",
        ),
        (
            chat,
            m(
                "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"http://169.254.169.254\"}}]}]",
            ),
            400,
            "invalid_value",
            "messages[0].content",
        ),
        (
            chat,
            m(&format!("{user},\"top_logprobs\":2")),
            400,
            "invalid_value",
            "top_logprobs",
        ),
        (
            chat,
            m(&format!("{user},\"echo\":true")),
            400,
            "unsupported_parameter",
            "echo",
        ),
        (
            chat,
            m(&format!("{user},\"chat_template\":\"x\"")),
            400,
            "unsupported_parameter",
            "chat_template",
        ),
        (
            chat,
            m(&format!(
                "{user},\"max_tokens\":1,\"max_completion_tokens\":2"
            )),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            "/detokenize",
            "{\"tokens\":[2048]}".into(),
            400,
            "invalid_value",
            "tokens",
        ),
        ("/tokenize", "{}".into(), 400, "invalid_value", "prompt"),
        ("/v1/nothing", "{}".into(), 404, "unknown_url", ""),
        ("/v1/models", "{}".into(), 405, "method_not_allowed", ""),
    ];
    for (path, body, status, code, param) in &cases {
        let answer = server.post(path, body);
        let body: String = body.chars().take(80).collect();
        assert_eq!(answer.status, *status, "{body}: {}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], *code, "{body}: {error}");
        assert_eq!(
            error["param"].as_str().unwrap_or_default(),
            *param,
            "{body}: {error}"
        );
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    let json = "Content-Type: application/json\r\n";
    for (method, path, headers, body, status) in [
        ("POST", c, "", "{}", 415),
        ("POST", c, "Content-Type: text/plain\r\n", "{}", 415),
        ("GET", c, "", "", 405),
        ("GET", "//v1/models", "", "", 404),
        ("GET", "/v1/models/other", "", "", 404),
        ("GET", "/v1/models/demo", "", "", 200),
    ] {
        let answer = server.ask(method, path, headers, body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let allow = answer.headers.contains("allow: post");
        assert_eq!(allow, status == 405, "{}", answer.headers);
    }
    // Too much is refused before it is read.
    let mut socket = TcpStream::connect(&server.address).unwrap();
    write!(
        socket,
        "POST {c} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{json}Content-Length: 5000000\r\n\r\n{{"
    )
    .unwrap();
    let mut raw = Vec::new();
    socket.read_to_end(&mut raw).unwrap();
    assert_eq!(Answer::read(&raw).status, 413);
    assert_eq!(texts(&server.complete(canary)), want);
    server.wait_until("free", Server::is_free);
}
