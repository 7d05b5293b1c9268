//! The server over an engine that goes wrong on command: what is lost, what is told, and what goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_kv::{KvCache, KvConfig, Layout};
use plimsoll_runtime::text::{GenerationConfig, Tokenizer, TokenizerConfig};
use plimsoll_runtime::{Choices, Chooser as _, Engine};
use plimsoll_schedule::{
    CostModel, Draw, Executor, ExecutorError, Input, Limits, Output, Rates, RowOutput, Scheduler,
    SchedulerConfig, Step, StepOutput, Ticket, Work, replay,
};
use plimsoll_server::{Choosing, Options, ServeError, Service, Stop, run};
use plimsoll_units::{Bytes, Nanos};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Tokens on which it goes wrong.
const PANICS: u32 = 200;
const FAILS: u32 = 201;
const NO_NUMBERS: u32 = 202;
const HANGS: u32 = 203;
/// From then on every step fails, until it begins anew.
const BREAKS: u32 = 204;

const VOCAB: u32 = 256;

/// Counts on from the last token, below those that mean something.
struct Fake {
    choices: Choices,
    output: StepOutput,
    broken: bool,
}

impl Choosing for Fake {
    fn choices(&mut self) -> &mut Choices {
        &mut self.choices
    }
}

impl Executor for Fake {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        std::thread::sleep(Duration::from_millis(2));
        assert!(!step.tokens.contains(&PANICS), "as it was told");
        self.broken |= step.tokens.contains(&BREAKS);
        if self.broken || step.tokens.contains(&FAILS) {
            return Err(ExecutorError {
                step: step.number,
                reason: "as it was told".to_owned(),
            });
        }
        if step.tokens.contains(&HANGS) {
            std::thread::sleep(Duration::from_millis(1500));
        }
        let rows = step.rows.iter().map(|row| {
            let tokens = &step.tokens[row.tokens.start as usize..row.tokens.end as usize];
            match row.output {
                Output::None => RowOutput::None,
                _ if tokens.contains(&NO_NUMBERS) => RowOutput::Failed,
                _ => RowOutput::One(Draw {
                    token: (tokens.last().unwrap() + 1) % 100,
                    logprob: -1.0,
                    ends: false,
                }),
            }
        });
        self.output = StepOutput {
            rows: rows.collect(),
            failed_transfers: Vec::new(),
            elapsed: Nanos(1),
        };
        Ok(Ticket(step.number))
    }

    fn complete(&mut self, _: Ticket) -> Result<StepOutput, ExecutorError> {
        Ok(std::mem::take(&mut self.output))
    }

    fn restart(&mut self) {
        self.broken = false;
        self.choices.restart();
    }
}

type Served = Engine<Fake, Vec<Input>>;

struct Server {
    address: SocketAddr,
    stop: UnboundedSender<()>,
    thread: JoinHandle<(Result<(), ServeError>, Option<Served>)>,
}

/// The scheduler of every server here, as it is when it has decided nothing.
fn scheduler() -> Scheduler {
    let mut config = SchedulerConfig::new(LIMITS);
    config.max_seqs = 8;
    let cost = CostModel {
        work: Work {
            weight_bytes: 1,
            token_flops: 1,
            head_flops: 1,
            attention: Vec::new(),
        },
        rates: Rates {
            flops_per_s: 1,
            memory_bytes_per_s: 1,
            link_bytes_per_s: 1,
            transfer_ns: 0,
            transfers_per_block: 1,
            step_ns: 1,
            row_ns: 0,
        },
    };
    let mut kv = KvConfig::new(Layout::full(16, Bytes::new(8)), 512);
    kv.prefix_cache = true;
    Scheduler::new(config, KvCache::new(kv), cost)
}

const LIMITS: Limits = Limits {
    max_model_len: 4096,
    vocab: VOCAB,
    max_width: 1,
    tenants: 1,
};

