//! The bits of every position's logits do not depend on how they came about: alone on one thread without SIMD,
//! or in a batch, in chunks, on several threads, at any level of instructions, from a cached prefix, forked, or
//! after giving way by swap or recompute. Counters say that each of these happened.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_kernels::{Inputs, Level};
use plimsoll_program::{GroupKind, Op, Program};
use plimsoll_schedule::{Beam, Fan, Preempt, Stats};
use plimsoll_units::{DType, SeqId, WeightType};
use support::{Disk, Model, Seen, Server, expected, fixtures};

/// What one request asks for.
type Ask = (Vec<u32>, u32, Fan);

/// Prompts that share their first 32 tokens, of lengths that end anywhere in a block.
fn requests(prompt: &[u32], fan: Fan) -> Vec<Ask> {
    (0..8)
        .map(|i| {
            let mut p = prompt[..40 + i].to_vec();
            for (j, t) in p.iter_mut().enumerate().skip(32) {
                *t = (*t + 7 * u32::try_from(i * j).unwrap()) % 200 + 4;
            }
            (p, 6 + u32::try_from(i).unwrap(), fan)
        })
        .collect()
}

/// Short prompts with long answers: those who are let in outgrow a tight pool.
fn growing(prompt: &[u32], fan: Fan) -> Vec<Ask> {
    (0..8)
        .map(|i| (prompt[i..2 * i + 9].to_vec(), 24, fan))
        .collect()
}

/// Each request alone: one thread, no SIMD, whole prompts.
fn alone(model: &Model, server: &Server, all: &[Ask]) -> (Vec<Vec<Vec<u32>>>, Seen) {
    let mut seen = Seen::new();
    let tokens = all
        .iter()
        .enumerate()
        .map(|(i, ask)| {
            let (done, one, _) = model.serve(server, std::slice::from_ref(ask));
            for ((_, index, position), bits) in one {
                seen.insert((i as u64, index, position), bits);
            }
            done[&0].clone()
        })
        .collect();
    (tokens, seen)
}

fn plain() -> Server {
    Server {
        level: Level::Scalar,
        ..Server::default()
    }
}

fn compare(
    name: &str,
    model: &Model,
    server: &Server,
    all: &[Ask],
    want: &(Vec<Vec<Vec<u32>>>, Seen),
) -> Stats {
    let (done, seen, stats) = model.serve(server, all);
    for (i, tokens) in want.0.iter().enumerate() {
        assert_eq!(&done[&(i as u64)], tokens, "{name}: request {i}");
    }
    assert!(!seen.is_empty());
    for (key, bits) in &seen {
        assert!(
            want.1[key] == *bits,
            "{name}: logits of {key:?} (request, sequence, position)"
        );
    }
    stats
}

fn each(check: impl Fn(&str, &Model, &[u32])) {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        check(&name, &Model::open(&folder), &expected(&folder).0);
    }
}

#[test]
fn batches_chunks_threads_and_instructions_change_nothing() {
    each(|name, model, prompt| {
        let all = requests(prompt, Fan::ONE);
        let want = alone(model, &plain(), &all);
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            for (tokens, threads, outputs) in [(256, 1, 256), (8, 2, 3), (19, 1, 1), (64, 2, 64)] {
                let server = Server {
                    level,
                    tokens,
                    threads,
                    outputs,
                    sequences: 8,
                    ..Server::default()
                };
                let name = format!("{name}, {level:?}, T = {tokens}, {threads} threads");
                let stats = compare(&name, model, &server, &all, &want);
                // All ran at once.
                assert!(stats.rows >= 2 * stats.steps, "{name}: {stats:?}");
            }
        }
    });
}

/// Sixty-four requests, one after the other and all together.
#[test]
fn batches_of_up_to_64_change_nothing() {
    each(|name, model, prompt| {
        let all: Vec<Ask> = (0..64)
            .map(|i| {
                let from = i % 24;
                (prompt[from..from + 3 + i % 5].to_vec(), 3, Fan::ONE)
            })
            .collect();
        let one = Server {
            sequences: 1,
            pages: 600,
            ..plain()
        };
        let (done, seen, stats) = model.serve(&one, &all);
        assert_eq!(stats.rows, stats.steps, "{name}: {stats:?}");
        let tokens = (0..64).map(|i| done[&i].clone()).collect();
        let want = (tokens, seen);
        for (sequences, tokens) in [(5, 64), (64, 512)] {
            let server = Server {
                sequences,
                tokens,
                threads: 2,
                pages: 600,
                ..Server::default()
            };
            let stats = compare(
                &format!("{name}, R = {sequences}"),
                model,
                &server,
                &all,
                &want,
            );
            let widest = u64::from(sequences);
            // Every step but the last ones has so many rows.
            assert!(
                stats.rows >= (widest - 1) * (stats.steps - 3),
                "{name}: {stats:?}"
            );
        }
    });
}

