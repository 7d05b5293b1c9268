//! Our server on its host: what it commits beside weights and activations, and what it keeps for everything that lies in
//! no arena. On processors this is taken from the same memory as everything else; beside a GPU it is the host's.

use plimsoll_program::{PoolGeometry, SHORT_KEYS, short_words};
use plimsoll_units::{Bytes, SizeOverflow, Tokens};

use super::{Context, batched_tokens, outputs};
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// T unless `--max-num-batched-tokens` says otherwise.
pub(super) const BATCHED_TOKENS: u64 = 512;
/// R unless `--max-num-seqs` says otherwise.
pub(super) const SEQUENCES: u64 = 16;
/// The program's own pages and libraries, the model's description, and what the allocator cannot give back.
const PROCESS_MIB: u64 = 24;
/// A thread's stack and what the allocator keeps for it; tiles that span blocks are gathered there.
const THREAD_KIB: u64 = 512;
/// Weights that are packed on the host together before they go to a GPU; one of them, where that is more.
pub const STAGED_WEIGHTS: Bytes = Bytes::new(256 << 20);
/// Pages that a GPU moves together to a file of swap space or back, by way of its host.
pub const STAGED_PAGES: u64 = 32;
/// A thread while weights load: 4 MiB of a file and the same as f32, each up to twice that as it grows.
const LOADING_MIB: u64 = 16;
/// A token in a tokenizer: its text twice (to and from ids), its merges, and their maps at their emptiest.
const TOKENIZER_TOKEN: u64 = 512;
/// The same while its file is read: the file, and what it says before it is in maps.
const TOKENIZER_READING: u64 = 512;
/// A page in the block manager: its counts, its place in lists, its name in the prefix index.
const PAGE: u64 = 256;
/// A token of a sequence: in its request, in its history for penalties, in its answer, grown by doubling.
const TOKEN: u64 = 48;
/// A token's log probability, or an alternative's, with its id.
const LOGPROB: u64 = 8;
/// A sequence: its place in the scheduler, its rows and what they yield.
const SEQUENCE: u64 = 16 << 10;

const SOURCE: &str = "plimsoll-plan: engine/plimsoll/host.rs";

pub(super) fn is_cpu(context: &Context<'_>) -> bool {
    context.deployment.device.vendor == "cpu"
}

/// The most that a pool can use: R sequences of the longest length, and the null page.
pub(super) fn most(context: &Context<'_>, geometry: &PoolGeometry) -> Result<Bytes, SizeOverflow> {
    let chunk = batched_tokens(context).min(context.max_model_len);
    let each = geometry.held(Tokens(context.max_model_len - chunk), Tokens(chunk));
    let pages = each
        .get()
        .checked_mul(outputs(context))
        .ok_or(SizeOverflow)?;
    geometry
        .page
        .times(pages.checked_add(1).ok_or(SizeOverflow)?)
}

/// Swap space, in memory or in a file, if there is any.
pub(super) fn swap(
    context: &Context<'_>,
    geometry: &PoolGeometry,
) -> Result<Option<Term>, SizeOverflow> {
    let page = geometry.page;
    let bytes = page.times(context.settings.swap.whole(page))?;
    let region = if context.settings.swap_file {
        Region::SwapFile
    } else {
        Region::Swap
    };
    Ok((bytes > Bytes::ZERO).then(|| {
        Term::exact(region, "swap space", bytes)
            .formula("whole pages of --swap-space")
            .input("bytes per page", page.get())
            .source(SOURCE)
    }))
}

