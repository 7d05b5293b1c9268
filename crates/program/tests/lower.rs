//! Lowered programs: buffers alive together never overlap, every stored element is used once, layers have places of their
//! own.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_model::{Mixer, Role, TensorSpec, catalogue};
use plimsoll_program::{
    BufferId, GroupKind, KvRules, Limits, LowerError, Op, Parallel, PoolGeometry, Rank, Rows,
    WeightLayout, lower, lower_rank,
};
use plimsoll_units::{Bytes, DType, WeightType, Weights};
use support::models::{LIMITS, RULES, config, programs};
use support::{fixtures, name, spec};

/// Every matrix but tables is read for every token, and of experts those that it takes.
#[test]
fn one_token_reads_every_matrix_that_it_passes() {
    for (name, spec, program) in programs() {
        let (mut matrices, mut vectors) = (0, 0);
        for w in &program.weights {
            let bytes = w.layout.bytes().unwrap().get();
            let table =
                w.role == Role::Position || (w.role == Role::Embedding && !spec.tied_embeddings);
            match w.layout {
                WeightLayout::F32 { .. } => vectors += bytes,
                WeightLayout::Packed { .. } if !table => matrices += bytes,
                WeightLayout::Packed { .. } => {}
            }
        }
        for op in &program.ops {
            if let Op::Experts { weights, out, .. } = op {
                let taken = program.buffer(*out).rows.most([1, 1]).unwrap();
                let one = program.weight(weights[0]).layout.bytes().unwrap().get();
                matrices -= (weights.len() as u64 - taken) * one;
            }
        }
        // Norms are not counted, biases are.
        let read = program.read_by_one_token().unwrap().get();
        let whole = matrices..=matrices + vectors;
        assert!(whole.contains(&read), "{name}: {read} of {whole:?}");
    }
}

// ---------------------------------------------------------------- buffers

