//! The paper's figures that concern paging, beside what our own scheduler and block manager give.

use std::fmt::Write as _;

use plimsoll_kv::{KvConfig, Layout};
use plimsoll_schedule::{CostModel, Limits, NoLog, SchedulerConfig};

use super::{
    ALPACA, Dataset, HOUR, Lengths, MAX_TOKENS, Outcome, PROMPT_CV, PaperError, SEEDS, SHAREGPT,
    Shape, Tally, arrivals, contiguous_rows, facts, facts_markdown, float, opt, opt_13b_on_a100,
    shape_rows, shapes_markdown, slots,
};
use crate::arrival::Fan;
use crate::paged::{self, Asked, Branching, Faults, Summary};

/// One simulated hour of OPT-13B on an A100-40GB.
#[derive(Clone, Copy, Debug)]
pub struct Hour {
    /// Requests per second.
    pub rate: f64,
    /// Tokens per block.
    pub block: u32,
    /// How requests fan out.
    pub fan: Fan,
    /// Seed.
    pub seed: u64,
}

/// Runs an hour through our own scheduler, with the paper's bound on swap space: no larger than the pool.
///
/// # Errors
/// [`PaperError`].
pub fn paged(
    lengths: &Lengths,
    cost: &CostModel,
    hour: &Hour,
) -> Result<(Outcome, Summary), PaperError> {
    let (_, geometry) = opt("opt-13b")?;
    let slots = slots("opt-13b", 12)?;
    let layout = Layout::full(hour.block, geometry.bytes_per_token()?);
    let pages = u32::try_from(slots / u64::from(hour.block)).unwrap_or(u32::MAX);
    let limits = Limits {
        max_model_len: u32::try_from(MAX_TOKENS).unwrap_or(u32::MAX),
        vocab: 50_272,
        max_width: 16,
        tenants: 1,
    };
    let mut kv = KvConfig::new(layout, pages);
    kv.swap_pages = pages;
    let config = paged::Config {
        scheduler: SchedulerConfig::new(limits),
        kv,
        belief: cost.clone(),
        truth: cost.clone(),
        asked: Asked::Most,
        branching: Branching::default(),
        faults: Faults::default(),
        measure_sharing: hour.fan != Fan::One,
        seed: hour.seed,
        until: Some(HOUR),
    };
    let mut tally = Tally::default();
    let requests = arrivals(lengths, hour.rate, hour.seed)
        .map(|a| a.map(|a| crate::Arrival { fan: hour.fan, ..a }));
    let (summary, NoLog) = paged::run(&config, requests, |_, _, _| (), &mut tally, NoLog)?;
    Ok((tally.outcome(slots), summary))
}

fn hours(
    lengths: &Lengths,
    cost: &CostModel,
    hour: &Hour,
) -> Result<(Outcome, Summary), PaperError> {
    let mut outcomes = Vec::new();
    let mut last = Summary::default();
    for seed in SEEDS {
        let (outcome, summary) = paged(lengths, cost, &Hour { seed, ..*hour })?;
        outcomes.push(outcome);
        last = summary;
    }
    Ok((Outcome::mean(&outcomes), last))
}

const PLAIN: Hour = Hour {
    rate: 2.0,
    block: 16,
    fan: Fan::One,
    seed: 1,
};

/// The whole of docs/paper.md.
///
/// # Errors
/// [`PaperError`].
pub fn page() -> Result<String, PaperError> {
    let rows = contiguous_rows()?;
    let cost = opt_13b_on_a100()?;
    let lengths = |dataset| Lengths::new(dataset, PROMPT_CV, Shape::Lognormal, rows.output_width);
    let (sharegpt, alpaca) = (lengths(&SHAREGPT), lengths(&ALPACA));
    let mut out = String::from(
        "# The PagedAttention paper, and ours\n\n\
         Written by `tools/paper_page.sh`; every figure is computed by it. Kwon et al., SOSP 2023; figures in \
         parentheses are the paper's.\nTimes are modelled (a roofline at 55 % of the A100's dense operations and 80 % \
         of its bandwidth); slots, blocks, shares and decisions are real.\n\n## Exact\n\n",
    );
    out.push_str(&facts_markdown(&facts()?));
    let _ = write!(
        out,
        "\n## One fit, then predictions: contiguous servers (figures 2 and 13)\n\n\
         The paper prints mean lengths, not their spread. One parameter, the coefficient of variation of output \
         lengths before the cut at {MAX_TOKENS} tokens, is fitted\nto one figure, Orca (Max)'s 20.4 % of token states: \
         it is {:.3}. Everything below is a prediction. One hour each, mean of {} seeds.\n\n",
        rows.output_cv(),
        SEEDS.len()
    );
    out.push_str(&rows.markdown());
    let _ = write!(
        out,
        "\nTwo predictions miss. Orca (Oracle)'s batch on Alpaca: our step times bind it by load and not by memory; \
         the last column, at twice the rate, tells the\ntwo apart. And Orca (Pow2)'s external fragmentation, which is \
         lower than the paper's: an output of more than {} tokens reserves the maximum length, a\nchunk of its own \
         size, and nothing is lost to rounding up; how many of these run, neither the means nor the fitted figure tell. \
         ShareGPT with outputs of other\nshapes, each with the same means and fitted to the same figure:\n\n{}",
        MAX_TOKENS / 2,
        shapes_markdown(&shape_rows()?)
    );
    out.push_str(
        "\n## Paged (figures 2 and 13)\n\n\
         Blocks of 16 tokens, swap or recompute by cost. The paper's batch sizes were measured at rates that its \
         engine of 2023 could just carry; ours depends on\nhow long a step takes, so the same load is shown for \
         slower steps, and overloaded, where memory alone decides.\n\n\
         | data set | rate /s | fixed time per step ms | batch (paper) | ratio | token states % (paper) | waiting % of \
         the time |\n|---|--:|--:|--:|--:|--:|--:|\n",
    );
    let (s, a) = (30.42, 132.44);
    let sharegpt_batch = paged_rows(&mut out, &cost, &sharegpt, &SHAREGPT, s, Some(96.3))?;
    let alpaca_batch = paged_rows(&mut out, &cost, &alpaca, &ALPACA, a, None)?;
    // Little's law.
    let step_ms = |batch: f64, of: &Dataset| 1e3 * batch / (of.rate * of.output_mean);
    let _ = write!(
        out,
        "\nWho keeps up with a load runs as many sequences as tokens are asked for in the time of a step: the paper's \
         batches mean steps of {:.0} ms or more on\nShareGPT and {:.0} ms or more on Alpaca, ours in the first row of \
         each {:.0} ms and {:.0} ms.\n",
        step_ms(s, &SHAREGPT),
        step_ms(a, &ALPACA),
        step_ms(sharegpt_batch, &SHAREGPT),
        step_ms(alpaca_batch, &ALPACA),
    );
    out.push_str(
        "\n## Sharing (figure 15)\n\nBlocks saved by copy-on-write over blocks without it. Parallel sampling is a \
         prediction. What beams share depends on how\nthey branch, so they are searched for real, at the end of this \
         page.\n\n| data set | what | n | saved % | paper % |\n|---|---|--:|--:|--:|\n",
    );
    sharing_rows(&mut out, &cost, &sharegpt, &alpaca)?;
    out.push_str(
        "\n## Block size (figure 18)\n\nOverloaded, one hour: what smaller and larger blocks leave live.\n\n\
         | block | ShareGPT live % | ShareGPT batch | Alpaca live % | Alpaca batch |\n|--:|--:|--:|--:|--:|\n",
    );
    for block in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let run = |lengths: &Lengths, rate: f64| {
            paged(
                lengths,
                &cost,
                &Hour {
                    rate,
                    block,
                    ..PLAIN
                },
            )
            .map(|r| r.0)
        };
        let (s, a) = (run(&sharegpt, 4.0)?, run(&alpaca, 120.0)?);
        let _ = writeln!(
            out,
            "| {block} | {:.1} | {:.1} | {:.1} | {:.1} |",
            s.shares[0], s.batch, a.shares[0], a.batch
        );
    }
    swap_rows(&mut out, &cost);
    Ok(out)
}

