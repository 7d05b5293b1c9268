//! What fibers make of rows by `cu/sample.cu`, against the sampler on whole rows.

use plimsoll_cuda::{Device, Fibers, Launch, args, words};
use plimsoll_program::short_words;
use plimsoll_schedule::{Draw, Output};

use super::*;
use crate::sample::{PromptTokens, Sampling, exp, sum};

/// Numbers from −1 to 1.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Rows that differ in how even they are; with ties, in whole quarters.
fn row(seed: u64, vocab: usize) -> Vec<f32> {
    let mut next = numbers(seed);
    let wide = [0.0, 0.25, 4.0, 30.0, 90.0][seed as usize % 5];
    let step = if seed.is_multiple_of(3) { 4.0 } else { 4096.0 };
    (0..vocab)
        .map(|i| {
            let x = (next() * wide * step).round() / step;
            // Some can never come, and zeros have either sign.
            match i % 13 {
                5 if seed.is_multiple_of(2) => f32::NEG_INFINITY,
                6 => -0.0,
                _ => x,
            }
        })
        .collect()
}

/// What the kernel says of rows.
fn shorten(rows: &[Vec<f32>], briefs: &[Option<Brief>]) -> (Vec<u64>, usize) {
    let (vocab, each) = (rows[0].len(), short_words(rows[0].len() as u64));
    let mut device = Fibers::new();
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let logits = device.allocate((4 * vocab * rows.len()) as u64).unwrap();
    device.upload(logits, &bytes(&rows.concat())).unwrap();
    let told: Vec<u8> = briefs
        .iter()
        .flat_map(|b| Brief::words(b.as_ref()))
        .flat_map(u32::to_le_bytes)
        .collect();
    let list = device.allocate(told.len() as u64).unwrap();
    device.upload(list, &told).unwrap();
    let len = 8 * each * rows.len() as u64;
    let out = device.allocate_host(len).unwrap();
    let a = args::Shorten {
        logits: logits.0,
        briefs: list.0,
        out: out.0,
        vocab: vocab as u32,
        words: each as u32,
    };
    device.allow(&[
        (logits, (4 * vocab * rows.len()) as u64),
        (list, told.len() as u64),
        (out, len),
    ]);
    let how = Launch {
        shared: (16 * vocab.div_ceil(1024)) as u32,
        ..Launch::blocks(rows.len() as u32, 512)
    };
    device.launch("shorten", how, a.bytes()).unwrap();
    let all = words(device.host(out, len as usize).unwrap()).unwrap();
    (all.to_vec(), each as usize)
}

fn asked(n: u64) -> Sampling {
    let pick = |of: &[f32], n: u64| of[n as usize % of.len()];
    Sampling {
        temperature: pick(&[0.0, 0.01, 0.7, 1.0, 2.0], n),
        top_k: [0, 0, 1, 5, 50, 256, 300][n as usize / 3 % 7],
        top_p: pick(&[1.0, 0.9, 0.3, 0.999, 1e-6], n / 5),
        min_p: pick(&[0.0, 0.0, 0.05, 1.0], n / 7),
        seed: n,
        logprobs: [None, Some(0), Some(5), Some(20)][n as usize / 2 % 4],
        ..Sampling::default()
    }
}

fn bits(d: &Draw) -> (u32, u32, bool) {
    (d.token, d.logprob.to_bits(), d.ends)
}

fn all_bits(top: &[(u32, f32)]) -> Vec<(u32, u32)> {
    // What can never come has no order of its own.
    let told = top.iter().filter(|t| t.1 > f32::NEG_INFINITY);
    told.map(|t| (t.0, t.1.to_bits())).collect()
}

