//! Readers of traces: formats, what is wrong with files, and the statistics of the real ones.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which say what they skip"
)]

use std::io::{BufRead, BufReader, Cursor};
use std::path::PathBuf;

use plimsoll_simulate::workload::{
    ArrivalProcess, Description, Notes, Repeat, Retime, Shaping, TraceFormat, TraceSpec, Workload,
    WorkloadError, WorkloadSource, WorkloadSpec, describe,
};
use plimsoll_simulate::{Arrival, Content};

const SECOND: u64 = 1_000_000_000;

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    std::fs::read_to_string(path).expect("a committed fixture")
}

/// A full trace beside the workspace, where this machine has it.
fn shared(name: &str) -> Option<Box<dyn BufRead + Send>> {
    let folder = "../../../shared/data/traces";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join(name);
    match std::fs::File::open(&path) {
        Ok(file) => Some(Box::new(BufReader::new(file))),
        Err(_) => {
            println!("skipped: {} is not here", path.display());
            None
        }
    }
}

fn source(text: impl Into<Vec<u8>>) -> Option<Box<dyn BufRead + Send>> {
    Some(Box::new(Cursor::new(text.into())))
}

fn spec(shaping: Shaping) -> WorkloadSpec {
    WorkloadSpec {
        shaping,
        ..WorkloadSpec::trace()
    }
}

fn poisson() -> WorkloadSpec {
    WorkloadSpec::trace().at_rate(2.0)
}

fn read(
    spec: &WorkloadSpec,
    text: impl Into<Vec<u8>>,
) -> Result<(Vec<Arrival>, Notes), WorkloadError> {
    let mut workload: Workload = spec.open(source(text))?;
    let arrivals = workload.by_ref().collect::<Result<Vec<_>, _>>()?;
    Ok((arrivals, workload.notes()))
}

fn error(text: impl Into<Vec<u8>>) -> String {
    read(&WorkloadSpec::trace(), text).unwrap_err().to_string()
}

fn lengths(arrivals: &[Arrival]) -> Vec<(u64, u64)> {
    arrivals
        .iter()
        .map(|a| (a.prompt_tokens, a.output_tokens))
        .collect()
}

#[track_caller]
fn close(got: f64, want: f64, digits: i32) {
    let unit = 10_f64.powi(-digits);
    assert!(
        (got - want).abs() <= 0.5 * unit + 1e-9,
        "{got} is not {want}"
    );
}

// The real traces, whose statistics were computed by other programs.

#[test]
fn azure_code_has_its_published_statistics() {
    let Some(file) = shared("azure_2023_code.csv") else {
        return;
    };
    let d = describe(WorkloadSpec::trace().open(Some(file)).unwrap()).unwrap();
    assert_eq!(d.requests, 8819);
    assert_eq!(d.span.get() / SECOND, 3435);
    close(d.span.get() as f64 / 1e9, 3436.0, 0);
    close(d.input.mean, 2047.85, 2);
    close(d.input.sd, 1973.77, 2);
    let i = d.input;
    assert_eq!((i.min, i.p25, i.p50, i.p75), (3, 578, 1469, 2745));
    assert_eq!((i.p90, i.p99, i.max), (5194, 7436, 7437));
    close(d.output.mean, 27.88, 2);
    close(d.output.sd, 59.86, 2);
    let o = d.output;
    assert_eq!((o.min, o.p50, o.p90, o.p99, o.max), (6, 13, 55, 252, 1899));
    assert_eq!(d.reuse(), None);
}

#[test]
fn mooncake_synthetic_has_its_published_statistics_and_reuse() {
    let Some(file) = shared("mooncake_synthetic.jsonl") else {
        return;
    };
    let d: Description = describe(WorkloadSpec::trace().open(Some(file)).unwrap()).unwrap();
    assert_eq!(d.requests, 3993);
    assert_eq!(d.span.get(), 1_022_025_000_000);
    close(d.input.mean, 15_325.5, 1);
    assert_eq!(
        (d.input.p50, d.input.p90, d.input.max),
        (11_587, 38_615, 191_378)
    );
    close(d.output.mean, 149.1, 1);
    assert_eq!((d.output.p50, d.output.p90, d.output.max), (69, 389, 893));
    assert_eq!((d.blocks, d.blocks_distinct), (121_877, 43_924));
    close(d.reuse().unwrap() * 100.0, 64.0, 1);
}

