//! llama.cpp on processors: every buffer is the host's, and the process beside them.
//!
//! Buffers are those that `llama-server` of commit 0c1e57098 prints (`tests/llamacpp.rs`). What the process takes beside
//! them was read from `/proc/PID/status` on x86-64, before and after a request, at 151,936 and 262,144 tokens of vocabulary
//! with as many merges.

use plimsoll_units::Bytes;

use super::{Net, Run, caveats, host_weight_bytes, read_from};
use crate::engine::Context;
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// Program and libraries (15 MiB of files), threads and what the server keeps for itself (12 MiB), rounded up.
const PROCESS_MIB: u64 = 32;
/// A token of the vocabulary: its text, its merge, and its places in maps both ways: 250 to 290 bytes were seen.
const VOCABULARY_TOKEN: u64 = 320;
/// Host memory that finished prompts may come to take unless `--cache-ram` says otherwise.
const PROMPT_CACHE_MIB: u64 = 8192;

/// What lies on the host whatever the load is.
pub(super) fn terms(context: &Context<'_>, net: &Net) -> Result<Vec<Term>, PlanError> {
    let mut out = Vec::new();
    for (role, bytes, tensors) in host_weight_bytes(context.spec, context.settings.dtype)? {
        out.push(
            Term::exact(Region::Weights, role.name(), bytes)
                .formula("tensors of the file, each padded to 32 bytes")
                .input("tensors", tensors)
                .input("read from", read_from(context))
                .source("llama.cpp: llama-model.cpp load_tensors"),
        );
    }
    let process =
        Bytes::from_mib(PROCESS_MIB)?.add(Bytes::product([net.vocab, VOCABULARY_TOKEN])?)?;
    out.push(
        Term::exact(Region::Driver, "process and vocabulary", process)
            .kind(Kind::Bound)
            .formula(
                "fixed bound for program and libraries, and 320 bytes per token of the vocabulary",
            )
            .input("vocabulary", net.vocab)
            .source("plimsoll-plan: engine/llamacpp/host.rs"),
    );
    Ok(out)
}

/// What the reader should know of it.
pub(super) fn notes(context: &Context<'_>, net: &Net, run: &Run) -> Result<Vec<String>, PlanError> {
    let mut out = Vec::new();
    if run.rules.prompt_cache {
        out.push(format!(
            "finished prompts are kept in up to {} beside this unless `--cache-ram` says otherwise; 0 keeps none",
            Bytes::from_mib(PROMPT_CACHE_MIB)?
        ));
    }
    out.extend(caveats(context, net, run));
    Ok(out)
}
