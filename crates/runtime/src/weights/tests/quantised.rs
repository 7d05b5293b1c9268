//! Every layout of quantised matrices, packed here from its definition, and what is wrong with those that are damaged.

use std::sync::Arc;

use plimsoll_model::Axis;
use plimsoll_program::{Grid, Number, Order, Packed, Quantised, Zero};

use super::*;

const OUT: usize = 72;
const INP: usize = 96;
const GROUP: usize = 32;

/// A stored tensor: the end of its name, its type, its shape and its bytes.
type Tensor = (&'static str, &'static str, Vec<u64>, Vec<u8>);

/// A matrix as it is stored, how that is read, and what its elements are, output by output.
struct Layout {
    name: &'static str,
    what: Quantised,
    tensors: Vec<Tensor>,
    elements: Vec<Vec<f32>>,
}

/// Random numbers of so many bits.
fn codes(seed: u64, n: usize, bits: u32) -> Vec<u32> {
    let all = numbers(seed, n as u64).into_iter();
    all.map(|x| (x.to_bits() >> 7) & ((1 << bits) - 1))
        .collect()
}

/// Numbers of a line in words, the first in the lowest bits; of eight those that `order` says, one after the other.
fn words_of(line: &[u32], bits: u32, order: Option<[usize; 8]>) -> Vec<u32> {
    let per = 32 / bits as usize;
    let word = |some: &[u32]| {
        (0..per).fold(0, |word, i| {
            let at = order.map_or(i, |o| o[i]);
            word | some.get(at).copied().unwrap_or(0) << (bits * i as u32)
        })
    };
    line.chunks(per).map(word).collect()
}

/// Lines of a matrix of so many columns; of its transpose where `turned`.
fn lines(all: &[u32], columns: usize, turned: bool) -> Vec<Vec<u32>> {
    if turned {
        let column = |c: usize| all[c..].iter().step_by(columns).copied().collect();
        (0..columns).map(column).collect()
    } else {
        all.chunks(columns).map(<[u32]>::to_vec).collect()
    }
}

fn bytes_of(lines: &[Vec<u32>]) -> Vec<u8> {
    lines
        .concat()
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect()
}

fn shape(lines: &[Vec<u32>]) -> Vec<u64> {
    vec![lines.len() as u64, lines[0].len() as u64]
}

fn turned(all: &[Vec<u32>]) -> Vec<Vec<u32>> {
    lines(&all.concat(), all[0].len(), true)
}

fn packing(bits: u8, along: Axis) -> Packed {
    Packed {
        bits,
        along,
        interleaved: false,
        plus: 0,
    }
}

fn grid(leaf: &'static str, dtype: DType, number: Number, block: [u64; 2], first: bool) -> Grid {
    Grid {
        leaf,
        dtype,
        number,
        block,
        inputs_first: first,
    }
}

/// f16 scales, by output and group, and their bits.
fn scales(seed: u64, groups: usize) -> (Vec<u32>, Vec<f32>) {
    let bits: Vec<u32> = codes(seed, OUT * groups, 10)
        .iter()
        .map(|m| 0x1c00 + m)
        .collect();
    let values = bits
        .iter()
        .map(|b| plimsoll_kernels::f32_from_f16(*b as u16));
    let values = values.collect();
    (bits, values)
}

fn halves(lines: &[Vec<u32>]) -> Vec<u8> {
    let all = lines.concat();
    all.iter().flat_map(|w| (*w as u16).to_le_bytes()).collect()
}

/// `scale × (code − zero)` by output, input and group.
fn products(
    group: impl Fn(usize) -> usize,
    groups: usize,
    code: impl Fn(usize) -> f32,
    scale: impl Fn(usize) -> f32,
    zero: impl Fn(usize) -> f32,
) -> Vec<Vec<f32>> {
    let element = |o: usize, i: usize| {
        let at = o * groups + group(i);
        scale(at) * (code(o * INP + i) - zero(at))
    };
    let row = |o| (0..INP).map(|i| element(o, i)).collect();
    (0..OUT).map(row).collect()
}

