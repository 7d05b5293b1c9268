use std::collections::BTreeMap;

use super::*;

/// A fixed sequence of numbers, uniform in 0 to 1.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n)
        .map(|_| (rng.next_u64() >> 40) as f32 / (1_u64 << 24) as f32)
        .collect()
}

/// Logits with ties: to a quarter, between −4 and 4.
fn row(seed: u64, n: usize) -> Vec<f32> {
    numbers(seed, n)
        .iter()
        .map(|x| (x * 32.0).round() / 4.0 - 4.0)
        .collect()
}

fn params(asked: Sampling) -> SamplingParams {
    SamplingParams::new(asked, 1 << 20, &[3, 5], 1000).unwrap()
}

const HERE: Place = Place {
    index: 0,
    position: 0,
};

fn draw(row: &[f32], asked: Sampling, history: &History, place: Place) -> Draw {
    Sampler::new(row.len() as u32)
        .draw(row, &params(asked), history, None, place, &mut Vec::new())
        .unwrap()
}

/// The distribution by the definitions alone, in f64: probability by token, those that cannot be left out.
fn naive(row: &[f32], params: &SamplingParams, history: &History) -> BTreeMap<u32, f64> {
    let asked = &params.asked;
    let mut logits: Vec<(u32, f64)> = (0..).zip(row.iter().map(|&x| f64::from(x))).collect();
    for (t, x) in &mut logits {
        if history.generated() < asked.min_tokens && params.ends.contains(t) {
            *x = f64::NEG_INFINITY;
        }
        for (b, bias) in &asked.logit_bias {
            if b == t {
                *x += f64::from(*bias);
            }
        }
        let count = history
            .counts()
            .iter()
            .find(|c| c.0 == *t)
            .map_or(0, |c| c.1);
        if count > 0 || history.prompt().contains(t) {
            let r = f64::from(asked.repetition_penalty);
            *x = if *x > 0.0 { *x / r } else { *x * r };
        }
        *x -= f64::from(asked.frequency_penalty) * f64::from(count);
        if count > 0 {
            *x -= f64::from(asked.presence_penalty);
        }
        *x /= f64::from(asked.temperature);
    }
    // A stable sort: of equals the lower token first.
    logits.sort_by(|a, b| b.1.total_cmp(&a.1));
    let max = logits[0].1;
    let mut kept: Vec<(u32, f64)> = logits
        .into_iter()
        .map(|(t, x)| (t, (x - max).exp()))
        .collect();
    kept.retain(|k| k.1 > 0.0 && k.1 >= f64::from(asked.min_p));
    if asked.top_k > 0 {
        kept.truncate(asked.top_k as usize);
    }
    let all: f64 = kept.iter().map(|k| k.1).sum();
    let mut before = 0.0;
    kept.retain(|k| {
        let keep = before < f64::from(asked.top_p) * all || before == 0.0;
        before += k.1;
        keep
    });
    let all: f64 = kept.iter().map(|k| k.1).sum();
    kept.into_iter().map(|(t, p)| (t, p / all)).collect()
}

/// The distribution that random numbers in even steps give.
fn swept(
    row: &[f32],
    params: &SamplingParams,
    history: &History,
    steps: u32,
) -> BTreeMap<u32, f64> {
    let mut s = Sampler::new(row.len() as u32);
    let mut found = BTreeMap::new();
    for i in 0..steps {
        s.change(row, params, history, None);
        let max = largest(&s.logits).1;
        let token = s.random(params, max, f64::from(i) / f64::from(steps));
        *found.entry(token).or_insert(0.0) += 1.0 / f64::from(steps);
    }
    found
}

#[test]
fn filters_keep_what_their_definitions_keep() {
    let mut history = History::new(PromptTokens::new(&[0, 1, 2, 3, 40], true), true);
    history.observe(5, &[1, 9, 9, 9, 30, 41]);
    let mut cases = Vec::new();
    for temperature in [0.3, 1.0, 2.0] {
        for top_k in [0, 1, 7, 40] {
            for top_p in [1.0, 0.9, 0.5, 1e-9] {
                for min_p in [0.0, 0.05, 1.0] {
                    cases.push(Sampling {
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        ..Sampling::default()
                    });
                }
            }
        }
    }
    for (r, f, p) in [
        (1.3, 0.0, 0.0),
        (0.7, 0.0, 0.0),
        (1.0, 1.5, 0.0),
        (1.0, 0.0, -2.0),
        (1.1, 0.2, 0.3),
    ] {
        cases.push(Sampling {
            repetition_penalty: r,
            frequency_penalty: f,
            presence_penalty: p,
            top_p: 0.95,
            min_tokens: 7,
            logit_bias: vec![(4, 3.0), (30, -100.0), (31, 1.0)],
            ..Sampling::default()
        });
    }
    let steps = 2_000;
    for (i, asked) in cases.into_iter().enumerate() {
        let row = row(i as u64, 50);
        let p = params(asked);
        let (want, got) = (naive(&row, &p, &history), swept(&row, &p, &history, steps));
        // A token's numbers are neighbours, so its share is right to one step.
        let slack = 1.01 / f64::from(steps);
        for token in 0..50 {
            let (w, g) = (
                want.get(&token).copied().unwrap_or(0.0),
                got.get(&token).copied().unwrap_or(0.0),
            );
            assert!(
                (w - g).abs() <= slack,
                "case {i}, token {token}: {w} by definition, {g} found: {:?}",
                p.asked
            );
        }
    }
}