#[test]
fn a_million_requests_come_of_a_repeated_trace() {
    let Some(file) = shared("azure_2023_code.csv") else {
        return;
    };
    let spec = spec(Shaping {
        repeat: Repeat::FreshContent,
        limit: Some(1_000_000),
        ..Shaping::default()
    });
    let mut workload = spec.open(Some(file)).unwrap();
    let (mut n, mut before) = (0, 0);
    for arrival in workload.by_ref() {
        let at = arrival.unwrap().at.get();
        assert!(at >= before);
        (n, before) = (n + 1, at);
    }
    assert_eq!(n, 1_000_000);
    assert_eq!(workload.notes().passes, 1_000_000_u64.div_ceil(8819));
    // The mean rate is that of the trace.
    close(999_999.0 / (before as f64 / 1e9), 8818.0 / 3435.948, 2);
}

// Formats, on committed rows.

#[test]
fn azure_rows_are_relative_to_the_first() {
    let (arrivals, notes) = read(&WorkloadSpec::trace(), fixture("azure_code_head.csv")).unwrap();
    assert_eq!(arrivals.len(), 30);
    assert_eq!(lengths(&arrivals[..2]), [(4808, 10), (3180, 8)]);
    assert_eq!(arrivals[0].at.get(), 0);
    assert_eq!(arrivals[1].at.get(), 52_000_000);
    assert_eq!(arrivals[0].content, Content::Unique);
    assert_eq!(
        notes,
        Notes {
            passes: 1,
            ..Notes::default()
        }
    );
}

#[test]
fn the_2024_files_have_an_offset_in_their_times() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                2024-05-10 00:00:00.009930+00:00,2162,5\n\
                2024-05-10 00:00:00.017335+00:00,2399,6\n";
    let (arrivals, _) = read(&WorkloadSpec::trace(), text).unwrap();
    assert_eq!(arrivals[1].at.get(), 7_405_000);
}

#[test]
fn mooncake_rows_carry_their_blocks() {
    let (arrivals, _) = read(&WorkloadSpec::trace(), fixture("mooncake_short.jsonl")).unwrap();
    assert_eq!(arrivals.len(), 30);
    for a in &arrivals {
        let Content::Blocks {
            ids,
            block_tokens: 512,
        } = &a.content
        else {
            panic!("{a:?}")
        };
        assert_eq!(ids.len() as u64, a.prompt_tokens.div_ceil(512));
    }
}

#[test]
fn dynamos_extra_fields_are_ignored() {
    let text = r#"{"timestamp": 27482, "session_id": "a", "delay": 1.5, "input_length": 600, "output_length": 52, "hash_ids": [1, 2]}"#;
    let (arrivals, _) = read(&WorkloadSpec::trace(), text).unwrap();
    assert_eq!(lengths(&arrivals), [(600, 52)]);
}

#[test]
fn burstgpt_failures_are_skipped_and_counted_and_a_late_row_is_moved() {
    let (arrivals, notes) = read(&WorkloadSpec::trace(), fixture("burstgpt_form.csv")).unwrap();
    let want = [(472, 18), (1087, 230), (417, 276), (185, 215), (643, 12)];
    assert_eq!(lengths(&arrivals), want);
    let at: Vec<_> = arrivals.iter().map(|a| a.at.get() / SECOND).collect();
    assert_eq!(at, [0, 40, 113, 113, 232]);
    assert_eq!((notes.failed_skipped, notes.reordered), (1, 1));
}

#[test]
fn lengths_without_times_need_a_rate() {
    for (name, want) in [
        ("vidur_form.csv", [(1730, 415), (512, 64), (7059, 208)]),
        ("lengths_form.json", [(13, 7), (161, 338), (1024, 1)]),
    ] {
        assert_eq!(error(fixture(name)), WorkloadError::NoRate.to_string());
        let (arrivals, _) = read(&poisson(), fixture(name)).unwrap();
        assert_eq!(lengths(&arrivals), want);
        assert_eq!(arrivals[0].at.get(), 0);
        assert!(arrivals[1].at < arrivals[2].at);
    }
    let timed = "{\"arrived_at\": 2, \"prompt_tokens\": 3, \"completion_tokens\": 4}\n\
                 {\"arrived_at\": 3.5, \"prompt_tokens\": 3, \"completion_tokens\": 4}\n";
    let (arrivals, _) = read(&WorkloadSpec::trace(), timed).unwrap();
    assert_eq!(arrivals[1].at.get(), 3 * SECOND / 2);
}

