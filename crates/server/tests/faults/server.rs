//! A server over an executor that goes wrong on command, and how it is talked to.

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
pub(crate) const PANICS: u32 = 200;
pub(crate) const FAILS: u32 = 201;
pub(crate) const NO_NUMBERS: u32 = 202;
pub(crate) const HANGS: u32 = 203;
/// From then on every step fails, until it begins anew.
pub(crate) const BREAKS: u32 = 204;

const VOCAB: u32 = 256;

/// Counts on from the last token, below those that mean something.
pub(crate) struct Fake {
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

pub(crate) type Served = Engine<Fake, Vec<Input>>;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) stop: UnboundedSender<()>,
    pub(crate) thread: JoinHandle<(Result<(), ServeError>, Option<Served>)>,
}

/// The scheduler of every server here, as it is when it has decided nothing.
pub(crate) fn scheduler() -> Scheduler {
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
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
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
        change(&mut options);
        let (stop, stops) = unbounded_channel();
        let thread =
            std::thread::spawn(move || run(service, listener, options, Stop::Channel(stops)));
        Self {
            address,
            stop,
            thread,
        }
    }

    pub(crate) fn open(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        let timeout = Some(Duration::from_secs(30));
        socket.set_read_timeout(timeout).unwrap();
        socket
    }

    pub(crate) fn send(&self, body: &Value) -> TcpStream {
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

    pub(crate) fn ask(&self, prompt: u32, max_tokens: u32) -> String {
        read(&mut self.send(&json!({ "prompt": [prompt], "max_tokens": max_tokens })))
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut socket = self.open();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        read(&mut socket)
    }

    pub(crate) fn health(&self) -> String {
        self.get("/health")
    }

    /// Whether anybody is in.
    pub(crate) fn is_busy(&self) -> bool {
        let memory = self.get("/v1/memory");
        !(memory.contains("\"running\":0")
            && memory.contains("\"waiting\":0")
            && memory.contains("\"held\":0"))
    }

    /// Waits until nobody is in.
    pub(crate) fn is_free(&self) {
        let began = Instant::now();
        while self.is_busy() {
            assert!(began.elapsed() < Duration::from_secs(5), "somebody stays");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Told to stop, it ends as it should, and all that it decided can be decided again.
    pub(crate) fn stop(self) {
        self.stop.send(()).unwrap();
        self.ended();
    }

    /// It ended as it should.
    pub(crate) fn ended(self) {
        let (served, engine) = self.thread.join().unwrap();
        assert!(served.is_ok(), "{served:?}");
        let engine = engine.unwrap();
        let hash = engine.scheduler().decision_hash();
        let mut again = scheduler();
        replay(&mut again, engine.into_log());
        assert_eq!(again.decision_hash(), hash);
    }

    /// Waits until health says so.
    pub(crate) fn until(&self, says: &str) {
        let began = Instant::now();
        while !self.health().contains(says) {
            let waited = began.elapsed() < Duration::from_secs(5);
            assert!(waited, "health never says {says}: {}", self.health());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(crate) fn read(socket: &mut TcpStream) -> String {
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    all
}

/// Long enough to be in flight whatever else happens.
pub(crate) fn long() -> Value {
    json!({ "prompt": [1], "max_tokens": 4000, "stream": true })
}

/// Sends a long request and waits until it answers.
pub(crate) fn under_way(server: &Server) -> TcpStream {
    let mut socket = server.send(&long());
    socket.read_exact(&mut [0; 400]).unwrap();
    socket
}

pub(crate) const CANARY: &str = "\"text\":\" w11 w12 w13\"";
