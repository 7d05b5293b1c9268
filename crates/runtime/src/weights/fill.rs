//! One item: some rows of a weight, read, decoded and packed.

use std::ops::Range;

use plimsoll_kernels::{
    PANEL, bf16_from_f32, pack_columns, pack_f8_row, pack_group_row, pack_rows, quantise_row,
};
use plimsoll_model::json::printable;
use plimsoll_units::{Bytes, DType, WeightType};

use super::checkpoint::Checkpoint;
use super::quantised::{Grids, Rectangle};
use super::{SCRATCH, WeightsError, decode};

/// Inputs of a stored matrix, of which k are taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs {
    pub(super) stored: u64,
    /// The first of k.
    pub(super) first: u64,
}

/// How the elements of a piece lie in its file.
#[derive(Clone, Debug)]
pub(super) enum Matrix {
    /// Row by row.
    Rows(Inputs),
    /// Inputs first: for each of them, `stride` outputs.
    Columns {
        /// Outputs of the stored matrix.
        stride: u64,
        inputs: Inputs,
    },
    /// In several tensors.
    Quantised(Box<Grids>),
    /// One element per row.
    Vector,
}

/// Some rows of a weight that lie together in a file.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The stored tensor, for errors.
    pub(super) tensor: String,
    pub(super) file: usize,
    /// First byte of the tensor in the file.
    pub(super) begin: u64,
    pub(super) dtype: DType,
    pub(super) matrix: Matrix,
    /// Added to every element.
    pub(super) plus: f32,
    /// Which rows of the weight they are.
    pub(super) at: Range<u64>,
    /// Which row of the tensor is the first.
    pub(super) from: u64,
}

impl Piece {
    /// Bytes that so many of its rows have in their file, without what they share.
    pub(super) fn stored_bytes(&self, rows: u64, k: u64) -> u64 {
        let elements = rows.saturating_mul(k);
        match &self.matrix {
            Matrix::Quantised(grids) => grids.code_bytes(elements),
            _ => self.dtype.bytes(elements).map_or(0, Bytes::get),
        }
    }

    /// Bytes that a thread holds of so many of its rows as they are stored.
    pub(super) fn held_bytes(&self, rows: u64, k: u64) -> u64 {
        match &self.matrix {
            Matrix::Quantised(grids) => grids.held_bytes(rows, k),
            _ => self.stored_bytes(rows, k),
        }
    }
}

/// What an item fills.
#[derive(Debug)]
pub(super) enum Dest<'a> {
    /// Whole panels of a packed matrix of `k` columns.
    Panels {
        words: &'a mut [u32],
        form: WeightType,
        k: u64,
    },
    /// f32, by their bits.
    Floats(&'a mut [u32]),
}

/// Some rows of a weight.
#[derive(Debug)]
pub(super) struct Item<'a> {
    /// Where they come from.
    pub(super) pieces: Vec<&'a Piece>,
    /// The first row.
    pub(super) first: u64,
    /// How many.
    pub(super) rows: u64,
    /// Bytes that they have in their files.
    pub(super) stored_bytes: u64,
    pub(super) dest: Dest<'a>,
}

/// What a thread reads into.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bytes: Vec<u8>,
    halves: Vec<u16>,
    floats: Vec<f32>,
    rectangle: Rectangle,
}

/// Rows of a piece, and the row of the item that the first of them becomes.
struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    piece: &'a Piece,
    from: u64,
    count: u64,
    to: usize,
}

/// What lies in memory, as an index.
fn index(n: u64) -> usize {
    usize::try_from(n).expect("a part of what lies in memory")
}

/// Fills an item.
pub(super) fn item(
    item: Item<'_>,
    checkpoint: &Checkpoint,
    scratch: &mut Scratch,
) -> Result<(), WeightsError> {
    let Item {
        pieces,
        first,
        rows,
        mut dest,
        ..
    } = item;
    for piece in pieces {
        let at = piece.at.start.max(first)..piece.at.end.min(first + rows);
        let rows = Rows {
            checkpoint,
            piece,
            from: piece.from + (at.start - piece.at.start),
            count: at.end - at.start,
            to: index(at.start - first),
        };
        match (&mut dest, &piece.matrix) {
            (Dest::Floats(words), _) => rows.floats(words, scratch)?,
            (Dest::Panels { words, form, k }, Matrix::Columns { stride, inputs }) => {
                rows.columns(words, *form, *k, (*stride, *inputs), scratch)?;
            }
            (Dest::Panels { words, form, k }, Matrix::Quantised(grids)) => {
                rows.quantised(words, *form, *k, grids, scratch)?;
            }
            (Dest::Panels { words, form, k }, Matrix::Rows(inputs)) => {
                rows.matrix(words, *form, *k, *inputs, scratch)?;
            }
            // A matrix was found to be none of these.
            (Dest::Panels { .. }, Matrix::Vector) => {}
        }
    }
    Ok(())
}

