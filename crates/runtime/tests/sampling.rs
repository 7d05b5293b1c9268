//! What requests ask of their tokens, on the real path: beams are those of a plain search over the engine's own
//! logits, log probabilities those of transformers' logits, and neither paging, preemption nor company changes them; a
//! request whose logits are no numbers ends alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use plimsoll_cuda::Fibers;
use plimsoll_kernels::Pool;
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_runtime::sample::{Brief, Logprobs, Sampling, SamplingParams, TokenLogprobs};
use plimsoll_runtime::text::Stops;
use plimsoll_runtime::{
    Asking, Backend, Choices, Chooser, CpuExecutor, Engine, Logits, Part, Runner,
};
use plimsoll_schedule::{
    Beam, End, Ended, Fan, NoLog, Notice, Preempt, RequestId, Row, RowOutput, SeqEvent, Stats,
};
use plimsoll_units::{DType, SeqId};
use support::{Greedy, Model, Server, expected, fixtures};

/// What one request asks for.
#[derive(Clone)]
struct Ask {
    prompt: Vec<u32>,
    max_tokens: u32,
    fan: Fan,
    sampling: Sampling,
}

type Served = Engine<CpuExecutor<Choices>, NoLog>;

fn start(model: &Model, server: &Server, asks: &[Ask]) -> Served {
    let vocab = model.limits().vocab;
    let mut engine = model.engine_with(server, Choices::new(vocab, server.threads, None));
    for (i, ask) in asks.iter().enumerate() {
        submit(model, &mut engine, i as u64, ask);
    }
    engine
}

/// Who has `Choices`.
trait Choosing: Chooser {
    fn choices(&mut self) -> &mut Choices;
}

impl Choosing for Choices {
    fn choices(&mut self) -> &mut Choices {
        self
    }
}

type On<B, S> = Engine<Runner<B, S>, NoLog>;

fn submit<B: Backend, S: Choosing>(model: &Model, engine: &mut On<B, S>, id: u64, ask: &Ask) {
    let sampling = ask.sampling.clone();
    let whole = sampling.prompt_logprobs.is_some();
    let vocab = model.limits().vocab;
    let params = SamplingParams::new(sampling, vocab, &[], ask.max_tokens).unwrap();
    let chooser = engine.executor_mut().chooser_mut().choices();
    chooser.expect(RequestId(id), &ask.prompt, params, Stops::default());
    let mut request = model.request(id, &(ask.prompt.clone(), ask.max_tokens, ask.fan));
    if whole {
        request = request.without_cached_prefix();
    }
    engine.submit(request).unwrap();
}

/// What came of each request.
#[derive(Debug, Default)]
struct Done {
    ended: BTreeMap<u64, Ended>,
    logprobs: BTreeMap<u64, Logprobs>,
}

impl Done {
    fn tokens(&self, id: u64) -> Vec<&[u32]> {
        let completions = &self.ended[&id].completions;
        completions.iter().map(|c| &c.tokens[..]).collect()
    }
}

fn finish<B: Backend, S: Choosing>(engine: &mut On<B, S>) -> (Done, Stats) {
    let mut done = Done::default();
    let step = |engine: &mut On<B, S>, done: &mut Done| {
        engine
            .step(|n| {
                if let Notice::Finished(e) = n {
                    done.ended.insert(e.request.0, *e);
                }
            })
            .unwrap()
    };
    while step(engine, &mut done) {}
    assert!(engine.is_idle());
    let chooser = engine.executor_mut().chooser_mut().choices();
    for id in done.ended.keys() {
        let told = chooser.take_logprobs(RequestId(*id));
        done.logprobs.insert(*id, told);
    }
    (done, *engine.scheduler().stats())
}

fn serve(model: &Model, server: &Server, asks: &[Ask]) -> (Done, Stats) {
    finish(&mut start(model, server, asks))
}

fn some(names: &[&str]) -> Vec<(String, Model, Vec<u32>, Vec<f32>)> {
    let all = fixtures().into_iter().filter_map(|f| {
        let name = f.file_name().unwrap().to_str().unwrap().to_owned();
        let (prompt, logits) = expected(&f);
        names
            .contains(&&name[..])
            .then(|| (name, Model::open(&f), prompt, logits))
    });
    let all: Vec<_> = all.collect();
    assert_eq!(all.len(), names.len());
    all
}