#[test]
fn marks_line_ends_quotes_and_blank_lines_change_nothing() {
    let plain = "arrived_at,prompt_len,output_len\n0,10,20\n1,30,40\n";
    let want = read(&WorkloadSpec::trace(), plain).unwrap();
    for text in [
        "\u{feff}arrived_at,prompt_len,output_len\r\n0,10,20\r\n1,30,40\r\n",
        "\"arrived_at\",\"prompt_len\",\"output_len\"\n\"0\",\"10\",\"20\"\n1,30,40",
        "\n\narrived_at , prompt_len,output_len\n\n0,10,20\n\n1 , 30, 40\n\n",
        "x,output_len,Prompt Len,arrived-at\n,20,10,0\n?,40,30,1\n",
        "\u{feff}[{\"arrived_at\":0,\"prompt_len\":10,\"output_len\":20},\n{\"arrived_at\":1,\"prompt_len\":30,\"output_len\":40}]",
    ] {
        assert_eq!(
            read(&WorkloadSpec::trace(), text).unwrap(),
            want,
            "{text:?}"
        );
    }
}

// What can be wrong.

#[test]
fn a_bad_file_is_an_error_that_says_what_where_and_what_to_do() {
    let azure = |row: &str| {
        format!("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n{row}\n")
    };
    let mooncake = |rest: &str| format!("{{\"timestamp\": 0, {rest}}}\n");
    for (text, message) in [
        (String::new(), "no request: is it the right file"),
        ("\u{feff}\r\n \n".into(), "no request: is it the right file"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n".into(),
            "no request",
        ),
        ("[]".into(), "no request"),
        ("hello".into(), "begins with `hello`; known are CSV"),
        (
            "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n".into(),
            "remove the column",
        ),
        (
            "ContextTokens,GeneratedTokens\n".into(),
            "line 1: no column of arrival times",
        ),
        (
            "TIMESTAMP,ContextTokens\n".into(),
            "line 1: no column of generated tokens",
        ),
        (
            azure("2023-11-16 18:17:04,NaN,1"),
            "line 3: prompt tokens is `NaN`: expected a whole",
        ),
        (
            azure("2023-11-16 18:17:04,1,-5"),
            "line 3: generated tokens is `-5`",
        ),
        (
            azure("2023-11-16 18:17:04,0,5"),
            "line 3: prompt tokens is `0`: expected a whole",
        ),
        (
            azure("2023-11-16 18:17:04,4294967296,5"),
            "from 1 to 2^32 - 1",
        ),
        (
            azure("yesterday,1,5"),
            "line 3: arrival time is `yesterday`: expected seconds",
        ),
        (
            azure("2023-11-16 18:17:04,48"),
            "line 3: not a row: 2 fields",
        ),
        (
            azure("2023-11-16 18:17:04,\"48,5"),
            "line 3: not a row: a quote",
        ),
        (
            azure("2023-11-16 18:17:01,1,5"),
            "line 3: it arrives 2 s before an earlier row",
        ),
        (mooncake("\"input_length\": 1"), "line 1: no output length"),
        (
            mooncake("\"input_length\": -1, \"output_length\": 1"),
            "line 1: prompt tokens is `-1`",
        ),
        (
            mooncake("\"input_length\": 1.5, \"output_length\": 1"),
            "prompt tokens is `1.5`",
        ),
        (
            mooncake("\"input_length\": 0, \"output_length\": 1"),
            "prompt tokens is `0`",
        ),
        (
            mooncake("\"input_length\": NaN, \"output_length\": 1"),
            "line 1: not a row: expected value",
        ),
        (
            mooncake("\"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1]"),
            "1 hash_ids for 600 prompt tokens, but blocks of 512 tokens need 2",
        ),
        (
            "{\"prompt_len\": 1, \"output".into(),
            "line 1: the input ends inside this row",
        ),
        (
            "[{\"prompt_len\": 1,\n\"output".into(),
            "line 1: the input ends inside this row",
        ),
        ("[7]".into(), "`7` where an object should begin"),
        (
            "{\"timestamp\": -1, \"prompt_len\": 1, \"output_len\": 1}".into(),
            "arrival time is `-1`",
        ),
    ] {
        let got = error(text.clone());
        assert!(
            got.contains(message),
            "{text:?}\n  gives: {got}\n  wanted: {message}"
        );
    }
    assert!(error(b"TIMESTAMP,ContextTokens,Generated\xff".to_vec()).contains("UTF-8"));
}