const SIZE: [u64; 2] = [OUT as u64, INP as u64];
const GROUPS: usize = INP / GROUP;
const BLOCK: [u64; 2] = [1, GROUP as u64];
const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn awq() -> Layout {
    let (q, z) = (codes(1, OUT * INP, 4), codes(2, OUT * GROUPS, 4));
    let (bits, scale) = scales(3, GROUPS);
    let along = Number::Whole(Packed {
        interleaved: true,
        ..packing(4, Axis::Out)
    });
    let packed = |all: &[u32], columns| -> Vec<Vec<u32>> {
        let lines = lines(all, columns, true);
        lines.iter().map(|l| words_of(l, 4, Some(AWQ))).collect()
    };
    let (codes, zeros) = (packed(&q, INP), packed(&z, GROUPS));
    let halved = lines(&bits, GROUPS, true);
    Layout {
        name: "awq",
        what: Quantised {
            size: SIZE,
            codes: grid(".qweight", DType::I32, along, [1, 1], true),
            scales: grid(".scales", DType::F16, Number::Plain, BLOCK, true),
            zero: Zero::Stored(grid(".qzeros", DType::I32, along, BLOCK, true)),
            order: None,
        },
        tensors: vec![
            (".qweight", "I32", shape(&codes), bytes_of(&codes)),
            (".qzeros", "I32", shape(&zeros), bytes_of(&zeros)),
            (".scales", "F16", shape(&halved), halves(&halved)),
        ],
        elements: products(
            |i| i / GROUP,
            GROUPS,
            |at| q[at] as f32,
            |at| scale[at],
            |at| z[at] as f32,
        ),
    }
}

/// Zero points less one where `less`, in which some of 0 borrow from the one beside them.
fn gptq(bits: u8, less: bool, sorted: bool) -> Layout {
    let width = u32::from(bits);
    let q = codes(4, OUT * INP, width);
    let mut z = codes(5, OUT * GROUPS, width);
    z.iter_mut().step_by(3).for_each(|z| *z = 0);
    let (half, scale) = scales(6, GROUPS);
    // Inputs of a group are everywhere, or together.
    let group = |i: usize| {
        if sorted {
            i / GROUP
        } else {
            (i * 7 + i / 5) % GROUPS
        }
    };
    let order: Vec<u32> = (0..INP).map(|i| group(i) as u32).collect();
    let code_words: Vec<Vec<u32>> = lines(&q, INP, false)
        .iter()
        .map(|l| words_of(l, width, None))
        .collect();
    let code_words = turned(&code_words);
    let one = (0..32 / width).fold(0_u32, |a, i| a | 1 << (i * width));
    let zeros: Vec<Vec<u32>> = lines(&z, GROUPS, true)
        .iter()
        .map(|l| words_of(l, width, None))
        .map(|l| {
            l.iter()
                .map(|w| w.wrapping_sub(u32::from(less) * one))
                .collect()
        })
        .collect();
    let halved = lines(&half, GROUPS, true);
    let zero = Packed {
        plus: u32::from(less) * one,
        ..packing(bits, Axis::Out)
    };
    let along = Number::Whole(packing(bits, Axis::In));
    let ids = vec![order.clone()];
    Layout {
        name: if less { "gptq, less one" } else { "gptq" },
        what: Quantised {
            size: SIZE,
            codes: grid(".qweight", DType::I32, along, [1, 1], true),
            scales: grid(".scales", DType::F16, Number::Plain, BLOCK, true),
            zero: Zero::Stored(grid(
                ".qzeros",
                DType::I32,
                Number::Whole(zero),
                BLOCK,
                true,
            )),
            order: Some(Order {
                leaf: ".g_idx",
                sorted,
            }),
        },
        tensors: vec![
            (".qweight", "I32", shape(&code_words), bytes_of(&code_words)),
            (".qzeros", "I32", shape(&zeros), bytes_of(&zeros)),
            (".scales", "F16", shape(&halved), halves(&halved)),
            (".g_idx", "I32", vec![INP as u64], bytes_of(&ids)),
        ],
        elements: products(
            |i| order[i] as usize,
            GROUPS,
            |at| q[at] as f32,
            |at| scale[at],
            |at| z[at] as f32,
        ),
    }
}