#[test]
fn top_p_over_many_tokens_sorts_as_far_as_it_must() {
    // Far more than are sorted first.
    let row: Vec<f32> = numbers(3, 20_000);
    let p = params(Sampling {
        top_p: 0.8,
        ..Sampling::default()
    });
    let want = naive(&row, &p, &History::default());
    let got = swept(&row, &p, &History::default(), 300);
    assert!(want.len() > 10 * FIRST_SORTED && want.len() < 20_000);
    assert!(got.keys().all(|t| want.contains_key(t)));
    assert!(got.len() > 250, "spread over all of them");
}

#[test]
fn draws_follow_the_distribution() {
    let row: Vec<f32> = (0..10).map(|i| i as f32 * 0.3).collect();
    let p = params(Sampling {
        temperature: 1.3,
        ..Sampling::default()
    });
    let want = naive(&row, &p, &History::default());
    let n = 20_000;
    // Over seeds, over positions, over sequences: each alone must be random.
    let ways: [fn(u32) -> (u64, Place); 3] = [
        |i| (i.into(), HERE),
        |i| {
            (
                1,
                Place {
                    index: 0,
                    position: i,
                },
            )
        },
        |i| {
            (
                1,
                Place {
                    index: i,
                    position: 7,
                },
            )
        },
    ];
    for (way, of) in ways.into_iter().enumerate() {
        let mut counts = [0.0; 10];
        for i in 0..n {
            let (seed, place) = of(i);
            let asked = Sampling {
                temperature: 1.3,
                seed,
                ..Sampling::default()
            };
            counts[draw(&row, asked, &History::default(), place).token as usize] += 1.0;
        }
        let chi2: f64 = (0..10)
            .map(|t| {
                let e = want[&t] * f64::from(n);
                (counts[t as usize] - e).powi(2) / e
            })
            .sum();
        // 9 degrees of freedom: above 27.9 once in a thousand; the seeds are fixed.
        assert!(chi2 < 27.9, "way {way}: {chi2}");
    }
}

#[test]
fn a_draw_depends_on_seed_sequence_and_position_alone() {
    let row = row(1, 1000);
    let mut s = Sampler::new(1000);
    let mut first = Vec::new();
    for round in 0..2 {
        let mut all = Vec::new();
        for seed in [0, 1, u64::MAX] {
            for index in [0, 1] {
                for position in [0, 1, 100_000] {
                    let p = params(Sampling {
                        seed,
                        ..Sampling::default()
                    });
                    let place = Place { index, position };
                    all.push(
                        s.draw(&row, &p, &History::default(), None, place, &mut Vec::new())
                            .unwrap(),
                    );
                }
            }
        }
        if round == 0 {
            first = all;
        } else {
            assert_eq!(all, first);
        }
    }
    let distinct: std::collections::BTreeSet<u32> = first.iter().map(|d| d.token).collect();
    assert!(distinct.len() > 10, "{distinct:?}");
    // Pinned: the same text on every machine and in every later version.
    let got: Vec<u32> = first.iter().map(|d| d.token).take(6).collect();
    assert_eq!(got, PINNED);
    assert_eq!(
        uniform(
            1,
            Place {
                index: 2,
                position: 3
            }
        )
        .to_bits(),
        PINNED_UNIFORM
    );
}

const PINNED: [u32; 6] = [828, 281, 980, 219, 592, 332];
const PINNED_UNIFORM: u64 = 4_600_610_751_452_861_146;

#[test]
fn ties_go_to_the_lower_token() {
    let greedy = Sampling {
        temperature: 0.0,
        logprobs: Some(4),
        ..Sampling::default()
    };
    let row = [1.0, 2.0, -0.0, 2.0, 0.0, 2.0];
    let mut top = Vec::new();
    let mut s = Sampler::new(6);
    let d = s
        .draw(
            &row,
            &params(greedy),
            &History::default(),
            None,
            HERE,
            &mut top,
        )
        .unwrap();
    assert_eq!(d.token, 1);
    assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 5, 0]);
    let mut out = Vec::new();
    s.candidates(
        &row,
        &params(Sampling::default()),
        &History::default(),
        None,
        6,
        &mut out,
        &mut top,
    )
    .unwrap();
    assert_eq!(
        out.iter().map(|d| d.token).collect::<Vec<_>>(),
        [1, 3, 5, 0, 2, 4],
        "0 and −0 are equal"
    );
    assert_eq!(
        out.iter().map(|d| d.ends).collect::<Vec<_>>(),
        [false, true, true, false, false, false]
    );
    let k1 = Sampling {
        top_k: 1,
        seed: 9,
        ..Sampling::default()
    };
    assert_eq!(draw(&row, k1, &History::default(), HERE).token, 1);
}

