//! Lowered programs: what they look like (`tests/golden/`, one file for each fixture; `UPDATE_GOLDEN=1 cargo test -p
//! plimsoll-program --test lower` rewrites them), that buffers alive together never overlap, that every stored
//! element is used once, and what does not lower.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use plimsoll_model::gguf;
use plimsoll_model::read_at::{ReadAt, ReadError};
use plimsoll_model::{Assume, Mixer, ModelSpec, Role, TensorSpec, catalogue, from_config};
use plimsoll_program::{
    AttentionOp, BufferId, GroupKind, KvRules, Limits, LowerError, NormKind, Number, Op, Parallel,
    PoolGeometry, Program, Quantised, Rows, Weight, WeightId, WeightLayout, Zero, lower,
};
use plimsoll_units::{Bytes, DType, WeightType, Weights};
use serde_json::{Value, json};
use support::{Reader, fixtures, name, spec, tensors};

const RULES: KvRules = KvRules {
    dtype: DType::Bf16,
    state_dtype: DType::F32,
    block_size: 16,
};

const LIMITS: Limits = Limits {
    tokens: 48,
    outputs: 4,
    context: 64,
    weights: Weights::As(WeightType::Bf16),
};

fn config(json: &Value) -> ModelSpec {
    from_config(json, Assume::Nothing).unwrap()
}

/// All models that lower: the fixtures and the built-in ones.
fn programs() -> Vec<(String, ModelSpec, Program)> {
    let mut all = Vec::new();
    for folder in fixtures() {
        let spec = spec(&folder);
        let program = lower(&spec, &LIMITS, &RULES).unwrap();
        all.push((name(&folder), spec, program));
    }
    for entry in catalogue::entries() {
        let spec = config(&entry.config);
        let limits = Limits {
            tokens: 2048,
            outputs: 256,
            // ALiBi and states have no last position.
            context: spec.max_context.unwrap_or(2048),
            weights: Weights::default(),
        };
        match lower(&spec, &limits, &RULES) {
            Ok(program) => all.push((entry.name.clone(), spec, program)),
            Err(LowerError::NotYet { .. } | LowerError::Unsupported { .. }) => {}
            Err(e) => panic!("{}: {e}", entry.name),
        }
    }
    all
}

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

// ---------------------------------------------------------------- golden files

struct Dump<'a>(&'a Program);

/// What the codes of a tensor are multiplied by and less.
fn scaled(q: &Quantised, codes: &str) -> String {
    let power = if q.scales.number == Number::Power {
        "2^"
    } else {
        ""
    };
    let zero = match q.zero {
        Zero::Same(0) => String::new(),
        Zero::Same(n) => format!(" less {n}"),
        Zero::Stored(g) => format!(" less {}", g.leaf),
    };
    let order = q
        .order
        .map_or_else(String::new, |o| format!(" by {}", o.leaf));
    let scales = q.beside(codes, q.scales.leaf);
    format!("{zero} x {power}{scales}{order}")
}