#[test]
fn an_array_that_is_cut_short_gives_its_rows_and_then_the_error() {
    let text = "[{\"prompt_len\": 1, \"output_len\": 2},";
    let mut w = poisson().open(source(text)).unwrap();
    assert!(w.next().unwrap().is_ok());
    assert_eq!(w.next(), Some(Err(WorkloadError::Truncated { line: 1 })));
    assert_eq!(w.next(), None);
}

#[test]
fn a_format_that_is_asked_for_must_be_the_one_that_is_there() {
    for (format, name, ok) in [
        (TraceFormat::Azure, "azure_code_head.csv", true),
        (TraceFormat::Mooncake, "mooncake_short.jsonl", true),
        (TraceFormat::BurstGpt, "burstgpt_form.csv", true),
        (TraceFormat::Lengths, "vidur_form.csv", true),
        (TraceFormat::Lengths, "lengths_form.json", true),
        (TraceFormat::Azure, "mooncake_short.jsonl", false),
        (TraceFormat::Mooncake, "azure_code_head.csv", false),
        (TraceFormat::Mooncake, "lengths_form.json", false),
        (TraceFormat::BurstGpt, "azure_code_head.csv", false),
    ] {
        let spec = WorkloadSpec {
            source: WorkloadSource::Trace(TraceSpec {
                format: Some(format),
                ..TraceSpec::default()
            }),
            ..poisson()
        };
        let got = read(&spec, fixture(name));
        assert_eq!(got.is_ok(), ok, "{format:?} {name}: {got:?}");
    }
}

#[test]
fn a_source_is_given_to_what_reads_one() {
    assert_eq!(
        WorkloadSpec::trace().open(None).unwrap_err(),
        WorkloadError::NoSource
    );
    let synthetic: WorkloadSpec = "alpaca".parse().unwrap();
    assert_eq!(
        synthetic.open(source("x")).unwrap_err(),
        WorkloadError::UnusedSource
    );
}

// What is done to requests.

#[test]
fn skipped_requests_leave_no_gap_before_the_first() {
    let text = fixture("azure_code_head.csv");
    let (all, _) = read(&WorkloadSpec::trace(), text.clone()).unwrap();
    let shaping = Shaping {
        skip: 10,
        limit: Some(5),
        ..Shaping::default()
    };
    let (some, _) = read(&spec(shaping), text.clone()).unwrap();
    assert_eq!(lengths(&some), lengths(&all[10..15]));
    assert_eq!(some[0].at.get(), 0);
    assert_eq!(some[4].at.get(), all[14].at.get() - all[10].at.get());
    let far = Shaping {
        skip: 31,
        ..Shaping::default()
    };
    assert!(
        read(&spec(far), text)
            .unwrap_err()
            .to_string()
            .contains("skip fewer")
    );
}