/// Log probabilities of a row of logits.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::MIN, |a, x| a.max(f64::from(*x)));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    let off = max + sum.ln();
    logits.iter().map(|x| f64::from(*x) - off).collect()
}

/// A beam search over all continuations of all beams: its results, best first.
fn search(
    width: usize,
    max: usize,
    penalty: f64,
    stops: &[u32],
    mut next: impl FnMut(&[u32]) -> Vec<f64>,
) -> Vec<(Vec<u32>, f64)> {
    let score = |sum: f64, tokens: &[u32]| sum / (tokens.len() as f64).powf(penalty);
    let mut live = vec![(Vec::new(), 0.0)];
    let mut done: Vec<(Vec<u32>, f64)> = Vec::new();
    for length in 1..=max {
        let mut all = Vec::new();
        for (tokens, sum) in &live {
            for (token, logprob) in (0_u32..).zip(next(tokens)) {
                all.push(([&tokens[..], &[token]].concat(), sum + logprob));
            }
        }
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        live.clear();
        for (rank, (tokens, sum)) in all.into_iter().enumerate() {
            if !stops.contains(tokens.last().unwrap()) {
                live.push((tokens, sum));
            } else if rank < width {
                let score = score(sum, &tokens);
                done.push((tokens, score));
            }
            if live.len() == width {
                break;
            }
        }
        done.sort_by(|a, b| b.1.total_cmp(&a.1));
        done.truncate(width);
        let best = score(live[0].1, &live[0].0);
        if done.len() == width && done[width - 1].1 >= best {
            return done;
        }
        if length == max {
            done.extend(live.drain(..).map(|(tokens, sum)| {
                let score = score(sum, &tokens);
                (tokens, score)
            }));
        }
    }
    done.sort_by(|a, b| b.1.total_cmp(&a.1));
    done.truncate(width);
    done
}

