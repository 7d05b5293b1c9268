//! Weights: a checkpoint streamed into its arena and packed on the way.
//!
//! Promises: every tensor that the program names is found, and its type and shape agree, before a byte of data is
//! read; what is read lies in scratch of [`SCRATCH`] bytes per thread (of one panel, where that is more), so the
//! original is never resident twice; which thread packs what changes no bit. Matrices become bfloat16, rounded to
//! the nearest, ties to even, or are quantised from their stored values; of what is quantised already, from its elements
//! in f32; vectors become f32, exactly. Files are read,
//! not mapped: a mapped file counts as memory a second time, and one that shrinks ends the process.

mod blocks;
mod check;
mod checkpoint;
mod decode;
mod fill;
mod quantised;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use plimsoll_kernels::PANEL;
use plimsoll_model::json::printable;
use plimsoll_model::read_at::ReadError;
use plimsoll_program::{Program, Weight, WeightLayout};
use plimsoll_units::{Bytes, DType};

pub use check::{TensorCheck, check};
pub use checkpoint::Checkpoint;

use crate::arena::{Arena, ArenaError, Part};
use fill::{Dest, Inputs, Item, Matrix, Piece, Scratch};

/// Bytes of a file that a thread holds at once: long enough that a disk streams, short enough for a cache.
pub const SCRATCH: u64 = 4 << 20;

/// Names that an error lists; the rest is counted.
const LISTED: usize = 5;

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file that is not what it should be.
    #[error(transparent)]
    File(#[from] plimsoll_host::HostError),
    /// Tensors that the model needs and the checkpoint has not.
    #[error("the checkpoint lacks {}; it is of another model, or incomplete: fetch it again", list(.0))]
    Missing(Vec<String>),
    /// A tensor of another shape.
    #[error(
        "tensor `{tensor}` has the shape {found:?}, but {wanted}; config and weights are of different models"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// What the program wants of it.
        wanted: String,
    },
    /// A type that cannot be read.
    #[error("tensor `{tensor}` is stored as {dtype}, which is not read here; convert it to bf16")]
    DType {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// Numbers that no matrix comes of.
    #[error("tensor `{tensor}` {problem}; the file is damaged: fetch it again")]
    Values {
        /// The tensor.
        tensor: String,
        /// What they are.
        problem: String,
    },
    /// Data that could not be read.
    #[error("tensor `{tensor}` in {file}: {problem}; fetch the file again, or check the disk")]
    Read {
        /// The tensor.
        tensor: String,
        /// The file.
        file: String,
        /// What went wrong.
        problem: ReadError,
    },
    /// A program that contradicts itself: a bug of ours, not of the checkpoint.
    #[error("the program's weight `{weight}` is inconsistent: {problem}")]
    Program {
        /// The weight.
        weight: String,
        /// How.
        problem: String,
    },
    /// Parts of the arena that are not there: a bug of ours as well.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// A device did not take them.
    #[error(transparent)]
    Device(plimsoll_cuda::DeviceError),
}