impl Dump<'_> {
    fn buffer(&self, id: BufferId) -> &'static str {
        self.0.buffer(id).name
    }

    fn weight(&self, id: WeightId) -> &str {
        &self.0.weight(id).name
    }

    fn bias(&self, id: Option<WeightId>) -> String {
        id.map_or_else(String::new, |b| format!(" + {}", self.weight(b)))
    }

    fn attention(&self, a: &AttentionOp) -> String {
        let [q, k, v] = [a.q, a.k, a.v].map(|b| self.buffer(b));
        let [q_at, k_at, v_at] = a.at;
        let cap = a.softcap.map_or_else(String::new, |c| format!(", cap {c}"));
        let sinks = a
            .sinks
            .map_or_else(String::new, |s| format!(", {}", self.weight(s)));
        format!(
            "{} = attention({q}[{q_at}..] {} x {}, {k}[{k_at}..] {} x {}, {v}[{v_at}..] x {}) scale {}{cap}{sinks}, group {} layer {}",
            self.buffer(a.out),
            a.q_heads,
            a.k_dim,
            a.kv_heads,
            a.k_dim,
            a.v_dim,
            a.scale,
            a.group,
            a.index,
        )
    }

    fn op(&self, op: &Op) -> String {
        let b = |id: &BufferId| self.buffer(*id);
        let w = |id: &WeightId| self.weight(*id);
        match op {
            Op::Embed {
                table,
                from,
                out,
                scale,
            } => match from {
                0 => format!("{} = {}[token] x {scale}", b(out), w(table)),
                n => format!("{} = {}[token - {n}] x {scale}", b(out), w(table)),
            },
            Op::AddPosition { table, x, offset } => {
                format!("{} += {}[position + {offset}]", b(x), w(table))
            }
            Op::Rotary(t) => format!(
                "{} = angles{} x {}{}",
                b(&t.out),
                t.frequencies.iter().fold(String::new(), |mut s, f| {
                    write!(s, " {f:.6}").unwrap();
                    s
                }),
                t.scale,
                t.divisors
                    .map_or_else(String::new, |d| format!(" / {}", w(&d))),
            ),
            Op::Norm {
                kind,
                weight,
                bias,
                x,
                out,
                from,
                heads,
                head,
            } => format!(
                "{} = {} of {}[{from}..] {heads} x {head}{}{}",
                b(out),
                match kind {
                    NormKind::Rms { eps } => format!("rms {eps:e}"),
                    NormKind::Layer { eps } => format!("layer {eps:e}"),
                },
                b(x),
                weight.map_or_else(String::new, |g| format!(" x {}", w(&g))),
                self.bias(*bias),
            ),
            Op::Linear {
                weight,
                bias,
                x,
                out,
                add,
            } => format!(
                "{} {} {} {}{}",
                b(out),
                if *add { "+=" } else { "=" },
                b(x),
                w(weight),
                self.bias(*bias),
            ),
            Op::Rotate {
                table,
                x,
                from,
                heads,
                head,
                interleaved,
            } => format!(
                "rotate {}[{from}..] {heads} x {head} by {}{}",
                b(x),
                b(table),
                if *interleaved { ", neighbours" } else { "" },
            ),
            Op::Attention(a) => self.attention(a),
            Op::Latent(a) => format!(
                "{} = latent attention({}, {}, {}) {} x {} + {} scale {}, group {} layer {}",
                b(&a.out),
                b(&a.q),
                b(&a.q_rope),
                b(&a.latent),
                a.heads,
                a.rank,
                a.rope_dim,
                a.scale,
                a.group,
                a.index,
            ),
            Op::Heads { weights, x, out } => format!(
                "{} = heads of {}:{}",
                b(out),
                b(x),
                weights.iter().fold(String::new(), |s, id| s + " " + w(id)),
            ),
            Op::Activate {
                kind,
                x,
                out,
                gated,
            } => format!(
                "{} = {kind:?}({}){}",
                b(out),
                b(x),
                if *gated { ", gated" } else { "" },
            ),
            Op::Gate {
                kind,
                gate,
                from,
                x,
                out,
            } => format!("{} = {kind:?}({}[{from}..]) x {}", b(out), b(gate), b(x)),
            Op::Convolve(c) => format!(
                "{} = {} taps of {} over {}[{}..]{}, group {} at {}",
                b(&c.out),
                c.taps,
                w(&c.weight),
                b(&c.x),
                c.from,
                self.bias(c.bias),
                c.state.group,
                c.state.from,
            ),
            Op::Steps {
                x,
                from,
                bias,
                decay,
                limits: [low, high],
                out,
            } => format!(
                "{} = steps {low} to {high} of {}[{from}..] + {}, kept by {}",
                b(out),
                b(x),
                w(bias),
                w(decay),
            ),
            Op::Scan(s) => format!(
                "{} = scan of {} by {}, {} x {} x {}, {} groups, + {}, group {} at {}",
                b(&s.out),
                b(&s.x),
                b(&s.steps),
                s.heads,
                s.rows,
                s.cols,
                s.groups,
                w(&s.skip),
                s.state.group,
                s.state.from,
            ),
            Op::Add { x, out, scale } => format!("{} += {} x {scale}", b(out), b(x)),
            Op::Route {
                logits,
                out,
                renormalise,
                sigmoid,
                bias,
                groups,
            } => format!(
                "{} = experts of {}{}, {}weights over {}{}",
                b(out),
                b(logits),
                self.bias(*bias),
                if *sigmoid { "sigmoid, " } else { "" },
                if *renormalise { "these" } else { "all" },
                groups.map_or_else(String::new, |g| {
                    format!(", in {} of {} groups by {}", g.taken, g.count, g.best)
                }),
            ),
            Op::ClampedSwiglu {
                x,
                out,
                limit,
                alpha,
            } => format!("{} = swiglu({}) within {limit}, x {alpha}", b(out), b(x)),
            Op::Experts {
                weights,
                biases,
                routes,
                x,
                out,
            } => format!(
                "{} = {} by {}:{}{}",
                b(out),
                b(x),
                b(routes),
                weights.iter().fold(String::new(), |s, id| s + " " + w(id)),
                self.bias(*biases),
            ),
            Op::AddWeighted {
                x,
                weights,
                from,
                out,
                scale,
                add,
            } => format!(
                "{} {} {} by {}[{from}..] x {scale}",
                b(out),
                if *add { "+=" } else { "=" },
                b(x),
                b(weights)
            ),
            Op::AllReduce { x } => format!("{} = sum over ranks", b(x)),
            Op::AllGather { x, out } => format!("{} = {} of all ranks", b(out), b(x)),
            Op::Gather { x, out } => format!("{} = wanted rows of {}", b(out), b(x)),
            Op::Cap { x, cap, scale } => format!("{} = cap {cap:?} x {scale}", b(x)),
        }
    }

    fn text(&self) -> String {
        let p = self.0;
        let mut s = format!(
            "T {} R {}: {} bytes of activations, {} of weights, pages of {}\n",
            p.tokens,
            p.outputs,
            p.activation_bytes.get(),
            p.weight_bytes.get(),
            p.geometry.page.get(),
        );
        for (i, g) in p.geometry.groups.iter().enumerate() {
            writeln!(
                s,
                "group {i}: {:?}, {} layers, {} slots",
                g.kind, g.layers, g.slots
            )
            .unwrap();
        }
        for b in &p.buffers {
            writeln!(
                s,
                "buffer {}: {:?} x {} at {}",
                b.name,
                b.rows,
                b.width,
                b.offset.get()
            )
            .unwrap();
        }
        for w in &p.weights {
            let layout = match w.layout {
                WeightLayout::Packed { n, k, .. } => format!("{n} x {k}"),
                WeightLayout::F32 { n } => format!("{n} f32"),
            };
            write!(
                s,
                "weight {} ({}): {layout} at {} =",
                w.name,
                w.role,
                w.offset.get()
            )
            .unwrap();
            for part in &w.sources {
                let turned = match (part.transposed, part.input) {
                    (false, _) => String::new(),
                    (true, None) => " turned".to_owned(),
                    (true, Some(input)) => format!(" turned from {input}"),
                };
                let plus = if part.plus == 0 {
                    String::new()
                } else {
                    format!(" + {}", part.plus)
                };
                let scales = part.quantised.as_ref();
                let scales = scales.map_or_else(String::new, |q| scaled(q, &part.tensor));
                write!(
                    s,
                    " {}[{}..{}]{turned}{plus}{scales}",
                    part.tensor, part.rows.start, part.rows.end
                )
                .unwrap();
            }
            s.push('\n');
        }
        for op in &p.ops {
            writeln!(s, "{}", self.op(op)).unwrap();
        }
        s
    }
}