#[test]
fn beams_are_those_of_a_plain_search_under_forks_swaps_and_recomputation() {
    const WIDTH: u32 = 4;
    const TOP: u32 = 3;
    for (name, model, prompt, _) in some(&["llama", "gemma2"]) {
        // Logits of whatever comes after some tokens, alone.
        let mut alone = model.engine_with(&Server::default(), Greedy::default());
        let mut requests = 0;
        let mut after = |tokens: &[u32]| -> Vec<f64> {
            let ask = (tokens.to_vec(), 1, Fan::ONE);
            alone.submit(model.request(requests, &ask)).unwrap();
            while alone.step(|_| {}).unwrap() {}
            let seen = std::mem::take(&mut alone.executor_mut().chooser_mut().seen);
            let key = (requests, 0, u32::try_from(tokens.len()).unwrap() - 1);
            requests += 1;
            let logits: Vec<f32> = seen[&key].iter().map(|b| f32::from_bits(*b)).collect();
            log_softmax(&logits)
        };
        let asks = |stops: &[u32]| -> Vec<Ask> {
            let one = |i: usize| Ask {
                prompt: prompt[i..2 * i + 9].to_vec(),
                max_tokens: 24,
                fan: Fan::Beam(Beam {
                    width: WIDTH,
                    length_penalty: 0.5 * i as f64,
                    early_stopping: false,
                }),
                sampling: Sampling {
                    stop_token_ids: stops.to_vec(),
                    logprobs: Some(TOP),
                    ..Sampling::default()
                },
            };
            (0..8).map(one).collect()
        };
        let roomy = Server {
            block: 4,
            ..Server::default()
        };
        // As many ends as beams, so that twice as many candidates are always enough; of tokens that do come.
        let (free, _) = serve(&model, &roomy, &asks(&[]));
        let mut stops: Vec<u32> = (0..6).map(|i| free.tokens(i)[0][8 + i as usize]).collect();
        stops.sort_unstable();
        stops.dedup();
        stops.truncate(WIDTH as usize);
        let asks = asks(&stops);
        let want: Vec<_> = asks
            .iter()
            .map(|ask| {
                let Fan::Beam(b) = ask.fan else {
                    unreachable!()
                };
                search(WIDTH as usize, 24, b.length_penalty, &stops, |tokens| {
                    after(&[&ask.prompt[..], tokens].concat())
                })
            })
            .collect();
        let tight = |preempt, swap| {
            model.tight(Server {
                preempt,
                swap,
                ..roomy.clone()
            })
        };
        let mut told: BTreeMap<(u64, usize), TokenLogprobs> = BTreeMap::new();
        for server in [
            roomy.clone(),
            tight(Preempt::Recompute, 0),
            tight(Preempt::Swap, 400),
        ] {
            let (done, stats) = serve(&model, &server, &asks);
            let mut ends = [0, 0];
            for (i, want) in (0..).zip(&want) {
                let got = &done.ended[&i].completions;
                for (g, w) in got.iter().zip(want) {
                    assert_eq!(g.tokens, w.0, "{name}: request {i}");
                    assert!((g.score - w.1).abs() < 1e-4, "{name}: {} {}", g.score, w.1);
                    ends[usize::from(g.end == End::Stop)] += 1;
                }
                assert_eq!(got.len(), want.len());
                for (j, c) in got.iter().enumerate() {
                    let logprobs = done.logprobs[&i].of(c).unwrap().into_owned();
                    let first = told.entry((i, j)).or_insert_with(|| {
                        are_those_of(&logprobs, &c.tokens, TOP as usize, |n| {
                            after(&[&asks[i as usize].prompt[..], &c.tokens[..n]].concat())
                        });
                        logprobs.clone()
                    });
                    assert_eq!(*first, logprobs, "{name}: request {i}, beam {j}");
                    let sum: f64 = logprobs.iter().map(|t| f64::from(t.0.1)).sum();
                    assert_eq!(sum, c.logprob, "{name}: request {i}, beam {j}");
                }
            }
            assert!(ends[0] > 0 && ends[1] > 0, "{name}: {ends:?}");
            assert!(stats.pages_copied > 0, "{name}: {stats:?}");
            let gave_way = match (server.pages < roomy.pages, server.preempt) {
                (false, _) => 1,
                (_, Preempt::Swap) => stats.swaps.min(stats.pages_in),
                _ => stats.recomputes.min(stats.recomputed_tokens),
            };
            assert!(gave_way > 0, "{name}: {stats:?}");
        }
    }
}

/// Checks what is told of `tokens`: each one's own and the likeliest `k` of the distribution at its place.
fn are_those_of(
    told: &TokenLogprobs,
    tokens: &[u32],
    k: usize,
    mut at: impl FnMut(usize) -> Vec<f64>,
) {
    assert_eq!(told.len(), tokens.len());
    for (n, ((token, logprob), top)) in told.iter().enumerate() {
        let want = at(n);
        assert_eq!(token, tokens[n]);
        assert!((f64::from(logprob) - want[token as usize]).abs() < 1e-5);
        let mut sorted: Vec<(u32, f64)> = (0..).zip(want).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(top.len(), k);
        for (t, w) in top.iter().zip(&sorted) {
            assert_eq!(t.0, w.0);
            assert!((f64::from(t.1) - w.1).abs() < 1e-5);
        }
    }
}

