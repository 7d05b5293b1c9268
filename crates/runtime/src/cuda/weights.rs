//! Weights on their way to a device, and what a device is seen to do with them.

use std::time::Instant;

use plimsoll_program::Op;
use plimsoll_units::Bytes;

use super::Cuda;
use crate::arena::{Arena, Part};
use crate::backend::{BackendError, Measured};
use crate::weights::{Checkpoint, Progress, WeightsError, load_some, stored};

/// Fills the device's weights from a checkpoint, packed on `threads` threads of the host, at most `staged` bytes at a time, or
/// one weight where that is more ([`plimsoll_plan::STAGED_WEIGHTS`]); returns the stored bytes that were read.
///
/// # Errors
/// [`WeightsError`]; what the device then holds is not to be used.
pub fn load(
    cuda: &mut Cuda,
    checkpoint: &Checkpoint,
    staged: Bytes,
    threads: usize,
    progress: &Progress<'_>,
) -> Result<Bytes, WeightsError> {
    let total = stored(&cuda.program, checkpoint)?;
    let ends: Vec<u64> = {
        let weights = &cuda.program.weights;
        let next = weights.iter().skip(1).map(|w| w.offset.get());
        next.chain([cuda.program.weight_bytes.get()]).collect()
    };
    let begin = |i: usize| cuda.program.weights[i].offset.get();
    // Which weights go together.
    let mut parts = Vec::new();
    let mut from = 0;
    for (i, end) in ends.iter().enumerate() {
        if i > from && end - begin(from) > staged.get() {
            parts.push(from..i);
            from = i;
        }
    }
    if from < ends.len() {
        parts.push(from..ends.len());
    }
    let size = |p: &std::ops::Range<usize>| ends[p.end - 1] - begin(p.start);
    let most = parts.iter().map(size).max().unwrap_or(0);
    let mut staging = Arena::new("staging of weights", Bytes::new(most))?;
    let mut done = 0;
    for part in parts {
        let (from, len) = (begin(part.start), size(&part));
        // What pads rows and columns is zeros, not what other weights have left.
        staging.whole_mut::<u8>().fill(0);
        let tell = |some: Bytes| progress(Bytes::new(done + some.get()), total);
        let read = load_some(
            &cuda.program,
            part,
            checkpoint,
            &mut staging,
            threads,
            &tell,
        )?;
        done += read.get();
        let bytes = staging.view::<u8>(Part { offset: 0, len })?;
        let to = cuda.weights.at.plus(from);
        cuda.device
            .upload(to, bytes)
            .map_err(WeightsError::Device)?;
        cuda.weights.mark(Bytes::new(from + len));
    }
    Ok(Bytes::new(done))
}

/// What decides how a victim had better give way, by what the device does.
pub(super) fn measured(cuda: &mut Cuda) -> Result<Measured, BackendError> {
    let page = cuda.program.geometry.page.get();
    let there = cuda.pages.bytes.whole(cuda.program.geometry.page);
    let moved = super::word(there).min(super::word(cuda.together() as u64));
    let pages = || (0..moved).map(|i| [i; 2]);
    let mut swap = 0;
    if moved > 0 {
        // Once before, so that nothing is loaded for the first time.
        cuda.move_pages(pages(), true)?;
        cuda.device.wait()?;
        let began = Instant::now();
        cuda.move_pages(pages(), true)?;
        cuda.move_pages(pages(), false)?;
        cuda.device.wait()?;
        swap = per_s(2 * u64::from(moved) * page, began);
        cuda.swap.host.used = Bytes::ZERO;
    }
    // The largest matrix that every token passes, for one token and for many.
    let ops = cuda.program.ops.iter().enumerate();
    let size = |op: &Op| match op {
        Op::Linear { weight, .. } => cuda
            .program
            .weight(*weight)
            .layout
            .bytes()
            .map_or(0, Bytes::get),
        _ => 0,
    };
    let head = cuda.program.head();
    let Some((number, weights)) = ops
        .take(head)
        .map(|(i, op)| (i, size(op)))
        .max_by_key(|x| x.1)
        .filter(|x| x.1 > 0)
    else {
        return Ok(Measured {
            read_bytes_per_s: 0,
            swap_bytes_per_s: swap,
            flops_per_s: None,
        });
    };
    let many = cuda.program.tokens.min(64);
    let mut time = |tokens: u64| -> Result<u64, BackendError> {
        // Once before, so that nothing is loaded for the first time.
        cuda.walk(tokens, 1, 0, number..number + 1)?;
        cuda.device.wait()?;
        let began = Instant::now();
        cuda.walk(tokens, 1, 0, number..number + 1)?;
        cuda.device.wait()?;
        Ok(u64::try_from(began.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1))
    };
    let (one, all) = (time(1)?, time(many)?);
    // bfloat16 or less: two operations for each element of at most two bytes.
    let flops = weights.saturating_mul(many);
    Ok(Measured {
        read_bytes_per_s: rate(weights, one),
        swap_bytes_per_s: swap,
        flops_per_s: Some(rate(flops, all)),
    })
}

pub(super) fn rate(n: u64, nanos: u64) -> u64 {
    u64::try_from(u128::from(n) * 1_000_000_000 / u128::from(nanos.max(1))).unwrap_or(u64::MAX)
}

fn per_s(n: u64, began: Instant) -> u64 {
    rate(
        n,
        u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
    )
}