impl Rows<'_> {
    /// Reads bytes of the tensor, from byte `from` of it on.
    fn read(&self, from: u64, buf: &mut [u8]) -> Result<(), WeightsError> {
        self.read_at(self.piece.file, self.piece.begin + from, buf)
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<(), WeightsError> {
        self.checkpoint
            .read(file, offset, buf)
            .map_err(|problem| WeightsError::Read {
                tensor: printable(&self.piece.tensor),
                file: self.checkpoint.path(file).to_owned(),
                problem,
            })
    }

    /// Reads `len` bytes of each row, which has `row` of them from byte `begin` of a file on, after its first `skip`.
    fn read_rows(
        &self,
        (file, begin): (usize, u64),
        [row, skip, len]: [u64; 3],
        buf: &mut [u8],
    ) -> Result<(), WeightsError> {
        let begin = begin + self.from * row;
        if len == row {
            return self.read_at(file, begin, buf);
        }
        for (i, buf) in (0..).zip(buf.chunks_exact_mut(index(len).max(1))) {
            self.read_at(file, begin + i * row + skip, buf)?;
        }
        Ok(())
    }

    /// Elements of a vector.
    fn floats(&self, words: &mut [u32], scratch: &mut Scratch) -> Result<(), WeightsError> {
        let Self {
            piece, from, count, ..
        } = *self;
        let (block, size) = decode::block(piece.dtype);
        let (block, size) = (block as u64, size as u64);
        let step = SCRATCH / 4 / block * block;
        let mut done = 0;
        while done < count {
            let n = step.min(count - done);
            let (a, b) = (from + done, from + done + n);
            if !(a.is_multiple_of(block) && b.is_multiple_of(block)) {
                return Err(WeightsError::DType {
                    tensor: printable(&piece.tensor),
                    dtype: piece.dtype,
                });
            }
            scratch.bytes.resize(index((b - a) / block * size), 0);
            scratch.floats.resize(index(b - a), 0.0);
            self.read(a / block * size, &mut scratch.bytes)?;
            decode::floats(piece.dtype, &scratch.bytes, &mut scratch.floats);
            let out = &mut words[self.to + index(done)..][..index(n)];
            for (x, out) in scratch.floats.iter().zip(out) {
                *out = (x + piece.plus).to_bits();
            }
            done += n;
        }
        Ok(())
    }

    /// Rows of a matrix.
    fn matrix(
        &self,
        words: &mut [u32],
        form: WeightType,
        k: u64,
        inputs: Inputs,
        scratch: &mut Scratch,
    ) -> Result<(), WeightsError> {
        let Self { piece, count, .. } = *self;
        let (block, size) = decode::block(piece.dtype);
        let bytes = |elements: u64| elements / block as u64 * size as u64;
        let at = [inputs.stored, inputs.first, k].map(bytes);
        let (k, row_bytes) = (index(k), index(bytes(k)));
        scratch.bytes.resize(index(count) * row_bytes, 0);
        self.read_rows((piece.file, piece.begin), at, &mut scratch.bytes)?;
        self.for_panels(words, form, k, |panel, lane, done, n| {
            let bytes = &scratch.bytes[done * row_bytes..][..n * row_bytes];
            if form != WeightType::Bf16 {
                scratch.floats.resize(k, 0.0);
                for (i, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
                    decode::floats(piece.dtype, bytes, &mut scratch.floats);
                    scratch.floats.iter_mut().for_each(|x| *x += piece.plus);
                    quantise_row(form, panel, lane + i, &scratch.floats);
                }
                return;
            }
            scratch.halves.resize(n * k, 0);
            // Row by row: a row need not end where a strip of blocks does.
            if k > 0 {
                let rows = bytes.chunks_exact(row_bytes);
                for (bytes, halves) in rows.zip(scratch.halves.chunks_exact_mut(k)) {
                    decode::halves(piece.dtype, bytes, piece.plus, halves);
                }
            }
            pack_rows(panel, k, lane, &scratch.halves);
        });
        Ok(())
    }

    /// Rows of a quantised matrix.
    fn quantised(
        &self,
        words: &mut [u32],
        form: WeightType,
        k: u64,
        grids: &Grids,
        scratch: &mut Scratch,
    ) -> Result<(), WeightsError> {
        let Self { from, count, .. } = *self;
        let tensor = &self.piece.tensor;
        let Scratch {
            halves,
            floats,
            rectangle,
            ..
        } = scratch;
        grids.read(self.checkpoint, tensor, from..from + count, k, rectangle)?;
        let width = index(k);
        if let WeightType::Grouped(group) = form {
            let (mut numbers, mut of_groups) = (Vec::new(), Vec::new());
            let mut result = Ok(());
            self.for_panels(words, form, width, |panel, lane, done, n| {
                for (i, row) in (from + done as u64..).take(n).enumerate() {
                    let found = grids.grouped(rectangle, tensor, row, &mut numbers, &mut of_groups);
                    match found {
                        Ok(()) => pack_group_row(group, panel, lane + i, &numbers, &of_groups),
                        Err(e) => result = Err(e),
                    }
                }
            });
            return result;
        }
        if form == WeightType::Fp8 && grids.is_f8() {
            let (mut codes, mut scales) = (Vec::new(), Vec::new());
            let mut result = Ok(());
            self.for_panels(words, form, width, |panel, lane, done, n| {
                for (i, row) in (from + done as u64..).take(n).enumerate() {
                    match grids.f8(rectangle, tensor, row, &mut codes, &mut scales) {
                        Ok(()) => pack_f8_row(panel, lane + i, &codes, &scales),
                        Err(e) => result = Err(e),
                    }
                }
            });
            return result;
        }
        let mut finite = true;
        self.for_panels(words, form, width, |panel, lane, done, n| {
            floats.resize(n * width, 0.0);
            let first = from + done as u64;
            finite &= grids.elements(rectangle, first..first + n as u64, floats);
            if form == WeightType::Bf16 {
                halves.clear();
                halves.extend(floats.iter().map(|x| bf16_from_f32(*x)));
                pack_rows(panel, width, lane, halves);
                return;
            }
            for (i, row) in floats.chunks_exact(width.max(1)).enumerate() {
                quantise_row(form, panel, lane + i, row);
            }
        });
        if finite {
            Ok(())
        } else {
            Err(grids.not_finite(tensor))
        }
    }

    /// Columns of a matrix that is stored inputs first.
    fn columns(
        &self,
        words: &mut [u32],
        form: WeightType,
        k: u64,
        (stride, inputs): (u64, Inputs),
        scratch: &mut Scratch,
    ) -> Result<(), WeightsError> {
        let Self {
            piece, from, count, ..
        } = *self;
        let size = decode::block(piece.dtype).1 as u64;
        let mut done = 0;
        while done < count {
            let (matrix, column) = ((from + done) / stride, (from + done) % stride);
            let n = (stride - column).min(count - done);
            let begin = (matrix * inputs.stored + inputs.first) * stride + column;
            scratch.bytes.resize(index(k * n * size), 0);
            let mut bytes = std::mem::take(&mut scratch.bytes);
            if n == stride {
                self.read(begin * size, &mut bytes)?;
            } else if n > 0 {
                for (i, row) in (0..).zip(bytes.chunks_exact_mut(index(n * size))) {
                    self.read((begin + i * stride) * size, row)?;
                }
            }
            let part = Rows {
                count: n,
                to: self.to + index(done),
                ..*self
            };
            let (width, k) = (index(n), index(k));
            if form == WeightType::Bf16 {
                scratch.halves.resize(k * width, 0);
                decode::halves(piece.dtype, &bytes, piece.plus, &mut scratch.halves);
                let halves = &scratch.halves;
                part.for_panels(words, form, k, |panel, lane, column, count| {
                    pack_columns(panel, k, (lane, count), (halves, width, column));
                });
            } else {
                let element = index(size);
                scratch.floats.resize(k, 0.0);
                part.for_panels(words, form, k, |panel, lane, column, count| {
                    for i in 0..count {
                        let one = bytes[(column + i) * element..].chunks(width * element);
                        for (bytes, x) in one.zip(&mut scratch.floats) {
                            decode::floats(piece.dtype, &bytes[..element], std::slice::from_mut(x));
                            *x += piece.plus;
                        }
                        quantise_row(form, panel, lane + i, &scratch.floats);
                    }
                });
            }
            scratch.bytes = bytes;
            done += n;
        }
        Ok(())
    }

    /// Calls for each panel that the rows meet: its words, the first lane, rows done before, rows in it.
    fn for_panels(
        &self,
        words: &mut [u32],
        form: WeightType,
        k: usize,
        mut each: impl FnMut(&mut [u32], usize, usize, usize),
    ) {
        let len = PANEL * index(form.row_words(k as u64));
        let count = index(self.count);
        let mut done = 0;
        while done < count {
            let row = self.to + done;
            let n = (PANEL - row % PANEL).min(count - done);
            each(&mut words[row / PANEL * len..][..len], row % PANEL, done, n);
            done += n;
        }
    }
}