/// The batch of the first row is returned.
fn paged_rows(
    out: &mut String,
    cost: &CostModel,
    lengths: &Lengths,
    dataset: &Dataset,
    batch: f64,
    live: Option<f64>,
) -> Result<f64, PaperError> {
    let mut first = None;
    for (rate, step_ms) in [
        (dataset.rate, 2),
        (dataset.rate, 10),
        (dataset.rate, 20),
        (2.0 * dataset.rate, 2),
        (4.0 * dataset.rate, 2),
    ] {
        let mut cost = cost.clone();
        cost.rates.step_ns = step_ms * 1_000_000;
        let (ours, _) = hours(lengths, &cost, &Hour { rate, ..PLAIN })?;
        let live = live.map_or_else(String::new, |l| format!(" ({l:.1})"));
        let _ = writeln!(
            out,
            "| {} | {rate} | {step_ms} | {:.2} ({batch:.2}) | {:.2} | {:.1}{live} | {:.0} |",
            dataset.name,
            ours.batch,
            ours.batch / batch,
            ours.shares[0],
            ours.saturated
        );
        first.get_or_insert(ours.batch);
    }
    Ok(first.unwrap_or_default())
}

fn sharing_rows(
    out: &mut String,
    cost: &CostModel,
    sharegpt: &Lengths,
    alpaca: &Lengths,
) -> Result<(), PaperError> {
    for (name, lengths, rate, paper) in [
        ("Alpaca", alpaca, 5.0, "6.1 to 9.8"),
        ("ShareGPT", sharegpt, 0.5, "16.2 to 30.5"),
    ] {
        for n in [2, 4, 6] {
            let hour = Hour {
                rate,
                fan: Fan::Parallel(n),
                ..PLAIN
            };
            let saved = paged(lengths, cost, &hour)?.1.sharing.saved_percent();
            let _ = writeln!(out, "| {name} | parallel | {n} | {saved:.1} | {paper} |");
        }
    }
    Ok(())
}

/// Figure 19: swapping against recomputing one sequence, block size by block size.
fn swap_rows(out: &mut String, cost: &CostModel) {
    out.push_str(
        "\n## Swap or recompute (figure 19)\n\nOne sequence of 512 tokens, out and back, against computing it again. In \
         the paper's layout a block is 2 x 40 pieces, one copy each; in ours a block\nis one page, one copy. The \
         crossover is where the first column of milliseconds falls below the last.\n\n\
         | block | swap, 80 copies per block, ms | swap, 1 copy per block, ms | recompute ms |\n|--:|--:|--:|--:|\n",
    );
    let tokens = 512;
    for block in [1, 4, 16, 32, 64, 128, 256] {
        let blocks = 512_u64.div_ceil(block);
        let bytes = plimsoll_units::Bytes::new(
            blocks * block * cost.work.attention.first().map_or(0, |a| a.token_bytes),
        );
        let swap = |copies: u64| {
            let mut cost = cost.clone();
            cost.rates.transfers_per_block = copies;
            2.0 * float(cost.swap(bytes, blocks).0) / 1e6
        };
        let again = float(cost.recompute(0, tokens).0) / 1e6;
        let _ = writeln!(
            out,
            "| {block} | {:.1} | {:.1} | {again:.1} |",
            swap(80),
            swap(1)
        );
    }
}