#[test]
fn programs_are_as_recorded() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut changed = Vec::new();
    for folder in fixtures() {
        let program = lower(&spec(&folder), &LIMITS, &RULES).unwrap();
        let text = Dump(&program).text();
        let path = dir.join(format!("{}.txt", name(&folder)));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &text).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            changed.push(path);
        }
    }
    assert!(
        changed.is_empty(),
        "changed: {changed:?}; review, then UPDATE_GOLDEN=1"
    );
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
        for weights in [WeightType::Int8, WeightType::Int4] {
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
                assert_eq!(scratch.is_none(), router, "{folder}: {}", w.name);
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
            assert!(some > 0);
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

// ---------------------------------------------------------------- rotary frequencies

/// Steps between two floats.
fn apart(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn frequencies_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rope.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut cases = 0;
    for case in file["cases"].as_array().unwrap() {
        let name = &case["name"];
        let limits = Limits {
            context: case["context"].as_u64().unwrap(),
            ..LIMITS
        };
        let p = lower(&config(&case["config"]), &limits, &RULES).unwrap();
        let tables: Vec<_> = p
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Rotary(t) => Some(t),
                _ => None,
            })
            .collect();
        assert_eq!(tables.len(), 1, "{name}");
        let want: Vec<f32> = case["bits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| f32::from_bits(u32::try_from(b.as_u64().unwrap()).unwrap()))
            .collect();
        assert_eq!(tables[0].frequencies.len(), want.len(), "{name}");
        // Where torch rounds a power the other way, what is computed from it is a step away.
        for (have, want) in tables[0].frequencies.iter().zip(&want) {
            assert!(apart(*have, *want) <= 1, "{name}: {have} for {want}");
        }
        #[allow(clippy::cast_possible_truncation, reason = "models multiply in f32")]
        let scale = case["scale"].as_f64().unwrap() as f32;
        assert!(
            apart(tables[0].scale, scale) <= 1,
            "{name}: {}",
            tables[0].scale
        );
        cases += 1;
    }
    assert!(cases >= 9, "{cases}");
}