fn with_logprobs(k: u32) -> Sampling {
    Sampling {
        seed: 3,
        logprobs: Some(k),
        ..Sampling::default()
    }
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits_whoever_gives_way() {
    for (name, model, prompt, _) in some(&["llama", "mixtral"]) {
        // Temperature and penalties change what is drawn, and nothing of what is told.
        let changed = Sampling {
            temperature: 0.7,
            repetition_penalty: 1.3,
            top_k: 50,
            ..with_logprobs(5)
        };
        let asks: Vec<Ask> = (0..8)
            .map(|i| Ask {
                prompt: prompt[i..2 * i + 9].to_vec(),
                max_tokens: 24,
                fan: Fan::Sample { n: 2, best_of: 3 },
                sampling: changed.clone(),
            })
            .collect();
        let (roomy, _) = serve(&model, &Server::default(), &asks);
        let tight = model.tight(Server {
            block: 4,
            threads: 2,
            sequences: 12,
            preempt: Preempt::Recompute,
            ..Server::default()
        });
        let (done, stats) = serve(&model, &tight, &asks);
        assert!(stats.recomputes > 0, "{name}: {stats:?}");
        let mut alone = model.engine_with(&Server::default(), Greedy::default());
        for (i, ask) in (0..).zip(&asks) {
            assert_eq!(roomy.ended[&i].completions, done.ended[&i].completions);
            assert_eq!(roomy.logprobs[&i], done.logprobs[&i], "{name}: request {i}");
            let completions = &done.ended[&i].completions;
            // The likeliest two of the three that were drawn.
            let sums: Vec<f64> = done.logprobs[&i]
                .sequences
                .values()
                .map(|s| s.iter().map(|t| f64::from(t.0.1)).sum())
                .collect();
            assert_eq!((sums.len(), completions.len()), (3, 2));
            let least = sums.iter().fold(f64::MAX, |a, x| a.min(*x));
            assert!(completions[0].logprob >= completions[1].logprob);
            assert!(completions[1].logprob >= least);
            for c in completions {
                let told = &done.logprobs[&i].sequences[&c.index];
                assert_eq!(told.len(), c.tokens.len());
                let text = [&ask.prompt[..], &c.tokens].concat();
                alone
                    .submit(model.request(i, &(text, 1, Fan::ONE)))
                    .unwrap();
                while alone.step(|_| {}).unwrap() {}
                let seen = std::mem::take(&mut alone.executor_mut().chooser_mut().seen);
                for (j, ((token, logprob), top)) in told.iter().enumerate() {
                    assert_eq!(token, c.tokens[j]);
                    let at = u32::try_from(ask.prompt.len() + j).unwrap() - 1;
                    let bits = &seen[&(i, 0, at)];
                    let logits: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
                    check(&log_softmax(&logits), (token, logprob), top, 5, 1e-5);
                }
            }
        }
    }
}

/// A token's log probability and the `k` largest, of a distribution.
fn check(want: &[f64], (token, logprob): (u32, f32), top: &[(u32, f32)], k: usize, within: f64) {
    let far = |(token, logprob): (u32, f32)| (want[token as usize] - f64::from(logprob)).abs();
    assert!(far((token, logprob)) <= within);
    assert_eq!(top.len(), k);
    let mut sorted = want.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    for (t, w) in top.iter().zip(&sorted) {
        assert!(far(*t) <= within && (w - f64::from(t.1)).abs() <= within);
    }
    let mut ids: Vec<u32> = top.iter().map(|t| t.0).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), k);
}

#[test]
fn prompts_have_the_log_probabilities_of_transformers_in_few_rows_of_logits() {
    for (name, model, prompt, logits) in some(&["llama", "gemma2", "gpt2", "deepseek_v2_lite"]) {
        let vocab = logits.len() / prompt.len();
        let size = logits.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        let ask = |told: bool, n: usize| Ask {
            prompt: prompt[..n].to_vec(),
            max_tokens: 8,
            fan: Fan::ONE,
            sampling: Sampling {
                prompt_logprobs: told.then_some(3),
                ..with_logprobs(2)
            },
        };
        let plain = Server {
            kv: DType::F32,
            ..Server::default()
        };
        let all = prompt.len();
        let (alone, _) = serve(&model, &plain, &[ask(true, all)]);
        let told = &alone.logprobs[&0].prompt;
        assert_eq!(told.len(), all - 1);
        for (i, (token, top)) in told.iter().enumerate() {
            assert_eq!(token.0, prompt[i + 1]);
            let want = log_softmax(&logits[i * vocab..][..vocab]);
            // Twice what `logits.rs` allows: a logit and the sum over all may differ.
            check(&want, token, top, 3, 4e-5 * f64::from(size));
        }
        // Others in the same steps, some that would find its blocks, few rows at a time, in chunks.
        let others = [
            ask(false, all),
            ask(true, all),
            ask(false, all - 5),
            ask(true, 20),
        ];
        let each: Vec<Done> = others
            .iter()
            .map(|a| serve(&model, &plain, std::slice::from_ref(a)).0)
            .collect();
        for (tokens, outputs, sequences) in [(256, 5, 4), (11, 4, 4), (64, 1, 1)] {
            let server = Server {
                tokens,
                outputs,
                sequences,
                threads: 2,
                prefix_cache: true,
                ..plain.clone()
            };
            let (done, stats) = serve(&model, &server, &others);
            for (i, want) in (0..).zip(&each) {
                assert_eq!(done.tokens(i), want.tokens(0), "{name}: request {i}");
                assert_eq!(done.logprobs[&i], want.logprobs[&0], "{name}: request {i}");
            }
            let cached: Vec<u32> = done.ended.values().map(|e| e.cached_tokens).collect();
            assert_eq!((cached[1], cached[3]), (0, 0), "{name}");
            // One after the other, whoever may find blocks does.
            assert!(sequences > 1 || cached[2] > 0, "{name}: {stats:?}");
        }
    }
}

