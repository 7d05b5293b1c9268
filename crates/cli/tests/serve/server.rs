//! A server to talk to, and how it is talked to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) const PROMPT: &str = "She had not been an hour in the house before";

/// A server that is gone after the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
    /// What it said until it was ready.
    pub(crate) card: String,
    pub(crate) errors: BufReader<std::process::ChildStderr>,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_plimsoll")), args)
    }

    /// One that may have so many files open.
    pub(crate) fn with_files(files: u32, args: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_plimsoll");
        let line = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        shell.args(["-c", &line, program]);
        Self::spawn(shell, args)
    }

    fn spawn(mut command: Command, args: &[&str]) -> Self {
        command.args(["serve", "--threads", "1"]);
        if !args.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        let mut child = command
            .args(args)
            .env("NO_COLOR", "1")
            .env_remove("PLIMSOLL_API_KEY")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut card = String::new();
        let address = loop {
            let before = card.len();
            let read = errors.read_line(&mut card).unwrap();
            assert!(read > 0, "it ended: {card}");
            // The curl line ends the card.
            let line = &card[before..];
            if let Some(rest) = line.trim_start().strip_prefix("curl http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
        };
        Self {
            child,
            address,
            card,
            errors,
        }
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let timeout = Some(Duration::from_secs(60));
        socket.set_read_timeout(timeout).unwrap();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        )
        .unwrap();
        socket
    }

    /// What comes for these bytes until the connection ends, however it ends.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let timeout = Some(Duration::from_secs(20));
        socket.set_read_timeout(timeout).unwrap();
        // It may be refused before it is whole.
        let _ = socket.write_all(bytes);
        let mut all = Vec::new();
        let _ = socket.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut raw = Vec::new();
        let mut socket = self.send(method, path, headers, body);
        socket.read_to_end(&mut raw).unwrap();
        Answer::read(&raw)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, "Content-Type: application/json\r\n", body)
    }

    pub(crate) fn complete(&self, body: Value) -> Value {
        let answer = self.post("/v1/completions", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// Nothing runs, and nobody holds a page.
    pub(crate) fn is_free(&self) -> bool {
        let m = self.get("/v1/memory").json();
        m["requests"] == json!({ "running": 0, "waiting": 0, "preempted": 0 })
            && m["kv_pages"]["held"] == 0
    }

    pub(crate) fn wait_until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !is(self) {
            assert!(began.elapsed() < Duration::from_secs(30), "never {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Open files of its process.
    pub(crate) fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).unwrap().count()
    }

    /// What its process has in memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.memory_bytes("VmRSS:")
    }

    /// What its process had in memory at most.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.memory_bytes("VmHWM:")
    }

    fn memory_bytes(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it says something; all that it said until then.
    pub(crate) fn says(&mut self, what: &str) -> String {
        let mut said = String::new();
        while !said.contains(what) {
            assert!(self.errors.read_line(&mut said).unwrap() > 0, "{said}");
        }
        said
    }

    /// How it ended, and what it said then.
    pub(crate) fn ended(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(raw: &[u8]) -> Self {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let headers = String::from_utf8(raw[..end].to_vec()).unwrap();
        let headers = headers.to_ascii_lowercase();
        let mut rest = &raw[end + 4..];
        let mut body = Vec::new();
        if headers.contains("transfer-encoding: chunked") {
            loop {
                let line = rest.windows(2).position(|w| w == b"\r\n").unwrap();
                let size = std::str::from_utf8(&rest[..line]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&rest[line + 2..line + 2 + size]);
                rest = &rest[line + 2 + size + 2..];
            }
        } else {
            body.extend_from_slice(rest);
        }
        Self {
            status: headers.split(' ').nth(1).unwrap().parse().unwrap(),
            headers,
            body: String::from_utf8(body).unwrap(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The chunks of a stream, which must end as streams do.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.headers.contains("content-type: text/event-stream"));
        let events: Vec<&str> = self.body.split_terminator("\n\n").collect();
        let (done, events) = events.split_last().unwrap();
        assert_eq!(*done, "data: [DONE]");
        let json = |e: &&str| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap();
        events.iter().map(json).collect()
    }
}

/// The statuses of all answers in what a connection brought.
pub(crate) fn statuses(raw: &str) -> Vec<u16> {
    let heads = raw.match_indices("HTTP/1.1 ");
    heads
        .map(|(at, _)| raw[at + 9..at + 12].parse().unwrap())
        .collect()
}

/// The texts of a stream's choices, and their finish reasons.
pub(crate) fn streamed(chunks: &[Value], n: usize) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut reasons) = (vec![String::new(); n], vec![String::new(); n]);
    for choice in chunks.iter().filter_map(|c| c["choices"].get(0)) {
        let at = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        assert_eq!(reasons[at], "", "nothing follows a finish reason");
        let text = choice["text"]
            .as_str()
            .or(choice["delta"]["content"].as_str());
        texts[at].push_str(text.unwrap_or_default());
        reasons[at].push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    (texts, reasons)
}

pub(crate) fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    let text = |c: &Value| c["text"].as_str().unwrap().to_owned();
    choices.map(text).collect()
}

pub(crate) fn generate(args: &[&str]) -> Value {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["generate", "demo", "--json", "--threads", "1"])
        .args(args)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The demo model with a chat template, in a folder that is gone after the test.
pub(crate) struct ChatModel(pub(crate) PathBuf);

impl ChatModel {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plimsoll-serve-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "model.safetensors",
        ] {
            std::fs::copy(from.join(name), path.join(name)).unwrap();
        }
        let template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
        std::fs::write(path.join("chat_template.jinja"), template).unwrap();
        Self(path)
    }
}

impl Drop for ChatModel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The answer when there is a place for it: whoever was answered gives his back soon after.
pub(crate) fn soon(server: &Server, path: &str, body: &Value) -> Answer {
    let began = Instant::now();
    loop {
        let answer = server.post(path, &body.to_string());
        if answer.status != 429 || began.elapsed() > Duration::from_secs(5) {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn ids(server: &Server, prompt: &str) -> Vec<Value> {
    let ids = server.post("/tokenize", &json!({ "prompt": prompt }).to_string());
    ids.json()["tokens"].as_array().unwrap().clone()
}