/// Walks the operations with a shadow of the arena in which every cache line names the buffer that was last
/// written there: whatever an operation reads must still be its own.
#[test]
fn no_buffer_is_overwritten_while_it_is_needed() {
    let all = programs();
    assert!(all.len() >= 25, "{}", all.len());
    for (name, _, p) in all {
        let lines = |id: BufferId| {
            let b = p.buffer(id);
            let rows = match b.rows {
                Rows::Tokens => p.tokens,
                Rows::Routes(experts) => p.tokens * experts,
                Rows::Outputs => p.outputs,
            };
            let end = b.offset.get() + rows * b.width * 4;
            assert!(
                b.offset.get().is_multiple_of(64) && end <= p.activation_bytes.get(),
                "{name}"
            );
            b.offset.get() / 64..end.div_ceil(64)
        };
        // From first line to the line after the last, and whose they are.
        let mut owned: BTreeMap<u64, (u64, BufferId)> = BTreeMap::new();
        let claim = |owned: &mut BTreeMap<u64, (u64, BufferId)>, id: BufferId| {
            let mine = lines(id);
            owned.retain(|from, (to, _)| *to <= mine.start || *from >= mine.end);
            owned.insert(mine.start, (mine.end, id));
        };
        let reads = |op: &Op| -> Vec<BufferId> {
            match op {
                Op::Embed { .. } | Op::Rotary(_) => vec![],
                Op::AddPosition { x, .. } | Op::Cap { x, .. } | Op::Gather { x, .. } => vec![*x],
                Op::Norm { x, .. } | Op::Activate { x, .. } => vec![*x],
                Op::Linear { x, out, add, .. } if *add => vec![*x, *out],
                Op::Linear { x, .. } => vec![*x],
                Op::Rotate { table, x, .. } => vec![*table, *x],
                Op::Attention(a) => vec![a.q, a.k, a.v],
                Op::Latent(a) => vec![a.q, a.q_rope, a.latent],
                Op::Heads { x, .. } | Op::ClampedSwiglu { x, .. } => vec![*x],
                Op::Gate { gate, x, .. } => vec![*gate, *x],
                Op::Convolve(c) => vec![c.x],
                Op::Steps { x, .. } => vec![*x],
                Op::Scan(s) => vec![s.x, s.steps],
                Op::Add { x, out, .. } => vec![*x, *out],
                Op::Route { logits, .. } => vec![*logits],
                Op::Experts { routes, x, .. } => vec![*routes, *x],
                Op::AddWeighted {
                    x,
                    weights,
                    out,
                    add,
                    ..
                } if *add => vec![*x, *weights, *out],
                Op::AddWeighted { x, weights, .. } => vec![*x, *weights],
                Op::AllReduce { x } | Op::AllGather { x, .. } => vec![*x],
            }
        };
        let writes = |op: &Op| match op {
            Op::Embed { out, .. } | Op::Norm { out, .. } | Op::Linear { out, .. } => *out,
            Op::Activate { out, .. } | Op::Add { out, .. } | Op::Gather { out, .. } => *out,
            Op::Route { out, .. } | Op::Experts { out, .. } | Op::AddWeighted { out, .. } => *out,
            Op::AddPosition { x, .. } | Op::Cap { x, .. } | Op::Rotate { x, .. } => *x,
            Op::AllReduce { x } => *x,
            Op::AllGather { out, .. } => *out,
            Op::Gate { out, .. } | Op::Steps { out, .. } => *out,
            Op::Rotary(t) => t.out,
            Op::Attention(a) => a.out,
            Op::Latent(a) => a.out,
            Op::Heads { out, .. } | Op::ClampedSwiglu { out, .. } => *out,
            Op::Convolve(c) => c.out,
            Op::Scan(s) => s.out,
        };
        for (i, op) in p.ops.iter().enumerate() {
            for id in reads(op) {
                let at = lines(id);
                assert_eq!(
                    owned.get(&at.start),
                    Some(&(at.end, id)),
                    "{name}: operation {i}, {op:?}"
                );
            }
            let out = writes(op);
            // Written while the inputs are still being read.
            for id in reads(op).into_iter().filter(|id| *id != out) {
                let (a, b) = (lines(id), lines(out));
                assert!(
                    a.end <= b.start || b.end <= a.start,
                    "{name}: operation {i}, {op:?}"
                );
            }
            claim(&mut owned, out);
        }
        let at = lines(p.logits);
        assert_eq!(owned.get(&at.start), Some(&(at.end, p.logits)), "{name}");
        // The head can be carried out again: what it reads is still there.
        let Op::Gather { x, .. } = p.ops[p.head()] else {
            panic!("{name}: no rows are gathered");
        };
        let at = lines(x);
        assert_eq!(owned.get(&at.start), Some(&(at.end, x)), "{name}");
    }
}

#[test]
fn dead_buffers_give_their_space_back() {
    let spec = config(&catalogue::find("llama-3.1-8b").unwrap().config);
    let limits = Limits {
        tokens: 2048,
        outputs: 16,
        context: 8192,
        weights: Weights::default(),
    };
    let p = lower(&spec, &limits, &RULES).unwrap();
    // At the widest place, the feed-forward: residual and angles, gate and up, and their product.
    let row = 4096 + 128 + 2 * 14_336 + 14_336;
    assert_eq!(p.activation_bytes.get(), 2048 * row * 4);
}

#[test]
fn experts_have_as_many_rows_as_a_token_takes_of_them() {
    let spec = config(&catalogue::find("mixtral-8x7b").unwrap().config);
    let limits = Limits {
        tokens: 2048,
        outputs: 16,
        context: 8192,
        weights: Weights::default(),
    };
    let p = lower(&spec, &limits, &RULES).unwrap();
    // At the widest place: residual, angles and routes, and for two experts gate and up, and their product.
    let row = 4096 + 128 + 2 * 2 + 2 * 3 * 14_336;
    assert_eq!(p.activation_bytes.get(), 2048 * row * 4);
}

// ---------------------------------------------------------------- weights