/// compressed-tensors' words: by output, zero points along outputs.
fn packed_words(bits: u8, zeros: bool) -> Layout {
    let width = u32::from(bits);
    let (q, z) = (codes(7, OUT * INP, width), codes(8, OUT * GROUPS, width));
    let (half, scale) = scales(9, GROUPS);
    let codes: Vec<Vec<u32>> = lines(&q, INP, false)
        .iter()
        .map(|l| words_of(l, width, None))
        .collect();
    let zero_words: Vec<Vec<u32>> = lines(&z, GROUPS, true)
        .iter()
        .map(|l| words_of(l, width, None))
        .collect();
    let zero_words = turned(&zero_words);
    let halved = lines(&half, GROUPS, false);
    let number = |axis| Number::Whole(packing(bits, axis));
    let middle = 1_u8 << (bits - 1);
    let mut tensors = vec![
        (".weight_packed", "I32", shape(&codes), bytes_of(&codes)),
        (".weight_scale", "F16", shape(&halved), halves(&halved)),
    ];
    let zero = if zeros {
        let bytes = bytes_of(&zero_words);
        tensors.push((".weight_zero_point", "I32", shape(&zero_words), bytes));
        let along = number(Axis::Out);
        Zero::Stored(grid(".weight_zero_point", DType::I32, along, BLOCK, false))
    } else {
        Zero::Same(middle)
    };
    Layout {
        name: "packed",
        what: Quantised {
            size: SIZE,
            codes: grid(
                ".weight_packed",
                DType::I32,
                number(Axis::In),
                [1, 1],
                false,
            ),
            scales: grid(".weight_scale", DType::F16, Number::Plain, BLOCK, false),
            zero,
            order: None,
        },
        tensors,
        elements: products(
            |i| i / GROUP,
            GROUPS,
            |at| q[at] as f32,
            |at| scale[at],
            |at| {
                if zeros {
                    z[at] as f32
                } else {
                    f32::from(middle)
                }
            },
        ),
    }
}

/// Signed bytes with a scale and a zero point for each output.
fn int8() -> Layout {
    let (q, z) = (codes(10, OUT * INP, 8), codes(11, OUT, 8));
    let scale = numbers(12, OUT as u64);
    let bytes = |all: &[u32]| all.iter().map(|x| x.to_le_bytes()[0]).collect();
    let signed = |x: u32| f32::from(x.to_le_bytes()[0].cast_signed());
    let block = [1, INP as u64];
    Layout {
        name: "int8",
        what: Quantised {
            size: SIZE,
            codes: grid(".weight", DType::I8, Number::Plain, [1, 1], false),
            scales: grid(".weight_scale", DType::F32, Number::Plain, block, false),
            zero: Zero::Stored(grid(
                ".weight_zero_point",
                DType::I8,
                Number::Plain,
                block,
                false,
            )),
            order: None,
        },
        tensors: vec![
            (".weight", "I8", SIZE.to_vec(), bytes(&q)),
            (
                ".weight_scale",
                "F32",
                vec![OUT as u64, 1],
                f32_bytes(&scale),
            ),
            (".weight_zero_point", "I8", vec![OUT as u64, 1], bytes(&z)),
        ],
        elements: products(
            |_| 0,
            1,
            |at| signed(q[at]),
            |at| scale[at],
            |at| signed(z[at]),
        ),
    }
}

/// Eight-bit floats, by their definition.
fn float8(code: u32) -> f32 {
    let (e, m) = ((code >> 3 & 15) as i32, (code & 7) as f32 / 8.0);
    let size = match e {
        0 => m * 2_f32.powi(-6),
        _ => (1.0 + m) * 2_f32.powi(e - 7),
    };
    if code >> 7 == 1 { -size } else { size }
}

/// Blocks that end inside the matrix both ways.
fn fp8() -> Layout {
    fp8_of([OUT, INP], [16, 40])
}

/// A matrix of this size, a scale for each block of so many outputs and inputs.
fn fp8_of([out, inp]: [usize; 2], [rows, columns]: [usize; 2]) -> Layout {
    let mut q = codes(13, out * inp, 8);
    // All codes that are numbers.
    q.iter_mut().enumerate().for_each(|(i, q)| {
        *q = if *q & 0x7f == 0x7f {
            i as u32 % 127
        } else {
            *q
        };
    });
    let (high, wide) = (out.div_ceil(rows), inp.div_ceil(columns));
    let scale = numbers(14, (high * wide) as u64);
    let codes = q.iter().map(|x| x.to_le_bytes()[0]).collect();
    let element =
        |o: usize, i: usize| scale[o / rows * wide + i / columns] * float8(q[o * inp + i]);
    let size = [out, inp].map(|n| n as u64);
    Layout {
        name: "fp8",
        what: Quantised {
            size,
            codes: grid(".weight", DType::F8E4m3, Number::Plain, [1, 1], false),
            scales: grid(
                ".weight_scale_inv",
                DType::F32,
                Number::Plain,
                [rows, columns].map(|n| n as u64),
                false,
            ),
            zero: Zero::Same(0),
            order: None,
        },
        tensors: vec![
            (".weight", "F8_E4M3", size.to_vec(), codes),
            (
                ".weight_scale_inv",
                "F32",
                vec![high as u64, wide as u64],
                f32_bytes(&scale),
            ),
        ],
        elements: (0..out)
            .map(|o| (0..inp).map(|i| element(o, i)).collect())
            .collect(),
    }
}

