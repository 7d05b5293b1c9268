use std::path::Path;

use plimsoll_kernels::{bf16_from_f32, f32_from_bf16, pack_row, quantise_row};
use plimsoll_program::{BufferId, PoolGeometry, Source};
use plimsoll_units::WeightType;

use super::*;
use crate::testing::{Folder, Meta, numbers};

mod quantised;

fn f32_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn bf16_bytes(x: &[f32]) -> Vec<u8> {
    x.iter()
        .flat_map(|x| bf16_from_f32(*x).to_le_bytes())
        .collect()
}

fn source(tensor: &str, rows: std::ops::Range<u64>) -> Source {
    Source {
        tensor: tensor.to_owned(),
        rows,
        transposed: false,
        input: None,
        quantised: None,
        plus: 0,
    }
}

/// A program of weights alone, one after the other.
fn program(weights: Vec<(WeightLayout, Vec<Source>)>) -> Program {
    let mut at = 0;
    let weights = weights
        .into_iter()
        .enumerate()
        .map(|(i, (layout, sources))| {
            let offset = Bytes::new(at);
            at += layout.bytes().unwrap().get().next_multiple_of(64);
            Weight {
                name: format!("weight {i}"),
                role: plimsoll_model::Role::Other,
                layout,
                sources,
                padding: 0,
                offset,
            }
        })
        .collect();
    Program {
        ops: Vec::new(),
        scratch: Vec::new(),
        buffers: Vec::new(),
        activation_bytes: Bytes::ZERO,
        weights,
        weight_bytes: Bytes::new(at),
        logits: BufferId(0),
        geometry: PoolGeometry {
            groups: Vec::new(),
            page: Bytes::ZERO,
        },
        kv_dtype: DType::Bf16,
        vocab: 0,
        tokens: 0,
        outputs: 0,
        rank: plimsoll_program::Rank::ALONE,
    }
}

fn loaded(
    program: &Program,
    folder: &Path,
    files: &[&str],
    threads: usize,
) -> Result<Arena, WeightsError> {
    let checkpoint = Checkpoint::open(folder, files)?;
    let mut arena = Arena::new("weights", program.weight_bytes)?;
    let last = AtomicU64::new(0);
    let all = load(program, &checkpoint, &mut arena, threads, &|done, total| {
        assert!(done <= total);
        last.fetch_max(done.get(), Ordering::Relaxed);
    })?;
    assert_eq!(all.get(), last.into_inner(), "progress ends at the total");
    Ok(arena)
}

fn words(arena: &Arena, w: &Weight) -> Vec<u32> {
    let len = w.layout.bytes().unwrap().get() / 4;
    let offset = w.offset.get();
    arena.view(Part { offset, len }).unwrap().to_vec()
}

/// The quantised form of rows.
fn quantised(form: WeightType, rows: &[Vec<f32>], k: u64) -> Vec<u32> {
    let panel = PANEL * form.row_words(k) as usize;
    let mut words = vec![0; panel * rows.len().div_ceil(PANEL)];
    for (r, row) in rows.iter().enumerate() {
        quantise_row(
            form,
            &mut words[r / PANEL * panel..][..panel],
            r % PANEL,
            row,
        );
    }
    words
}

/// The packed form of rows, by the kernels' own oracle.
fn packed(rows: &[Vec<f32>], k: usize) -> Vec<u32> {
    let mut words = vec![0; PANEL * rows.len().div_ceil(PANEL) * k.div_ceil(2)];
    for (r, row) in rows.iter().enumerate() {
        pack_row(&mut words, k, r, row.iter().map(|x| bf16_from_f32(*x)));
    }
    words
}

fn rows(x: &[f32], k: u64) -> Vec<Vec<f32>> {
    x.chunks(k as usize).map(<[f32]>::to_vec).collect()
}

