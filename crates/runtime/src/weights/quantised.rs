//! Quantised matrices: rectangles of codes, scales and zero points, read from a file and multiplied out.
//!
//! A product is an f32: exact for whole numbers of up to eight bits with scales of 16 bits, else the nearest. What is
//! no finite number, and a group that is not there, is an error that names the tensor.

use std::ops::Range;
use std::sync::Arc;

use plimsoll_kernels::{f32_from_f16, group_word};
use plimsoll_model::Axis;
use plimsoll_model::json::printable;
use plimsoll_program::{Grid, Number, Quantised, Source, Weight, WeightLayout, Zero};
use plimsoll_units::{Bytes, DType, WeightType};

use super::checkpoint::{Checkpoint, Found};
use super::fill::{Matrix, Piece};
use super::{WeightsError, wrong};

/// A quantised matrix in the files of a checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Grids {
    what: Arc<Quantised>,
    codes: Stored,
    scales: Stored,
    zeros: Option<Stored>,
    order: Option<Stored>,
    /// Whether rows of the weight are its inputs.
    transposed: bool,
    /// The first of its columns that is taken.
    first: u64,
}

/// Where a grid lies.
#[derive(Clone, Copy, Debug)]
struct Stored {
    file: usize,
    begin: u64,
    /// Bytes of an element.
    element: u64,
    /// Elements of a line.
    line: u64,
}

/// What was read of some outputs and inputs.
#[derive(Debug, Default)]
pub(super) struct Rectangle {
    codes: Vec<u8>,
    /// Where the codes of each output and of each input are: bytes from the beginning, bits from the lowest.
    outputs: Vec<(usize, u32)>,
    inputs: Vec<(usize, u32)>,
    /// Neighbouring inputs of one group: where they end, and which group.
    runs: Vec<(usize, usize)>,
    groups: usize,
    /// Scale and zero of each output's groups.
    parameters: Vec<[f32; 2]>,
    /// The first output and the first input.
    origin: [u64; 2],
    bytes: Vec<u8>,
    /// What codes stand for.
    values: Vec<f32>,
}

/// Where a source lies, all of it checked.
pub(super) fn resolve(
    weight: &Weight,
    source: &Source,
    what: &Arc<Quantised>,
    checkpoint: &Checkpoint,
) -> Result<Piece, WeightsError> {
    let WeightLayout::Packed { k, .. } = weight.layout else {
        return Err(wrong(weight, "what is quantised is no matrix"));
    };
    let [mut height, mut width] = what.size;
    if source.transposed {
        (height, width) = (width, height);
    }
    let first = source.input.unwrap_or(0);
    let rows = &source.rows;
    let whole = source.input.is_some() || k == width;
    if !whole || first.checked_add(k).is_none_or(|to| to > width) || source.plus != 0 {
        return Err(wrong(
            weight,
            format!("{k} columns from {first} of {width}"),
        ));
    }
    if rows.start > rows.end || rows.end > height {
        return Err(wrong(weight, format!("rows {rows:?} of {height}")));
    }
    let find = |leaf, dtype, shape| {
        let name = what.beside(&source.tensor, leaf);
        stored(&name, dtype, shape, checkpoint)
    };
    let grid = |g: &Grid| find(g.leaf, g.dtype, g.shape(what.size));
    let codes = grid(&what.codes)?;
    let order = |leaf| find(leaf, DType::I32, [1, what.size[1]]);
    Ok(Piece {
        tensor: source.tensor.clone(),
        file: codes.file,
        begin: codes.begin,
        dtype: what.codes.dtype,
        matrix: Matrix::Quantised(Box::new(Grids {
            what: what.clone(),
            codes,
            scales: grid(&what.scales)?,
            zeros: what.zeros().map(grid).transpose()?,
            order: what.order.map(|o| order(o.leaf)).transpose()?,
            transposed: source.transposed,
            first,
        })),
        plus: -0.0,
        at: 0..rows.end - rows.start,
        from: rows.start,
    })
}

