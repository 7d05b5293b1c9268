//! A rank that fails: one clear error for the step, nobody waits for it, and the next steps go on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[path = "../../cuda/tests/fake/mod.rs"]
mod fake;
mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use fake::Library;
use plimsoll_cuda::Nccl;
use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_program::{Op, Program};
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_runtime::{Backend, BackendError, Measured, Meeting, Peaks, Ranks, Usage};
use plimsoll_schedule::{Fan, Notice, Step, Tables};
use support::{Greedy, Model, Server, expected, fixtures};

/// How a rank ends in the middle of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Error,
    Panic,
}

/// A rank that ends before the operation of this number, once.
#[derive(Debug)]
struct Mortal<B> {
    backend: B,
    end: Arc<Mutex<Option<(usize, End)>>>,
}

impl<B: Backend> Backend for Mortal<B> {
    fn program(&self) -> &Program {
        self.backend.program()
    }
    fn places(&self) -> usize {
        self.backend.places()
    }
    fn swap_out(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.backend.swap_out(pool, pages)
    }
    fn swap_in(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.backend.swap_in(pool, pages)
    }
    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        self.backend.copy(copies)
    }
    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError> {
        self.backend.begin(step, tables)
    }
    fn run(
        &mut self,
        pool: &mut Pool,
        step: &Step,
        tables: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        let mut end = self.end.lock().unwrap();
        let here = end.take_if(|(at, _)| ops.contains(at));
        drop(end);
        let Some((at, how)) = here else {
            return self.backend.run(pool, step, tables, ops, wanted);
        };
        self.backend
            .run(pool, step, tables, ops.start..at, wanted)?;
        assert!(how != End::Panic, "the rank is gone");
        Err(BackendError::Step("the rank is ill".to_owned()))
    }
    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError> {
        self.backend.logits(rows)
    }
    fn usage(&self) -> Vec<Usage> {
        self.backend.usage()
    }
    fn measure(&mut self, pool: &mut Pool) -> Result<Measured, BackendError> {
        self.backend.measure(pool)
    }
    fn peaks(&mut self, pool: &mut Pool) -> Result<Peaks, BackendError> {
        self.backend.peaks(pool)
    }
}

/// Whether ranks meet there.
const fn meets(op: &Op) -> bool {
    matches!(op, Op::AllReduce { .. } | Op::AllGather { .. })
}

/// Rank `lost` ends in the third step, before operation `at`, and whoever had a part in it is computed again, to `want`.
fn ends<B: Backend>(
    model: &Model,
    server: &Server,
    (ranks, meeting): (Vec<B>, Meeting),
    (lost, at, how): (usize, usize, End),
    want: &BTreeMap<u64, Vec<Vec<u32>>>,
) {
    let ends: Vec<_> = ranks.iter().map(|_| Arc::default()).collect();
    let mortal = |(backend, end)| Mortal {
        backend,
        end: Arc::clone(end),
    };
    let mortals = ranks.into_iter().zip(&ends).map(mortal).collect();
    let backend = Ranks::new(mortals, meeting, server.threads).unwrap();
    let mut engine = model.engine_on(server, backend, Greedy::default());
    for (i, ask) in asked(model).iter().enumerate() {
        engine.submit(model.request(i as u64, ask)).unwrap();
    }
    let (mut errors, mut done) = (Vec::new(), BTreeMap::new());
    for step in 0..200 {
        if step == 2 {
            *ends[lost].lock().unwrap() = Some((at, how));
        }
        let stepped = engine.step(|n| {
            if let Notice::Finished(e) = n {
                let tokens: Vec<_> = e.completions.into_iter().map(|c| c.tokens).collect();
                done.insert(e.request.0, tokens);
            }
        });
        match stepped {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => errors.push(e.reason),
        }
    }
    let says = match how {
        End::Error => "the rank is ill",
        End::Panic => "it panicked: the rank is gone",
    };
    let ranks = server.ranks;
    assert_eq!(errors, [format!("rank {lost} of {ranks}: {says}")]);
    assert!(engine.is_idle());
    assert_eq!(&done, want, "rank {lost} before {at}");
}

fn llama() -> Model {
    let mut folders = fixtures().into_iter();
    Model::open(&folders.find(|f| f.ends_with("llama")).unwrap())
}

fn asked(model: &Model) -> Vec<(Vec<u32>, u32, Fan)> {
    let prompt = expected(model.folder()).0;
    (0..4)
        .map(|i| (prompt[i..i + 12].to_vec(), 6, Fan::ONE))
        .collect()
}

/// A server of so many ranks, what it answers, and before which operations ranks end: the first, before and after
/// meetings, and the last.
fn server(model: &Model, ranks: usize) -> (Server, BTreeMap<u64, Vec<Vec<u32>>>, [usize; 5]) {
    let server = Server {
        ranks,
        threads: 2,
        tokens: 32,
        sequences: 4,
        ..Server::default()
    };
    let (want, _, _) = model.serve(&server, &asked(model));
    let ops = model.program(&server).ops;
    let meetings: Vec<usize> = (0..ops.len()).filter(|i| meets(&ops[*i])).collect();
    let last = meetings.len() - 1;
    let places = [0, meetings[0], meetings[2] + 1, meetings[3], meetings[last]];
    (server, want, places)
}

#[test]
fn a_rank_that_fails_is_one_clear_error_and_the_others_go_on() {
    let model = llama();
    for ranks in [2, 4] {
        let (server, want, places) = server(&model, ranks);
        for lost in 0..ranks {
            for at in places {
                for how in [End::Error, End::Panic] {
                    ends(&model, &server, model.cpus(&server), (lost, at, how), &want);
                }
            }
        }
    }
}

#[test]
fn so_it_is_on_devices() {
    let model = llama();
    let library = Library::new(None);
    let (server, want, places) = server(&model, 2);
    for connected in [false, true] {
        for lost in 0..2 {
            for (at, how) in places
                .into_iter()
                .zip([End::Error, End::Panic].into_iter().cycle())
            {
                let nccl =
                    |stations| connected.then(|| Nccl::by(&[library.path()], stations).unwrap());
                let ranks = model.cudas(&server, Arithmetic::Exact, nccl);
                ends(&model, &server, ranks, (lost, at, how), &want);
            }
        }
    }
}