/// Four-bit floats with powers of two; outputs are those of two experts.
fn mxfp4() -> Layout {
    let blocks: Vec<u8> = (0..OUT * INP / 2).map(|i| (i * 37 % 251) as u8).collect();
    let powers: Vec<u8> = (0..OUT * GROUPS).map(|i| (i * 5 % 200) as u8).collect();
    let sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |o: usize, i: usize| {
        let at = o * INP + i;
        let code = usize::from(blocks[at / 2] >> (4 * (at % 2)) & 15);
        let sign = if code >= 8 { -1.0 } else { 1.0 };
        let power = i32::from(powers[o * GROUPS + i / GROUP]) - 127;
        sign * sizes[code % 8] * 2_f32.powi(power)
    };
    let each = OUT as u64 / 2;
    let along = Number::E2m1(packing(4, Axis::In));
    Layout {
        name: "mxfp4",
        what: Quantised {
            size: SIZE,
            codes: grid("_blocks", DType::U8, along, [1, 1], false),
            scales: grid("_scales", DType::U8, Number::Power, BLOCK, false),
            zero: Zero::Same(0),
            order: None,
        },
        tensors: vec![
            (
                "_blocks",
                "U8",
                vec![2, each, GROUPS as u64, 16],
                blocks.clone(),
            ),
            (
                "_scales",
                "U8",
                vec![2, each, GROUPS as u64],
                powers.clone(),
            ),
        ],
        elements: (0..OUT)
            .map(|o| (0..INP).map(|i| value(o, i)).collect())
            .collect(),
    }
}

fn layouts() -> Vec<Layout> {
    vec![
        awq(),
        gptq(4, true, false),
        gptq(8, true, false),
        gptq(2, false, false),
        packed_words(4, true),
        packed_words(8, false),
        packed_words(2, true),
        int8(),
        fp8(),
        mxfp4(),
    ]
}

impl Layout {
    fn write(&self, folder: &Folder) {
        let named = |(leaf, dtype, shape, bytes): &Tensor| {
            (format!("x{leaf}"), *dtype, shape.clone(), bytes.clone())
        };
        let named: Vec<_> = self.tensors.iter().map(named).collect();
        let tensors: Vec<_> = named
            .iter()
            .map(|(n, d, s, b)| (n.as_str(), *d, s.as_slice(), b.clone()))
            .collect();
        folder.safetensors("m.safetensors", &tensors);
    }

    /// Some rows and columns of it, or of its transpose.
    fn part(
        &self,
        form: WeightType,
        rows: std::ops::Range<u64>,
        columns: std::ops::Range<u64>,
        transposed: bool,
    ) -> Program {
        let mut s = source(&format!("x{}", self.what.codes.leaf), rows.clone());
        s.quantised = Some(Arc::new(self.what));
        s.transposed = transposed;
        s.input = Some(columns.start);
        let (n, k) = (rows.end - rows.start, columns.end - columns.start);
        program(vec![(WeightLayout::Packed { form, n, k }, vec![s])])
    }
}

const FILES: &[&str] = &["m.safetensors"];

#[test]
fn every_part_of_every_layout_is_what_it_stands_for() {
    for layout in layouts() {
        let folder = Folder::new();
        layout.write(&folder);
        let [out, inp] = SIZE;
        // All, a rank's rows, columns that end inside words and groups, a head's rows turned.
        let parts = [
            (0..out, 0..inp, false),
            (out / 2..out, 0..inp, false),
            (3..43, 37..inp, false),
            (5..6, 7..8, false),
            (0..inp, 11..31, true),
            (9..70, 0..out, true),
        ];
        for (rows, columns, transposed) in parts {
            let want: Vec<Vec<f32>> = rows
                .clone()
                .map(|r| {
                    let at = |c: u64| {
                        let (r, c) = (r as usize, c as usize);
                        let (o, i) = if transposed { (c, r) } else { (r, c) };
                        layout.elements[o][i]
                    };
                    columns.clone().map(at).collect()
                })
                .collect();
            let k = columns.end - columns.start;
            for form in WeightType::ALL {
                let p = layout.part(form, rows.clone(), columns.clone(), transposed);
                let arena = loaded(&p, &folder.0, FILES, 2).unwrap();
                let want = match form {
                    WeightType::Bf16 => packed(&want, k as usize),
                    _ => quantised(form, &want, k),
                };
                let what = format!("{}, {form}, {rows:?} {columns:?}", layout.name);
                assert_eq!(words(&arena, &p.weights[0]), want, "{what}");
            }
        }
    }
}