/// Inputs of quantised weights are quantised too, and those of bfloat16 weights may be rounded: each row by itself.
#[test]
fn types_of_weights_and_inputs_change_nothing_of_this() {
    let some = [
        "deepseek_v3",
        "gemma2",
        "gpt2",
        "gpt_oss_mxfp4",
        "granite_hybrid",
        "llama",
        "qwen2_moe",
    ];
    each(|name, model, prompt| {
        if !some.contains(&name) {
            return;
        }
        let all = requests(prompt, Fan::ONE);
        let mut before = Some(alone(model, &plain(), &all).1);
        for (weights, inputs) in [
            (WeightType::Bf16, Inputs::Bf16),
            (WeightType::Fp8, Inputs::F32),
            (WeightType::Int8, Inputs::F32),
            (WeightType::Int4, Inputs::F32),
        ] {
            let server = Server {
                weights,
                inputs,
                ..plain()
            };
            let want = alone(model, &server, &all);
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for (tokens, threads) in [(256, 1), (8, 2), (19, 1)] {
                    let server = Server {
                        weights,
                        inputs,
                        level,
                        tokens,
                        threads,
                        sequences: 8,
                        ..Server::default()
                    };
                    let name = format!("{name}, {weights}, {level:?}, T = {tokens}");
                    let stats = compare(&name, model, &server, &all, &want);
                    assert!(stats.rows >= 2 * stats.steps, "{name}: {stats:?}");
                }
            }
            let growing = growing(prompt, Fan::Sample { n: 4, best_of: 4 });
            let tight = model.tight(Server {
                block: 4,
                swap: 400,
                sequences: 12,
                preempt: Preempt::Swap,
                weights,
                inputs,
                ..Server::default()
            });
            let alone = alone(model, &server, &growing);
            let name = format!("{name}, {weights}, tight");
            let stats = compare(&name, model, &tight, &growing, &alone);
            assert!(
                stats.swaps > 0 && stats.pages_copied > 0,
                "{name}: {stats:?}"
            );
            // They are other weights, or inputs.
            assert!(before.replace(want.1.clone()) != Some(want.1), "{name}");
        }
    });
}

/// Keys and values are rounded when they are written, and their scales stand beside them: in every block size, copy and
/// swapped page.
#[test]
fn types_of_caches_change_nothing_of_this() {
    let some = [
        "deepseek_v2",
        "gemma2",
        "gpt_oss",
        "granite_hybrid",
        "granite_hybrid_moe",
        "llama",
        "mistral",
        "phi",
        "phi3",
    ];
    let types = std::cell::Cell::new(0);
    each(|name, model, prompt| {
        if !some.contains(&name) {
            return;
        }
        let mut before = Vec::new();
        for kv in [DType::F16, DType::F8E4m3, DType::I8] {
            let of = |server| Server { kv, ..server };
            let program = model.program(&of(plain()));
            if plimsoll_runtime::check(&program).is_err() {
                assert!((name, kv) == ("deepseek_v2", DType::I8), "{name}, {kv}");
                continue;
            }
            types.set(types.get() + 1);
            let all = requests(prompt, Fan::ONE);
            let want = alone(model, &of(plain()), &all);
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for (tokens, threads, block) in [(256, 1, 16), (8, 2, 7), (19, 1, 1)] {
                    let server = of(Server {
                        level,
                        tokens,
                        threads,
                        block,
                        sequences: 8,
                        pages: 2000,
                        ..Server::default()
                    });
                    let name = format!("{name}, {kv}, {level:?}, T = {tokens}, blocks of {block}");
                    let stats = compare(&name, model, &server, &all, &want);
                    assert!(stats.rows >= 2 * stats.steps, "{name}: {stats:?}");
                }
            }
            let cached = of(Server {
                prefix_cache: true,
                sequences: 1,
                tokens: 64,
                ..Server::default()
            });
            let stats = compare(&format!("{name}, {kv}"), model, &cached, &all, &want);
            assert!(stats.cached_tokens >= 7 * 32, "{name}, {kv}: {stats:?}");
            let growing = growing(prompt, Fan::Sample { n: 4, best_of: 4 });
            let forked = alone(model, &of(plain()), &growing);
            for (preempt, swap) in [(Preempt::Swap, 400), (Preempt::Recompute, 0)] {
                let tight = model.tight(of(Server {
                    block: 4,
                    swap,
                    sequences: 12,
                    preempt,
                    ..Server::default()
                }));
                let name = format!("{name}, {kv}, {preempt:?}");
                let stats = compare(&name, model, &tight, &growing, &forked);
                let gave_way = stats.swaps + stats.recomputes;
                assert!(gave_way > 0 && stats.pages_copied > 0, "{name}: {stats:?}");
            }
            // They are other keys and values.
            assert!(!before.contains(&want.1), "{name}, {kv}");
            before.push(want.1);
        }
    });
    assert_eq!(types.get(), 3 * some.len() - 1);
}