#[test]
fn stacks_parts_of_all_types_from_all_files() {
    let folder = Folder::new();
    let k = 37;
    let (a, b, c, v) = (
        numbers(1, 70 * k),
        numbers(2, 11 * k),
        numbers(3, 2 * k * 45),
        numbers(4, 9),
    );
    let f16: Vec<u8> = [0x3c00_u16, 0xc000, 0x3555, 1]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    folder.safetensors(
        "one.safetensors",
        &[
            ("a", "BF16", &[70, k], bf16_bytes(&a)),
            ("v", "F32", &[9], f32_bytes(&v)),
        ],
    );
    folder.safetensors(
        "two.safetensors",
        &[
            // Two matrices, inputs first.
            ("c", "F32", &[2, k, 45], f32_bytes(&c)),
            ("h", "F16", &[4], f16),
            ("b", "F32", &[11, k], f32_bytes(&b)),
        ],
    );
    let mut from_c = source("c", 40..83);
    from_c.transposed = true;
    let mut plus = source("v", 2..7);
    plus.plus = 1;
    let program = program(vec![
        (
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 109,
                k,
            },
            vec![source("b", 0..11), from_c.clone(), source("a", 5..60)],
        ),
        (WeightLayout::F32 { n: 9 }, vec![plus, source("h", 0..4)]),
        (
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 70,
                k,
            },
            vec![source("a", 0..70)],
        ),
    ]);
    let mut want = rows(&b, k);
    for row in 40..83 {
        let (m, column) = (row / 45, row % 45);
        want.push(
            (0..k)
                .map(|i| c[((m * k + i) * 45 + column) as usize])
                .collect(),
        );
    }
    want.extend(rows(&a[5 * k as usize..60 * k as usize], k));
    for threads in [1, 2, 5] {
        let arena = loaded(
            &program,
            &folder.0,
            &["one.safetensors", "two.safetensors"],
            threads,
        )
        .unwrap();
        assert_eq!(
            words(&arena, &program.weights[0]),
            packed(&want, k as usize)
        );
        assert_eq!(
            words(&arena, &program.weights[2]),
            packed(&rows(&a, k), k as usize)
        );
        let floats: Vec<f32> = words(&arena, &program.weights[1])
            .into_iter()
            .map(f32::from_bits)
            .collect();
        assert_eq!(
            floats[..5],
            [v[2] + 1.0, v[3] + 1.0, v[4] + 1.0, v[5] + 1.0, v[6] + 1.0]
        );
        assert_eq!(floats[5..], [1.0, -2.0, 0.333_251_95, 2_f32.powi(-24)]);
        assert_eq!(
            arena.high_water().get().next_multiple_of(64),
            arena.bytes().get()
        );
    }
}

#[test]
fn some_inputs_of_a_matrix_are_taken_as_its_columns() {
    let folder = Folder::new();
    // Nine inputs of sixty outputs each, of which four are taken.
    let x = numbers(6, 9 * 60);
    let files = &["m.safetensors"];
    folder.safetensors("m.safetensors", &[("x", "BF16", &[9, 60], bf16_bytes(&x))]);
    let turned = |input| {
        let mut s = source("x", 7..60);
        (s.transposed, s.input) = (true, Some(input));
        program(vec![(
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 53,
                k: 4,
            },
            vec![s],
        )])
    };
    let program = turned(3);
    let arena = loaded(&program, &folder.0, files, 1).unwrap();
    let want: Vec<Vec<f32>> = (7..60)
        .map(|column| (3..7).map(|i| x[i * 60 + column]).collect())
        .collect();
    assert_eq!(words(&arena, &program.weights[0]), packed(&want, 4));
    for input in [6, u64::MAX] {
        let e = loaded(&turned(input), &folder.0, files, 1).unwrap_err();
        assert!(e.to_string().contains(&format!("from {input} on")), "{e}");
    }
}

/// A rank's columns of matrices that are stored by output, and of two matrices with inputs first in one tensor.
#[test]
fn a_range_of_columns_is_taken_of_every_row() {
    let folder = Folder::new();
    let (a, c) = (numbers(3, 2 * 40 * 24), numbers(4, 2 * 24 * 40));
    folder.safetensors(
        "m.safetensors",
        &[
            ("a", "F32", &[2, 40, 24], f32_bytes(&a)),
            ("c", "BF16", &[2, 24, 40], bf16_bytes(&c)),
        ],
    );
    let files = &["m.safetensors"];
    let of = |form, input| {
        let mut plain = source("a", 7..75);
        plain.input = Some(input);
        let mut turned = source("c", 30..70);
        (turned.transposed, turned.input) = (true, Some(input));
        let n = 68 + 40;
        program(vec![(
            WeightLayout::Packed { form, n, k: 8 },
            vec![plain, turned],
        )])
    };
    let rounded = |x: f32| f32_from_bf16(bf16_from_f32(x));
    for input in [0, 8, 16] {
        let first = input as usize;
        let mut want: Vec<Vec<f32>> = (7..75)
            .map(|r| a[r * 24 + first..r * 24 + first + 8].to_vec())
            .collect();
        want.extend((30..70).map(|r| {
            let at = |i: usize| (r / 40 * 24 + first + i) * 40 + r % 40;
            (0..8).map(|i| rounded(c[at(i)])).collect()
        }));
        for form in [WeightType::Bf16, WeightType::Int8] {
            let program = of(form, input);
            let arena = loaded(&program, &folder.0, files, 2).unwrap();
            let got = words(&arena, &program.weights[0]);
            match form {
                WeightType::Bf16 => assert_eq!(got, packed(&want, 8)),
                _ => assert_eq!(got, quantised(form, &want, 8)),
            }
        }
    }
    for input in [17, u64::MAX] {
        let e = loaded(&of(WeightType::Bf16, input), &folder.0, files, 1).unwrap_err();
        assert!(e.to_string().contains(&format!("from {input} on")), "{e}");
    }
}

