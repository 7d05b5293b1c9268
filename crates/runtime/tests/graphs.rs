//! Decode steps that are recorded before the first one come to the same bits as steps whose kernels are started one by one:
//! every family, in every size, whoever comes, goes, forks or gives way.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_cuda::{Address, Device, DeviceError, Fibers, Graph, Lane, Launch, Stream};
use plimsoll_program::{Buckets, RECORDED_KERNEL};
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_schedule::{Beam, Fan, Preempt, Stats};
use plimsoll_units::{DType, WeightType};

use support::both::{ONE, assert_equal, fixture};
use support::{Greedy, Model, Server, expected, fixtures};

/// What a device was asked for.
#[derive(Debug, Default)]
struct Asked {
    /// Kernels while it recorded, and others.
    recorded: AtomicU64,
    started: AtomicU64,
    replayed: AtomicU64,
}

/// Fibers that are watched.
#[derive(Debug)]
struct Watched {
    fibers: Fibers,
    asked: Arc<Asked>,
    records: bool,
}

impl Device for Watched {
    fn name(&self) -> String {
        self.fibers.name()
    }
    fn stream(&self) -> Stream {
        self.fibers.stream()
    }
    fn capability(&self) -> u32 {
        self.fibers.capability()
    }
    fn most_shared(&mut self, kernel: &'static str) -> Result<u64, DeviceError> {
        self.fibers.most_shared(kernel)
    }
    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.fibers.allocate(bytes)
    }
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.fibers.upload(to, bytes)
    }
    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.fibers.download(from, bytes)
    }
    fn allocate_host(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.fibers.allocate_host(bytes)
    }
    fn host(&mut self, at: Address, len: usize) -> Result<&mut [u8], DeviceError> {
        self.fibers.host(at, len)
    }
    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), DeviceError> {
        self.fibers.copy(from, to, bytes)
    }
    fn checks(&self) -> bool {
        self.fibers.checks()
    }
    fn allow(&mut self, parts: &[(Address, u64)]) {
        self.fibers.allow(parts);
    }
    fn launch(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        let count = if self.records {
            &self.asked.recorded
        } else {
            &self.asked.started
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.fibers.launch(kernel, how, args)
    }
    fn record(&mut self) -> Result<(), DeviceError> {
        self.records = true;
        self.fibers.record()
    }
    fn recorded(&mut self) -> Result<Graph, DeviceError> {
        self.records = false;
        self.fibers.recorded()
    }
    fn replay(&mut self, graph: Graph) -> Result<bool, DeviceError> {
        self.asked.replayed.fetch_add(1, Ordering::Relaxed);
        self.fibers.replay(graph)
    }
    fn on(&mut self, lane: Lane) {
        self.fibers.on(lane);
    }
    fn after_all(&mut self) -> Result<(), DeviceError> {
        self.fibers.after_all()
    }
    fn wait(&mut self) -> Result<(), DeviceError> {
        self.fibers.wait()
    }
}

/// What was generated, and every position's logits, are the same with recorded steps and without. Returns the scheduler's
/// counters, and how many kernels were started one by one, without recordings and with them.
fn same(
    model: &Model,
    server: &Server,
    fibers: fn() -> Fibers,
    arithmetic: Arithmetic,
    requests: &[(Vec<u32>, u32, Fan)],
    what: &str,
) -> (Stats, [u64; 2]) {
    let mut started = [0; 2];
    let runs = [false, true].map(|records| {
        let asked = Arc::new(Asked::default());
        let device = Box::new(Watched {
            fibers: fibers(),
            asked: Arc::clone(&asked),
            records: false,
        });
        let mut cuda = model.cuda(server, 0, device, arithmetic);
        let mut made = 0;
        if records {
            let before = cuda_usage(&cuda);
            made = cuda.record().unwrap().count as u64;
            assert_eq!(before, cuda_usage(&cuda), "{what}: marks");
            let program = model.program(server);
            let fast = arithmetic == Arithmetic::Fast;
            let buckets = Buckets::of(&program, model.longest_context(), fast).unwrap();
            let planned = buckets.bytes(&program).unwrap().get();
            let recorded = asked.recorded.load(Ordering::Relaxed) * RECORDED_KERNEL;
            assert!(recorded <= planned && recorded > planned / 3, "{what}");
            assert_eq!(asked.replayed.load(Ordering::Relaxed), made, "{what}");
        }
        let before = asked.started.load(Ordering::Relaxed);
        let engine = model.engine_on(server, cuda, Greedy::default());
        let run = model.serve_on(engine, requests);
        let replayed = asked.replayed.load(Ordering::Relaxed) - made;
        assert_eq!(replayed > 0, records, "{what}");
        started[usize::from(records)] = asked.started.load(Ordering::Relaxed) - before;
        run
    });
    let [direct, recorded] = &runs;
    (assert_equal(direct, recorded, what), started)
}