/// Where inputs are quantised: one row for each of the input's, apart from all that is alive meanwhile.
#[test]
fn quantised_inputs_have_room_of_their_own() {
    for (folder, spec, plain) in programs() {
        assert!(plain.scratch.iter().all(Option::is_none));
        for weights in [WeightType::Fp8, WeightType::Int8, WeightType::Int4] {
            let p = {
                let weights = Weights::As(weights);
                lower(&spec, &Limits { weights, ..LIMITS }, &RULES)
            }
            .unwrap();
            assert!(p.weight_bytes < plain.weight_bytes, "{folder}");
            let mut some = 0;
            for (op, scratch) in p.ops.iter().zip(&p.scratch) {
                let (weight, x) = match op {
                    Op::Linear { weight, x, .. } => (*weight, *x),
                    Op::Experts { weights, x, .. } => (weights[0], *x),
                    _ => {
                        assert_eq!(*scratch, None);
                        continue;
                    }
                };
                let w = p.weight(weight);
                let WeightLayout::Packed { form, k, .. } = w.layout else {
                    panic!("{folder}: {} is no matrix", w.name);
                };
                let router = w.role == plimsoll_model::Role::Router;
                assert_eq!(form == WeightType::Bf16, router, "{folder}: {}", w.name);
                let floats = router || form == WeightType::Fp8;
                assert_eq!(scratch.is_none(), floats, "{folder}: {}", w.name);
                let Some(scratch) = scratch else { continue };
                some += 1;
                let of = |id| p.buffer(id);
                assert_eq!(of(*scratch).rows, of(x).rows);
                assert_eq!(of(*scratch).width, form.input_words(k));
                let place = |id| {
                    let rows = of(id).rows.most([p.tokens, p.outputs]).unwrap();
                    let from = of(id).offset.get();
                    from..from + rows * of(id).width * 4
                };
                let (reads, write) = op.buffers();
                for other in reads.into_iter().chain([write]) {
                    let (a, b) = (place(*scratch), place(other));
                    assert!(a.end <= b.start || b.end <= a.start, "{folder}: {op:?}");
                }
            }
            assert_eq!(some > 0, weights != WeightType::Fp8);
        }
    }
}

/// Published e4m3 stays as it is stored where a scale is for whole groups of columns, on each rank. What would cut a group
/// is bf16, unless fp8 was asked for: then it says so. A scale for all columns is that of any.
#[test]
fn published_floats_keep_their_groups() {
    let of = |folder: &str, ranks: u64, weights| {
        let folder = support::quantised()
            .into_iter()
            .find(|f| f.ends_with(folder))
            .unwrap();
        let spec = spec(&folder);
        let limits = Limits { weights, ..LIMITS };
        let rank = Rank::all(ranks).last().unwrap();
        lower_rank(&spec, rank, &limits, &RULES)
    };
    let fp8 = Weights::As(WeightType::Fp8);
    for (folder, ranks, whole) in [
        ("fp8_wide", 2, true),
        ("fp8_wide", 4, false),
        ("float8", 4, true),
    ] {
        for weights in [Weights::Stored, fp8] {
            match of(folder, ranks, weights) {
                Ok(p) => {
                    let down = p.weights.iter().find(|w| w.name.ends_with("mlp_out"));
                    let down = down.unwrap_or_else(|| panic!("{:?}", p.weights));
                    let WeightLayout::Packed { form, .. } = down.layout else {
                        panic!("{down:?}");
                    };
                    let kept = if whole {
                        WeightType::Fp8
                    } else {
                        WeightType::Bf16
                    };
                    assert_eq!(form, kept, "{folder}: {weights}");
                    assert!(whole || weights == Weights::Stored);
                }
                Err(LowerError::Divided(e)) => {
                    assert!(!whole && weights == fp8, "{e}");
                    assert!(e.contains("has groups of 128 elements"), "{e}");
                }
                Err(e) => panic!("{folder}: {e}"),
            }
        }
    }
}

/// What says how inputs, keys and values were quantised when the checkpoint was made.
const UNREAD: [&str; 7] = [
    "input_scale",
    "activation_scale",
    "input_global_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
    "weight_shape",
];

fn last(t: &TensorSpec) -> &str {
    t.name.rsplit('.').next().unwrap()
}

