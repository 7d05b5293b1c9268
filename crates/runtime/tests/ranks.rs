//! A rank that fails: one clear error for the step, nobody waits for it, and the next steps go on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_program::{Op, Program};
use plimsoll_runtime::{Backend, BackendError, Cpu, Measured, Peaks, Ranks, Usage};
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
struct Mortal {
    cpu: Cpu,
    end: Arc<Mutex<Option<(usize, End)>>>,
}

impl Backend for Mortal {
    fn program(&self) -> &Program {
        self.cpu.program()
    }
    fn places(&self) -> usize {
        self.cpu.places()
    }
    fn swap_out(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.cpu.swap_out(pool, pages)
    }
    fn swap_in(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.cpu.swap_in(pool, pages)
    }
    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        self.cpu.copy(copies)
    }
    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError> {
        self.cpu.begin(step, tables)
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
            return self.cpu.run(pool, step, tables, ops, wanted);
        };
        self.cpu.run(pool, step, tables, ops.start..at, wanted)?;
        assert!(how != End::Panic, "the rank is gone");
        Err(BackendError::Step("the rank is ill".to_owned()))
    }
    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError> {
        self.cpu.logits(rows)
    }
    fn usage(&self) -> Vec<Usage> {
        self.cpu.usage()
    }
    fn measure(&mut self, pool: &mut Pool) -> Result<Measured, BackendError> {
        self.cpu.measure(pool)
    }
    fn peaks(&mut self, pool: &mut Pool) -> Result<Peaks, BackendError> {
        self.cpu.peaks(pool)
    }
}

#[test]
fn a_rank_that_fails_is_one_clear_error_and_the_others_go_on() {
    let mut folders = fixtures().into_iter();
    let folder = folders.find(|f| f.ends_with("llama")).unwrap();
    let (model, prompt) = (Model::open(&folder), expected(&folder).0);
    let all: Vec<_> = (0..4)
        .map(|i| (prompt[i..i + 12].to_vec(), 6, Fan::ONE))
        .collect();
    for ranks in [2, 4] {
        let server = Server {
            ranks,
            threads: 2,
            tokens: 32,
            sequences: 4,
            ..Server::default()
        };
        let (want, _, _) = model.serve(&server, &all);
        let ops = model.program(&server).ops;
        // Before the first operation, before and after meetings, and before the last one.
        let meet = |op: &Op| matches!(op, Op::AllReduce { .. } | Op::AllGather { .. });
        let meetings: Vec<usize> = (0..ops.len()).filter(|i| meet(&ops[*i])).collect();
        let last = meetings.len() - 1;
        let places = [0, meetings[0], meetings[2] + 1, meetings[3], meetings[last]];
        for lost in 0..ranks {
            for (at, how) in places
                .iter()
                .flat_map(|&at| [(at, End::Error), (at, End::Panic)])
            {
                let (cpus, meeting) = model.cpus(&server);
                let ends: Vec<_> = cpus.iter().map(|_| Arc::default()).collect();
                let mortal = |(cpu, end)| Mortal {
                    cpu,
                    end: Arc::clone(end),
                };
                let mortals = cpus.into_iter().zip(&ends).map(mortal).collect();
                let backend = Ranks::new(mortals, meeting, server.threads).unwrap();
                let mut engine = model.engine_on(&server, backend, Greedy::default());
                for (i, ask) in all.iter().enumerate() {
                    engine.submit(model.request(i as u64, ask)).unwrap();
                }
                let (mut errors, mut done) = (Vec::new(), std::collections::BTreeMap::new());
                for step in 0..200 {
                    if step == 2 {
                        *ends[lost].lock().unwrap() = Some((at, how));
                    }
                    let stepped = engine.step(|n| {
                        if let Notice::Finished(e) = n {
                            let tokens: Vec<_> =
                                e.completions.into_iter().map(|c| c.tokens).collect();
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
                assert_eq!(errors, [format!("rank {lost} of {ranks}: {says}")]);
                // Whoever had a part in the step was computed again, to the same tokens.
                assert!(engine.is_idle());
                assert_eq!(done, want, "rank {lost} before {at}");
            }
        }
    }
}
