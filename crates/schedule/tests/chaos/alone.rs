//! What a request yields when it runs alone, worked out without pages or batches.

use plimsoll_kv::Layout;
use plimsoll_schedule::{Beam, Fan};

use crate::shadow::{candidates, draw, logits};

/// The tokens of each completion, in the order in which the scheduler reports them.
pub(crate) fn alone(
    layout: &Layout,
    prompt: &[u32],
    max_tokens: usize,
    fan: Fan,
    seed: u64,
    vocab: u32,
) -> Vec<Vec<u32>> {
    match fan {
        Fan::Sample { n, best_of } => {
            let mut all: Vec<(f64, Vec<u32>)> = (0..best_of)
                .map(|index| {
                    let mut tokens = prompt.to_vec();
                    let mut score = 0.0;
                    loop {
                        let d = draw(logits(layout, &tokens), seed, index, vocab);
                        tokens.push(d.token);
                        score += f64::from(d.logprob);
                        if d.ends || tokens.len() == prompt.len() + max_tokens {
                            return (score, tokens.split_off(prompt.len()));
                        }
                    }
                })
                .collect();
            if best_of > n {
                all.sort_by(|a, b| b.0.total_cmp(&a.0));
            }
            all.truncate(n as usize);
            all.into_iter().map(|c| c.1).collect()
        }
        Fan::Beam(beam) => search(layout, prompt, max_tokens, &beam, vocab),
    }
}

fn search(layout: &Layout, prompt: &[u32], max: usize, beam: &Beam, vocab: u32) -> Vec<Vec<u32>> {
    let width = beam.width as usize;
    let score = |sum: f64, length: usize| sum / libm::pow(length as f64, beam.length_penalty);
    let mut live: Vec<(f64, Vec<u32>)> = vec![(0.0, Vec::new())];
    let mut done: Vec<(f64, Vec<u32>)> = Vec::new();
    let keep = |done: &mut Vec<(f64, Vec<u32>)>, s: f64, tokens: Vec<u32>| {
        done.push((s, tokens));
        done.sort_by(|a, b| b.0.total_cmp(&a.0));
        done.truncate(width);
    };
    for length in 1..=max {
        let mut all = Vec::new();
        for (sum, tokens) in &live {
            let context: Vec<u32> = prompt.iter().chain(tokens).copied().collect();
            for c in candidates(logits(layout, &context), beam.width * 2, vocab) {
                let mut t = tokens.clone();
                t.push(c.token);
                all.push((sum + f64::from(c.logprob), t, c.ends));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        live.clear();
        for (rank, (sum, tokens, ends)) in all.into_iter().enumerate() {
            if !ends {
                if live.len() < width {
                    live.push((sum, tokens));
                }
            } else if rank < width {
                keep(&mut done, score(sum, length), tokens);
            }
        }
        let full = done.len() >= width;
        let over = live.is_empty()
            || full && (beam.early_stopping || done[width - 1].0 >= score(live[0].0, length));
        if over {
            break;
        }
        if length == max {
            for (sum, tokens) in std::mem::take(&mut live) {
                keep(&mut done, score(sum, length), tokens);
            }
        }
    }
    done.into_iter().map(|d| d.1).collect()
}
