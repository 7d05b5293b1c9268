//! Ranks on devices: on fibers they compute what ranks on processors do, to the bit, however they meet.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[path = "../../cuda/tests/fake/mod.rs"]
mod fake;
mod support;

use std::collections::BTreeMap;

use fake::Library;
use plimsoll_cuda::Nccl;
use plimsoll_program::{GroupKind, Op};
use plimsoll_runtime::Ranks;
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_schedule::{Fan, Notice, Preempt, Stats};
use plimsoll_units::{DType, WeightType};
use support::both::fixture;
use support::{Greedy, Model, Seen, Server, expected, fixtures};

type Ask = (Vec<u32>, u32, Fan);

/// Prompts of several lengths, one of which comes in chunks.
fn requests(tokens: &[u32]) -> Vec<Ask> {
    let some = |from: usize, n: usize| (tokens[from..from + n].to_vec(), 5, Fan::ONE);
    vec![some(0, 16), some(3, 9), some(1, 1)]
}

/// What all of `requests` come to, every position's logits, and the scheduler's counters.
type Served = (BTreeMap<u64, Vec<Vec<u32>>>, Seen, Stats);

/// On fibers that meet through the host's memory, or by a library.
fn served(
    model: &Model,
    server: &Server,
    arithmetic: Arithmetic,
    library: Option<&Library>,
    requests: &[Ask],
) -> Served {
    let nccl = |stations| library.map(|l| Nccl::by(&[l.path()], stations).unwrap());
    let (ranks, meeting) = model.cudas(server, arithmetic, nccl);
    let ranks = Ranks::new(ranks, meeting, server.threads).unwrap();
    model.serve_on(model.engine_on(server, ranks, Greedy::default()), requests)
}

#[test]
fn every_family_that_divides_computes_the_same_to_the_bit() {
    let (mut ran, mut replicated, mut latent, mut routed) = (0, 0, 0, 0);
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&folder);
        let prompts = requests(&expected(&folder).0);
        for (ranks, kv, weights) in [
            (2, DType::Bf16, WeightType::Bf16),
            (4, DType::F16, WeightType::Int8),
        ] {
            let server = Server {
                ranks,
                kv,
                weights,
                block: if kv == DType::F16 { 5 } else { 16 },
                threads: ranks,
                tokens: 12,
                outputs: 3,
                sequences: 3,
                ..Server::default()
            };
            let Ok(program) = model.lowered(&server, 0) else {
                continue;
            };
            let want = model.serve(&server, &prompts);
            let got = served(&model, &server, Arithmetic::Exact, None, &prompts);
            assert!(want == got, "{name}, {ranks} ranks");
            ran += 1;
            let heads = |of: u64| -> u64 {
                let ops = model.lowered(
                    &Server {
                        ranks: of as usize,
                        ..server.clone()
                    },
                    0,
                );
                let ops = ops.unwrap().ops.into_iter().map(|op| match op {
                    Op::Attention(a) => a.kv_heads,
                    _ => 0,
                });
                ops.sum()
            };
            replicated += u32::from(heads(ranks as u64) * ranks as u64 > heads(1));
            let groups = &program.geometry.groups;
            latent += u32::from(groups.iter().any(|g| g.kind == GroupKind::Latent));
            routed += u32::from(
                program
                    .ops
                    .iter()
                    .any(|op| matches!(op, Op::Experts { .. })),
            );
        }
    }
    assert!(ran >= 30, "{ran}");
    let special = [replicated, latent, routed];
    assert!(special.iter().all(|n| *n > 1), "{special:?}");
}

#[test]
fn messages_and_the_hosts_memory_come_to_the_same_bits() {
    let library = Library::new(None);
    for name in ["llama", "mixtral", "deepseek_v3"] {
        let (model, tokens) = fixture(name);
        let prompts = requests(&tokens);
        for ranks in [2, 4] {
            for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
                let server = Server {
                    ranks,
                    threads: ranks,
                    // More than there is room for at once, of sums and of rows of logits, and less.
                    tokens: 12,
                    outputs: 12,
                    sequences: 3,
                    ..Server::default()
                };
                let of = |library| served(&model, &server, arithmetic, library, &prompts);
                assert!(
                    of(None) == of(Some(&library)),
                    "{name}, {ranks} ranks, {arithmetic:?}"
                );
            }
        }
    }
}

#[test]
fn tensor_cores_of_several_ranks_do_not_see_batches_chunks_or_preemption() {
    for (name, ranks) in [("llama", 2), ("mixtral", 4), ("deepseek_v2_lite", 2)] {
        let (model, tokens) = fixture(name);
        let of = |server| Server {
            ranks,
            threads: ranks,
            ..server
        };
        let some = |from: usize, n: usize, fan| (tokens[from..from + n].to_vec(), 24, fan);
        let n = |n, best_of| Fan::Sample { n, best_of };
        let all = [
            some(0, 16, n(3, 4)),
            some(2, 9, Fan::ONE),
            some(1, 12, n(2, 2)),
            some(5, 10, Fan::ONE),
        ];
        let fast =
            |server: &Server, all: &[Ask]| served(&model, server, Arithmetic::Fast, None, all);
        let (texts, seen, _) = fast(&of(Server::default()), &all);
        for (i, one) in all.iter().enumerate() {
            let (alone, _, _) = fast(&of(Server::default()), std::slice::from_ref(one));
            assert_eq!(alone[&0], texts[&(i as u64)], "{name}, {i}");
        }
        let tight = model.tight(of(Server {
            block: 4,
            swap: 200,
            tokens: 24,
            outputs: 24,
            sequences: 16,
            preempt: Preempt::Swap,
            ..Server::default()
        }));
        let (there, seen_there, stats) = fast(&tight, &all);
        assert_eq!(texts, there, "{name}");
        for (at, logits) in &seen_there {
            assert_eq!(Some(logits), seen.get(at), "{name}: {at:?}");
        }
        assert!(stats.swaps > 0, "{name}: {stats:?}");
    }
}

#[test]
fn a_message_that_fails_names_its_rank_and_releases_the_others() {
    let (model, tokens) = fixture("llama");
    let server = Server {
        ranks: 2,
        threads: 2,
        tokens: 12,
        sequences: 3,
        ..Server::default()
    };
    let all = requests(&tokens);
    let want = model.serve(&server, &all).0;
    // Two are sent where ranks are connected; the others wait in their own call.
    for fails in [3, 20] {
        let library = Library::new(Some(fails));
        let nccl = |stations| Some(Nccl::by(&[library.path()], stations).unwrap());
        let (ranks, meeting) = model.cudas(&server, Arithmetic::Exact, nccl);
        let backend = Ranks::new(ranks, meeting, server.threads).unwrap();
        let mut engine = model.engine_on(&server, backend, Greedy::default());
        for (i, ask) in all.iter().enumerate() {
            engine.submit(model.request(i as u64, ask)).unwrap();
        }
        let (mut errors, mut done) = (Vec::new(), BTreeMap::new());
        loop {
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
        assert_eq!(
            errors,
            ["rank 1 of 2: NCCL: a message: unhandled system error"]
        );
        assert_eq!(done, want);
    }
}