fn stored(
    tensor: &str,
    dtype: DType,
    [lines, line]: [u64; 2],
    checkpoint: &Checkpoint,
) -> Result<Stored, WeightsError> {
    let Some(Found {
        name,
        file,
        dtype: found,
        shape,
        begin,
    }) = checkpoint.find(tensor)
    else {
        return Err(WeightsError::Missing(vec![tensor.to_owned()]));
    };
    if found != dtype {
        return Err(WeightsError::DType {
            tensor: printable(name),
            dtype: found,
        });
    }
    let elements = Bytes::product(shape.iter().copied());
    if elements.is_err() || elements != Bytes::product([lines, line]) {
        return Err(WeightsError::Shape {
            tensor: printable(name),
            found: shape.to_vec(),
            wanted: format!("[{lines}, {line}] is needed"),
        });
    }
    Ok(Stored {
        file,
        begin,
        element: dtype.block_bytes(),
        line,
    })
}

/// What the codes of a grid stand for.
fn values(grid: &Grid) -> impl Iterator<Item = f32> {
    const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let signed = |negative: bool, size: f32| if negative { -size } else { size };
    let (number, dtype) = (grid.number, grid.dtype);
    (0..=255_u8).map(move |code| match (number, dtype) {
        (Number::Plain, DType::F8E4m3) => e4m3(code),
        (Number::Plain, DType::I8) => f32::from(code.cast_signed()),
        (Number::E2m1(_), _) => signed(code & 8 != 0, SIZES[usize::from(code & 7)]),
        _ => f32::from(code),
    })
}

/// Eight-bit floats with four bits of an exponent (bias 7), without infinities (OCP 8-bit Floating Point 1.0).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, code & 7);
    let size = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, m) => f32::from(m) / 512.0,
        (e, m) => f32::from_bits((u32::from(e) + 120) << 23 | u32::from(m) << 20),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// 2 to the power of a byte less 127.
fn power(exponent: u8) -> f32 {
    match exponent {
        0 => f32::MIN_POSITIVE / 2.0,
        255 => f32::NAN,
        e => f32::from_bits(u32::from(e) << 23),
    }
}

/// The number of a grid that begins at a byte and bit of what was read, but for codes.
fn number(grid: &Grid, bytes: &[u8], (at, shift): (usize, u32)) -> f32 {
    let word = |i: usize| bytes.get(at + i).copied().unwrap_or(0);
    match (grid.number, grid.dtype) {
        (Number::Plain, DType::F32) => f32::from_le_bytes([word(0), word(1), word(2), word(3)]),
        (Number::Plain, DType::F16) => f32_from_f16(u16::from_le_bytes([word(0), word(1)])),
        (Number::Plain, DType::Bf16) => f32::from_le_bytes([0, 0, word(0), word(1)]),
        (Number::Plain, DType::I8) => f32::from(word(0).cast_signed()),
        (Number::Power, _) | (Number::Plain, DType::F8E8m0) => power(word(0)),
        (Number::Whole(p), DType::I32) => {
            let all = u32::from_le_bytes([word(0), word(1), word(2), word(3)]);
            let all = all.wrapping_add(p.plus) >> shift;
            f32::from(all.to_le_bytes()[0] & mask(p.bits))
        }
        // Lowering names no others.
        _ => f32::NAN,
    }
}

fn mask(bits: u8) -> u8 {
    u8::MAX >> (8 - bits.clamp(1, 8))
}

/// What lies in memory, as an index.
fn index(n: u64) -> usize {
    usize::try_from(n).expect("a part of what lies in memory")
}

impl Grids {
    /// Bytes that the codes of so many elements take.
    pub(super) fn code_bytes(&self, elements: u64) -> u64 {
        self.what.code_bytes(elements).unwrap_or(0)
    }

    /// Bytes that a thread holds of so many rows of `k` columns: codes, and a scale and a zero point for each group.
    pub(super) fn held_bytes(&self, rows: u64, k: u64) -> u64 {
        let groups = k.div_ceil(self.what.scales.block[1].max(1)).max(1);
        let parameters = rows.saturating_mul(groups).saturating_mul(8);
        self.code_bytes(rows.saturating_mul(k))
            .saturating_add(parameters)
    }

