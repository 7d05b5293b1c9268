//! Whatever the bytes, a reader gives requests that keep their promises, or an error.

use std::io::{BufReader, Cursor};

use plimsoll_simulate::Content;
use plimsoll_simulate::workload::{Repeat, Shaping, SyntheticSpec, WorkloadSpec};
use proptest::prelude::*;

const SEEDS: &[&[u8]] = &[
    include_bytes!("data/azure_code_head.csv"),
    include_bytes!("data/mooncake_short.jsonl"),
    include_bytes!("data/burstgpt_form.csv"),
    include_bytes!("data/vidur_form.csv"),
    include_bytes!("data/lengths_form.json"),
];

/// Reads to the end or the first error, with times kept and replaced, through a small buffer.
fn check(bytes: &[u8]) {
    let shaped = WorkloadSpec {
        shaping: Shaping {
            skip: 1,
            repeat: Repeat::FreshContent,
            limit: Some(200),
            max_model_tokens: Some(700),
            ..Shaping::default()
        },
        ..WorkloadSpec::trace()
    };
    let specs = [
        WorkloadSpec::trace(),
        WorkloadSpec::trace().at_rate(5.0),
        shaped,
    ];
    for spec in specs {
        let source = Box::new(BufReader::with_capacity(13, Cursor::new(bytes.to_vec())));
        let Ok(mut workload) = spec.open(Some(source)) else {
            continue;
        };
        let mut before = None;
        for arrival in workload.by_ref().map_while(Result::ok) {
            assert!(before <= Some(arrival.at));
            before = Some(arrival.at);
            assert!((1..1 << 32).contains(&arrival.prompt_tokens));
            assert!((1..1 << 32).contains(&arrival.output_tokens));
            if let Content::Blocks { ids, block_tokens } = &arrival.content {
                assert_eq!(
                    ids.len() as u64,
                    arrival.prompt_tokens.div_ceil(*block_tokens)
                );
            }
        }
        assert_eq!(workload.next(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_traces_never_panic(
        which in 0..SEEDS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = SEEDS[which].to_vec();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                // Bytes that mean something, more often than chance has it.
                1 => bytes[at] = b"\",{}[]\n\r-.9e\xef:"[usize::from(byte) % 14],
                2 => bytes.insert(at, b"09-.\","[usize::from(byte) % 6]),
                _ => { bytes.remove(at); }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }

    #[test]
    fn any_spec_text_never_panics(
        text in "(sharegpt|synthetic|azure-code)?:?((in|out|rate|cv|total|prefix|fan|tenants)=\
                 [a-z]{0,9}[(]?[0-9.:,-]{0,12}[)]?,?){0,4}",
    ) {
        if let Ok(spec) = text.parse::<SyntheticSpec>()
            && let Ok(workload) = WorkloadSpec::synthetic(spec).open(None)
        {
            for arrival in workload.take(20).map_while(Result::ok) {
                assert!(arrival.prompt_tokens >= 1 && arrival.output_tokens >= 1);
            }
        }
    }
}