#[test]
fn block_sizes_change_nothing() {
    each(|name, model, prompt| {
        let all = requests(prompt, Fan::ONE);
        let want = alone(model, &plain(), &all);
        for block in [1, 7, 48] {
            let server = Server {
                block,
                pages: 2000,
                ..Server::default()
            };
            compare(
                &format!("{name}, blocks of {block}"),
                model,
                &server,
                &all,
                &want,
            );
        }
    });
}

#[test]
fn cached_prefixes_change_nothing() {
    each(|name, model, prompt| {
        let all = requests(prompt, Fan::ONE);
        let want = alone(model, &plain(), &all);
        let server = Server {
            prefix_cache: true,
            // One after the other, so that each finds what the one before left.
            sequences: 1,
            tokens: 64,
            ..Server::default()
        };
        let stats = compare(name, model, &server, &all, &want);
        assert!(stats.cached_tokens >= 7 * 32, "{name}: {stats:?}");
    });
}

/// A state is kept where prompts and answers pass a multiple of the interval, and whoever begins with the same tokens
/// goes on from there: a prompt that parts from another behind it, and one that has another's answer in it.
#[test]
fn states_that_are_kept_on_the_way_change_nothing() {
    let models = std::cell::Cell::new(0);
    each(|name, model, prompt| {
        let groups = model.program(&Server::default()).geometry.groups;
        if groups.iter().all(|g| g.kind != GroupKind::State) {
            return;
        }
        models.set(models.get() + 1);
        let first = (prompt[..40].to_vec(), 24, Fan::ONE);
        let mut parts = first.0[..20].to_vec();
        parts.extend_from_slice(&prompt[30..50]);
        let answer = model.serve(&plain(), std::slice::from_ref(&first)).0;
        let longer = [&first.0, &answer[&0][0], &prompt[..5]].concat();
        let all = [first, (parts, 8, Fan::ONE), (longer, 8, Fan::ONE)];
        let want = alone(model, &plain(), &all);
        for (tokens, threads) in [(256, 1), (7, 2)] {
            let server = Server {
                prefix_cache: true,
                snapshot: Some(16),
                sequences: 1,
                tokens,
                threads,
                ..Server::default()
            };
            let name = format!("{name}, T = {tokens}");
            let stats = compare(&name, model, &server, &all, &want);
            // The second begins at 16; the third at 48, which only the first one's answer has passed.
            assert_eq!(stats.cached_tokens, 16 + 48, "{name}: {stats:?}");
            assert!(stats.pages_copied > 0, "{name}: {stats:?}");
        }
    });
    assert!(models.get() >= 2);
}