    /// Reads what `k` columns of these rows of the weight come of.
    pub(super) fn read(
        &self,
        checkpoint: &Checkpoint,
        tensor: &str,
        rows: Range<u64>,
        k: u64,
        into: &mut Rectangle,
    ) -> Result<(), WeightsError> {
        let columns = self.first..self.first + k;
        let [outputs, inputs] = if self.transposed {
            [columns, rows]
        } else {
            [rows, columns]
        };
        into.origin = [outputs.start, inputs.start];
        let groups = self.groups(checkpoint, tensor, inputs.clone(), into)?;
        self.parameters(checkpoint, tensor, outputs.clone(), groups, into)?;
        let grid = &self.what.codes;
        into.values.clear();
        into.values.extend(values(grid));
        let window = Window::new(grid, &self.codes, [outputs.clone(), inputs.clone()]);
        window.read(checkpoint, tensor, &mut into.codes)?;
        into.outputs.clear();
        let places = outputs.map(|o| window.place(grid, Axis::Out, o));
        into.outputs.extend(places);
        into.inputs.clear();
        let places = inputs.map(|i| window.place(grid, Axis::In, i));
        into.inputs.extend(places);
        Ok(())
    }

    /// Finds the runs of inputs that share a scale; returns the groups among which theirs are.
    fn groups(
        &self,
        checkpoint: &Checkpoint,
        tensor: &str,
        inputs: Range<u64>,
        into: &mut Rectangle,
    ) -> Result<Range<u64>, WeightsError> {
        let all = self.what.groups();
        let block = self.what.scales.block[1].max(1);
        let mut groups = inputs.start / block..inputs.end.div_ceil(block);
        let order = self.what.order.map(|o| self.what.beside(tensor, o.leaf));
        if let (Some(stored), Some(order)) = (&self.order, &order) {
            into.bytes.resize(index((inputs.end - inputs.start) * 4), 0);
            let begin = stored.begin + inputs.start * 4;
            read(checkpoint, order, stored.file, begin, &mut into.bytes)?;
            groups = 0..all;
        }
        into.runs.clear();
        for (at, input) in inputs.enumerate() {
            let group = match &order {
                None => input / block,
                Some(order) => {
                    let stored = into
                        .bytes
                        .as_chunks()
                        .0
                        .get(at)
                        .map(|b| i32::from_le_bytes(*b));
                    let group = stored
                        .and_then(|g| u64::try_from(g).ok())
                        .filter(|g| *g < all);
                    group.ok_or_else(|| WeightsError::Values {
                        tensor: printable(order),
                        problem: format!(
                            "puts input {input} into group {}, and there are {all}",
                            stored.unwrap_or(0)
                        ),
                    })?
                }
            };
            let group = index(group - groups.start);
            match into.runs.last_mut().filter(|(_, g)| *g == group) {
                Some((end, _)) => *end = at + 1,
                None => into.runs.push((at + 1, group)),
            }
        }
        Ok(groups)
    }

    /// Scales and zeros of outputs and groups.
    fn parameters(
        &self,
        checkpoint: &Checkpoint,
        tensor: &str,
        outputs: Range<u64>,
        groups: Range<u64>,
        into: &mut Rectangle,
    ) -> Result<(), WeightsError> {
        into.groups = index(groups.end - groups.start);
        let zero = match self.what.zero {
            Zero::Same(zero) => f32::from(zero),
            Zero::Stored(_) => 0.0,
        };
        into.parameters.clear();
        let all = index(outputs.end - outputs.start) * into.groups;
        into.parameters.resize(all, [0.0, zero]);
        let zeros = self.what.zeros().zip(self.zeros.as_ref());
        let zeros = zeros.map(|(grid, stored)| (1, grid, stored));
        let scales = Some((0, &self.what.scales, &self.scales));
        for (which, grid, stored) in scales.into_iter().chain(zeros) {
            let block = grid.block[0].max(1);
            let blocks = outputs.start / block..outputs.end.div_ceil(block);
            let window = Window::new(grid, stored, [blocks, groups.clone()]);
            let tensor = self.what.beside(tensor, grid.leaf);
            window.read(checkpoint, &tensor, &mut into.bytes)?;
            let places: Vec<_> = groups
                .clone()
                .map(|g| window.place(grid, Axis::In, g))
                .collect();
            let rows = into.parameters.chunks_exact_mut(into.groups.max(1));
            for (output, row) in outputs.clone().zip(rows) {
                let (line, bits) = window.place(grid, Axis::Out, output / block);
                for ((at, shift), parameters) in places.iter().zip(row) {
                    parameters[which] = number(grid, &into.bytes, (line + at, bits + shift));
                }
            }
        }
        Ok(())
    }