impl Server {
    fn start() -> Self {
        let vocab: serde_json::Map<String, Value> =
            (0..VOCAB).map(|i| (format!("w{i}"), json!(i))).collect();
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": null,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
        });
        let tokenizer = tokenizer.to_string();
        let tokenizer =
            Tokenizer::from_json(tokenizer.as_bytes(), "test", &TokenizerConfig::default());
        let executor = Fake {
            choices: Choices::new(VOCAB, 1, None),
            output: StepOutput::default(),
            broken: false,
        };
        let service = Service {
            engine: Engine::new(scheduler(), executor, Vec::new()),
            tokenizer: Arc::new(tokenizer.unwrap()),
            template: None,
            generation: GenerationConfig::default(),
            limits: LIMITS,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut options = Options::new("fake".to_owned());
        options.step_timeout = Duration::from_millis(300);
        options.header_timeout = Duration::from_millis(400);
        options.body_timeout = Duration::from_millis(400);
        let (stop, stops) = unbounded_channel();
        let thread =
            std::thread::spawn(move || run(service, listener, options, Stop::Channel(stops)));
        Self {
            address,
            stop,
            thread,
        }
    }

    fn open(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        let timeout = Some(Duration::from_secs(30));
        socket.set_read_timeout(timeout).unwrap();
        socket
    }

    fn send(&self, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut socket = self.open();
        write!(
            socket,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        socket
    }

    fn ask(&self, prompt: u32, max_tokens: u32) -> String {
        read(&mut self.send(&json!({ "prompt": [prompt], "max_tokens": max_tokens })))
    }

    fn get(&self, path: &str) -> String {
        let mut socket = self.open();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        read(&mut socket)
    }

    fn health(&self) -> String {
        self.get("/health")
    }

    /// Told to stop, it ends as it should, and all that it decided can be decided again.
    fn stop(self) {
        self.stop.send(()).unwrap();
        let (served, engine) = self.thread.join().unwrap();
        assert!(served.is_ok(), "{served:?}");
        let engine = engine.unwrap();
        let hash = engine.scheduler().decision_hash();
        let mut again = scheduler();
        replay(&mut again, engine.into_log());
        assert_eq!(again.decision_hash(), hash);
    }

    /// Waits until health says so.
    fn until(&self, says: &str) {
        let began = Instant::now();
        while !self.health().contains(says) {
            let waited = began.elapsed() < Duration::from_secs(5);
            assert!(waited, "health never says {says}: {}", self.health());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read(socket: &mut TcpStream) -> String {
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    all
}

/// Long enough to be in flight whatever else happens.
fn long() -> Value {
    json!({ "prompt": [1], "max_tokens": 4000, "stream": true })
}

/// Sends a long request and waits until it answers.
fn under_way(server: &Server) -> TcpStream {
    let mut socket = server.send(&long());
    socket.read_exact(&mut [0; 400]).unwrap();
    socket
}

const CANARY: &str = "\"text\":\" w11 w12 w13\"";

#[test]
fn after_a_panic_the_engine_begins_anew_a_few_times() {
    let server = Server::start();
    let canary = server.ask(10, 3);
    assert!(canary.contains(CANARY), "{canary}");
    let mut other = under_way(&server);
    for n in 1..=3 {
        let answer = server.ask(PANICS, 1);
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert_eq!(answer.matches("engine_failed").count(), 1, "{answer}");
        let health = server.health();
        assert!(health.starts_with("HTTP/1.1 503"), "{health}");
        assert!(health.contains("\"restarting\"") && health.contains("reason"));
        let rest = read(&mut other);
        assert_eq!(rest.matches("engine_failed").count(), 1, "{rest}");
        assert!(!rest.contains("[DONE]"));
        // It waits, and is answered as before.
        assert!(server.ask(10, 3).contains(CANARY));
        let health = server.health();
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        other = under_way(&server);
        let restarts = server.get("/v1/memory");
        assert!(
            restarts.contains(&format!("\"engine_restarts\":{n}")),
            "{restarts}"
        );
    }
    let answer = server.ask(PANICS, 1);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert_eq!(read(&mut other).matches("engine_failed").count(), 1);
    let (served, engine) = server.thread.join().unwrap();
    assert!(matches!(served, Err(ServeError::Engine)), "{served:?}");
    assert!(engine.is_none());
}

#[test]
fn what_a_restarted_engine_decided_can_be_decided_again() {
    let server = Server::start();
    // Blocks of it are found again, until the restart.
    let long: Vec<u32> = (0..64).collect();
    let long = json!({ "prompt": long, "max_tokens": 4 });
    let first = read(&mut server.send(&long));
    assert!(first.contains("\"cached_tokens\":0"), "{first}");
    let other = under_way(&server);
    assert!(server.ask(PANICS, 1).contains("engine_failed"));
    drop(other);
    let second = read(&mut server.send(&long));
    assert!(second.contains("\"cached_tokens\":0"), "{second}");
    let third = read(&mut server.send(&long));
    assert!(third.contains("\"cached_tokens\":48"), "{third}");
    server.stop();
}

#[test]
fn an_executor_that_cannot_go_on_is_begun_anew() {
    let server = Server::start();
    // Whoever asks meanwhile is one of those who see steps fail.
    let answer = server.ask(BREAKS, 1);
    assert!(answer.contains("engine_failed"), "{answer}");
    for _ in 0..2 {
        assert!(server.ask(10, 3).contains("engine_failed"));
    }
    assert!(server.ask(10, 3).contains(CANARY));
    let memory = server.get("/v1/memory");
    assert!(memory.contains("\"engine_restarts\":1"), "{memory}");
    server.stop();
}

#[test]
fn steps_that_fail_for_ever_give_up_whoever_is_in_them() {
    let server = Server::start();
    let answer = server.ask(FAILS, 1);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(answer.contains("engine_failed"), "{answer}");
    assert!(server.ask(10, 3).contains(CANARY));
    assert!(server.health().starts_with("HTTP/1.1 200"));
    server.stop();
}

#[test]
fn no_numbers_end_one_request_and_no_other() {
    let server = Server::start();
    let mut other = under_way(&server);
    let answer = server.ask(NO_NUMBERS, 1);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(answer.contains("numerical_error"), "{answer}");
    let stream = json!({ "prompt": [NO_NUMBERS], "max_tokens": 1, "stream": true });
    let answer = read(&mut server.send(&stream));
    assert!(answer.contains("numerical_error"), "{answer}");
    assert!(!answer.contains("[DONE]"), "{answer}");
    other.read_exact(&mut [0; 4000]).unwrap();
    drop(other);
    assert!(server.ask(10, 3).contains(CANARY));
    server.stop();
}

#[test]
fn health_is_red_while_a_step_hangs() {
    let server = Server::start();
    let hanging = server.send(&json!({ "prompt": [HANGS], "max_tokens": 1 }));
    server.until("\"stuck\"");
    assert!(server.health().starts_with("HTTP/1.1 503"));
    assert!(server.get("/health/live").starts_with("HTTP/1.1 200"));
    let mut hanging = hanging;
    assert!(read(&mut hanging).starts_with("HTTP/1.1 200"));
    assert!(server.health().starts_with("HTTP/1.1 200"));
    server.stop();
}

#[test]
fn whoever_takes_his_time_is_cut_off() {
    let server = Server::start();
    // Headers that never end.
    let mut headers = server.open();
    write!(headers, "GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    let began = Instant::now();
    let answer = read(&mut headers);
    assert!(!answer.contains(" 200 "), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(5));
    // A body that never comes.
    let mut body = server.open();
    write!(
        body,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{{"
    )
    .unwrap();
    let mut some = [0; 12];
    body.read_exact(&mut some).unwrap();
    assert_eq!(&some, b"HTTP/1.1 408");
    server.stop();
}