#[test]
fn prompts_are_told_once_where_their_request_gives_way() {
    let (name, model, prompt, _) = some(&["llama"]).remove(0);
    let asks: Vec<Ask> = (0..8)
        .map(|i| Ask {
            prompt: prompt[i..2 * i + 9].to_vec(),
            max_tokens: 24,
            fan: Fan::ONE,
            sampling: Sampling {
                prompt_logprobs: Some(1),
                ..with_logprobs(1)
            },
        })
        .collect();
    let (roomy, _) = serve(&model, &Server::default(), &asks);
    let tight = model.tight(Server {
        block: 4,
        sequences: 4,
        preempt: Preempt::Recompute,
        ..Server::default()
    });
    let (done, stats) = serve(&model, &tight, &asks);
    assert!(stats.recomputed_tokens > 0, "{name}: {stats:?}");
    assert_eq!(roomy.logprobs, done.logprobs);
    for (i, ask) in (0..).zip(&asks) {
        assert_eq!(done.logprobs[&i].prompt.len(), ask.prompt.len() - 1);
    }
}

#[test]
fn a_request_whose_logits_are_no_numbers_ends_alone() {
    for fan in [Fan::ONE, Fan::Sample { n: 3, best_of: 3 }] {
        let (name, model, prompt, _) = some(&["llama"]).remove(0);
        let ask = |from: usize| Ask {
            prompt: prompt[from..from + 20].to_vec(),
            max_tokens: 12,
            fan,
            sampling: with_logprobs(1),
        };
        let asks = [ask(0), ask(7), ask(13)];
        let server = Server {
            prefix_cache: true,
            ..Server::default()
        };
        let (want, _) = serve(&model, &server, &asks);
        let mut engine = start(&model, &server, &asks);
        for _ in 0..3 {
            assert!(engine.step(|_| {}).unwrap());
        }
        // A page of the second request alone.
        let page = engine.executor().tables().get(SeqId(1), 0)[0];
        let bytes = model.program(&server).geometry.page.get();
        let part = Part {
            offset: u64::from(page) * bytes,
            len: bytes,
        };
        let pages = engine.executor_mut().backend_mut().pages_mut();
        pages.view_mut::<u8>(part).unwrap().fill(0xff);
        let (done, _) = finish(&mut engine);
        let failed = engine.executor_mut().chooser_mut().take_failed();
        assert_eq!(failed.len(), 1, "{name}");
        assert_eq!(failed[0].0, RequestId(1));
        assert!(failed[0].1.to_string().contains("not a number"));
        for (i, ended) in &done.ended {
            let before = &want.ended[i].completions;
            if *i == 1 {
                assert_eq!(ended.completions.len(), before.len());
                for (c, b) in ended.completions.iter().zip(before) {
                    assert_eq!((c.end, c.tokens.len()), (End::Error, 3));
                    assert_eq!(c.tokens, b.tokens[..3]);
                }
            } else {
                assert_eq!(&ended.completions, before, "{name}: request {i}");
            }
        }
        assert_eq!(done.ended.len(), 3);
        // Nobody begins with its damaged block.
        submit(&model, &mut engine, 3, &asks[1]);
        let (done, _) = finish(&mut engine);
        assert_eq!(done.ended[&3].cached_tokens, 0);
        assert_eq!(done.ended[&3].completions, want.ended[&1].completions);
    }
}