/// Rows that nobody reads make up for what a weight's parts have not, and no more than that.
#[test]
fn rows_that_hold_nothing_are_left_out() {
    let folder = Folder::new();
    let x = numbers(5, 40 * 6);
    let files = &["m.safetensors"];
    folder.safetensors("m.safetensors", &[("x", "BF16", &[40, 6], bf16_bytes(&x))]);
    let of = |taken: std::ops::Range<u64>, padding| {
        let layout = WeightLayout::Packed {
            form: WeightType::Bf16,
            n: 70,
            k: 6,
        };
        let mut p = program(vec![(layout, vec![source("x", taken)])]);
        p.weights[0].padding = padding;
        p
    };
    let program = of(3..40, 33);
    let arena = loaded(&program, &folder.0, files, 1).unwrap();
    let want = packed(&rows(&x, 6)[3..], 6);
    let got = words(&arena, &program.weights[0]);
    assert_eq!(got[..want.len()], want);
    assert!(got[want.len()..].iter().all(|w| *w == 0));
    loaded(&of(40..40, 70), &folder.0, files, 1).unwrap();
    for padding in [0, 32, 34, u64::MAX] {
        let e = loaded(&of(3..40, padding), &folder.0, files, 1).unwrap_err();
        assert!(e.to_string().contains("inconsistent"), "{e}");
    }
}

#[test]
fn large_matrices_go_in_pieces() {
    let folder = Folder::new();
    let k = 5_000;
    // A panel has 640,000 stored bytes, so an item six of them.
    let x = numbers(5, 400 * k);
    folder.safetensors(
        "m.safetensors",
        &[
            ("x", "F32", &[400, k], f32_bytes(&x)),
            ("t", "F32", &[k, 400], f32_bytes(&x)),
        ],
    );
    let mut t = source("t", 0..400);
    t.transposed = true;
    let program = program(vec![
        (
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 399,
                k,
            },
            vec![source("x", 1..400)],
        ),
        (
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 400,
                k,
            },
            vec![t],
        ),
    ]);
    let mut items = Vec::new();
    let checkpoint = Checkpoint::open(&folder.0, &["m.safetensors"]).unwrap();
    let pieces = resolve(&program.weights[0], &checkpoint).unwrap();
    let mut space = vec![0; program.weights[0].layout.bytes().unwrap().get() as usize / 4];
    divide(&program.weights[0], &pieces, &mut space, &mut items);
    assert_eq!(
        items.iter().map(|i| i.rows).collect::<Vec<_>>(),
        [192, 192, 15]
    );
    assert!(items.iter().all(|i| i.stored_bytes <= SCRATCH));

    let arena = loaded(&program, &folder.0, &["m.safetensors"], 2).unwrap();
    assert_eq!(
        words(&arena, &program.weights[0]),
        packed(&rows(&x, k)[1..], k as usize)
    );
    let t: Vec<Vec<f32>> = (0..400)
        .map(|c| (0..k).map(|i| x[(i * 400 + c) as usize]).collect())
        .collect();
    assert_eq!(words(&arena, &program.weights[1]), packed(&t, k as usize));
}

