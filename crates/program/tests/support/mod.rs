//! The checkpoints of `crates/runtime/tests/fixtures`, and a reader of programs that knows nothing of how they
//! were lowered: it carries one out in f64, one operation after the other, over whole sequences.

#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

pub(crate) mod models;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_model::safetensors::{SafetensorsHeader, spec_with_headers};
use plimsoll_model::{Assume, Axis, ModelSpec, from_config};
use plimsoll_program::{
    ActivationKind, AttentionOp, BufferId, ConvolveOp, Grid, GroupKind, LatentOp, NormKind, Number,
    Op, Program, Quantised, ScanOp, Source, StatePlace, Weight, WeightId, WeightLayout, Zero,
};
use plimsoll_units::DType;

pub(crate) fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/fixtures");
    let mut all: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    all.sort();
    assert!(all.len() >= 20, "{all:?}");
    all
}

/// Checkpoints that are quantised, in every layout that is read.
pub(crate) fn quantised() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/quantised");
    let mut all: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    all.sort();
    assert!(all.len() >= 8, "{all:?}");
    all
}

pub(crate) fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_str().unwrap().to_owned()
}

/// A tensor of a file as numbers.
pub(crate) struct Tensor {
    pub(crate) shape: Vec<u64>,
    pub(crate) values: Vec<f64>,
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

fn header(bytes: &[u8]) -> SafetensorsHeader {
    SafetensorsHeader::read(&bytes).unwrap()
}

pub(crate) fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let header = header(&bytes);
    let data = &bytes[usize::try_from(header.data_start).unwrap()..];
    let read = |t: &plimsoll_model::safetensors::StoredTensor| {
        let raw = &data[usize::try_from(t.begin).unwrap()..usize::try_from(t.end).unwrap()];
        let values = match t.dtype {
            DType::Bf16 => raw
                .chunks_exact(2)
                .map(|b| {
                    f64::from(f32::from_bits(
                        u32::from(u16::from_le_bytes([b[0], b[1]])) << 16,
                    ))
                })
                .collect(),
            DType::F32 => raw
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            DType::I32 => raw
                .chunks_exact(4)
                .map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            DType::F16 => raw.chunks_exact(2).map(|b| half([b[0], b[1]])).collect(),
            DType::F8E4m3 => raw.iter().map(|b| small_float(*b, 4, 3)).collect(),
            DType::U8 => raw.iter().map(|b| f64::from(*b)).collect(),
            DType::I8 => raw.iter().map(|b| f64::from(b.cast_signed())).collect(),
            // Shapes, which nothing reads.
            DType::I64 => vec![f64::NAN; raw.len() / 8],
            other => panic!("{other}"),
        };
        let shape = t.shape.clone();
        (t.name.clone(), Tensor { shape, values })
    };
    header.tensors.iter().map(read).collect()
}

/// The model of a folder, by config and header.
pub(crate) fn spec(folder: &Path) -> ModelSpec {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let spec = from_config(&serde_json::from_str(&config).unwrap(), Assume::Nothing).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    spec_with_headers(spec, &[header(&bytes)]).unwrap()
}