// ---------------------------------------------------------------- GGUF

/// The fixture as llama.cpp's converter would store it: its names, and query and key rows reordered so that
/// rotated pairs are neighbours.
#[test]
fn a_llama_of_a_gguf_file_computes_the_same() {
    let folder = fixtures().into_iter().find(|f| name(f) == "llama").unwrap();
    let plain = spec(&folder);
    let stored = tensors(&folder.join("model.safetensors"));
    let renamed = |name: &str| {
        let mut s = name.replace("model.layers.", "blk.");
        for (from, to) in [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ] {
            s = s.replace(from, to);
        }
        s
    };
    let mut spec = plain.clone();
    for t in &mut spec.tensors {
        t.name = renamed(&t.name);
    }
    if let Ok(a) = &mut spec.arithmetic
        && let plimsoll_model::Positions::Rotary { interleaved, .. } = &mut a.positions
    {
        *interleaved = true;
    }
    let head = 16;
    let reordered = stored
        .iter()
        .map(|(name, t)| {
            let columns = usize::try_from(*t.shape.last().unwrap()).unwrap();
            let rows = t.values.len() / columns;
            let turn = name.contains("q_proj") || name.contains("k_proj");
            // Row i of a head's first half comes before row i of its second.
            let from = |r: usize| match (turn, r % head) {
                (false, _) => r,
                (true, i) => r - i + i / 2 + (i % 2) * head / 2,
            };
            let values = (0..rows)
                .flat_map(|r| t.values[from(r) * columns..][..columns].to_vec())
                .collect();
            let shape = t.shape.clone();
            (renamed(name), support::Tensor { shape, values })
        })
        .collect();
    let ids = [3, 77, 5, 250, 19, 42, 7, 7, 130];
    let run = |spec: &ModelSpec, tensors: &support::Tensors| {
        let p = lower(spec, &LIMITS, &RULES).unwrap();
        Reader::new(&p, tensors).logits(&ids)
    };
    let (a, b) = (run(&plain, &stored), run(&spec, &reordered));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }
}

