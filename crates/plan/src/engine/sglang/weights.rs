//! "Load weight end": what the driver says was taken while weights were loaded.
//!
//! SGLang's linear layers began as vLLM's and split, fuse and pad weights the same way. Two things differ: tables of
//! rotary embeddings stay f32 on GPUs (`srt/layers/rotary_embedding`), and the figure is the driver's, so that whole
//! segments of the allocator and the first kernels' modules are in it.

use plimsoll_units::{Bytes, DType};

use super::super::{Context, absorbed, activation_dtype, vllm};
use super::constants;
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

const SOURCE: &str = "SGLang srt/layers/linear.py, vocab_parallel_embedding.py";

/// The weight terms of one rank.
pub(super) fn terms(context: &Context<'_>) -> Result<Vec<Term>, PlanError> {
    let mut terms = vllm::tensors(context)?;
    for t in &mut terms {
        t.source = SOURCE.to_owned();
    }
    let width = activation_dtype(context).bytes(1)?.get();
    let wide = DType::F32.bytes(1)?.get().max(width);
    // A model with local and global positions computes them as it goes (`models/gemma3_causal.py`).
    if let [table] = context.spec.rotary.as_slice() {
        let rotary = Bytes::product([table.positions, table.dim, wide])?;
        terms.push(
            Term::exact(Region::Weights, "rotary table", rotary)
                .kind(Kind::Derived)
                .formula("positions x rotated elements x 4 bytes")
                .input("positions", table.positions)
                .input("rotated elements", table.dim)
                .source("SGLang srt/layers/rotary_embedding: cos_sin_cache is f32 on GPUs"),
        );
    }
    terms.extend(absorbed::sglang(context)?);
    terms.push(constants::loading()?);
    Ok(terms)
}