#[test]
fn giving_way_changes_nothing() {
    each(|name, model, prompt| {
        let all = growing(prompt, Fan::ONE);
        for kv in [DType::Bf16, DType::F32] {
            let want = alone(model, &Server { kv, ..plain() }, &all);
            for (preempt, swap) in [(Preempt::Swap, 400), (Preempt::Recompute, 0)] {
                let server = model.tight(Server {
                    kv,
                    preempt,
                    swap,
                    block: 4,
                    sequences: 4,
                    ..Server::default()
                });
                let name = format!("{name}, {kv}, {preempt:?}");
                let stats = compare(&name, model, &server, &all, &want);
                let (out, again) = (stats.pages_in, stats.recomputed_tokens);
                match preempt {
                    Preempt::Swap => assert!(stats.swaps > 0 && out > 0, "{name}: {stats:?}"),
                    _ => assert!(stats.recomputes > 0 && again > 0, "{name}: {stats:?}"),
                }
            }
        }
    });
}

#[cfg(unix)]
#[test]
fn swap_files_change_nothing_and_disks_that_fail_lose_nothing() {
    let folder = fixtures()
        .into_iter()
        .find(|f| f.ends_with("llama"))
        .unwrap();
    let (model, prompt) = (Model::open(&folder), expected(&folder).0);
    let all = growing(&prompt, Fan::ONE);
    let want = alone(&model, &plain(), &all);
    for disk in [Disk::File, Disk::NoWrites, Disk::NoReads] {
        let server = model.tight(Server {
            preempt: Preempt::Swap,
            swap: 400,
            disk,
            block: 4,
            sequences: 4,
            threads: 2,
            ..Server::default()
        });
        let stats = compare(&format!("{disk:?}"), &model, &server, &all, &want);
        assert!(stats.swaps > 0, "{disk:?}: {stats:?}");
        let fails = disk != Disk::File;
        assert_eq!(stats.failures > 0, fails, "{disk:?}: {stats:?}");
        assert_eq!(stats.recomputed_tokens > 0, fails, "{disk:?}: {stats:?}");
    }
}

#[test]
fn forks_change_nothing() {
    each(|name, model, prompt| {
        let all = growing(prompt, Fan::Sample { n: 4, best_of: 4 });
        let want = alone(model, &plain(), &all);
        let server = Server {
            threads: 2,
            ..Server::default()
        };
        let stats = compare(name, model, &server, &all, &want);
        assert!(stats.pages_copied > 0, "{name}: {stats:?}");
        let tight = model.tight(Server {
            block: 4,
            swap: 400,
            sequences: 12,
            preempt: Preempt::Swap,
            ..Server::default()
        });
        let stats = compare(
            &format!("{name}, tight"),
            model,
            &tight,
            &all[..4],
            &cut(&want, 4),
        );
        assert!(
            stats.swaps > 0 && stats.pages_copied > 0,
            "{name}: {stats:?}"
        );
    });
}

fn cut(want: &(Vec<Vec<Vec<u32>>>, Seen), n: usize) -> (Vec<Vec<Vec<u32>>>, Seen) {
    (want.0[..n].to_vec(), want.1.clone())
}

#[test]
fn beams_change_nothing() {
    let beam = Fan::Beam(Beam {
        width: 4,
        length_penalty: 1.0,
        early_stopping: true,
    });
    each(|name, model, prompt| {
        let all = growing(prompt, beam);
        let (want, _) = alone(model, &plain(), &all);
        let wide = Server {
            block: 4,
            threads: 2,
            preempt: Preempt::Recompute,
            ..Server::default()
        };
        for server in [wide.clone(), model.tight(wide)] {
            let tight = server.pages < Server::default().pages;
            let (done, _, stats) = model.serve(&server, &all);
            for (i, tokens) in want.iter().enumerate() {
                assert_eq!(&done[&(i as u64)], tokens, "{name}: request {i}");
            }
            assert!(stats.pages_copied > 0, "{name}: {stats:?}");
            assert!(!tight || stats.recomputes > 0, "{name}: {stats:?}");
        }
    });
}

/// With a prefix cache a tight pool gives up what it has cached, and a state that is kept goes on in a copy while there
/// are pages for one.
#[test]
fn giving_way_with_cached_prefixes_changes_nothing() {
    each(|name, model, prompt| {
        let all = growing(prompt, Fan::Sample { n: 4, best_of: 4 });
        let want = alone(model, &plain(), &all);
        for (preempt, swap) in [(Preempt::Swap, 400), (Preempt::Recompute, 0)] {
            let server = model.tight(Server {
                preempt,
                swap,
                block: 4,
                sequences: 12,
                prefix_cache: true,
                ..Server::default()
            });
            let name = format!("{name}, {preempt:?}");
            let stats = compare(&name, model, &server, &all[..4], &cut(&want, 4));
            let gave_way = stats.swaps + stats.recomputes;
            assert!(gave_way > 0 && stats.pages_copied > 0, "{name}: {stats:?}");
        }
    });
}

