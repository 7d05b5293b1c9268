//! [`fill_tokens`]: the token ids of a prompt, made up so that sharing is exactly what the request
//! says.

use std::num::NonZeroU32;

use super::random::mix;
use crate::{Arrival, Content};

/// Keeps unique prompts, prefixes and blocks with equal numbers apart.
#[derive(Clone, Copy)]
enum Kind {
    Unique = 1,
    Prefix = 2,
    Block = 3,
}

/// Replaces `out` by the prompt of `arrival`, the `index`-th request of the workload with this
/// seed: `prompt_tokens` ids below `vocabulary`.
///
/// Equal content gives equal ids (a shared prefix, a block of the same id, whatever its place),
/// and everything else is drawn apart, by a hash of seed, request and position. Two unrelated runs
/// of `n` tokens agree with probability `vocabulary^-n`: a vocabulary of a few hundred or more
/// keeps a prefix cache from seeing what is not there. Costs about 1 ns per token.
///
/// # Panics
/// Where the prompt does not fit in memory, as a vector does.
pub fn fill_tokens(
    arrival: &Arrival,
    index: u64,
    seed: u64,
    vocabulary: NonZeroU32,
    out: &mut Vec<u32>,
) {
    let total = arrival.prompt_tokens;
    out.clear();
    out.reserve(usize::try_from(total).unwrap_or(usize::MAX));
    let key = |kind: Kind, id: u64| mix(mix(mix(seed) ^ kind as u64) ^ id);
    match &arrival.content {
        Content::Unique => {}
        Content::SharedPrefix { id, tokens } => {
            run(key(Kind::Prefix, *id), *tokens.min(&total), vocabulary, out);
        }
        Content::Blocks { ids, block_tokens } => {
            let mut left = total;
            for id in ids.iter() {
                let n = left.min(*block_tokens);
                run(key(Kind::Block, *id), n, vocabulary, out);
                left -= n;
            }
        }
    }
    let left = total - out.len() as u64;
    run(key(Kind::Unique, index), left, vocabulary, out);
}

/// Appends `n` ids that depend on `key` and their place in the run. One mixed word of 64 bits
/// gives two ids; a word times the vocabulary, shifted, is below the vocabulary without a division.
fn run(key: u64, n: u64, vocabulary: NonZeroU32, out: &mut Vec<u32>) {
    /// 2^64 over the golden ratio, the step of SplitMix64.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let vocabulary = u64::from(vocabulary.get());
    let below = |half: u64| ((half * vocabulary) >> 32) as u32;
    let word = |pair: u64| {
        let x = key.wrapping_add(pair.wrapping_mul(STEP));
        let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^ (x >> 32)
    };
    let pair = |w: u64| [below(w >> 32), below(w & 0xffff_ffff)];
    out.extend((0..n / 2).flat_map(|i| pair(word(i))));
    if n % 2 == 1 {
        out.push(below(word(n / 2) >> 32));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use plimsoll_units::Nanos;

    use super::*;
    use crate::Fan;

    const VOCABULARY: NonZeroU32 = NonZeroU32::new(32_000).unwrap();

    fn prompt(prompt_tokens: u64, content: Content, index: u64) -> Vec<u32> {
        let arrival = Arrival {
            at: Nanos(0),
            prompt_tokens,
            output_tokens: 1,
            content,
            fan: Fan::One,
            tenant: 0,
            priority: 0,
        };
        let mut out = vec![7];
        fill_tokens(&arrival, index, 42, VOCABULARY, &mut out);
        assert_eq!(out.len() as u64, prompt_tokens);
        assert!(out.iter().all(|&t| t < VOCABULARY.get()));
        out
    }

    /// Leading tokens that two prompts share.
    fn shared(a: &[u32], b: &[u32]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn unique_prompts_share_nothing_and_repeat_themselves() {
        let a = prompt(1001, Content::Unique, 0);
        assert_eq!(a, prompt(1001, Content::Unique, 0));
        assert_eq!(a[..500], prompt(500, Content::Unique, 0));
        assert!(shared(&a, &prompt(1001, Content::Unique, 1)) < 3);
        // They use the vocabulary evenly: the mean is in the middle.
        let mean = a.iter().map(|&t| f64::from(t)).sum::<f64>() / 1001.0;
        assert!((mean - 16_000.0).abs() < 1_500.0, "{mean}");
    }

    #[test]
    fn a_shared_prefix_is_shared_to_its_last_token_and_no_further() {
        let of = |id, tokens| Content::SharedPrefix { id, tokens };
        let (a, b) = (prompt(200, of(3, 81), 0), prompt(300, of(3, 81), 1));
        assert!((81..84).contains(&shared(&a, &b)));
        assert!(shared(&a, &prompt(200, of(4, 81), 2)) < 3);
        assert_eq!(prompt(20, of(3, 81), 5), a[..20]);
    }

    #[test]
    fn blocks_are_shared_by_id() {
        let of = |ids: &[u64]| Content::Blocks {
            ids: Arc::from(ids),
            block_tokens: 512,
        };
        let a = prompt(1200, of(&[1, 2, 3]), 0);
        let b = prompt(2000, of(&[1, 2, 9, 3]), 1);
        assert!((1024..1027).contains(&shared(&a, &b)));
        assert_eq!(a[1024..], b[1536..1536 + 176]);
        // Fewer ids than the prompt needs: the rest is the request's own.
        assert_eq!(prompt(600, of(&[1]), 0)[..512], a[..512]);
    }
}