#[test]
fn names_what_does_not_fit() {
    let folder = Folder::new();
    folder.safetensors(
        "m.safetensors",
        &[
            ("a", "BF16", &[4, 6], vec![0; 48]),
            ("i", "I32", &[4, 6], vec![0; 96]),
            ("v", "F32", &[4], vec![0; 16]),
        ],
    );
    let error = |layout, sources: Vec<Source>| {
        loaded(
            &program(vec![(layout, sources)]),
            &folder.0,
            &["m.safetensors"],
            2,
        )
        .unwrap_err()
        .to_string()
    };
    let matrix = WeightLayout::Packed {
        form: WeightType::Bf16,
        n: 4,
        k: 6,
    };
    let all = |t: &str| vec![source(t, 0..4)];
    let e = error(
        matrix,
        (0..7).map(|i| source(&format!("gone.{i}"), 0..1)).collect(),
    );
    assert!(e.contains("`gone.0`") && e.contains("and 2 more"), "{e}");
    let e = error(
        WeightLayout::Packed {
            form: WeightType::Bf16,
            n: 4,
            k: 7,
        },
        all("a"),
    );
    assert!(
        e.contains("`a`") && e.contains("[4, 6]") && e.contains('7'),
        "{e}"
    );
    let e = error(
        WeightLayout::Packed {
            form: WeightType::Bf16,
            n: 5,
            k: 6,
        },
        vec![source("a", 0..5)],
    );
    assert!(e.contains("at least 5 rows"), "{e}");
    assert!(error(matrix, all("i")).contains("stored as i32"));
    assert!(error(matrix, all("v")).contains("`v`"));
    let mut t = source("a", 0..4);
    t.transposed = true;
    assert!(error(matrix, vec![t]).contains("outputs"));
    assert!(error(WeightLayout::F32 { n: 5 }, vec![source("v", 0..5)]).contains("at least 5"));
    assert!(error(matrix, vec![source("a", 0..3)]).contains("inconsistent"));
    assert!(
        error(
            matrix,
            vec![source("a", std::ops::Range { start: 3, end: 2 })]
        )
        .contains("`a`")
    );
    assert!(error(matrix, vec![source("a", 0..u64::MAX)]).contains("`a`"));
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let folder = Folder::new();
    folder.safetensors("m.safetensors", &[("a", "BF16", &[4, 6], vec![0; 48])]);
    let program = program(vec![(
        WeightLayout::Packed {
            form: WeightType::Bf16,
            n: 4,
            k: 6,
        },
        vec![source("a", 0..4)],
    )]);
    let checkpoint = Checkpoint::open(&folder.0, &["m.safetensors"]).unwrap();
    let path = folder.0.join("m.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let mut arena = Arena::new("weights", program.weight_bytes).unwrap();
    let e = load(&program, &checkpoint, &mut arena, 2, &|_, _| {}).unwrap_err();
    assert!(matches!(e, WeightsError::Read { .. }), "{e}");
    // And what is cut before it is opened is told then.
    let e = Checkpoint::open(&folder.0, &["m.safetensors"]).unwrap_err();
    assert!(e.to_string().contains("truncated"), "{e}");
}

#[test]
fn an_arena_that_is_too_small_is_an_error() {
    let folder = Folder::new();
    folder.safetensors("m.safetensors", &[("a", "BF16", &[4, 6], vec![0; 48])]);
    let program = program(vec![(
        WeightLayout::Packed {
            form: WeightType::Bf16,
            n: 4,
            k: 6,
        },
        vec![source("a", 0..4)],
    )]);
    let checkpoint = Checkpoint::open(&folder.0, &["m.safetensors"]).unwrap();
    let mut arena = Arena::new("weights", Bytes::new(64)).unwrap();
    let e = load(&program, &checkpoint, &mut arena, 1, &|_, _| {}).unwrap_err();
    assert!(matches!(e, WeightsError::Arena(_)), "{e}");
}

#[test]
fn the_same_tensor_in_two_files_is_refused() {
    let folder = Folder::new();
    for f in ["1.safetensors", "2.safetensors"] {
        folder.safetensors(f, &[("a", "BF16", &[4, 6], vec![0; 48])]);
    }
    let e = Checkpoint::open(&folder.0, &["1.safetensors", "2.safetensors"]).unwrap_err();
    assert!(e.to_string().contains("`a`"), "{e}");
}

#[test]
fn checks_weights_by_tensor() {
    let folder = Folder::new();
    let mut x = numbers(1, 3_000_000);
    x[1_000] = f32::NAN;
    x[2_900_000] = f32::NAN;
    x[2_000_000] = f32::NEG_INFINITY;
    folder.safetensors(
        "m.safetensors",
        &[
            ("good", "BF16", &[4, 6], bf16_bytes(&numbers(2, 24))),
            ("odd", "F32", &[3, 1_000_000], f32_bytes(&x)),
            ("bias", "F16", &[6], vec![0; 12]),
            ("zero", "F16", &[2, 3], vec![0; 12]),
            ("ids", "I64", &[1], vec![255; 8]),
        ],
    );
    let checkpoint = Checkpoint::open(&folder.0, &["m.safetensors"]).unwrap();
    let found = check(&checkpoint, &|_, _| {}).unwrap();
    let of = |tensor: &str, elements, nan, infinite, zero_matrix| TensorCheck {
        tensor: tensor.to_owned(),
        elements,
        nan,
        infinite,
        zero_matrix,
    };
    assert_eq!(
        found,
        [of("odd", 3_000_000, 2, 1, false), of("zero", 6, 0, 0, true)]
    );
    assert!(
        f32_from_bf16(bf16_from_f32(f32::NAN)).is_nan(),
        "packing keeps it"
    );
}

#[test]
fn gguf_files_are_taken_as_they_lie() {
    let folder = Folder::new();
    let k = 64;
    let (experts, norm) = (numbers(4, 3 * 40 * k), numbers(5, k));
    // Blocks of 32 elements: a scale of 0.5, then the numbers themselves.
    let numbers_: Vec<i8> = (0..70 * k).map(|i| (i % 251) as u8 as i8).collect();
    let block = |c: &[i8]| {
        [0, 0x38]
            .into_iter()
            .chain(c.iter().map(|&x| x as u8))
            .collect::<Vec<u8>>()
    };
    let q8 = numbers_.chunks(32).flat_map(block).collect();
    folder.gguf(
        "m.gguf",
        &[("general.architecture", Meta::Text("llama".into()))],
        &[
            (
                "blk.0.ffn_gate_exps.weight",
                30,
                &[3, 40, k],
                bf16_bytes(&experts),
            ),
            ("blk.0.attn_norm.weight", 0, &[k], f32_bytes(&norm)),
            ("token_embd.weight", 8, &[70, k], q8),
        ],
    );
    let program = program(vec![
        // The second expert's rows.
        (
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 35,
                k,
            },
            vec![source("blk.0.ffn_gate_exps.weight", 42..77)],
        ),
        (
            WeightLayout::F32 { n: k },
            vec![source("blk.0.attn_norm.weight", 0..k)],
        ),
        (
            WeightLayout::Packed {
                form: WeightType::Bf16,
                n: 64,
                k,
            },
            vec![source("token_embd.weight", 5..69)],
        ),
        (
            WeightLayout::F32 { n: 64 },
            vec![source("token_embd.weight", 32..96)],
        ),
    ]);
    let arena = loaded(&program, &folder.0, &["m.gguf"], 2).unwrap();
    let packed_words = |i: usize| words(&arena, &program.weights[i]);
    let floats = |i: usize| {
        packed_words(i)
            .into_iter()
            .map(f32::from_bits)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        packed_words(0),
        packed(&rows(&experts, k)[42..77], k as usize)
    );
    assert_eq!(floats(1), norm);
    let values: Vec<f32> = numbers_.iter().map(|&x| f32::from(x) * 0.5).collect();
    assert_eq!(
        packed_words(2),
        packed(&rows(&values, k)[5..69], k as usize)
    );
    assert_eq!(floats(3), values[32..96]);

    // A vector cannot begin inside a block.
    let inside = self::program(vec![(
        WeightLayout::F32 { n: 32 },
        vec![source("token_embd.weight", 16..48)],
    )]);
    let e = loaded(&inside, &folder.0, &["m.gguf"], 1)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("`token_embd.weight`") && e.contains("q8_0"),
        "{e}"
    );
}