fn list(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(LISTED)
        .map(|n| format!("`{}`", printable(n)))
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(more) = names.len().checked_sub(LISTED).filter(|&m| m > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Told of stored bytes done and of all of them; threads may call it at once.
pub type Progress<'a> = dyn Fn(Bytes, Bytes) + Sync + 'a;

/// Fills `arena` with the weights of `program`, on `threads` threads; returns the stored bytes that were read.
///
/// # Errors
/// [`WeightsError`]; what the arena then holds is not to be used.
pub fn load(
    program: &Program,
    checkpoint: &Checkpoint,
    arena: &mut Arena,
    threads: usize,
    progress: &Progress<'_>,
) -> Result<Bytes, WeightsError> {
    let total = stored(program, checkpoint)?;
    let all = 0..program.weights.len();
    load_some(program, all, checkpoint, arena, threads, &|done| {
        progress(done, total);
    })
}

/// Bytes that are stored of all weights of `program`, each of which is there and has the type and shape that it should.
pub(crate) fn stored(program: &Program, checkpoint: &Checkpoint) -> Result<Bytes, WeightsError> {
    let missing: Vec<String> = program
        .weights
        .iter()
        .flat_map(|w| &w.sources)
        .flat_map(|s| {
            let others = s.quantised.iter().flat_map(|q| q.others(&s.tensor));
            std::iter::once(s.tensor.clone()).chain(others)
        })
        .filter(|t| checkpoint.find(t).is_none())
        .collect();
    if !missing.is_empty() {
        return Err(WeightsError::Missing(missing));
    }
    let mut all = 0_u64;
    for weight in &program.weights {
        let k = match weight.layout {
            WeightLayout::Packed { k, .. } => k,
            WeightLayout::F32 { .. } => 1,
        };
        for piece in resolve(weight, checkpoint)? {
            let rows = piece.at.end - piece.at.start;
            all = all.saturating_add(piece.stored_bytes(rows, k));
        }
    }
    Ok(Bytes::new(all))
}

/// Fills `arena` with some weights of `program`, the first of which begins there, and tells what is done of them.
pub(crate) fn load_some(
    program: &Program,
    some: Range<usize>,
    checkpoint: &Checkpoint,
    arena: &mut Arena,
    threads: usize,
    progress: &(dyn Fn(Bytes) + Sync),
) -> Result<Bytes, WeightsError> {
    let weights = &program.weights[some];
    let base = weights.first().map_or(0, |w| w.offset.get());
    let mut sources = Vec::new();
    let mut parts = Vec::new();
    for weight in weights {
        sources.push(resolve(weight, checkpoint)?);
        let bytes = weight.layout.bytes().map_err(|e| wrong(weight, e))?;
        parts.push(Part {
            offset: weight.offset.get() - base,
            len: bytes.get() / 4,
        });
    }
    let mut items = Vec::new();
    let words = arena.split_mut::<u32>(&parts)?;
    for ((weight, pieces), words) in weights.iter().zip(&sources).zip(words) {
        divide(weight, pieces, words, &mut items);
    }
    let total = items.iter().map(|i| i.stored_bytes).sum();
    // In the order of the files, so that each is read from its beginning to its end.
    items.sort_by_key(|i| i.pieces.first().map(|p| (p.file, p.begin, i.first)));
    run(items, checkpoint, threads, progress)?;
    Ok(Bytes::new(total))
}

fn wrong(weight: &Weight, problem: impl ToString) -> WeightsError {
    WeightsError::Program {
        weight: weight.name.clone(),
        problem: problem.to_string(),
    }
}

/// Carries the items out.
fn run(
    items: Vec<Item<'_>>,
    checkpoint: &Checkpoint,
    threads: usize,
    progress: &(dyn Fn(Bytes) + Sync),
) -> Result<(), WeightsError> {
    let queue = Mutex::new(items.into_iter());
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let work = || -> Result<(), WeightsError> {
        let mut scratch = Scratch::default();
        while !stop.load(Ordering::Relaxed) {
            let next = queue.lock().map_or(None, |mut q| q.next());
            let Some(item) = next else { break };
            let bytes = item.stored_bytes;
            fill::item(item, checkpoint, &mut scratch)
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            progress(Bytes::new(before + bytes));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let other = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(other);
        }
        result
    })
}

/// Where each part of a weight lies, all of it checked.
fn resolve(weight: &Weight, checkpoint: &Checkpoint) -> Result<Vec<Piece>, WeightsError> {
    let mut pieces = Vec::new();
    let mut row = 0_u64;
    for source in &weight.sources {
        // `load` looked for all of them.
        let Some(found) = checkpoint.find(&source.tensor) else {
            return Err(WeightsError::Missing(vec![source.tensor.clone()]));
        };
        let shape_error = |wanted: String| WeightsError::Shape {
            tensor: printable(&source.tensor),
            found: found.shape.to_vec(),
            wanted,
        };
        if let Some(what) = &source.quantised {
            let piece = quantised::resolve(weight, source, what, checkpoint)?;
            let to = row
                .checked_add(piece.at.end)
                .ok_or_else(|| wrong(weight, "its rows overflow"))?;
            pieces.push(Piece {
                at: row..to,
                ..piece
            });
            row = to;
            continue;
        }
        if !decode::is_known(found.dtype) {
            return Err(WeightsError::DType {
                tensor: printable(&source.tensor),
                dtype: found.dtype,
            });
        }
        let elements = Bytes::product(found.shape.iter().copied())
            .map_err(|e| wrong(weight, e))?
            .get();
        let transposed = source.transposed;
        let (rows, matrix) = match weight.layout {
            WeightLayout::Packed { k, .. } => {
                let last = found.shape.last().copied().unwrap_or(1);
                // Higher ranks are matrices one below the other.
                let columns = if transposed {
                    found.shape.iter().rev().nth(1).copied().unwrap_or(0)
                } else {
                    last
                };
                let first = source.input.unwrap_or(0);
                let fits = match source.input {
                    None => columns == k,
                    Some(from) => from.checked_add(k).is_some_and(|to| to <= columns),
                };
                if !fits || found.shape.len() < 2 {
                    let wanted = match (source.input, transposed) {
                        (None, true) => format!("[…, {k}, outputs] is needed"),
                        (None, false) => format!("[…, {k}] is needed"),
                        (Some(from), _) => format!("{k} inputs from {from} on are needed"),
                    };
                    return Err(shape_error(wanted));
                }
                let block = found.dtype.block_elements();
                if source.input.is_some()
                    && !(first.is_multiple_of(block) && k.is_multiple_of(block))
                {
                    return Err(wrong(weight, "its columns begin or end inside a block"));
                }
                let rows = elements.checked_div(columns).unwrap_or(0);
                let inputs = Inputs {
                    stored: columns,
                    first,
                };
                let matrix = if transposed {
                    let stride = last;
                    Matrix::Columns { stride, inputs }
                } else {
                    Matrix::Rows(inputs)
                };
                (rows, matrix)
            }
            WeightLayout::F32 { .. } => (elements, Matrix::Vector),
        };
        if transposed && found.dtype.block_elements() > 1 {
            return Err(WeightsError::DType {
                tensor: printable(&source.tensor),
                dtype: found.dtype,
            });
        }
        if source.rows.start > source.rows.end || source.rows.end > rows {
            let needed = format!("at least {} rows are needed", source.rows.end);
            return Err(shape_error(needed));
        }
        let len = source.rows.end - source.rows.start;
        let to = row
            .checked_add(len)
            .ok_or_else(|| wrong(weight, "its rows overflow"))?;
        let plus = match source.plus {
            n if n != 0 => f32::from(n),
            // The number that changes none, −0 included.
            _ => -0.0,
        };
        pieces.push(Piece {
            tensor: found.name.to_owned(),
            file: found.file,
            begin: found.begin,
            dtype: found.dtype,
            matrix,
            plus,
            at: row..to,
            from: source.rows.start,
        });
        row = to;
    }
    let n = match weight.layout {
        WeightLayout::Packed { n, .. } | WeightLayout::F32 { n } => n,
    };
    if row.checked_add(weight.padding) != Some(n) {
        return Err(wrong(weight, format!("its parts have {row} rows, not {n}")));
    }
    Ok(pieces)
}

/// Divides a weight into items of whole panels, about as large as the scratch.
fn divide<'a>(
    weight: &Weight,
    pieces: &'a [Piece],
    words: &'a mut [u32],
    items: &mut Vec<Item<'a>>,
) {
    let mut push = |rows: std::ops::Range<u64>, k: u64, dest| {
        let inside: Vec<&Piece> = pieces
            .iter()
            .filter(|p| p.at.start < rows.end && rows.start < p.at.end)
            .collect();
        let stored_bytes = inside
            .iter()
            .map(|p| {
                let n = p.at.end.min(rows.end) - p.at.start.max(rows.start);
                p.stored_bytes(n, k)
            })
            .sum();
        items.push(Item {
            pieces: inside,
            first: rows.start,
            rows: rows.end - rows.start,
            stored_bytes,
            dest,
        });
    };
    match weight.layout {
        WeightLayout::F32 { n } => push(0..n, 1, Dest::Floats(words)),
        WeightLayout::Packed { form, n, k } => {
            let panel = PANEL as u64;
            let widest = pieces.iter().map(|p| p.held_bytes(panel, k)).max();
            let panels = (SCRATCH / widest.unwrap_or(1).max(1)).max(1);
            // At most the words that there are; a panel of no columns has none.
            let len = usize::try_from(panels * panel * form.row_words(k)).unwrap_or(usize::MAX);
            for (i, words) in words.chunks_mut(len.max(1)).enumerate() {
                let first = i as u64 * panels * panel;
                push(
                    first..n.min(first + panels * panel),
                    k,
                    Dest::Panels { words, form, k },
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