#[test]
fn shortlists_yield_what_whole_rows_do() {
    let (mut drawn, mut asked_again, mut whole) = (0, 0, 0);
    for vocab in [1, 31, 300, 1024, 5000] {
        let mut sampler = Sampler::new(vocab as u32);
        let history = History::new(PromptTokens::new(&[1], false), false);
        let count = 140;
        let rows: Vec<_> = (0..count).map(|n| row(n, vocab)).collect();
        let params: Vec<_> = (0..count)
            .map(|n| SamplingParams::new(asked(n), vocab as u32, &[0], 100).unwrap())
            .collect();
        let place = |n: usize| Place {
            index: n as u32 % 3,
            position: n as u32,
        };
        let one = Output::Sample { draws: 1 };
        let briefs: Vec<_> = (0..count as usize)
            .map(|n| Brief::new(&params[n], &history, one, place(n), vocab as u32))
            .collect();
        let (words, each) = shorten(&rows, &briefs);
        let lists = Shortlists {
            words: &words,
            each,
        };
        for n in 0..count as usize {
            let (mut top, mut top_short) = (Vec::new(), Vec::new());
            let want = sampler.draw(&rows[n], &params[n], &history, None, place(n), &mut top);
            let Some(brief) = &briefs[n] else {
                whole += 1;
                continue;
            };
            let short = lists.get(n, brief).unwrap();
            let got = sampler.draw_short(&short, &params[n], place(n), &mut top_short);
            // Not only what is rounded in the end.
            let max = rows[n].iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
            let all = sum(&rows[n], |x| exp(x - max));
            assert_eq!(short.head[3], all.to_bits());
            if brief.temperature > 0.0 {
                let cut = Cut::new(params[n].asked(), max);
                let kept = sum(&rows[n], |x| cut.weight(x));
                assert_eq!(short.head[4], kept.to_bits());
            }
            let what = format!("{vocab}, {n}: {:?}", params[n]);
            match (want, got) {
                (Ok(_), Ok(None)) => asked_again += 1,
                (Ok(want), Ok(Some(got))) => {
                    assert_eq!(bits(&want), bits(&got), "{what}");
                    assert_eq!(all_bits(&top), all_bits(&top_short), "{what}");
                    drawn += 1;
                }
                (want, got) => assert_eq!(want.map(Some), got, "{what}"),
            }
        }
    }
    // Only even rows of many tokens are asked again.
    assert!(drawn > 500 && (1..80).contains(&asked_again) && (1..80).contains(&whole));
}

#[test]
fn searches_see_the_same_candidates() {
    for vocab in [2, 300, 5000] {
        let mut sampler = Sampler::new(vocab as u32);
        let history = History::new(PromptTokens::new(&[1], false), false);
        let rows: Vec<_> = (0..20).map(|n| row(n, vocab)).collect();
        let params = |n: u64| {
            let asked = Sampling {
                logprobs: [None, Some(3)][n as usize % 2],
                temperature: 0.0,
                ..Sampling::default()
            };
            SamplingParams::new(asked, vocab as u32, &[0], 100).unwrap()
        };
        let k = |n: u64| [1, 2, 8, 200][n as usize % 4];
        let place = Place {
            index: 0,
            position: 0,
        };
        let briefs: Vec<_> = (0..20)
            .map(|n| {
                let output = Output::Candidates { k: k(n) };
                Brief::new(&params(n), &history, output, place, vocab as u32)
            })
            .collect();
        let (words, each) = shorten(&rows, &briefs);
        let lists = Shortlists {
            words: &words,
            each,
        };
        for n in 0..20_u64 {
            let short = lists.get(n as usize, &briefs[n as usize].unwrap()).unwrap();
            let (mut want, mut got) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
            sampler
                .candidates(
                    &rows[n as usize],
                    &params(n),
                    &history,
                    None,
                    k(n),
                    &mut want.0,
                    &mut want.1,
                )
                .unwrap();
            Sampler::candidates_short(&short, &params(n), k(n), &mut got.0, &mut got.1).unwrap();
            let all = |d: &[Draw]| d.iter().map(bits).collect::<Vec<_>>();
            assert_eq!(all(&want.0), all(&got.0), "{vocab}, {n}");
            assert_eq!(all_bits(&want.1), all_bits(&got.1), "{vocab}, {n}");
        }
    }
}

#[test]
fn odd_rows_say_what_is_odd() {
    let vocab = 700;
    let history = History::default();
    let params = SamplingParams::new(asked(0), vocab, &[0], 100).unwrap();
    let place = Place {
        index: 0,
        position: 0,
    };
    let mut rows = vec![row(1, vocab as usize); 4];
    rows[0][699] = f32::NAN;
    (rows[1][64], rows[1][31]) = (f32::NAN, f32::INFINITY);
    rows[2][0] = -f32::NAN;
    rows[3].fill(f32::NEG_INFINITY);
    let one = Output::Sample { draws: 1 };
    let briefs = [Brief::new(&params, &history, one, place, vocab); 4];
    let (words, each) = shorten(&rows, &briefs);
    let lists = Shortlists {
        words: &words,
        each,
    };
    let mut sampler = Sampler::new(vocab);
    for (n, row) in rows.iter().enumerate() {
        let short = lists.get(n, &briefs[n].unwrap()).unwrap();
        let want = sampler.draw(row, &params, &history, None, place, &mut Vec::new());
        let got = sampler.draw_short(&short, &params, place, &mut Vec::new());
        assert!(want.is_err());
        assert_eq!(want.map(Some), got, "{n}");
    }
}