// ---------------------------------------------------------------- what does not lower

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 256,
        "max_position_embeddings": 128,
    });
    assert!(lower(&config(&json), &LIMITS, &RULES).is_ok());
    change(&mut json);
    lower(&config(&json), &LIMITS, &RULES)
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_unknown_is_refused_with_the_field() {
    for (key, value, says) in [
        ("hidden_act", json!("xielu"), "`hidden_act` is \"xielu\""),
        ("rms_norm_eps", json!("1e-5"), "`rms_norm_eps` is \"1e-5\""),
        ("rope_theta", json!(-1), "`rope_theta` is -1"),
        (
            "rope_scaling",
            json!({"rope_type": "axial"}),
            "`rope_scaling.rope_type` is \"axial\"",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "`rope_scaling.factor` is absent",
        ),
        (
            "rope_scaling",
            json!({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
            "expected 8 numbers above 0",
        ),
        (
            "partial_rotary_factor",
            json!(0.2),
            "expected an even number",
        ),
    ] {
        let text = refused(|c| c[key] = value);
        assert!(text.contains(says), "{key}: {text}");
    }
    let text = refused(|c| {
        c["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
        c["max_position_embeddings"] = json!(32);
    });
    assert!(text.contains("limit the context"), "{text}");
}

#[test]
fn families_without_a_lowering_say_so() {
    let mut not_yet = Vec::new();
    for entry in catalogue::entries() {
        let spec = config(&entry.config);
        let limits = Limits {
            context: 1024,
            ..LIMITS
        };
        if let Err(e) = lower(&spec, &limits, &RULES) {
            assert!(e.to_string().contains(spec.family), "{}: {e}", entry.name);
            if !e.to_string().contains("weights are quantised") {
                not_yet.push(spec.family);
            }
        }
    }
    not_yet.sort_unstable();
    not_yet.dedup();
    assert!(not_yet.contains(&"qwen3_next"), "{not_yet:?}");
    for runs in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "gemma2",
        "gemma3",
        "opt",
        "gpt2",
        "mixtral",
        "qwen3_moe",
        "deepseek",
        "gpt_oss",
    ] {
        assert!(!not_yet.contains(&runs), "{runs}");
    }
}

#[test]
fn a_tensor_that_nothing_reads_is_refused() {
    let folder = fixtures().into_iter().find(|f| name(f) == "llama").unwrap();
    let mut spec = spec(&folder);
    let mut more = spec.tensors[1].clone();
    more.name = "model.layers.0.self_attn.gate.weight".to_owned();
    spec.tensors.push(more);
    let text = lower(&spec, &LIMITS, &RULES).unwrap_err().to_string();
    assert!(
        text.contains("no operation reads its `model.layers.0.self_attn.gate.weight`"),
        "{text}"
    );
    // A missing one too.
    spec.tensors.pop();
    spec.tensors
        .retain(|t| !t.name.contains("layers.1.mlp.up_proj"));
    let text = lower(&spec, &LIMITS, &RULES).unwrap_err().to_string();
    assert!(
        text.contains("no `mlp.up_proj.weight` in layer 1"),
        "{text}"
    );
}

#[test]
fn sizes_past_64_bits_are_an_error() {
    let folder = fixtures().into_iter().find(|f| name(f) == "llama").unwrap();
    let limits = Limits {
        tokens: u64::MAX / 64,
        ..LIMITS
    };
    let e = lower(&spec(&folder), &limits, &RULES).unwrap_err();
    assert!(matches!(e, LowerError::Size(_)), "{e}");
}

#[test]
fn longrope_takes_its_divisors_by_the_longest_sequence() {
    let folder = fixtures().into_iter().find(|f| name(f) == "phi3").unwrap();
    let spec = spec(&folder);
    let frequencies = |context| {
        let p = lower(&spec, &Limits { context, ..LIMITS }, &RULES).unwrap();
        p.ops.iter().find_map(|op| match op {
            Op::Rotary(t) => Some(t.frequencies.clone()),
            _ => None,
        })
    };
    assert_eq!(frequencies(16), frequencies(32));
    assert_ne!(frequencies(32), frequencies(33));
}

/// Published configs keep the part that is rotated beside `rope_scaling`, not in it.
#[test]
fn phi_4_mini_lowers_from_its_published_config() {
    let factors = vec![1.5; 48];
    let spec = config(&json!({
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 2, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200_064,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "sliding_window": 262_144,
        "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "attention_bias": false, "full_attn_mod": 1, "interpolate_factor": 1, "hidden_act": "silu",
        "rope_scaling": {"long_factor": factors, "short_factor": factors, "type": "longrope"},
    }));
    let p = lower(&spec, &LIMITS, &RULES).unwrap();
    let turned = p.ops.iter().filter_map(|op| match op {
        Op::Rotate { heads, head, .. } => Some((*heads, *head)),
        _ => None,
    });
    assert!(turned.eq([(32, 128), (32, 128)]));
    let frequencies = p.ops.iter().find_map(|op| match op {
        Op::Rotary(t) => Some(t.frequencies.len()),
        _ => None,
    });
    assert_eq!(frequencies, Some(48));
    assert!(!p.weights.iter().any(|w| w.role == Role::Head));
}

/// The header of a file whose data is not there.
struct Headless {
    size: u64,
    head: Vec<u8>,
}

impl ReadAt for Headless {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(0);
        let from = usize::try_from(offset).unwrap().min(self.head.len());
        let n = (self.head.len() - from).min(buf.len());
        buf[..n].copy_from_slice(&self.head[from..from + n]);
        Ok(())
    }
}

/// Headers of published shapes, from `crates/model/tests/golden/gguf`: what a file gives is what the checkpoint
/// with the same config gives, under other names.
#[test]
fn gguf_files_lower_as_their_checkpoints_do() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/gguf");
    let (mut families, mut refused) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        let (size, head) = bytes.split_first_chunk::<8>().unwrap();
        let (size, head) = (u64::from_le_bytes(*size), head.to_vec());
        let header = gguf::Header::read(&Headless { size, head }).unwrap();
        let Ok((json, spec)) = gguf::spec(&header, Assume::Nothing) else {
            continue;
        };
        let file = match lower(&spec, &LIMITS, &RULES) {
            Err(LowerError::NotYet { .. }) => continue,
            Err(e)
                if e.to_string().contains("of GGUF files")
                // Older converters left out how gpt-oss rotates.
                || e.to_string().contains("`rope_scaling` is missing") =>
            {
                refused.push(spec.family);
                continue;
            }
            other => other.unwrap_or_else(|e| panic!("{name}: {e}")),
        };
        let checkpoint = lower(&config(&json), &LIMITS, &RULES).unwrap();
        let weights = |p: &Program| -> Vec<(String, WeightLayout)> {
            let divides = |w: &Weight| w.name == "rotary_divisors";
            let kept = p.weights.iter().filter(|w| !divides(w));
            kept.map(|w| (w.name.clone(), w.layout)).collect()
        };
        assert_eq!(weights(&file), weights(&checkpoint), "{name}");
        assert_eq!(file.buffers, checkpoint.buffers, "{name}");
        assert_eq!(file.ops.len(), checkpoint.ops.len(), "{name}");
        assert_eq!(file.geometry, checkpoint.geometry, "{name}");
        families.push(spec.family);
    }
    families.sort_unstable();
    families.dedup();
    assert_eq!(
        families,
        [
            "gemma2", "gemma3", "gpt2", "gpt_neox", "granite", "llama", "phi3", "qwen2", "qwen3"
        ]
    );
    refused.sort_unstable();
    refused.dedup();
    assert_eq!(refused, ["deepseek", "gpt_oss", "mixtral", "qwen3_moe"]);
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