/// A program with its weights.
pub(crate) struct Reader<'a> {
    program: &'a Program,
    weights: Vec<Vec<f64>>,
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// A float of few bits: a sign, an exponent with the usual bias, a mantissa.
fn small_float(code: u8, exponent: u32, mantissa: u32) -> f64 {
    let m = f64::from(code & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
    let e = i32::from(code >> mantissa & ((1 << exponent) - 1));
    let bias = (1 << (exponent - 1)) - 1;
    let size = match e {
        0 => m * 2_f64.powi(1 - bias),
        _ => (1.0 + m) * 2_f64.powi(e - bias),
    };
    let negative = code >> (mantissa + exponent) & 1 == 1;
    if negative { -size } else { size }
}

fn half(bytes: [u8; 2]) -> f64 {
    let bits = u16::from_le_bytes(bytes);
    let (e, m) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    let size = match e {
        0 => m * 2_f64.powi(-14),
        _ => (1.0 + m) * 2_f64.powi(e - 15),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// The number of a grid for a block of outputs and one of inputs, in a matrix of this size.
fn grid_number(tensor: &Tensor, grid: &Grid, size: [u64; 2], [out, inp]: [u64; 2]) -> f64 {
    let packed = match grid.number {
        Number::Plain | Number::Power => None,
        Number::Whole(p) | Number::E2m1(p) => Some(p),
    };
    let width = if grid.dtype == DType::I32 { 32 } else { 8 };
    let per = packed.map_or(1, |p| width / u64::from(p.bits));
    let along_out = packed.is_some_and(|p| p.along == Axis::Out);
    let [of_out, of_in] = if along_out { [per, 1] } else { [1, per] };
    let blocks = [0, 1].map(|i| size[i].div_ceil(grid.block[i]));
    let place = if grid.inputs_first {
        inp / of_in * blocks[0].div_ceil(of_out) + out / of_out
    } else {
        out / of_out * blocks[1].div_ceil(of_in) + inp / of_in
    };
    let element = tensor.values[index(place)];
    let Some(p) = packed else {
        return match grid.number {
            Number::Power => (element - 127.0).exp2(),
            _ => element,
        };
    };
    let at = if along_out { out % per } else { inp % per };
    let at = if p.interleaved {
        [0, 4, 1, 5, 2, 6, 3, 7][index(at)]
    } else {
        at
    };
    // Elements of 32 bits have a sign, those of a byte none.
    let word = (element + if element < 0.0 { 2_f64.powi(32) } else { 0.0 } + f64::from(p.plus))
        .rem_euclid(2_f64.powi(32));
    let bits = f64::from(p.bits);
    let shifted = (word / (bits * f64::from(u32::try_from(at).unwrap())).exp2()).floor();
    let code = shifted.rem_euclid(bits.exp2());
    match grid.number {
        Number::E2m1(_) => small_float(u8::try_from(number(code)).unwrap(), 2, 1),
        _ => code,
    }
}

/// An element of a quantised matrix.
fn quantised_element(tensors: &Tensors, source: &Source, q: &Quantised, [o, i]: [u64; 2]) -> f64 {
    let of = |grid: &Grid, at| {
        let tensor = &tensors[&q.beside(&source.tensor, grid.leaf)];
        grid_number(tensor, grid, q.size, at)
    };
    let group = match q.order {
        Some(order) => {
            number(tensors[&q.beside(&source.tensor, order.leaf)].values[index(i)]) as u64
        }
        None => i / q.scales.block[1],
    };
    let at = [o / q.scales.block[0], group];
    let zero = match &q.zero {
        Zero::Same(zero) => f64::from(*zero),
        Zero::Stored(grid) => of(grid, at),
    };
    of(&q.scales, at) * (of(&q.codes, [o, i]) - zero)
}

fn rows(tensors: &Tensors, source: &Source, columns: u64) -> Vec<f64> {
    let tensor = &tensors[&source.tensor];
    if let Some(q) = &source.quantised {
        let first = source.input.unwrap_or(0);
        let all = source.rows.clone();
        let all = all.flat_map(|r| (first..first + columns).map(move |c| [r, c]));
        let turned = |[r, c]: [u64; 2]| if source.transposed { [c, r] } else { [r, c] };
        return all
            .map(|at| quantised_element(tensors, source, q, turned(at)))
            .collect();
    }
    // Matrices with inputs first lie one below the other.
    let width = *tensor.shape.last().unwrap();
    let height = tensor.shape.iter().rev().nth(1).copied().unwrap_or(1);
    let at = |row: u64, column: u64| {
        let place = if source.transposed {
            (row / width * height + source.input.unwrap_or(0) + column) * width + row % width
        } else if let Some(first) = source.input {
            row * width + first + column
        } else {
            row * columns + column
        };
        tensor.values[index(place)] + f64::from(source.plus)
    };
    source
        .rows
        .clone()
        .flat_map(|r| (0..columns).map(move |c| (r, c)))
        .map(|(r, c)| at(r, c))
        .collect()
}

fn gathered(weight: &Weight, tensors: &Tensors) -> Vec<f64> {
    let columns = match weight.layout {
        WeightLayout::Packed { k, .. } => k,
        WeightLayout::F32 { .. } => 1,
    };
    let parts = weight.sources.iter();
    let padding = vec![0.0; index(weight.padding * columns)];
    parts
        .flat_map(|s| rows(tensors, s, columns))
        .chain(padding)
        .collect()
}

/// A small whole number.
fn number(x: f64) -> usize {
    let found = (0..1000).find(|n| f64::from(*n) == x);
    found.unwrap().try_into().unwrap()
}

type Buffers = Vec<Vec<f64>>;

/// Logits of every position, as each rank has them.
pub(crate) fn together<const N: usize>(ranks: [&Reader<'_>; N], tokens: &[usize]) -> [Vec<f64>; N] {
    let sized = |b: &plimsoll_program::Buffer| vec![f64::NAN; tokens.len() * index(b.width)];
    let mut all = ranks.map(|r| r.program.buffers.iter().map(sized).collect::<Buffers>());
    for (i, op) in ranks[0].program.ops.iter().enumerate() {
        match op {
            Op::AllReduce { x } => {
                let x = usize::from(x.0);
                let mut sum = all[0][x].clone();
                for rank in &all[1..] {
                    sum.iter_mut().zip(&rank[x]).for_each(|(s, x)| *s += x);
                }
                all.iter_mut().for_each(|rank| rank[x].clone_from(&sum));
            }
            Op::AllGather { x, out } => {
                let each = ranks[0].width(*x);
                let row = |i: usize| {
                    let parts = all.iter().flat_map(|r| {
                        r[usize::from(x.0)][i * each..(i + 1) * each]
                            .iter()
                            .copied()
                    });
                    parts.take(ranks[0].width(*out)).collect::<Vec<f64>>()
                };
                let rows: Vec<f64> = (0..tokens.len()).flat_map(row).collect();
                all.iter_mut()
                    .for_each(|r| r[usize::from(out.0)].clone_from(&rows));
            }
            _ => {
                for (rank, all) in ranks.iter().zip(&mut all) {
                    rank.carry_out(&rank.program.ops[i], tokens, all);
                }
            }
        }
    }
    let mut logits = ranks.map(|r| usize::from(r.program.logits.0)).into_iter();
    all.map(|mut buffers| buffers.swap_remove(logits.next().unwrap()))
}

impl<'a> Reader<'a> {
    pub(crate) fn new(program: &'a Program, tensors: &Tensors) -> Self {
        let weights = program.weights.iter().map(|w| gathered(w, tensors));
        Self {
            program,
            weights: weights.collect(),
        }
    }

    fn weight(&self, id: WeightId) -> &[f64] {
        &self.weights[id.0 as usize]
    }

    fn width(&self, id: BufferId) -> usize {
        index(self.program.buffer(id).width)
    }

    /// Logits of every position.
    pub(crate) fn logits(&self, tokens: &[usize]) -> Vec<f64> {
        let [logits] = together([self], tokens);
        logits
    }

    fn carry_out(&self, op: &Op, tokens: &[usize], all: &mut Buffers) {
        match op {
            Op::Embed {
                table,
                from,
                out,
                scale,
            } => {
                let w = self.width(*out);
                let table = self.weight(*table);
                let row = |t: &usize| match t.checked_sub(index(*from)) {
                    Some(t) if (t + 1) * w <= table.len() => table[t * w..(t + 1) * w].to_vec(),
                    _ => vec![0.0; w],
                };
                let rows = tokens.iter().flat_map(row);
                all[usize::from(out.0)] = rows.map(|x| x * f64::from(*scale)).collect();
            }
            Op::AddPosition { table, x, offset } => {
                let from = index(*offset) * self.width(*x);
                let table = &self.weight(*table)[from..];
                for (x, p) in all[usize::from(x.0)].iter_mut().zip(table) {
                    *x += p;
                }
            }
            Op::Rotary(t) => {
                let divisors = t.divisors.map(|d| self.weight(d));
                let angle = |p: usize, i: usize, f: f32| {
                    let d = divisors.map_or(1.0, |d| d[i]);
                    f64::from(f) / d * f64::from(u32::try_from(p).unwrap())
                };
                let scale = f64::from(t.scale);
                let mut out = Vec::new();
                for p in 0..tokens.len() {
                    let angles = t
                        .frequencies
                        .iter()
                        .enumerate()
                        .map(|(i, f)| angle(p, i, *f));
                    let angles: Vec<f64> = angles.collect();
                    out.extend(angles.iter().map(|a| a.cos() * scale));
                    out.extend(angles.iter().map(|a| a.sin() * scale));
                }
                all[usize::from(t.out.0)] = out;
            }
            Op::Norm { .. } => self.norm(op, all),
            Op::Linear {
                weight,
                bias,
                x,
                out,
                add,
            } => {
                let (k, n) = (self.width(*x), self.width(*out));
                let w = self.weight(*weight);
                assert_eq!(w.len(), k * n);
                let bias = bias.map(|b| self.weight(b));
                let mut result = Vec::new();
                for x in all[usize::from(x.0)].chunks_exact(k) {
                    for (i, row) in w.chunks_exact(k).enumerate() {
                        let dot: f64 = row.iter().zip(x).map(|(a, b)| a * b).sum();
                        result.push(dot + bias.map_or(0.0, |b| b[i]));
                    }
                }
                let out = &mut all[usize::from(out.0)];
                if *add {
                    assert!(bias.is_none());
                    out.iter_mut().zip(result).for_each(|(o, r)| *o += r);
                } else {
                    *out = result;
                }
            }
            Op::Rotate { .. } => self.rotate(op, all),
            Op::Attention(a) => self.attend(a, all),
            Op::Latent(a) => self.attend_latents(a, all),
            Op::Heads { weights, x, out } => {
                let heads = weights.len();
                let (k, n) = (self.width(*x) / heads, self.width(*out) / heads);
                let mut result = Vec::new();
                for (i, x) in all[usize::from(x.0)].chunks_exact(k).enumerate() {
                    let w = self.weight(weights[i % heads]);
                    assert_eq!(w.len(), k * n);
                    let dot = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
                    result.extend(w.chunks_exact(k).map(dot));
                }
                all[usize::from(out.0)] = result;
            }
            Op::Gate {
                kind,
                gate,
                from,
                x,
                out,
            } => {
                let (w, n, from) = (self.width(*gate), self.width(*out), index(*from));
                let gates = all[usize::from(gate.0)].chunks_exact(w);
                let rows = gates.zip(all[usize::from(x.0)].chunks_exact(n));
                let f = |(gates, x): (&[f64], &[f64])| {
                    let pairs = gates[from..from + n].iter().zip(x);
                    pairs
                        .map(|(g, x)| activation(*kind, *g) * x)
                        .collect::<Vec<f64>>()
                };
                all[usize::from(out.0)] = rows.flat_map(f).collect();
            }
            Op::Convolve(c) => self.convolve(c, all),
            Op::Steps {
                x,
                from,
                bias,
                decay,
                limits,
                out,
            } => {
                let (bias, decay) = (self.weight(*bias), self.weight(*decay));
                let [low, high] = limits.map(f64::from);
                let mut result = Vec::new();
                for x in all[usize::from(x.0)].chunks_exact(self.width(*x)) {
                    let x = x[index(*from)..].iter().zip(bias);
                    let steps: Vec<f64> = x
                        .map(|(x, b)| (x + b).exp().ln_1p().clamp(low, high))
                        .collect();
                    assert_eq!(2 * steps.len(), self.width(*out));
                    let kept = steps.iter().zip(decay).map(|(s, d)| (-s * d.exp()).exp());
                    result.extend(steps.iter().copied().chain(kept));
                }
                all[usize::from(out.0)] = result;
            }
            Op::Scan(s) => self.scan(s, all),
            Op::Activate {
                kind,
                x,
                out,
                gated,
            } => {
                let (w, n) = (self.width(*x), self.width(*out));
                assert_eq!(w, if *gated { 2 * n } else { n });
                let f = |row: &[f64], i: usize| {
                    activation(*kind, row[i]) * if *gated { row[n + i] } else { 1.0 }
                };
                let rows = all[usize::from(x.0)].chunks_exact(w);
                let result = rows
                    .flat_map(|row| (0..n).map(move |i| f(row, i)))
                    .collect();
                all[usize::from(out.0)] = result;
            }
            Op::Add { x, out, scale } => {
                let x = all[usize::from(x.0)].clone();
                let scale = f64::from(*scale);
                let out = &mut all[usize::from(out.0)];
                out.iter_mut().zip(x).for_each(|(o, x)| *o += x * scale);
            }
            Op::Route {
                logits,
                out,
                renormalise,
                sigmoid,
                bias,
                groups,
            } => {
                let (n, k) = (self.width(*logits), self.width(*out) / 2);
                let bias = bias.map(|b| self.weight(b));
                let mut result = Vec::new();
                for l in all[usize::from(logits.0)].chunks_exact(n) {
                    let whole: f64 = l.iter().map(|l| l.exp()).sum();
                    let score = |e: usize| match sigmoid {
                        true => 1.0 / (1.0 + (-l[e]).exp()),
                        false => l[e].exp() / whole,
                    };
                    let key = |e: usize| score(e) + bias.map_or(0.0, |b| b[e]);
                    // A stable sort: of equal ones the first.
                    let largest = |of: Vec<usize>, key: &dyn Fn(usize) -> f64, k: usize| {
                        let mut order = of;
                        order.sort_by(|a, b| key(*b).partial_cmp(&key(*a)).unwrap());
                        order.truncate(k);
                        order
                    };
                    let mut open: Vec<usize> = (0..n).collect();
                    if let Some(g) = groups {
                        let each = n / index(g.count);
                        let members = |group: usize| (group * each..(group + 1) * each).collect();
                        let judged = |group: usize| -> f64 {
                            let best = largest(members(group), &key, index(g.best));
                            best.into_iter().map(key).sum()
                        };
                        let all = (0..index(g.count)).collect();
                        let taken = largest(all, &judged, index(g.taken));
                        open.retain(|e| taken.contains(&(e / each)));
                    }
                    let mut order = largest(open, &key, k);
                    let sum: f64 = match renormalise {
                        true => order.iter().map(|e| score(*e)).sum(),
                        false => 1.0,
                    };
                    order.sort_unstable();
                    let number = |e: &usize| f64::from(u32::try_from(*e).unwrap());
                    result.extend(order.iter().map(number));
                    result.extend(order.iter().map(|e| score(*e) / sum));
                }
                all[usize::from(out.0)] = result;
            }
            Op::ClampedSwiglu {
                x,
                out,
                limit,
                alpha,
            } => {
                let (limit, alpha) = (f64::from(*limit), f64::from(*alpha));
                let value = |pair: &[f64]| {
                    let (gate, up) = (pair[0].min(limit), pair[1].clamp(-limit, limit));
                    (up + 1.0) * gate / (1.0 + (-alpha * gate).exp())
                };
                let pairs = all[usize::from(x.0)].chunks_exact(2);
                all[usize::from(out.0)] = pairs.map(value).collect();
            }
            Op::Experts {
                weights,
                biases,
                routes,
                x,
                out,
            } => {
                let (k, n) = (self.width(*x), self.width(*out));
                let wide = self.width(*routes);
                let x = &all[usize::from(x.0)];
                let tokens = x.chunks_exact(x.len() / tokens.len());
                let mut result = Vec::new();
                for (routes, x) in all[usize::from(routes.0)].chunks_exact(wide).zip(tokens) {
                    // A token's row for all of its experts, or one for each.
                    let inputs = x.chunks_exact(k).cycle();
                    for (e, x) in routes[..wide / 2].iter().zip(inputs) {
                        let w = self.weight(weights[number(*e)]);
                        assert_eq!(w.len(), k * n);
                        let dot = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
                        let bias = |i| biases.map_or(0.0, |b| self.weight(b)[number(*e) * n + i]);
                        let outputs = w.chunks_exact(k).map(dot).enumerate();
                        result.extend(outputs.map(|(i, y)| y + bias(i)));
                    }
                }
                all[usize::from(out.0)] = result;
            }
            Op::AddWeighted {
                x,
                weights,
                from,
                out,
                scale,
                add,
            } => {
                if !add {
                    all[usize::from(out.0)].fill(0.0);
                }
                let (w, n) = (self.width(*out), self.width(*weights));
                let x = all[usize::from(x.0)].clone();
                let weights = all[usize::from(weights.0)].clone();
                let shares = weights.chunks_exact(n).map(|r| &r[index(*from)..]);
                let mut x = x.chunks_exact(w);
                let rows = all[usize::from(out.0)].chunks_exact_mut(w);
                for (row, shares) in rows.zip(shares) {
                    for (share, x) in shares.iter().zip(&mut x) {
                        for (o, x) in row.iter_mut().zip(x) {
                            *o += share * x * f64::from(*scale);
                        }
                    }
                }
                assert!(x.next().is_none());
            }
            Op::AllReduce { .. } | Op::AllGather { .. } => panic!("these are of all ranks"),
            // Every row is wanted here.
            Op::Gather { x, out } => all[usize::from(out.0)] = all[usize::from(x.0)].clone(),
            Op::Cap { x, cap, scale } => {
                for x in &mut all[usize::from(x.0)] {
                    let capped = cap.map_or(*x, |c| f64::from(c) * (*x / f64::from(c)).tanh());
                    *x = capped * f64::from(*scale);
                }
            }
        }
    }

    fn norm(&self, op: &Op, all: &mut Buffers) {
        let Op::Norm {
            kind,
            weight,
            bias,
            x,
            out,
            from,
            heads,
            head,
        } = op
        else {
            return;
        };
        let (w, from, heads, head) = (self.width(*x), index(*from), index(*heads), index(*head));
        let input = all[usize::from(x.0)].clone();
        let gain = weight.map(|g| self.weight(g));
        let bias = bias.map(|b| self.weight(b));
        let out = &mut all[usize::from(out.0)];
        for (row, input) in input.chunks_exact(w).enumerate() {
            for h in 0..heads {
                let at = from + h * head;
                let x = &input[at..at + head];
                let n = f64::from(u32::try_from(head).unwrap());
                let (mean, eps) = match kind {
                    NormKind::Rms { eps } => (0.0, *eps),
                    NormKind::Layer { eps } => (x.iter().sum::<f64>() / n, *eps),
                };
                let spread = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let over = 1.0 / (spread + f64::from(eps)).sqrt();
                for (i, x) in x.iter().enumerate() {
                    let gained = (x - mean) * over * gain.map_or(1.0, |g| g[i]);
                    out[row * w + at + i] = gained + bias.map_or(0.0, |b| b[i]);
                }
            }
        }
    }

    fn rotate(&self, op: &Op, all: &mut Buffers) {
        let Op::Rotate {
            table,
            x,
            from,
            heads,
            head,
            interleaved,
        } = op
        else {
            return;
        };
        let (w, from, heads, head) = (self.width(*x), index(*from), index(*heads), index(*head));
        let dim = self.width(*table);
        let half = dim / 2;
        let angles = all[usize::from(table.0)].clone();
        let rows = all[usize::from(x.0)].chunks_exact_mut(w);
        for (row, angles) in rows.zip(angles.chunks_exact(dim)) {
            for h in 0..heads {
                let row = &mut row[from + h * head..from + (h + 1) * head];
                for i in 0..half {
                    let (a, b) = if *interleaved {
                        (2 * i, 2 * i + 1)
                    } else {
                        (i, half + i)
                    };
                    let (cos, sin) = (angles[i], angles[half + i]);
                    let (x, y) = (row[a], row[b]);
                    row[a] = x * cos - y * sin;
                    row[b] = y * cos + x * sin;
                }
            }
        }
    }

    fn attend_latents(&self, a: &LatentOp, all: &mut Buffers) {
        let group = &self.program.geometry.groups[index(a.group)];
        assert!(group.kind == GroupKind::Latent && a.index < group.layers);
        let (rank, rope) = (index(a.rank), index(a.rope_dim));
        let rows = |b: BufferId, w: usize| all[usize::from(b.0)].chunks_exact(w);
        let keys: Vec<&[f64]> = rows(a.latent, rank + rope).collect();
        let queries = rows(a.q, rank).zip(rows(a.q_rope, rope));
        let mut out = Vec::new();
        for (i, (low, rotated)) in queries.enumerate() {
            let seen = &keys[..i / index(a.heads) + 1];
            let score = |key: &&[f64]| {
                let pairs = low.iter().chain(rotated).zip(*key);
                pairs.map(|(q, k)| q * k).sum::<f64>() * f64::from(a.scale)
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for d in 0..rank {
                let terms = scores.iter().zip(seen);
                out.push(terms.map(|(s, key)| (s - top).exp() / sum * key[d]).sum());
            }
        }
        all[usize::from(a.out.0)] = out;
    }

    /// A layer's part of what the group keeps must lie in the layer's share of it.
    fn inside(&self, place: StatePlace, elements: u64) {
        let group = &self.program.geometry.groups[index(place.group)];
        assert_eq!(group.kind, GroupKind::State);
        let rate = group.rate.get() / 4;
        assert!(place.from / rate < group.layers && place.from % rate + elements <= rate);
    }

    fn convolve(&self, c: &ConvolveOp, all: &mut Buffers) {
        self.inside(c.state, (c.taps - 1) * self.program.buffer(c.out).width);
        let (w, n, from, taps) = (
            self.width(c.x),
            self.width(c.out),
            index(c.from),
            index(c.taps),
        );
        let x: Vec<&[f64]> = all[usize::from(c.x.0)].chunks_exact(w).collect();
        let (weight, bias) = (self.weight(c.weight), c.bias.map(|b| self.weight(b)));
        let mut out = Vec::new();
        for p in 0..x.len() {
            for channel in 0..n {
                // The last tap is the token itself.
                let past = (0..taps.min(p + 1)).map(|back| {
                    weight[channel * taps + taps - 1 - back] * x[p - back][from + channel]
                });
                out.push(past.sum::<f64>() + bias.map_or(0.0, |b| b[channel]));
            }
        }
        all[usize::from(c.out.0)] = out;
    }

    fn scan(&self, s: &ScanOp, all: &mut Buffers) {
        self.inside(s.state, s.heads * s.rows * s.cols);
        let [heads, rows, cols, groups] = [s.heads, s.rows, s.cols, s.groups].map(index);
        let (w, skip) = (self.width(s.x), self.weight(s.skip));
        assert_eq!(w, heads * rows + 2 * groups * cols);
        let mut state = vec![0.0; heads * rows * cols];
        let mut out = Vec::new();
        let steps = all[usize::from(s.steps.0)].chunks_exact(2 * heads);
        for (x, steps) in all[usize::from(s.x.0)].chunks_exact(w).zip(steps) {
            for head in 0..heads {
                let b = heads * rows + head * groups / heads * cols;
                let c = b + groups * cols;
                for row in head * rows..(head + 1) * rows {
                    let mut sum = skip[head] * x[row];
                    for col in 0..cols {
                        let h = &mut state[row * cols + col];
                        *h = steps[heads + head] * *h + steps[head] * x[row] * x[b + col];
                        sum += *h * x[c + col];
                    }
                    out.push(sum);
                }
            }
        }
        all[usize::from(s.out.0)] = out;
    }

    fn attend(&self, a: &AttentionOp, all: &mut Buffers) {
        let group = &self.program.geometry.groups[index(a.group)];
        assert!(a.index < group.layers);
        let window = match group.kind {
            GroupKind::Full => usize::MAX,
            GroupKind::Window(n) => index(n),
            other => panic!("{other:?}"),
        };
        let [qw, kw, vw] = [a.q, a.k, a.v].map(|b| self.width(b));
        let [q_at, k_at, v_at] = a.at.map(index);
        let (kd, vd) = (index(a.k_dim), index(a.v_dim));
        let shared = index(a.q_heads / a.kv_heads);
        let n = all[usize::from(a.q.0)].len() / qw;
        let row = |b: BufferId, w: usize, at: usize, head: usize, d: usize, p: usize| {
            let from = p * w + at + head * d;
            all[usize::from(b.0)][from..from + d].to_vec()
        };
        let mut out = Vec::new();
        for p in 0..n {
            for h in 0..index(a.q_heads) {
                let q = row(a.q, qw, q_at, h, kd, p);
                let seen = (p + 1).saturating_sub(window)..p + 1;
                let score = |j: usize| {
                    let k = row(a.k, kw, k_at, h / shared, kd, j);
                    let s = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(a.scale);
                    a.softcap
                        .map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                // A sink takes part without a value.
                let sink = a.sinks.map_or(f64::NEG_INFINITY, |s| self.weight(s)[h]);
                let top = scores.iter().copied().fold(sink, f64::max);
                let all = scores.iter().map(|s| (s - top).exp()).sum::<f64>() + (sink - top).exp();
                let mut sum = vec![0.0; vd];
                for (j, s) in seen.zip(&scores) {
                    let v = row(a.v, vw, v_at, h / shared, vd, j);
                    for (o, v) in sum.iter_mut().zip(v) {
                        *o += (s - top).exp() / all * v;
                    }
                }
                out.extend(sum);
            }
        }
        all[usize::from(a.out.0)] = out;
    }
}

fn activation(kind: ActivationKind, x: f64) -> f64 {
    match kind {
        ActivationKind::Silu => x / (1.0 + (-x).exp()),
        ActivationKind::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x * (1.0 + inner.tanh()) / 2.0
        }
        ActivationKind::Gelu => x * (1.0 + libm::erf(x / 2.0_f64.sqrt())) / 2.0,
        ActivationKind::Relu => x.max(0.0),
        ActivationKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}