#[test]
fn log_probabilities_are_of_the_raw_row() {
    let row = row(4, 300);
    let off = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    let asked = Sampling {
        temperature: 0.5,
        top_k: 3,
        logit_bias: vec![(17, 50.0)],
        logprobs: Some(20),
        ..Sampling::default()
    };
    let mut top = Vec::new();
    let mut s = Sampler::new(300);
    let d = s
        .draw(
            &row,
            &params(asked),
            &History::default(),
            None,
            HERE,
            &mut top,
        )
        .unwrap();
    assert_eq!(d.token, 17);
    let close = |got: f32, token: u32| {
        (f64::from(got) - (f64::from(row[token as usize]) - off)).abs() < 1e-5
    };
    assert!(close(d.logprob, 17) && top.iter().all(|&(t, p)| close(p, t)));
    assert_eq!(top.len(), 20);
    assert!(top.is_sorted_by(|a, b| a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)));
    assert!(
        !top.iter()
            .any(|t| row.iter().filter(|&&x| x > row[t.0 as usize]).count() >= 20)
    );
    assert_eq!(
        s.logprob(&row, 17, 0, &mut top).unwrap().to_bits(),
        d.logprob.to_bits()
    );
}

#[test]
fn chosen_tokens_move_with_their_logits() {
    // Without ties, exchanging tokens exchanges what is chosen, and changes no probability.
    let row: Vec<f32> = (0..64).map(|i| (i * 37 % 64) as f32 * 0.11).collect();
    let turned: Vec<f32> = row.iter().rev().copied().collect();
    for (top_k, temperature) in [(5, 1.0), (20, 0.7), (0, 0.0)] {
        for seed in 0..50 {
            let asked = Sampling {
                top_k,
                temperature,
                seed,
                ..Sampling::default()
            };
            let a = draw(&row, asked.clone(), &History::default(), HERE);
            let b = draw(&turned, asked, &History::default(), HERE);
            assert_eq!(a.token, 63 - b.token);
            assert!((a.logprob - b.logprob).abs() < 1e-6);
        }
    }
}

#[test]
fn ends_wait_for_the_least_length() {
    let mut row = vec![0.0; 10];
    (row[3], row[4]) = (9.0, 5.0);
    let asked = Sampling {
        temperature: 0.0,
        min_tokens: 2,
        ..Sampling::default()
    };
    let mut history = History::new(PromptTokens::new(&[1], false), false);
    for (position, want) in [(1, 4), (2, 4), (3, 3)] {
        let d = draw(&row, asked.clone(), &history, HERE);
        assert_eq!((d.token, d.ends), (want, want == 3), "at {position}");
        let mut out = Vec::new();
        Sampler::new(10)
            .candidates(
                &row,
                &params(asked.clone()),
                &history,
                None,
                10,
                &mut out,
                &mut Vec::new(),
            )
            .unwrap();
        assert_eq!(out.iter().any(|d| d.ends), want == 3);
        history.observe(position, &[d.token]);
    }
}

#[test]
fn odd_rows_are_errors_or_finite_answers() {
    let every = [
        Sampling::default(),
        Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        Sampling {
            temperature: 1e-45,
            top_p: 0.5,
            ..Sampling::default()
        },
        Sampling {
            min_p: 1.0,
            top_k: 2,
            repetition_penalty: 0.01,
            logit_bias: vec![(0, 100.0), (1, -100.0)],
            ..Sampling::default()
        },
    ];
    let mut history = History::new(PromptTokens::new(&[0, 1], true), true);
    history.observe(2, &[2, 2]);
    let mut s = Sampler::new(3);
    for asked in every {
        let p = params(asked);
        let mut go = |row: &[f32]| {
            let mut top = Vec::new();
            let d = s.draw(row, &p, &history, None, HERE, &mut top);
            let mut out = Vec::new();
            let c = s.candidates(row, &p, &history, None, 2, &mut out, &mut top);
            assert_eq!(d.is_ok(), c.is_ok());
            d
        };
        let inf = f32::INFINITY;
        let numerical = |token, infinite| Err(SampleError::Numerical { token, infinite });
        assert_eq!(go(&[0.0, f32::NAN, 0.0]), numerical(1, false));
        assert_eq!(go(&[0.0, 0.0, inf]), numerical(2, true));
        assert_eq!(go(&[-inf; 3]), Err(SampleError::Nothing));
        assert!(matches!(
            go(&[0.0; 2]),
            Err(SampleError::Width { found: 2, vocab: 3 })
        ));
        for row in [
            [f32::MAX, f32::MIN, 0.0],
            [f32::MIN, f32::MAX, f32::MAX],
            [-inf, 0.0, -inf],
            [1e-45, -1e-45, 0.0],
            [-inf, -inf, f32::MAX],
        ] {
            let d = go(&row).unwrap();
            assert!(row[d.token as usize] > -inf, "{row:?}: {d:?}");
            assert!(!d.logprob.is_nan(), "{row:?}: {d:?}");
        }
    }
}
