//! Synthetic workloads: their means, their independence, and their first values on any machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::num::NonZeroU32;

use plimsoll_simulate::workload::{
    Lengths, PRESETS, Preset, SyntheticSpec, WorkloadError, WorkloadSpec, describe, fill_tokens,
};
use plimsoll_simulate::{Arrival, Content, Fan};

fn arrivals(spec: &WorkloadSpec, n: usize) -> Vec<Arrival> {
    let workload = spec.open(None).unwrap();
    workload.take(n).collect::<Result<_, _>>().unwrap()
}

fn parse(text: &str) -> WorkloadSpec {
    text.parse().unwrap()
}

/// The first requests of each preset with seed 0: milliseconds, prompt tokens, output tokens. They
/// must not change: whoever has published a run would no longer find it.
#[test]
fn presets_begin_as_they_always_have() {
    let first = |p: &Preset| -> Vec<(u64, u64, u64)> {
        arrivals(&WorkloadSpec::synthetic(p.spec()), 4)
            .iter()
            .map(|a| (a.at.get() / 1_000_000, a.prompt_tokens, a.output_tokens))
            .collect()
    };
    let got: Vec<_> = PRESETS.iter().map(|p| (p.name, first(p))).collect();
    let want = [
        (
            "sharegpt",
            vec![
                (0, 150, 61),
                (308, 198, 200),
                (945, 100, 109),
                (1843, 107, 341),
            ],
        ),
        (
            "alpaca",
            vec![(0, 18, 11), (20, 24, 34), (63, 13, 19), (122, 14, 57)],
        ),
        (
            "azure-code",
            vec![
                (0, 1898, 6),
                (240, 2685, 10),
                (736, 969, 7),
                (1436, 1100, 15),
            ],
        ),
        (
            "azure-conv",
            vec![
                (0, 1072, 12),
                (111, 1180, 103),
                (341, 651, 41),
                (666, 745, 282),
            ],
        ),
    ];
    assert_eq!(got, want);
}

#[test]
fn presets_have_the_means_of_their_sources() {
    for (name, input, output) in [
        ("sharegpt", 161.31, 337.99),
        ("alpaca", 19.31, 58.45),
        ("azure-code", 2047.85, 27.88),
        ("azure-conv", 1154.70, 211.13),
    ] {
        let n = 200_000_usize;
        let preset = Preset::named(name).unwrap();
        let spec = WorkloadSpec::synthetic(preset.spec());
        let d = describe(spec.open(None).unwrap().take(n)).unwrap();
        for (got, want) in [(d.input, input), (d.output, output)] {
            // Four standard errors, and the rounding to whole tokens.
            let tolerance = 4.0 * got.sd / (n as f64).sqrt() + 0.01;
            println!(
                "{name}: mean {:.2} for {want}, cv {:.3}",
                got.mean,
                got.sd / got.mean
            );
            assert!(
                (got.mean - want).abs() < tolerance,
                "{name}: {} for {want}",
                got.mean
            );
        }
        let rate = d.per_second.unwrap();
        assert!(
            (rate / preset.per_second - 1.0).abs() < 0.01,
            "{name}: {rate}/s"
        );
        assert!(preset.source.len() > 50);
    }
}

#[test]
fn the_azure_presets_have_the_quantiles_of_the_trace() {
    let spec = parse("azure-code");
    let d = describe(spec.open(None).unwrap().take(100_000)).unwrap();
    for (got, want) in [
        (d.input.p25, 578.0),
        (d.input.p50, 1469.0),
        (d.input.p90, 5194.0),
        (d.output.p50, 13.0),
        (d.output.p90, 55.0),
    ] {
        assert!((got as f64 / want - 1.0).abs() < 0.03, "{got} for {want}");
    }
}

#[test]
fn the_total_is_never_exceeded() {
    for a in arrivals(&parse("sharegpt"), 100_000) {
        assert!(a.prompt_tokens + a.output_tokens <= 2048);
    }
    let tight = parse("synthetic:in=uniform(1,100),out=lognormal(20,1,2,90),total=101");
    let got = arrivals(&tight, 100_000);
    assert!(got.iter().all(|a| a.prompt_tokens + a.output_tokens <= 101));
    assert!(got.iter().all(|a| a.output_tokens >= 2));
    let mean = got.iter().map(|a| a.output_tokens as f64).sum::<f64>() / 1e5;
    assert!((mean - 20.0).abs() < 0.3, "{mean}");
    let none: SyntheticSpec = "synthetic:in=100,out=5,total=104".parse().unwrap();
    assert!(WorkloadSpec::synthetic(none).open(None).is_err());
}