/// What several ranks add up has the same bits however it came about.
#[test]
fn on_several_ranks_nothing_of_this_changes_anything() {
    let divided = std::cell::Cell::new(0);
    each(|name, model, prompt| {
        let of = |server| Server { ranks: 2, ..server };
        if model.lowered(&of(plain()), 0).is_err() {
            return;
        }
        divided.set(divided.get() + 1);
        let all = requests(prompt, Fan::ONE);
        let want = alone(model, &of(plain()), &all);
        // They are other sums than those of one rank.
        assert!(alone(model, &plain(), &all).1 != want.1, "{name}");
        for (tokens, threads, outputs, block) in [(256, 4, 256, 16), (8, 2, 3, 7), (19, 1, 1, 1)] {
            let server = of(Server {
                tokens,
                threads,
                outputs,
                block,
                sequences: 8,
                pages: 2000,
                ..Server::default()
            });
            let name = format!("{name}, T = {tokens}, {threads} threads, blocks of {block}");
            let stats = compare(&name, model, &server, &all, &want);
            assert!(stats.rows >= 2 * stats.steps, "{name}: {stats:?}");
        }
        let cached = of(Server {
            prefix_cache: true,
            sequences: 1,
            tokens: 64,
            ..Server::default()
        });
        let stats = compare(name, model, &cached, &all, &want);
        assert!(stats.cached_tokens >= 7 * 32, "{name}: {stats:?}");
        let growing = growing(prompt, Fan::Sample { n: 4, best_of: 4 });
        let want = alone(model, &of(plain()), &growing);
        for (preempt, swap) in [(Preempt::Swap, 400), (Preempt::Recompute, 0)] {
            let tight = model.tight(of(Server {
                block: 4,
                swap,
                sequences: 12,
                preempt,
                ..Server::default()
            }));
            let name = format!("{name}, {preempt:?}");
            let stats = compare(&name, model, &tight, &growing, &want);
            let gave_way = match preempt {
                Preempt::Swap => stats.swaps,
                _ => stats.recomputes,
            };
            assert!(gave_way > 0 && stats.pages_copied > 0, "{name}: {stats:?}");
        }
    });
    // All but those with recurrent layers.
    assert_eq!(divided.get(), fixtures().len() - 2);
}

/// Types of weights, inputs and caches on several ranks.
#[test]
fn on_several_ranks_types_change_nothing_of_this() {
    each(|name, model, prompt| {
        if !["deepseek_v3", "gpt2", "llama", "qwen2_moe"].contains(&name) {
            return;
        }
        let all = requests(prompt, Fan::ONE);
        for (weights, inputs, kv) in [
            (WeightType::Bf16, Inputs::Bf16, DType::F16),
            (WeightType::Fp8, Inputs::F32, DType::F16),
            (WeightType::Int8, Inputs::F32, DType::F32),
            (WeightType::Int4, Inputs::F32, DType::Bf16),
        ] {
            let of = |server| Server {
                weights,
                inputs,
                kv,
                ranks: 4,
                ..server
            };
            let want = alone(model, &of(plain()), &all);
            for (tokens, threads) in [(256, 1), (8, 8)] {
                let server = of(Server {
                    tokens,
                    threads,
                    sequences: 8,
                    ..Server::default()
                });
                let name = format!("{name}, {weights}, T = {tokens}");
                compare(&name, model, &server, &all, &want);
            }
        }
    });
}