    /// The elements of rows of the weight, of those that were read, row by row; whether all are finite.
    pub(super) fn elements(&self, from: &Rectangle, rows: Range<u64>, out: &mut [f32]) -> bool {
        let [first_output, first_input] = from.origin;
        let taken = |first: u64| index(rows.start - first)..index(rows.end - first);
        let (height, width) = (from.outputs.len(), from.inputs.len());
        // How far apart elements of neighbouring outputs and inputs are.
        let ([outputs, inputs], steps) = if self.transposed {
            ([0..height, taken(first_input)], [1, height])
        } else {
            ([taken(first_output), 0..width], [width, 1])
        };
        let bits = self.what.codes.packed().map_or(8, |p| p.bits);
        let mask = u32::from(mask(bits));
        let wide = self.codes.element == 4;
        let mut finite = true;
        for (row, output) in outputs.enumerate() {
            let (line, low) = from.outputs[output];
            let parameters = &from.parameters[output * from.groups..][..from.groups];
            let mut begin = 0;
            for (end, group) in &from.runs {
                let run = begin.max(inputs.start)..(*end).min(inputs.end);
                begin = *end;
                let [scale, zero] = parameters[*group];
                for input in run {
                    let (at, shift) = from.inputs[input];
                    let code = if wide {
                        let bytes = from.codes[line + at..].first_chunk();
                        bytes.map_or(0, |b| u32::from_le_bytes(*b)) >> (low + shift)
                    } else {
                        u32::from(from.codes[line + at]) >> (low + shift)
                    };
                    let value = (from.values[(code & mask) as usize] - zero) * scale;
                    finite &= value.is_finite();
                    out[row * steps[0] + (input - inputs.start) * steps[1]] = value;
                }
            }
        }
        finite
    }

    /// The numbers of a row of the weight, of those that were read, and the word of each of its groups.
    pub(super) fn grouped(
        &self,
        from: &Rectangle,
        tensor: &str,
        row: u64,
        numbers: &mut Vec<u8>,
        words: &mut Vec<u32>,
    ) -> Result<(), WeightsError> {
        let (line, low) = from.outputs[index(row - from.origin[0])];
        let number = |(at, shift): &(usize, u32)| self.code(from, line + at, low + shift);
        numbers.clear();
        numbers.extend(from.inputs.iter().map(number));
        let parameters = &from.parameters[index(row - from.origin[0]) * from.groups..];
        words.clear();
        let each = index(self.what.scales.block[1]);
        // Where groups are stored, all of them were read.
        let first = self.what.order.map_or(0, |_| index(from.origin[1]) / each);
        for (i, (end, group)) in from.runs.iter().enumerate() {
            // Whole groups, one after the other, as the config says.
            if (*end, *group) != (((i + 1) * each).min(numbers.len()), first + i) {
                let order = self.what.order.map_or("", |o| o.leaf);
                return Err(WeightsError::Values {
                    tensor: printable(&self.what.beside(tensor, order)),
                    problem:
                        "has inputs of a group apart, and the config says that they are together"
                            .to_owned(),
                });
            }
            let [scale, zero] = parameters[*group];
            // A zero point has four bits.
            let word = group_word(scale, zero as u8).filter(|_| scale.is_finite());
            words.push(word.ok_or_else(|| self.not_finite(tensor))?);
        }
        Ok(())
    }

    /// Whether its codes can be those of e4m3 weights, its scales theirs: the first column begins a group of both.
    pub(super) fn is_f8(&self) -> bool {
        let begins = self.what.groups() == 1 || self.first.is_multiple_of(WeightType::SCALED);
        self.what.is_f8() && !self.transposed && begins
    }