#[test]
fn one_part_of_a_spec_does_not_move_the_others() {
    let base = arrivals(&parse("alpaca"), 500);
    let other = arrivals(
        &parse(
            "alpaca:rate=60,out=uniform(1,9),fan=beam(4,0.5),prefix=shared(9,100,0.5),tenants=weights(1,1)",
        ),
        500,
    );
    for (a, b) in base.iter().zip(&other) {
        let prefix = match b.content {
            Content::SharedPrefix { tokens, .. } => tokens,
            _ => 0,
        };
        assert_eq!(a.prompt_tokens, b.prompt_tokens - prefix);
        // Twice the rate is the same pattern in half the time, up to rounding of each gap.
        assert!(a.at.get().abs_diff(2 * b.at.get()) <= 1000);
    }
    // Another share leaves the choice of prefixes where it was.
    let half = arrivals(&parse("alpaca:prefix=shared(50,10,0.5,1)"), 500);
    let all = arrivals(&parse("alpaca:prefix=shared(50,10,1,1)"), 500);
    let both = half.iter().zip(&all);
    assert!(
        both.filter(|(h, _)| h.content != Content::Unique)
            .all(|(h, a)| h.content == a.content)
    );
    // Another seed is another workload.
    let seeded = WorkloadSpec {
        seed: 1,
        ..parse("alpaca")
    };
    let again = arrivals(&seeded, 500);
    assert!(
        base.iter()
            .zip(&again)
            .filter(|(a, b)| a.prompt_tokens == b.prompt_tokens)
            .count()
            < 100
    );
}

#[test]
fn shares_and_weights_are_met() {
    let n = 40_000;
    let text = "alpaca:fan=parallel(6,0.25),prefix=shared(4,80,0.5,1),tenants=weights(3,1:-5)";
    let got = arrivals(&parse(text), n);
    let share =
        |f: &dyn Fn(&Arrival) -> bool| got.iter().filter(|a| f(a)).count() as f64 / n as f64;
    let near = |got: f64, want: f64| assert!((got - want).abs() < 0.015, "{got} for {want}");
    near(share(&|a| a.fan == Fan::Parallel(6)), 0.25);
    near(share(&|a| a.tenant == 1 && a.priority == -5), 0.25);
    near(share(&|a| a.tenant == 0 && a.priority == 0), 0.75);
    let prefix =
        |k| move |a: &Arrival| matches!(a.content, Content::SharedPrefix { id, .. } if id == k);
    // Zipf over four: 1, 1/2, 1/3, 1/4 of 25/12.
    for k in 0..4 {
        near(share(&prefix(k)), 0.5 * 12.0 / 25.0 / (k + 1) as f64);
    }
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "alpaca:rate=0",
        "alpaca:rate=-1",
        "alpaca:rate=NaN",
        "alpaca:cv=0",
        "alpaca:fan=beam(2,1.5)",
        "alpaca:prefix=shared(0,10)",
        "alpaca:prefix=shared(10,0)",
        "alpaca:prefix=shared(1,1,0.5,-1)",
        "alpaca:tenants=weights(0,0)",
        "alpaca:tenants=weights(-1,2)",
        "alpaca:in=0",
        "alpaca:in=uniform(9,1)",
        "alpaca:in=lognormal(5000,1)",
        "alpaca:in=quantiles(0:1)",
        "alpaca:in=quantiles(0:1,0.9:2)",
        "alpaca:in=quantiles(0:1,0.5:9,1:2)",
        "alpaca:in=quantiles(0:1,1:2,mean:3)",
    ] {
        let error = parse(text).open(None).unwrap_err();
        assert!(
            matches!(error, WorkloadError::BadSpec { .. }),
            "{text}: {error}"
        );
    }
    let spec = SyntheticSpec {
        input: Lengths::Fixed(u64::MAX),
        ..parse_synthetic("alpaca")
    };
    assert!(WorkloadSpec::synthetic(spec).open(None).is_err());
}

/// As `parse`, without the parts that are not drawn.
fn parse_synthetic(text: &str) -> SyntheticSpec {
    text.parse().unwrap()
}

/// The same for what is not drawn by presets: Gamma gaps in nanoseconds, and token ids.
#[test]
fn gaps_and_tokens_begin_as_they_always_have() {
    let got = arrivals(&parse("synthetic:in=4,out=1,cv=2"), 4);
    let at: Vec<_> = got.iter().map(|a| a.at.get()).collect();
    assert_eq!(at, [0, 157_349_948, 171_647_244, 1_367_623_855]);
    let mut out = Vec::new();
    let vocabulary = NonZeroU32::new(128_256).unwrap();
    fill_tokens(&got[0], 0, 0, vocabulary, &mut out);
    assert_eq!(out, [81209, 37282, 68430, 57935]);
}