fn cuda_usage(cuda: &plimsoll_runtime::cuda::Cuda) -> Vec<plimsoll_runtime::Usage> {
    use plimsoll_runtime::Backend as _;
    cuda.usage()
}

/// Requests that end one after the other, so that steps have one to five rows.
fn leaving(tokens: &[u32]) -> Vec<(Vec<u32>, u32, Fan)> {
    let request = |i: u32| {
        let from = i as usize;
        (tokens[from..=from + from % 3].to_vec(), 1 + i, ONE)
    };
    (0..5).map(request).collect()
}

fn server() -> Server {
    Server {
        tokens: 9,
        outputs: 6,
        sequences: 5,
        ..Server::default()
    }
}

#[test]
fn every_family_comes_to_the_same_bits() {
    let mut ran = 0;
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&folder);
        let requests = leaving(&expected(&folder).0);
        for (arithmetic, kv, weights) in [
            (Arithmetic::Exact, DType::F32, WeightType::Int8),
            (Arithmetic::Fast, DType::Bf16, WeightType::Bf16),
        ] {
            let server = Server {
                kv,
                weights,
                ..server()
            };
            let what = format!("{name}, {arithmetic:?}");
            // Kernels are compared with those that were recorded, or the recorded ones are started: with what they were
            // told, they know nothing of the step at hand but its lists.
            let fibers = if ran % 3 == 2 {
                Fibers::strict
            } else {
                Fibers::new
            };
            let (_, [direct, recorded]) =
                same(&model, &server, fibers, arithmetic, &requests, &what);
            // Only steps with prompts are not recorded.
            assert!(
                fibers().checks() || recorded * 2 < direct,
                "{what}: {recorded}, {direct}"
            );
            ran += 1;
        }
    }
    assert!(ran >= 50, "{ran}");
}

#[test]
fn pages_that_move_forks_and_searches_change_no_bit() {
    let beam = Fan::Beam(Beam {
        width: 3,
        length_penalty: 1.0,
        early_stopping: false,
    });
    for name in ["llama", "gemma3", "deepseek_v2_lite", "granite_hybrid"] {
        let (model, tokens) = fixture(name);
        let some = |from: usize, n: usize| tokens[from..from + n].to_vec();
        let n = |n, best_of| Fan::Sample { n, best_of };
        let requests = [
            (some(0, 16), 24, n(3, 4)),
            (some(0, 16), 24, beam),
            (some(1, 12), 24, n(2, 2)),
            (some(5, 10), 24, ONE),
        ];
        let mut both = [0, 0];
        for preempt in [Preempt::Swap, Preempt::Recompute] {
            let server = model.tight(Server {
                block: 4,
                swap: 200,
                tokens: 24,
                outputs: 24,
                sequences: 16,
                preempt,
                prefix_cache: true,
                ..Server::default()
            });
            let (stats, _) = same(
                &model,
                &server,
                Fibers::new,
                Arithmetic::Fast,
                &requests,
                name,
            );
            both[0] += stats.swaps;
            both[1] += stats.recomputes;
            assert!(stats.pages_copied > 0, "{name}: {stats:?}");
        }
        assert!(both.iter().all(|n| *n > 0), "{name}: {both:?}");
    }
}

#[test]
fn long_sequences_are_recorded_in_parts() {
    for (name, fibers) in [
        ("llama", Fibers::new as fn() -> Fibers),
        ("gpt_oss", Fibers::strict),
    ] {
        let (model, tokens) = fixture(name);
        let model = model.longest(1100);
        let long: Vec<u32> = tokens.iter().copied().cycle().take(1022).collect();
        // From one part to two, and from two to three.
        let requests = [(long[..510].to_vec(), 5, ONE), (long.clone(), 7, ONE)];
        let server = Server {
            tokens: 512,
            outputs: 2,
            sequences: 2,
            ..Server::default()
        };
        same(&model, &server, fibers, Arithmetic::Fast, &requests, name);
    }
}