/// What a request gives after its prompt was computed and `damage` done to the pages that it names.
fn damaged(
    model: &Model,
    server: &Server,
    prompt: &[u32],
    damage: impl FnOnce(&Program, &dyn Fn(usize) -> Vec<u32>) -> Option<u64>,
) -> Option<(Vec<u32>, Vec<u32>)> {
    let ask = [(prompt.to_vec(), 4, Fan::ONE)];
    let (_, want, _) = model.serve(server, &ask);
    let mut engine = model.engine(server);
    engine.submit(model.request(0, &ask[0])).unwrap();
    // The step before the last may end where a prefix can be shared.
    while engine.executor().chooser().seen.len() < prompt.len() {
        assert!(engine.step(|_| {}).unwrap());
    }
    let program = model.program(server);
    let table = |group| engine.executor().tables().get(SeqId(0), group).to_vec();
    let byte = damage(&program, &table)?;
    let part = plimsoll_runtime::Part {
        offset: byte,
        len: 1,
    };
    let pages = engine.executor_mut().backend_mut().pages_mut();
    pages.view_mut::<u8>(part).unwrap()[0] ^= 0x40;
    while engine.step(|_| {}).unwrap() {}
    let mut seen = std::mem::take(&mut engine.executor_mut().chooser_mut().seen);
    let key = (0, 0, u32::try_from(prompt.len()).unwrap());
    Some((seen.remove(&key).unwrap(), want[&key].clone()))
}

/// The guard of all of these: where attention reads a slot, damage shows, of elements of every type and of scales.
#[test]
fn one_slot_that_is_overwritten_shows() {
    each(|name, model, prompt| {
        for kv in [
            DType::Bf16,
            DType::F32,
            DType::F16,
            DType::F8E4m3,
            DType::I8,
        ] {
            let server = Server {
                kv,
                ..Server::default()
            };
            let program = model.program(&server);
            if plimsoll_runtime::check(&program).is_err() {
                continue;
            }
            let heads = program.ops.iter().find_map(|op| match op {
                Op::Attention(a) => Some(a.kv_heads),
                _ => None,
            });
            // The first key's high byte, and where there are scales, those of the first head's key and value.
            let places = if kv == DType::I8 { 0..3 } else { 0..1 };
            for place in places {
                let found = damaged(model, &server, prompt, |program, table| {
                    slot_byte(program, table, heads, prompt.len() - 8, place)
                });
                let (got, want) = found.unwrap();
                assert!(got != want, "{name}, {kv}: nothing reads {place}");
            }
        }
    });
}

/// The high byte of what a position that every layer of the first group with slots still sees, in a page before the last,
/// has in the group's last layer: the first element (0), or the scale of the first head's key (1) or value (2).
fn slot_byte(
    program: &Program,
    table: &dyn Fn(usize) -> Vec<u32>,
    heads: Option<u64>,
    position: usize,
    place: u64,
) -> Option<u64> {
    let mut groups = program.geometry.groups.iter().enumerate();
    let (i, group) = groups.find(|(_, g)| g.slots > 0)?;
    let slots = usize::try_from(group.slots).unwrap();
    let page = u64::from(table(i)[position / slots]) * program.geometry.page.get();
    let layer = page + group.rate.get() * group.slots * (group.layers - 1);
    let slot = u64::try_from(position % slots).unwrap();
    let size = program.kv_dtype.bytes(1).unwrap().get();
    if place == 0 {
        // Keys lie in rows of `slots` elements, latents in rows of their own.
        let step = match group.kind {
            GroupKind::Latent => group.rate.get(),
            _ => size,
        };
        return Some(layer + step * slot + size - 1);
    }
    // Scales are a layer's last: f32 of all heads' keys, slot by slot, then of their values.
    let each = 4 * heads? * group.slots;
    let end = layer + group.rate.get() * group.slots;
    Some(end - each * (3 - place) + 4 * slot + 3)
}

/// The same where layers keep states: damage of the first element of each part of each layer shows.
#[test]
fn one_element_of_a_state_that_is_overwritten_shows() {
    let places = std::cell::Cell::new(0);
    each(|name, model, prompt| {
        let program = model.program(&Server::default());
        for op in &program.ops {
            let place = match op {
                Op::Convolve(c) => c.state,
                Op::Scan(s) => s.state,
                _ => continue,
            };
            let found = damaged(model, &Server::default(), prompt, |program, table| {
                let page = program.geometry.page.get();
                let at = place.from * 4;
                let pages = table(usize::try_from(place.group).unwrap());
                let held = u64::from(pages[usize::try_from(at / page).unwrap()]);
                // The high byte of an f32.
                Some(held * page + at % page + 3)
            });
            let (got, want) = found.unwrap();
            assert!(got != want, "{name}: nothing reads {place:?}");
            places.set(places.get() + 1);
        }
    });
    assert!(places.get() >= 6, "{}", places.get());
}