    /// The codes of a row of the weight, of those that were read, and the scale of each group of columns.
    pub(super) fn f8(
        &self,
        from: &Rectangle,
        tensor: &str,
        row: u64,
        codes: &mut Vec<u8>,
        scales: &mut Vec<f32>,
    ) -> Result<(), WeightsError> {
        let at = index(row - from.origin[0]);
        let (line, _) = from.outputs[at];
        codes.clear();
        codes.extend(from.inputs.iter().map(|(at, _)| from.codes[line + at]));
        let parameters = &from.parameters[at * from.groups..];
        scales.clear();
        let mut begin = 0;
        for (end, group) in &from.runs {
            // As many groups of ours as have this scale: runs end where they do, or with the row.
            let each = index(WeightType::SCALED);
            let count = (end - begin).div_ceil(each);
            scales.extend(std::iter::repeat_n(parameters[*group][0], count));
            begin = *end;
        }
        let largest = scales.iter().map(|s| (s * 448.0).abs());
        let finite = largest.fold(0.0, f32::max).is_finite() && !scales.iter().any(|s| s.is_nan());
        if finite && codes.iter().all(|c| e4m3(*c).is_finite()) {
            Ok(())
        } else {
            Err(self.not_finite(tensor))
        }
    }

    /// The code that begins at a byte and a bit.
    fn code(&self, from: &Rectangle, at: usize, shift: u32) -> u8 {
        let bits = self.what.codes.packed().map_or(8, |p| p.bits);
        let word = match from.codes[at..].first_chunk() {
            Some(word) if self.codes.element == 4 => u32::from_le_bytes(*word) >> shift,
            _ => u32::from(from.codes[at]) >> shift,
        };
        word.to_le_bytes()[0] & mask(bits)
    }

    /// What is said of a matrix with elements that are none.
    pub(super) fn not_finite(&self, tensor: &str) -> WeightsError {
        let scales = self.what.beside(tensor, self.what.scales.leaf);
        WeightsError::Values {
            tensor: printable(tensor),
            problem: format!(
                "has elements that are no finite numbers, with the scales of `{}`",
                printable(&scales)
            ),
        }
    }
}

/// Some lines of a grid, and some elements of each.
struct Window {
    stored: Stored,
    lines: Range<u64>,
    elements: Range<u64>,
    inputs_first: bool,
}

impl Window {
    /// That with these numbers along outputs and inputs.
    fn new(grid: &Grid, stored: &Stored, numbers: [Range<u64>; 2]) -> Self {
        let [out, inp] = numbers;
        let elements = |axis, n: Range<u64>| {
            let of = |i| grid.place(axis, i).0;
            let last = n.end.checked_sub(1).filter(|last| *last >= n.start);
            last.map_or(0..0, |last| of(n.start)..of(last) + 1)
        };
        let [out, inp] = [elements(Axis::Out, out), elements(Axis::In, inp)];
        let (lines, elements) = if grid.inputs_first {
            (inp, out)
        } else {
            (out, inp)
        };
        Self {
            stored: *stored,
            lines,
            elements,
            inputs_first: grid.inputs_first,
        }
    }

    /// Bytes of a line.
    fn width(&self) -> u64 {
        (self.elements.end - self.elements.start) * self.stored.element
    }

    fn read(
        &self,
        checkpoint: &Checkpoint,
        tensor: &str,
        into: &mut Vec<u8>,
    ) -> Result<(), WeightsError> {
        let Stored {
            file,
            begin,
            element,
            line,
        } = self.stored;
        let (width, stride) = (self.width(), line * element);
        into.resize(index((self.lines.end - self.lines.start) * width), 0);
        let begin = begin + self.lines.start * stride + self.elements.start * element;
        if width == stride {
            return read(checkpoint, tensor, file, begin, into);
        }
        for (i, line) in (0..).zip(into.chunks_exact_mut(index(width).max(1))) {
            read(checkpoint, tensor, file, begin + i * stride, line)?;
        }
        Ok(())
    }

    /// What a number's place along one axis adds to where it is: bytes and bits.
    fn place(&self, grid: &Grid, axis: Axis, at: u64) -> (usize, u32) {
        let (element, shift) = grid.place(axis, at);
        let bytes = if (axis == Axis::In) == self.inputs_first {
            (element - self.lines.start) * self.width()
        } else {
            (element - self.elements.start) * self.stored.element
        };
        (index(bytes), shift)
    }
}

fn read(
    checkpoint: &Checkpoint,
    tensor: &str,
    file: usize,
    begin: u64,
    buf: &mut [u8],
) -> Result<(), WeightsError> {
    checkpoint
        .read(file, begin, buf)
        .map_err(|problem| WeightsError::Read {
            tensor: printable(tensor),
            file: checkpoint.path(file).to_owned(),
            problem,
        })
}