#[test]
fn repeating_goes_on_with_time_and_with_content_fresh_or_the_same() {
    let text = fixture("mooncake_short.jsonl");
    let of = |repeat| {
        let shaping = Shaping {
            repeat,
            limit: Some(70),
            ..Shaping::default()
        };
        read(&spec(shaping), text.clone()).unwrap()
    };
    let (fresh, notes) = of(Repeat::FreshContent);
    let (same, _) = of(Repeat::SameContent);
    assert_eq!((fresh.len(), notes.passes), (70, 3));
    assert!(fresh.is_sorted_by_key(|a| a.at));
    assert_eq!(lengths(&fresh[..30]), lengths(&fresh[30..60]));
    let span = fresh[29].at.get();
    assert_eq!(fresh[30].at.get(), span + span / 29);
    assert_eq!(same[0].content, same[30].content);

    let stats = |arrivals: &[Arrival]| describe(arrivals.iter().cloned().map(Ok)).unwrap();
    let (once, twice) = (stats(&fresh[..30]), stats(&fresh[..60]));
    assert_eq!(twice.blocks_distinct, 2 * once.blocks_distinct);
    assert_eq!(twice.reuse(), once.reuse());
    assert_eq!(stats(&same[..60]).blocks_distinct, once.blocks_distinct);

    let endless = Shaping {
        repeat: Repeat::SameContent,
        ..Shaping::default()
    };
    assert!(
        read(&spec(endless), text)
            .unwrap_err()
            .to_string()
            .contains("limit the number")
    );
}

#[test]
fn requests_are_cut_to_the_model_and_counted() {
    let text = fixture("mooncake_short.jsonl");
    let shaping = Shaping {
        max_model_tokens: Some(1000),
        ..Shaping::default()
    };
    let (before, _) = read(&WorkloadSpec::trace(), text.clone()).unwrap();
    let (after, notes) = read(&spec(shaping), text).unwrap();
    let mut cut = 0;
    for (a, b) in before.iter().zip(&after) {
        assert!(b.prompt_tokens + b.output_tokens <= 1000 && b.output_tokens >= 1);
        cut += u64::from(a != b);
        let Content::Blocks { ids, .. } = &b.content else {
            panic!()
        };
        assert_eq!(ids.len() as u64, b.prompt_tokens.div_ceil(512));
    }
    assert!(cut > 0);
    assert_eq!(notes.clamped, cut);
}

#[test]
fn rates_scale_times_or_replace_them() {
    let text = fixture("azure_code_head.csv");
    let with = |retime| {
        let shaping = Shaping {
            retime,
            ..Shaping::default()
        };
        read(&spec(shaping), text.clone())
    };
    let (plain, _) = with(Retime::Keep).unwrap();
    let (fast, _) = with(Retime::Speed(2.0)).unwrap();
    assert!(
        plain
            .iter()
            .zip(&fast)
            .all(|(a, b)| a.at.get().div_ceil(2) == b.at.get())
    );
    let (drawn, _) = with(Retime::Process(ArrivalProcess::Poisson { per_second: 3.0 })).unwrap();
    assert_eq!(lengths(&plain), lengths(&drawn));
    assert!(drawn.is_sorted_by_key(|a| a.at));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(with(Retime::Speed(bad)).is_err());
    }
    for bad in [0.0, -1.0, f64::NAN] {
        assert!(with(Retime::Process(ArrivalProcess::Poisson { per_second: bad })).is_err());
    }
    let slow = with(Retime::Process(ArrivalProcess::Poisson {
        per_second: 1e-300,
    }));
    assert_eq!(slow.unwrap_err(), WorkloadError::TimeOverflow { index: 1 });
}

/// Rows without end.
struct Endless {
    row: &'static [u8],
    at: usize,
}

impl std::io::Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.row[self.at..];
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.at = (self.at + n) % self.row.len();
        Ok(n)
    }
}

#[test]
fn a_trace_is_never_read_further_than_asked() {
    for (head, row) in [
        ("Timestamp,Request tokens,Response tokens\n", "7,8,9\n"),
        (
            "",
            "{\"timestamp\": 7, \"input_length\": 8, \"output_length\": 9, \"hash_ids\": [1]}\n",
        ),
        (
            "[",
            "{\"arrived_at\": 7, \"prompt_len\": 8, \"output_len\": 9},",
        ),
    ] {
        let rows = Endless {
            row: row.as_bytes(),
            at: 0,
        };
        let source = BufReader::new(std::io::Read::chain(head.as_bytes(), rows));
        let shaping = Shaping {
            limit: Some(50_000),
            ..Shaping::default()
        };
        let workload = spec(shaping).open(Some(Box::new(source))).unwrap();
        let d = describe(workload).unwrap();
        assert_eq!((d.requests, d.input.max, d.span.get()), (50_000, 8, 0));
    }
}