/// As `Choices`, but for a panic in the step in which so many rows have been chosen.
struct Panics {
    choices: Choices,
    rows: Option<u32>,
}

impl Chooser for Panics {
    fn rows(&mut self, pool: &mut Pool, rows: &mut [Asking<'_>]) {
        if let Some(left) = &mut self.rows {
            *left = left.saturating_sub(u32::try_from(rows.len()).unwrap());
            assert_ne!(*left, 0, "as it was told");
        }
        self.choices.rows(pool, rows);
    }
    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput {
        self.choices.row(row, position, logits)
    }
    fn event(&mut self, event: &SeqEvent) {
        self.choices.event(event);
    }
    fn tokens(&mut self, row: &Row, tokens: &[u32]) {
        self.choices.tokens(row, tokens);
    }
    fn restart(&mut self) {
        self.rows = None;
        self.choices.restart();
    }
}

#[test]
fn whatever_a_panic_left_changes_no_answer() {
    for (name, model, prompt, _) in some(&["llama", "granite_hybrid"]) {
        let server = Server {
            prefix_cache: true,
            ..Server::default()
        };
        let server = model.tight(Server {
            swap: 64,
            sequences: 4,
            ..server
        });
        let vocab = model.limits().vocab;
        let ask = |id: u64| {
            let at = usize::try_from(id % 4).unwrap();
            let sampling = Sampling {
                seed: id % 4,
                temperature: 1.0,
                repetition_penalty: 1.1,
                ..Sampling::default()
            };
            let params = SamplingParams::new(sampling, vocab, &[], 24).unwrap();
            (prompt[at..2 * at + 9].to_vec(), params)
        };
        let chooser = Panics {
            choices: Choices::new(vocab, 1, None),
            rows: Some(40),
        };
        let mut engine = model.engine_with(&server, chooser);
        let mut done = BTreeMap::new();
        let mut panics = 0;
        // Four that a panic ends, then the same four twice: from an empty cache and from what it holds.
        for round in 0..3 {
            for id in 4 * round..4 * round + 4 {
                let (prompt, params) = ask(id);
                let choices = &mut engine.executor_mut().chooser_mut().choices;
                choices.expect(RequestId(id), &prompt, params, Stops::default());
                let request = model.request(id, &(prompt, 24, Fan::ONE));
                engine.submit(request).unwrap();
            }
            loop {
                let step = || {
                    engine.step(|n| {
                        if let Notice::Finished(e) = n {
                            done.insert(e.request.0, e.completions[0].tokens.clone());
                        }
                    })
                };
                match catch_unwind(AssertUnwindSafe(step)) {
                    Ok(stepped) if !*stepped.as_ref().unwrap() => break,
                    Ok(_) => {}
                    Err(_) => {
                        panics += 1;
                        engine.restart();
                        assert!(engine.is_idle());
                    }
                }
            }
        }
        assert_eq!((panics, done.len()), (1, 8), "{name}");
        for id in 4..8 {
            assert_eq!(done[&id], done[&(id + 4)], "{name}");
        }
        // Alone in an engine that never panicked.
        for id in 0..4 {
            let chooser = Choices::new(vocab, 1, None);
            let mut engine = model.engine_with(&server, chooser);
            let (prompt, params) = ask(id);
            let choices = engine.executor_mut().chooser_mut();
            choices.expect(RequestId(id), &prompt, params, Stops::default());
            engine
                .submit(model.request(id, &(prompt, 24, Fan::ONE)))
                .unwrap();
            let (alone, _) = finish(&mut engine);
            assert_eq!(alone.tokens(id), [&done[&(id + 4)][..]], "{name}");
        }
    }
}

/// As `Choices`, counting rows that were whole and rows that were short.
struct Counts {
    choices: Choices,
    rows: [usize; 2],
}

impl Choosing for Counts {
    fn choices(&mut self) -> &mut Choices {
        &mut self.choices
    }
}

impl Chooser for Counts {
    fn rows(&mut self, pool: &mut Pool, rows: &mut [Asking<'_>]) {
        for a in &*rows {
            self.rows[usize::from(matches!(a.logits, Logits::Short(_)))] += 1;
        }
        self.choices.rows(pool, rows);
    }
    fn brief(&self, row: &Row, position: u32) -> Option<Brief> {
        self.choices.brief(row, position)
    }
    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput {
        self.choices.row(row, position, logits)
    }
    fn event(&mut self, event: &SeqEvent) {
        self.choices.event(event);
    }
    fn tokens(&mut self, row: &Row, tokens: &[u32]) {
        self.choices.tokens(row, tokens);
    }
    fn wants_all(&self, row: &Row) -> bool {
        self.choices.wants_all(row)
    }
    fn position(&mut self, row: &Row, position: u32, logits: &[f32]) -> bool {
        self.choices.position(row, position, logits)
    }
}

#[test]
fn a_device_tells_enough_of_its_rows() {
    let ask = |prompt: &[u32], fan, sampling| Ask {
        prompt: prompt.to_vec(),
        max_tokens: 12,
        fan,
        sampling,
    };
    let many = Fan::Sample { n: 3, best_of: 4 };
    let warm = |seed| Sampling {
        seed,
        logprobs: Some(3),
        ..Sampling::default()
    };
    for (name, model, prompt, _) in some(&["llama", "gemma2"]) {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let short = [
            ask(&prompt[..9], Fan::ONE, greedy.clone()),
            ask(&prompt[1..4], Fan::ONE, warm(1)),
            ask(
                &prompt[2..8],
                many,
                Sampling {
                    top_k: 5,
                    top_p: 0.9,
                    ..warm(2)
                },
            ),
            ask(
                &prompt[..5],
                Fan::ONE,
                Sampling {
                    min_p: 0.2,
                    top_p: 0.95,
                    temperature: 0.8,
                    ..warm(3)
                },
            ),
            ask(
                &prompt[..7],
                Fan::Beam(Beam {
                    width: 3,
                    length_penalty: 1.0,
                    early_stopping: false,
                }),
                warm(4),
            ),
        ];
        let whole = [
            ask(
                &prompt[..6],
                Fan::ONE,
                Sampling {
                    frequency_penalty: 1.0,
                    logit_bias: vec![(3, 2.0)],
                    ..warm(5)
                },
            ),
            ask(
                &prompt[..9],
                Fan::ONE,
                Sampling {
                    prompt_logprobs: Some(2),
                    ..greedy
                },
            ),
        ];
        let server = Server {
            tokens: 16,
            outputs: 16,
            sequences: 16,
            ..Server::default()
        };
        for asks in [&short[..], &[&short[..], &whole[..]].concat()] {
            let (want, stats) = serve(&model, &server, asks);
            let vocab = model.limits().vocab;
            let counts = Counts {
                choices: Choices::new(vocab, server.threads, None),
                rows: [0; 2],
            };
            let fibers = Box::new(Fibers::new());
            let mut engine = model.engine_of(&server, fibers, counts, Arithmetic::Exact);
            for (i, ask) in asks.iter().enumerate() {
                submit(&model, &mut engine, i as u64, ask);
            }
            let (done, stats_there) = finish(&mut engine);
            assert_eq!(stats, stats_there, "{name}");
            for id in 0..asks.len() as u64 {
                let (here, there) = (&want.ended[&id], &done.ended[&id]);
                assert_eq!(here.completions, there.completions, "{name}: {id}");
                assert_eq!(want.logprobs[&id], done.logprobs[&id], "{name}: {id}");
            }
            let [all, some] = engine.executor().chooser().rows;
            assert!(some > 60, "{name}: {some}");
            // The last of these draws several at once from a prompt's end.
            assert!(
                if asks.len() == short.len() {
                    all == 0
                } else {
                    all > 12
                },
                "{name}: {all}"
            );
        }
    }
}