#[test]
fn quantises_rows_and_columns_of_any_type_from_their_stored_values() {
    let folder = Folder::new();
    let k: u64 = 133;
    let (a, c) = (numbers(1, 50 * k), numbers(2, k * 45));
    let blocks = numbers(3, 40 * k);
    folder.safetensors(
        "m.safetensors",
        &[
            ("a", "F32", &[50, k], f32_bytes(&a)),
            ("c", "F32", &[k, 45], f32_bytes(&c)),
            ("b", "BF16", &[40, k], bf16_bytes(&blocks)),
        ],
    );
    let mut columns = source("c", 3..44);
    columns.transposed = true;
    let all = || vec![source("a", 7..50), columns.clone(), source("b", 0..40)];
    let mut values = rows(&a, k)[7..].to_vec();
    values.extend((3..44).map(|o| c[o..].iter().step_by(45).copied().collect()));
    let rounded = |x: &f32| f32_from_bf16(bf16_from_f32(*x));
    values.extend(rows(&blocks.iter().map(rounded).collect::<Vec<_>>(), k));
    let n = values.len() as u64;
    for form in [WeightType::Int8, WeightType::Int4] {
        let layout = WeightLayout::Packed { form, n, k };
        let program = program(vec![(layout, all())]);
        let want = quantised(form, &values, k);
        for threads in [1, 2] {
            let arena = loaded(&program, &folder.0, &["m.safetensors"], threads).unwrap();
            assert_eq!(words(&arena, &program.weights[0]), want, "{form}");
        }
    }
}