#[test]
fn every_stored_element_is_used_once() {
    let quantised = support::quantised().into_iter().map(|folder| {
        let spec = spec(&folder);
        let program = lower(&spec, &LIMITS, &RULES).unwrap();
        (name(&folder), spec, program)
    });
    for (name, spec, p) in programs().into_iter().chain(quantised) {
        let mut end = 0;
        // Rows and columns of the stored tensors, higher ranks as matrices one below the other.
        let turned = spec.tensors.iter().filter(|t| t.shape.len() == 2);
        let widths: BTreeMap<&str, u64> = turned.map(|t| (&*t.name, t.shape[1])).collect();
        let row = |t: &TensorSpec| t.shape.iter().skip(1).product();
        let rows: BTreeMap<&str, u64> = spec.tensors.iter().map(|t| (&*t.name, row(t))).collect();
        let mut used: BTreeMap<&str, Vec<[std::ops::Range<u64>; 2]>> = BTreeMap::new();
        // Outputs and inputs of quantised matrices, and what is stored beside their codes.
        let mut sizes: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        let mut beside: BTreeSet<String> = BTreeSet::new();
        for w in &p.weights {
            assert_eq!(
                w.offset.get(),
                u64::next_multiple_of(end, 64),
                "{name}: {}",
                w.name
            );
            end = w.offset.get() + w.layout.bytes().unwrap().get();
            let (n, k) = match w.layout {
                WeightLayout::Packed { n, k, .. } => (n, k),
                WeightLayout::F32 { n } => (n, 1),
            };
            let taken: u64 = w.sources.iter().map(|s| s.rows.end - s.rows.start).sum();
            assert_eq!(taken, n, "{name}: {}", w.name);
            for s in &w.sources {
                // Experts with inputs first lie one below the other.
                let width = widths.get(s.tensor.as_str()).copied().unwrap_or(u64::MAX);
                let taken = match &s.quantised {
                    Some(q) => {
                        sizes.insert(&s.tensor, q.size);
                        beside.extend(q.others(&s.tensor));
                        let first = s.input.unwrap_or(0);
                        let (rows, columns) = (s.rows.clone(), first..first + k);
                        if s.transposed {
                            [columns, rows]
                        } else {
                            [rows, columns]
                        }
                    }
                    None if s.transposed => {
                        let from = s.rows.start / width * k + s.input.unwrap_or(0);
                        let column = s.rows.start % width;
                        let end = column + (s.rows.end - s.rows.start);
                        [from..from + k, column..end]
                    }
                    // Small tables are taken element by element.
                    None if matches!(w.layout, WeightLayout::F32 { .. }) => {
                        let row = rows.get(s.tensor.as_str()).copied().unwrap_or(1);
                        assert_eq!([s.rows.start % row, s.rows.end % row], [0; 2], "{name}");
                        [s.rows.start / row..s.rows.end / row, 0..row]
                    }
                    None => [s.rows.clone(), 0..k],
                };
                used.entry(&s.tensor).or_default().push(taken);
            }
        }
        assert_eq!(p.weight_bytes.get(), end.next_multiple_of(64), "{name}");
        let by_role = p.bytes_by_role().unwrap();
        let sum: u64 = by_role.iter().map(|(_, bytes)| bytes.get()).sum();
        assert_eq!(sum, p.weight_bytes.get(), "{name}");
        for t in &spec.tensors {
            if matches!(t.role, Role::Encoder | Role::Mtp | Role::Other) {
                continue;
            }
            // Experts' matrices lie one below the other where one tensor has all of them.
            let together = t.experts.filter(|_| !t.name.contains("{e}")).unwrap_or(1);
            for (stored, _) in t.stored() {
                if beside.remove(&stored) || (spec.quant.is_some() && UNREAD.contains(&last(t))) {
                    continue;
                }
                let mut taken = used.remove(stored.as_str()).unwrap_or_default();
                taken.sort_unstable_by_key(|[rows, columns]| (rows.start, columns.start));
                // Nothing twice, and as many elements as there are.
                let apart = |a: &std::ops::Range<u64>, b: &std::ops::Range<u64>| {
                    a.end <= b.start || b.end <= a.start
                };
                for (i, [rows, columns]) in taken.iter().enumerate() {
                    let below = taken[i + 1..]
                        .iter()
                        .take_while(|[r, _]| r.start < rows.end);
                    for [_, others] in below {
                        assert!(apart(columns, others), "{name}: {stored} {taken:?}");
                    }
                }
                let area = |[rows, columns]: &[std::ops::Range<u64>; 2]| {
                    (rows.end - rows.start) * (columns.end - columns.start)
                };
                let plain = [t.shape[0] * together, t.shape[1..].iter().product()];
                let [rows, columns] = sizes.get(&*stored).copied().unwrap_or(plain);
                let sum: u64 = taken.iter().map(area).sum();
                assert_eq!(sum, rows * columns, "{name}: {stored} {taken:?}");
                let inside = |[r, c]: &[std::ops::Range<u64>; 2]| r.end <= rows && c.end <= columns;
                assert!(taken.iter().all(inside), "{name}: {stored} {taken:?}");
            }
        }
        assert!(used.is_empty(), "{name}: {used:?}");
        assert!(beside.is_empty(), "{name}: {beside:?}");
    }
}

