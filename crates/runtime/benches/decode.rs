//! The host's part of a decode step on a GPU, greedy choices among it: 64 sequences of 2,000 tokens of an 8B model, on a device
//! that does nothing but to say of all logits that token 1 has the largest.
//! `cargo bench -p plimsoll-runtime --bench decode`.

use divan::Bencher;
use plimsoll_cuda::{Address, Device, DeviceError, Fibers, Graph, Lane, Launch, Stream};
use plimsoll_kernels::Pool;
use plimsoll_kv::{Delta, DeltaOp};
use plimsoll_model::{Assume, from_config};
use plimsoll_program::{KvRules, Limits, StepInputs, lower};
use plimsoll_runtime::cuda::{Arithmetic, Cuda, DeviceSizes};
use plimsoll_runtime::sample::{Sampling, SamplingParams};
use plimsoll_runtime::text::Stops;
use plimsoll_runtime::{Choices, Runner};
use plimsoll_schedule::{Executor as _, Output, RequestId, Row, RowOutput, SeqEvent, Step};
use plimsoll_units::{BlockId, Bytes, DType, SeqId, WeightType};

const SEQUENCES: u32 = 64;
const TOKENS: u32 = 2000;
const SLOTS: u64 = 16;

fn main() {
    divan::main();
}

/// Memory of the host alone, and no kernels.
#[derive(Debug, Default)]
struct Idle {
    host: Fibers,
    next: u64,
}

impl Device for Idle {
    fn name(&self) -> String {
        "nothing".to_owned()
    }
    fn stream(&self) -> Stream {
        Stream { gpu: 0, handle: 0 }
    }

    fn capability(&self) -> u32 {
        90
    }
    fn most_shared(&mut self, _: &'static str) -> Result<u64, DeviceError> {
        Ok(u64::MAX)
    }
    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.next += bytes.next_multiple_of(256);
        Ok(Address(self.next))
    }
    fn upload(&mut self, _: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        divan::black_box(bytes);
        Ok(())
    }
    fn download(&mut self, _: Address, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn allocate_host(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.host.allocate_host(bytes)
    }
    fn host(&mut self, at: Address, len: usize) -> Result<&mut [u8], DeviceError> {
        self.host.host(at, len)
    }
    fn copy(&mut self, _: Address, _: Address, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }
    fn launch(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        divan::black_box(args);
        if kernel != "shorten" {
            return Ok(());
        }
        // `args::Shorten`.
        let number = |at: usize, len: usize| {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(&args[at..at + len]);
            u64::from_le_bytes(bytes)
        };
        let (out, each) = (Address(number(16, 8)), 8 * number(28, 4));
        for row in 0..u64::from(how.grid[0]) {
            // The likeliest token, none that is odd, none picked, the sum of weights.
            let words = [1, u32::MAX.into(), 0, 1.0_f64.to_bits()];
            let bytes = words.map(u64::to_le_bytes);
            let to = self.host.host(out.plus(row * each), 32)?;
            to.copy_from_slice(bytes.as_flattened());
        }
        Ok(())
    }
    fn record(&mut self) -> Result<(), DeviceError> {
        self.host.record()
    }
    fn recorded(&mut self) -> Result<Graph, DeviceError> {
        self.host.launch("nothing", Launch::blocks(1, 1), &[])?;
        self.host.recorded()
    }
    fn replay(&mut self, graph: Graph) -> Result<bool, DeviceError> {
        divan::black_box(graph);
        Ok(true)
    }
    fn on(&mut self, _: Lane) {}
    fn after_all(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn wait(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn runner(records: bool) -> (Runner<Cuda, Choices>, Step) {
    let entry = plimsoll_model::catalogue::find("llama-3.1-8b").expect("a model");
    let spec = from_config(&entry.config, Assume::Nothing).expect("its shapes");
    let rules = KvRules::plimsoll(DType::Bf16, SLOTS);
    let context = 8192;
    let limits = Limits {
        tokens: 2048,
        outputs: u64::from(SEQUENCES),
        context,
        weights: WeightType::Bf16.into(),
    };
    let program = lower(&spec, &limits, &rules).expect("a family that runs");
    let blocks = u64::from(TOKENS).div_ceil(SLOTS);
    let pages = 1 + u64::from(SEQUENCES) * blocks;
    let inputs = StepInputs::of(&program, context).expect("they fit");
    let sizes = DeviceSizes {
        collectives: Bytes::ZERO,
        weights: program.weight_bytes,
        pages: program.geometry.page.times(pages).expect("they fit"),
        activations: program.activation_bytes,
        inputs: inputs.bytes().expect("they fit"),
        swap: Bytes::ZERO,
    };
    let device = Box::new(Idle::default());
    let mut cuda =
        Cuda::new(device, program, sizes, None, context, Arithmetic::Fast).expect("a device");
    if records {
        cuda.record().expect("nothing fails");
    }
    let mut step = Step {
        tokens: vec![5; SEQUENCES as usize],
        ..Step::default()
    };
    for i in 0..SEQUENCES {
        let (seq, request) = (SeqId(i.into()), RequestId(i.into()));
        let start = SeqEvent::Start {
            seq,
            request,
            index: 0,
        };
        step.events.push((0, start));
        for index in 0..u32::try_from(blocks).expect("few") {
            let page = BlockId(1 + i + index * SEQUENCES);
            let op = DeltaOp::Append { index, page };
            step.kv.deltas.push(Delta { seq, group: 0, op });
        }
        step.rows.push(Row {
            seq,
            request,
            index: 0,
            start: TOKENS - 1,
            tokens: i..i + 1,
            output: Output::Sample { draws: 1 },
        });
    }
    let vocab = u32::try_from(spec.vocab).expect("tokens are 32 bits");
    let mut choices = Choices::new(vocab, 1, None);
    let greedy = Sampling {
        temperature: 0.0,
        ..Sampling::default()
    };
    let params = SamplingParams::new(greedy, vocab, &[], 100).expect("greedy");
    let prompt = vec![5; TOKENS as usize];
    for i in 0..SEQUENCES {
        let id = RequestId(i.into());
        choices.expect(id, &prompt, params.clone(), Stops::default());
    }
    let mut runner = Runner::new(cuda, Pool::new(1).expect("a thread"), choices);
    carry_out(&mut runner, &step);
    step.events.clear();
    step.kv.deltas.clear();
    (runner, step)
}

fn carry_out(runner: &mut Runner<Cuda, Choices>, step: &Step) {
    let ticket = runner.submit(step).expect("a step");
    let done = runner.complete(ticket).expect("its end");
    assert!(matches!(&done.rows[0], RowOutput::One(d) if d.token == 1));
    divan::black_box(done);
}

/// Kernels are started one by one; or decode steps are recorded.
#[divan::bench(args = [false, true], sample_count = 200)]
fn step(bencher: Bencher, recorded: bool) {
    let (mut runner, step) = runner(recorded);
    bencher.bench_local(|| carry_out(&mut runner, &step));
}