pub(super) fn terms(
    context: &Context<'_>,
    geometry: &PoolGeometry,
    largest_weight: Bytes,
) -> Result<Vec<Term>, PlanError> {
    let (t, r) = (batched_tokens(context), outputs(context));
    let length = context.max_model_len;
    let vocab = context.spec.vocab;
    let page = geometry.page;
    let threads = context.settings.threads.unwrap_or(1);
    let samplers = threads.min(r).max(1);
    let mut terms = vec![
        Term::exact(
            Region::Workspace,
            "sampling",
            Bytes::product([samplers, vocab, 12])?,
        )
        .formula("min(threads, R) x vocabulary x (4 logits of a row, as changed + 8 sorting keys)")
        .input("min(threads, R)", samplers)
        .input("vocabulary", vocab)
        .shared(),
    ];
    if !is_cpu(context) {
        terms.push(
            Term::exact(
                Region::Workspace,
                "logits on the host",
                Bytes::product([r, vocab, 4])?,
            )
            .formula("R x vocabulary x 4")
            .input("R", r)
            .input("vocabulary", vocab),
        );
        terms.push(
            Term::exact(
                Region::Workspace,
                "shortlists on the host",
                Bytes::product([r, short_words(vocab), 8])?,
            )
            .formula("R x (8 words of sums + the likeliest tokens) x 8")
            .input("R", r)
            .input("likeliest tokens", vocab.min(SHORT_KEYS.into())),
        );
    }
    let places = context.settings.swap.whole(page);
    if !is_cpu(context) && context.settings.swap_file && places > 0 {
        terms.push(
            Term::exact(
                Region::Workspace,
                "pages on their way to swap space",
                page.times(places.min(STAGED_PAGES))?,
            )
            .formula(format!(
                "min(pages of swap space, {STAGED_PAGES}) x bytes per page"
            ))
            .input("pages of swap space", places)
            .input("bytes per page", page.get()),
        );
    }
    let swap = swap(context, geometry)?;
    if !context.settings.swap_file {
        terms.extend(swap.clone());
    }
    let bound = |name: &str, bytes: Bytes| {
        let term = Term::exact(Region::Reserve, name, bytes);
        term.kind(Kind::Bound).shared()
    };
    terms.push(
        bound("process", Bytes::from_mib(PROCESS_MIB)?)
            .formula("fixed: the program, its libraries, the model's description"),
    );
    terms.push(
        bound("tokenizer", Bytes::product([vocab, TOKENIZER_TOKEN])?)
            .formula(format!("vocabulary x {TOKENIZER_TOKEN}"))
            .input("vocabulary", vocab),
    );
    let ranks = context.deployment.parallel.tp;
    if ranks > 1 {
        let each = (threads / ranks).max(1);
        let all = ranks.saturating_mul(each).saturating_add(threads);
        terms.push(
            bound("threads", Bytes::product([all, THREAD_KIB, 1024])?)
                .formula(format!(
                    "(threads + ranks x max(1, threads / ranks)) x {THREAD_KIB} KiB"
                ))
                .input("threads", threads)
                .input("ranks", ranks),
        );
    } else {
        terms.push(
            bound("threads", Bytes::product([threads, THREAD_KIB, 1024])?)
                .formula(format!("threads x {THREAD_KIB} KiB"))
                .input("threads", threads),
        );
    }
    let reading = Bytes::product([vocab, TOKENIZER_READING])?;
    let mut loading = Bytes::product([threads, LOADING_MIB, 1024, 1024])?;
    let mut staged = String::new();
    if !is_cpu(context) {
        loading = loading.add(STAGED_WEIGHTS.max(largest_weight))?;
        staged = format!(", and on their way to the GPU {STAGED_WEIGHTS} or the largest weight");
    }
    let mut starting = bound("starting", reading.max(loading))
        .formula(format!(
            "the larger of reading the tokenizer (vocabulary x {TOKENIZER_READING}) and, after it, the weights (threads x {LOADING_MIB} MiB{staged})"
        ))
        .input("vocabulary", vocab)
        .input("threads", threads);
    if !is_cpu(context) {
        starting = starting.input("largest weight, bytes", largest_weight.get());
    }
    terms.push(starting);
    // The pool is not known before this is, but no more than all of it can become pages.
    let pool = match context.settings.kv_memory {
        Some(given) => given,
        None if is_cpu(context) => most(context, geometry)?.min(context.deployment.device.usable),
        None => context.deployment.device.usable,
    };
    let swap = swap.map_or(Bytes::ZERO, |t| t.bytes);
    let pages = pool.add(swap)?.whole(page);
    let slots = geometry.groups.iter().map(|g| g.slots).max().unwrap_or(0);
    let manager = Bytes::product([pages, PAGE + 4 * slots])?;
    terms.push(
        bound("block manager", manager)
            .formula(format!("pages x ({PAGE} + 4 x tokens per block)"))
            .input("pages at most", pages)
            .input("tokens per block", slots),
    );
    let tokens = Bytes::product([r, length, TOKEN])?;
    terms.push(
        bound(
            "scheduler",
            tokens
                .add(Bytes::product([r, SEQUENCE])?)?
                .add(Bytes::product([t, TOKEN])?)?,
        )
        .formula(format!(
            "R x (longest sequence x {TOKEN} + {SEQUENCE}) + T x {TOKEN}"
        ))
        .input("R", r)
        .input("longest sequence", length)
        .input("T", t),
    );
    if let Some(alternatives) = context.settings.logprobs {
        let each = alternatives.checked_add(1).ok_or(SizeOverflow)?;
        terms.push(
            bound(
                "log probabilities",
                Bytes::product([r, length, each, LOGPROB])?,
            )
            .formula(format!(
                "R x longest sequence x (1 + alternatives) x {LOGPROB}"
            ))
            .input("R", r)
            .input("longest sequence", length)
            .input("alternatives", alternatives),
        );
    }
    if let Some(http) = &context.settings.http {
        terms.extend(super::http::terms(http, r, length, vocab, pages)?);
    }
    Ok(terms.into_iter().map(|t| t.source(SOURCE)).collect())
}