/// Groups of four bits are kept as they are stored: each element is what it stands for, to the bit.
#[test]
fn groups_of_four_bits_lose_nothing() {
    let mut kept = 0;
    let mut all = layouts();
    all.push(gptq(4, true, true));
    for layout in all {
        let Some(group) = layout.what.group_size() else {
            continue;
        };
        kept += 1;
        let folder = Folder::new();
        layout.write(&folder);
        let form = WeightType::Grouped(group);
        for (rows, columns) in [(0..OUT, 0..INP), (5..40, GROUP..INP)] {
            let [r, c] = [&rows, &columns].map(|r| r.start as u64..r.end as u64);
            let p = layout.part(form, r, c, false);
            let arena = loaded(&p, &folder.0, FILES, 2).unwrap();
            let words = words(&arena, &p.weights[0]);
            let (n, k) = (rows.len(), columns.len());
            let matrix = plimsoll_kernels::Linear::new(&words, form, n, k);
            let mut row = vec![f32::NAN; k];
            for (i, o) in rows.enumerate() {
                matrix.row(i, &mut row);
                assert_eq!(row, layout.elements[o][columns.clone()], "{}", layout.name);
            }
        }
        // What is no number, and inputs elsewhere than the config says.
        let mut bad = layout;
        let scales = bad.what.scales.leaf;
        let tensor = bad.tensors.iter_mut().find(|t| t.0 == scales).unwrap();
        tensor.3[..2].copy_from_slice(&0x7e00_u16.to_le_bytes());
        bad.write(&folder);
        let p = bad.part(form, 0..OUT as u64, 0..INP as u64, false);
        let e = loaded(&p, &folder.0, FILES, 1).unwrap_err().to_string();
        assert!(e.contains("no finite"), "{e}");
    }
    assert_eq!(kept, 3);
    let folder = Folder::new();
    let mut apart = gptq(4, true, false);
    apart.what.order = Some(Order {
        leaf: ".g_idx",
        sorted: true,
    });
    apart.write(&folder);
    let form = WeightType::Grouped(plimsoll_units::GroupSize::G32);
    let p = apart.part(form, 0..OUT as u64, 0..INP as u64, false);
    let e = loaded(&p, &folder.0, FILES, 1).unwrap_err().to_string();
    assert!(e.contains("`x.g_idx` has inputs of a group apart"), "{e}");
}

/// e4m3 whose scales are for whole groups of columns is kept as it is stored: each element is what it stands for, to the
/// bit. A part that begins inside a group is quantised anew.
#[test]
fn floats_lose_nothing() {
    let (size, form) = ([72, 300], WeightType::Fp8);
    for block in [[16, 128], [1, 300], [72, 300], [40, 256]] {
        let layout = fp8_of(size, block);
        assert_eq!(layout.what.kept(), Some(form));
        let folder = Folder::new();
        layout.write(&folder);
        for (rows, columns) in [(0..72, 0..300), (5..40, 128..300), (3..43, 37..290)] {
            let [r, c] = [&rows, &columns].map(|r| r.start as u64..r.end as u64);
            let p = layout.part(form, r, c, false);
            let arena = loaded(&p, &folder.0, FILES, 2).unwrap();
            let words = words(&arena, &p.weights[0]);
            let (n, k) = (rows.len(), columns.len());
            let part = |o: usize| layout.elements[o][columns.clone()].to_vec();
            let what = format!("{block:?}, {rows:?}, {columns:?}");
            if columns.start == 37 && block[1] < 300 {
                let want: Vec<Vec<f32>> = rows.map(part).collect();
                assert_eq!(words, quantised(form, &want, k as u64), "{what}");
                continue;
            }
            let matrix = plimsoll_kernels::Linear::new(&words, form, n, k);
            let mut row = vec![f32::NAN; k];
            for (i, o) in rows.enumerate() {
                matrix.row(i, &mut row);
                assert_eq!(row, part(o), "{what}");
            }
        }
        // What is no number: a code, and scales.
        let error = |leaf: &str, at: usize, bytes: &[u8]| {
            let mut bad = fp8_of(size, block);
            let tensor = bad.tensors.iter_mut().find(|t| t.0 == leaf).unwrap();
            tensor.3[at..][..bytes.len()].copy_from_slice(bytes);
            bad.write(&folder);
            let p = bad.part(form, 0..72, 0..300, false);
            loaded(&p, &folder.0, FILES, 1).unwrap_err().to_string()
        };
        for scale in [f32::NAN, f32::INFINITY, f32::MAX] {
            let e = error(".weight_scale_inv", 0, &scale.to_le_bytes());
            assert!(
                e.contains("`x.weight` has elements that are no finite"),
                "{e}"
            );
        }
        let e = error(".weight", 777, &[0xff]);
        assert!(
            e.contains("`x.weight` has elements that are no finite"),
            "{e}"
        );
    }
    assert_eq!(fp8_of(size, [16, 64]).what.kept(), None);
    assert_eq!(int8().what.kept(), None);
}