#[test]
fn layers_have_their_own_places_in_their_groups() {
    for (name, spec, p) in programs() {
        // Layers, or f32 of states, which lie without gaps.
        let mut seen: Vec<u64> = vec![0; p.geometry.groups.len()];
        for op in &p.ops {
            let (group, from, len) = match op {
                Op::Attention(a) => (a.group, a.index, 1),
                Op::Latent(a) => (a.group, a.index, 1),
                Op::Convolve(c) => {
                    let inputs = (c.taps - 1) * p.buffer(c.out).width;
                    (c.state.group, c.state.from, inputs)
                }
                Op::Scan(s) => (s.state.group, s.state.from, s.heads * s.rows * s.cols),
                _ => continue,
            };
            let group = usize::try_from(group).unwrap();
            assert_eq!(from, seen[group], "{name}");
            seen[group] += len;
        }
        let groups = p.geometry.groups.iter();
        let layers: Vec<u64> = groups.clone().map(|g| g.layers).collect();
        let want: Vec<u64> = groups
            .map(|g| match g.kind {
                GroupKind::State => g.layers * g.rate.get() / 4,
                _ => g.layers,
            })
            .collect();
        assert_eq!(seen, want, "{name}");
        assert_eq!(
            layers.iter().sum::<u64>(),
            spec.layers.len() as u64,
            "{name}"
        );
    }
}
/// Keys and values of an odd number of bytes would leave states between f32: their pages are a little longer.
#[test]
fn no_element_of_a_state_lies_in_two_pages() {
    let folders = fixtures();
    let mut spec = spec(
        folders
            .iter()
            .find(|f| name(f) == "granite_hybrid")
            .unwrap(),
    );
    let parallel = Parallel::default();
    let stage = &parallel.stages(spec.layers.len() as u64)[0];
    for layer in &mut spec.layers {
        if let Mixer::Attention(a) = &mut layer.mixer {
            (a.kv_heads, a.k_dim, a.v_dim) = (1, 7, 6);
        }
    }
    let mut padded = 0;
    for (dtype, token) in [(DType::F32, 52), (DType::F16, 26), (DType::I8, 13 + 8)] {
        for block in 1..6 {
            let rules = KvRules::plimsoll(dtype, block);
            let g = PoolGeometry::new(&spec, &parallel, stage, &rules).unwrap();
            let kept = &g.groups.iter().find(|g| g.slots > 0).unwrap();
            assert_eq!(
                (kept.layers, kept.rate, kept.slots),
                (1, Bytes::new(token), block)
            );
            let least = token * block;
            assert_eq!(g.page.get(), least.next_multiple_of(4));
            assert_eq!(kept.padding.get(), g.page.get() - least);
            padded += kept.padding.get();
        }
    }
    assert!(padded > 0);
}