#[test]
fn damaged_layouts_are_told_by_tensor() {
    let error = |layout: &Layout| {
        let folder = Folder::new();
        layout.write(&folder);
        let [out, inp] = SIZE;
        let p = layout.part(WeightType::Bf16, 0..out, 0..inp, false);
        loaded(&p, &folder.0, FILES, 1)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let damaged = |layout: &dyn Fn() -> Layout, leaf: &str, change: &dyn Fn(&mut Tensor)| {
        let mut layout = layout();
        change(layout.tensors.iter_mut().find(|t| t.0 == leaf).unwrap());
        error(&layout)
    };
    // The second scale of the third group.
    for bits in [0x7e00_u16, 0x7c00, 0xfc00] {
        let e = damaged(&awq, ".scales", &|t| {
            t.3[2 * (2 * OUT + 1)..][..2].copy_from_slice(&bits.to_le_bytes());
        });
        assert!(e.contains("`x.qweight`") && e.contains("`x.scales`"), "{e}");
    }
    let e = damaged(&fp8, ".weight", &|t| t.3[77] = 0xff);
    assert!(
        e.contains("`x.weight` has elements that are no finite"),
        "{e}"
    );
    let e = damaged(&int8, ".weight_scale", &|t| {
        t.3[..4].copy_from_slice(&f32::MAX.to_le_bytes());
    });
    assert!(e.contains("no finite"), "{e}");
    let e = damaged(&mxfp4, "_scales", &|t| t.3[5] = 255);
    assert!(e.contains("no finite"), "{e}");
    for group in [GROUPS as i32, -1, i32::MIN] {
        let e = damaged(&|| gptq(4, true, false), ".g_idx", &|t| {
            t.3[4 * 90..][..4].copy_from_slice(&group.to_le_bytes());
        });
        let says = format!("`x.g_idx` puts input 90 into group {group}, and there are {GROUPS}");
        assert!(e.contains(&says), "{e}");
    }
    let e = damaged(&awq, ".qzeros", &|t| {
        t.2 = vec![9, 2];
        t.3.truncate(9 * 2 * 4);
    });
    assert!(e.contains("`x.qzeros`") && e.contains("[3, 9]"), "{e}");
    let e = damaged(&awq, ".scales", &|t| t.1 = "I16");
    assert!(e.contains("`x.scales` is stored as i16"), "{e}");
    let mut without = gptq(4, false, false);
    without.tensors.retain(|t| t.0 != ".g_idx");
    assert!(error(&without).contains("`x.g_idx`"));

    // Sizes that no file has.
    let folder = Folder::new();
    awq().write(&folder);
    for size in [
        [u64::MAX, INP as u64],
        [OUT as u64, u64::MAX],
        [u64::MAX; 2],
        [0, 0],
    ] {
        let mut layout = awq();
        layout.what.size = size;
        let p = layout.part(WeightType::Bf16, 0..1, 0..8, false);
        assert!(loaded(&p, &folder.0, FILES, 1).is_err(), "{size:?}");
    }
    for (rows, columns) in [(0..OUT as u64 + 1, 0..8), (0..1, 90..97)] {
        let p = awq().part(WeightType::Bf16, rows, columns, false);
        let e = loaded(&p, &folder.0, FILES, 1).unwrap_err().to_string();
        assert!(e.contains("inconsistent"), "{e}");
    }
}
