//! The program's operations, one after the other, over all rows of a step.

use std::ops::Range;

use plimsoll_kernels::{
    Activation, Cached, Choice, Columns, ExpertGroups, F8, F16, Groups, Heads, Inputs, KvShape,
    LatentShape, Linear, Norm, Pool, Queries, Reach, Scores, Start, StateShape, Taps, Unscaled,
    activate, attend, attend_latents, clamped_swiglu, convolve, cos_sin, norm, norm_in_place,
    rotate, route, run_heads, scan, steps, tanh, write_kv, write_latents,
};
use plimsoll_program::{
    ActivationKind, AttentionOp, Buffer, BufferId, ConvolveOp, GroupKind, LatentOp, NormKind, Op,
    Program, Rows, ScanOp, StatePlace, WeightId, WeightLayout,
};
use plimsoll_schedule::{Step, Tables};
use plimsoll_units::{Bytes, DType, WeightType};

use super::Cpu;
use crate::arena::{Arena, Element, Part};
use crate::backend::BackendError;

/// Where `rows` rows of a buffer lie, in f32 from the arena's start.
pub(super) fn range(b: &Buffer, rows: usize) -> Range<usize> {
    let from = size(b.offset.get() / 4);
    from..from + rows * size(b.width)
}

fn rows_of(b: &Buffer, tokens: usize, outputs: usize) -> usize {
    match b.rows {
        Rows::Tokens => tokens,
        Rows::Routes(experts) => tokens * size(experts),
        Rows::Outputs => outputs,
    }
}

/// Sizes fit: the arena that holds them was allocated.
fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

const fn function(kind: ActivationKind) -> Activation {
    match kind {
        ActivationKind::Silu => Activation::Silu,
        ActivationKind::GeluTanh => Activation::GeluTanh,
        ActivationKind::Gelu => Activation::Gelu,
        ActivationKind::Relu => Activation::Relu,
        ActivationKind::Sigmoid => Activation::Sigmoid,
    }
}

/// What the operations of one step have in common.
struct Walk<'a> {
    program: &'a Program,
    inputs: Inputs,
    weights: &'a Arena,
    activations: &'a mut [f32],
    positions: &'a [u32],
    tokens: &'a [u32],
    wanted: &'a [u32],
    /// End of the last element that an operation had, in f32.
    used: usize,
}

impl Cpu {
    /// Carries some of the program's operations out over a step's rows. The logits of the tokens numbered `wanted`,
    /// at most R, are in their buffer after the last.
    pub(super) fn walk(
        &mut self,
        pool: &mut Pool,
        step: &Step,
        tables: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        let program = &self.program;
        let positions = &self.positions;
        let pages = &mut self.pages;
        let mut walk = Walk {
            program,
            inputs: self.inputs,
            weights: &self.weights,
            activations: self.activations.whole_mut(),
            positions,
            tokens: &step.tokens,
            wanted,
            used: 0,
        };
        let level = self.level;
        let alone = || BackendError::Step("a rank without the others".to_owned());
        let queries = |group: u64| -> Vec<Queries<'_>> {
            let row = |r: &plimsoll_schedule::Row| Queries {
                table: tables.get(r.seq, size(group)),
                start: r.start as usize,
                count: (r.tokens.end - r.tokens.start) as usize,
                row: r.tokens.start as usize,
            };
            step.rows.iter().map(row).collect()
        };
        let scratch = &program.scratch[ops.clone()];
        for (op, scratch) in program.ops[ops].iter().zip(scratch) {
            match op {
                Op::AllReduce { x } => {
                    let ([], x) = walk.views([], *x);
                    self.seat.as_mut().ok_or_else(alone)?.all_reduce(x)?;
                }
                Op::AllGather { x, out } => {
                    let widths = [*x, *out].map(|b| walk.width(b));
                    let ([x], out) = walk.views([*x], *out);
                    let seat = self.seat.as_mut().ok_or_else(alone)?;
                    seat.all_gather(x, out, widths)?;
                }
                Op::Convolve(c) => {
                    walk.convolve(pool, level, c, &queries(c.state.group), pages);
                }
                Op::Scan(s) => {
                    walk.scan(pool, level, s, &queries(s.state.group), pages);
                }
                Op::Latent(a) => {
                    let queries = queries(a.group);
                    match program.kv_dtype {
                        DType::F32 => walk.latent::<f32>(pool, level, a, &queries, pages),
                        DType::F16 => walk.latent::<F16>(pool, level, a, &queries, pages),
                        DType::F8E4m3 => walk.latent::<F8>(pool, level, a, &queries, pages),
                        _ => walk.latent::<u16>(pool, level, a, &queries, pages),
                    }
                }
                Op::Attention(a) => {
                    let queries = queries(a.group);
                    match program.kv_dtype {
                        DType::F32 => walk.attention::<f32>(pool, level, a, &queries, pages),
                        DType::F16 => walk.attention::<F16>(pool, level, a, &queries, pages),
                        DType::F8E4m3 => walk.attention::<F8>(pool, level, a, &queries, pages),
                        DType::I8 => walk.attention::<i8>(pool, level, a, &queries, pages),
                        _ => walk.attention::<u16>(pool, level, a, &queries, pages),
                    }
                }
                other => walk.op(pool, level, other, *scratch),
            }
        }
        let used = Bytes::new(4 * walk.used as u64);
        self.activations.mark(used);
        Ok(())
    }

    /// Carries one operation out on `tokens` rows of whatever the buffers hold: to see how long it takes.
    pub(super) fn alone(
        &mut self,
        pool: &mut Pool,
        op: &Op,
        scratch: Option<BufferId>,
        tokens: usize,
    ) {
        let (tokens, positions) = (vec![0; tokens], vec![0; tokens]);
        let mut walk = Walk {
            program: &self.program,
            inputs: self.inputs,
            weights: &self.weights,
            activations: self.activations.whole_mut(),
            positions: &positions,
            tokens: &tokens,
            wanted: &[],
            used: 0,
        };
        walk.op(pool, self.level, op, scratch);
    }

    /// Marks the pages that the step's tokens are written to.
    pub(super) fn mark_pages(&self, step: &Step, tables: &Tables) {
        for (i, group) in self.program.geometry.groups.iter().enumerate() {
            let slots = size(group.slots.max(1));
            let last = step.rows.iter().filter_map(|r| {
                let n = (r.tokens.end - r.tokens.start) as usize;
                let (from, to) = (
                    r.start as usize / slots,
                    (r.start as usize + n).div_ceil(slots),
                );
                let table = tables.get(r.seq, i);
                match group.kind {
                    GroupKind::State => table.iter().max(),
                    _ => table.get(from..to)?.iter().max(),
                }
            });
            if let Some(page) = last.max() {
                let end = (u64::from(*page) + 1).saturating_mul(self.program.geometry.page.get());
                self.pages.mark(Bytes::new(end));
            }
        }
    }
}

impl<'a> Walk<'a> {
    fn rows(&self, id: BufferId) -> usize {
        let buffer = self.program.buffer(id);
        rows_of(buffer, self.tokens.len(), self.wanted.len())
    }

    fn width(&self, id: BufferId) -> usize {
        size(self.program.buffer(id).width)
    }

    fn range(&self, id: BufferId) -> Range<usize> {
        range(self.program.buffer(id), self.rows(id))
    }

    /// Some buffers to read and one to write, which overlaps none of them.
    fn views<const N: usize>(
        &mut self,
        read: [BufferId; N],
        write: BufferId,
    ) -> ([&[f32]; N], &mut [f32]) {
        let read = read.map(|b| self.range(b));
        let write = self.range(write);
        let ends = read.iter().chain([&write]).map(|r| r.end);
        self.used = ends.fold(self.used, usize::max);
        let (low, rest) = self.activations.split_at_mut(write.start);
        let (out, high) = rest.split_at_mut(write.len());
        let (low, high) = (&*low, &*high);
        let reads = read.map(|r| {
            if r.end <= write.start {
                &low[r]
            } else {
                &high[r.start - write.end..r.end - write.end]
            }
        });
        (reads, out)
    }

    /// A row of numbers and matrices' input to read, what an operation quantises that input in, and what it writes:
    /// four buffers, placed apart.
    fn product(
        &mut self,
        [read, x]: [Option<BufferId>; 2],
        scratch: Option<BufferId>,
        write: BufferId,
    ) -> ([&[f32]; 2], [&mut [f32]; 2]) {
        let at = [read, x, scratch, Some(write)].map(|b| b.map_or(0..0, |b| self.range(b)));
        self.used = at.iter().fold(self.used, |used, at| used.max(at.end));
        let all = self.activations.get_disjoint_mut(at);
        let [read, x, scratch, out] = all.expect("what is alive together never overlaps");
        ([read, x], [scratch, out])
    }

    /// A weight's elements; the executor has seen at its start that they are there.
    fn elements<T: Element>(&self, id: WeightId) -> (&'a [T], WeightLayout) {
        let w = self.program.weight(id);
        let part = Part {
            offset: w.offset.get(),
            len: w.layout.bytes().map_or(0, |b| b.get() / 4),
        };
        (self.weights.view(part).unwrap_or_default(), w.layout)
    }

    fn matrix(&self, id: WeightId) -> Linear<'a> {
        let (words, layout) = self.elements(id);
        match layout {
            WeightLayout::Packed { form, n, k } => {
                Linear::new(words, form, size(n), size(k)).with_inputs(self.inputs)
            }
            // Lowering gives vectors to no operation that takes a matrix.
            WeightLayout::F32 { .. } => Linear::new(&[], WeightType::Bf16, 0, 0),
        }
    }

    fn vector(&self, id: WeightId) -> &'a [f32] {
        self.elements(id).0
    }

    #[allow(clippy::too_many_lines, reason = "one arm for each operation")]
    fn op(
        &mut self,
        pool: &mut Pool,
        level: plimsoll_kernels::Level,
        op: &Op,
        scratch: Option<BufferId>,
    ) {
        match *op {
            Op::Embed {
                table,
                from,
                out,
                scale,
            } => {
                let (m, tokens, width) = (self.matrix(table), self.tokens, self.width(out));
                let rows = match self.program.weight(table).layout {
                    WeightLayout::Packed { n, .. } | WeightLayout::F32 { n } => n,
                };
                let ([], out) = self.views([], out);
                pool.rows(out, width, |i, out| {
                    let row = u64::from(tokens[i]).checked_sub(from);
                    let Some(row) = row.filter(|row| *row < rows) else {
                        // Another rank's.
                        out.fill(0.0);
                        return;
                    };
                    m.row(size(row), out);
                    if scale.to_bits() != 1.0_f32.to_bits() {
                        out.iter_mut().for_each(|x| *x *= scale);
                    }
                });
            }
            Op::AddPosition { table, x, offset } => {
                let (m, positions, width) = (self.matrix(table), self.positions, self.width(x));
                let ([], x) = self.views([], x);
                pool.rows(x, width, |i, x| {
                    m.add_row(positions[i] as usize + size(offset), x);
                });
            }
            Op::Rotary(ref table) => {
                let (positions, width) = (self.positions, self.width(table.out));
                let divisors = table.divisors.map(|w| self.vector(w));
                let ([], out) = self.views([], table.out);
                pool.rows(out, width, |i, out| {
                    let (cos, sin) = out.split_at_mut(table.frequencies.len());
                    let pairs = table.frequencies.iter().zip(cos).zip(sin);
                    for (pair, ((f, cos), sin)) in pairs.enumerate() {
                        let f = divisors.map_or(*f, |d| f / d[pair]);
                        // Models multiply in f32; the cosine of that product is then exact.
                        #[allow(clippy::cast_precision_loss, reason = "as models do")]
                        let angle = f64::from(positions[i] as f32 * f);
                        #[allow(clippy::cast_possible_truncation, reason = "rounds to f32")]
                        let narrow = |x: f64| x as f32 * table.scale;
                        let (c, s) = cos_sin(angle);
                        (*cos, *sin) = (narrow(c), narrow(s));
                    }
                });
            }
            Op::Norm {
                kind,
                weight,
                bias,
                x,
                out,
                from,
                heads,
                head,
            } => {
                let kind = match kind {
                    NormKind::Rms { eps } => Norm::Rms { eps },
                    NormKind::Layer { eps } => Norm::Layer { eps },
                };
                let (weight, bias) = (weight.map(|w| self.vector(w)), bias.map(|b| self.vector(b)));
                let (from, heads, head) = (size(from), size(heads), size(head));
                let width = self.width(out);
                if x == out {
                    let ([], out) = self.views([], out);
                    pool.rows(out, width, |_, row| {
                        for x in row[from..from + heads * head].chunks_mut(head) {
                            norm_in_place(level, kind, weight, bias, x);
                        }
                    });
                } else {
                    let ([x], out) = self.views([x], out);
                    pool.rows(out, width, |i, out| {
                        let at = i * width + from..i * width + from + heads * head;
                        let out = &mut out[from..from + heads * head];
                        for (x, y) in x[at].chunks(head).zip(out.chunks_mut(head)) {
                            norm(level, kind, x, weight, bias, y);
                        }
                    });
                }
            }
            Op::Linear {
                weight,
                bias,
                x,
                out,
                add,
            } => {
                let (m, bias) = (self.matrix(weight), bias.map(|b| self.vector(b)));
                let rows = self.rows(out);
                let ([_, x], [scratch, out]) = self.product([None, Some(x)], scratch, out);
                let start = match (add, bias) {
                    (true, _) => Start::Keep,
                    (false, Some(b)) => Start::Bias(b),
                    (false, None) => Start::Zero,
                };
                m.run(pool, level, x, rows, scratch, out, start);
            }
            Op::Rotate {
                table,
                x,
                from,
                heads,
                head,
                interleaved,
            } => {
                let (width, pairs) = (self.width(x), self.width(table) / 2);
                let (from, heads, head) = (size(from), size(heads), size(head));
                let ([table], x) = self.views([table], x);
                pool.rows(x, width, |i, x| {
                    let (cos, sin) = table[2 * i * pairs..2 * (i + 1) * pairs].split_at(pairs);
                    for h in x[from..from + heads * head].chunks_mut(head) {
                        if interleaved {
                            for (p, (c, s)) in cos.iter().zip(sin).enumerate() {
                                let (a, b) = (h[2 * p], h[2 * p + 1]);
                                h[2 * p] = a * c - b * s;
                                h[2 * p + 1] = b * c + a * s;
                            }
                        } else {
                            rotate(level, h, cos, sin);
                        }
                    }
                });
            }
            Op::Activate {
                kind,
                x,
                out,
                gated,
            } => {
                let f = function(kind);
                let (wide, width) = (self.width(x), self.width(out));
                let ([x], out) = self.views([x], out);
                pool.rows(out, width, |i, out| {
                    let x = &x[i * wide..(i + 1) * wide];
                    let (gate, up) = x.split_at(width);
                    activate(level, f, gate, gated.then_some(up), out);
                });
            }
            Op::ClampedSwiglu {
                x,
                out,
                limit,
                alpha,
            } => {
                let width = self.width(out);
                let ([x], out) = self.views([x], out);
                pool.rows(out, width, |i, out| {
                    let x = &x[2 * i * width..2 * (i + 1) * width];
                    clamped_swiglu(level, limit, alpha, x, out);
                });
            }
            Op::Add { x, out, scale } => {
                let width = self.width(out);
                let ([x], out) = self.views([x], out);
                pool.rows(out, width, |i, out| {
                    let x = &x[i * width..(i + 1) * width];
                    out.iter_mut().zip(x).for_each(|(o, x)| *o += x * scale);
                });
            }
            Op::Route {
                logits,
                out,
                renormalise,
                sigmoid,
                bias,
                groups,
            } => {
                let (experts, width) = (self.width(logits), self.width(out));
                let how = Choice {
                    renormalise,
                    sigmoid,
                    bias: bias.map(|b| self.vector(b)),
                    groups: groups.map(|g| ExpertGroups {
                        count: size(g.count),
                        taken: size(g.taken),
                        best: size(g.best),
                    }),
                };
                let ([logits], out) = self.views([logits], out);
                pool.rows(out, width, |i, out| {
                    route(&logits[i * experts..(i + 1) * experts], &how, out);
                });
            }
            Op::Heads {
                ref weights,
                x,
                out,
            } => {
                let matrices: Vec<Linear<'a>> = weights.iter().map(|w| self.matrix(*w)).collect();
                let rows = self.rows(out);
                let ([x], out) = self.views([x], out);
                run_heads(pool, level, &matrices, x, rows, out);
            }
            Op::Experts {
                ref weights,
                biases,
                routes,
                x,
                out,
            } => {
                let share = self.rows(out) / self.rows(x);
                let (wide, width) = (self.width(routes), self.width(out));
                let biases = biases.map(|b| self.vector(b));
                let matrices: Vec<Linear<'a>> = weights.iter().map(|w| self.matrix(*w)).collect();
                let ([routes, x], [scratch, out]) =
                    self.product([Some(routes), Some(x)], scratch, out);
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "numbers of experts are whole"
                )]
                let experts = routes
                    .chunks(wide)
                    .flat_map(|r| r[..wide / 2].iter().map(|e| *e as usize));
                let groups = Groups::new(matrices.len(), experts);
                let expert = |e: usize| {
                    let start = biases.map_or(Start::Zero, |b| Start::Bias(&b[e * width..]));
                    (matrices[e], start)
                };
                groups.run(pool, level, expert, share, x, scratch, out);
            }
            Op::AddWeighted {
                x,
                weights,
                from,
                out,
                scale,
                add,
            } => {
                let (width, wide, from) = (self.width(out), self.width(weights), size(from));
                let ([x, weights], out) = self.views([x, weights], out);
                pool.rows(out, width, |i, out| {
                    let weights = &weights[i * wide + from..(i + 1) * wide];
                    let x = &x[i * weights.len() * width..][..weights.len() * width];
                    let mut sum = vec![0.0; width];
                    for (w, x) in weights.iter().zip(x.chunks(width)) {
                        sum.iter_mut().zip(x).for_each(|(s, x)| *s += w * x);
                    }
                    if !add {
                        out.fill(0.0);
                    }
                    out.iter_mut().zip(sum).for_each(|(o, s)| *o += s * scale);
                });
            }
            Op::Gather { x, out } => {
                let (width, wanted) = (self.width(out), self.wanted);
                let ([x], out) = self.views([x], out);
                for (row, out) in wanted.iter().zip(out.chunks_mut(width)) {
                    out.copy_from_slice(&x[*row as usize * width..][..width]);
                }
            }
            Op::Cap { x, cap, scale } => {
                let width = self.width(x);
                let ([], x) = self.views([], x);
                pool.rows(x, width, |_, x| {
                    for x in x {
                        if let Some(c) = cap {
                            *x = tanh(*x / c) * c;
                        }
                        *x *= scale;
                    }
                });
            }
            Op::Gate {
                kind,
                gate,
                from,
                x,
                out,
            } => {
                let f = function(kind);
                let (wide, width, from) = (self.width(gate), self.width(out), size(from));
                let ([gate, x], out) = self.views([gate, x], out);
                pool.rows(out, width, |i, out| {
                    let gate = &gate[i * wide + from..][..width];
                    activate(level, f, gate, Some(&x[i * width..][..width]), out);
                });
            }
            Op::Steps {
                x,
                from,
                bias,
                decay,
                limits,
                out,
            } => {
                let (bias, decay) = (self.vector(bias), self.vector(decay));
                let (wide, width, from) = (self.width(x), self.width(out), size(from));
                let ([x], out) = self.views([x], out);
                pool.rows(out, width, |i, out| {
                    let x = &x[i * wide + from..][..width / 2];
                    steps(x, bias, decay, limits, out);
                });
            }
            // They have pages as well, or other ranks.
            Op::Attention(_)
            | Op::Latent(_)
            | Op::Convolve(_)
            | Op::Scan(_)
            | Op::AllReduce { .. }
            | Op::AllGather { .. } => {}
        }
    }

    /// Where a layer keeps a part of its states.
    fn state(&self, place: StatePlace) -> StateShape {
        StateShape {
            page: size(self.program.geometry.page.get() / 4),
            from: size(place.from),
        }
    }

    fn convolve(
        &mut self,
        pool: &mut Pool,
        level: plimsoll_kernels::Level,
        c: &ConvolveOp,
        queries: &[Queries<'_>],
        pages: &mut Arena,
    ) {
        let taps = Taps {
            taps: size(c.taps),
            weight: self.vector(c.weight),
            bias: c.bias.map(|b| self.vector(b)),
        };
        let (place, stride, channels) = (self.state(c.state), self.width(c.x), self.width(c.out));
        let ([data], out) = self.views([c.x], c.out);
        let x = Columns {
            data,
            stride,
            from: size(c.from),
        };
        let pages = pages.whole_mut();
        convolve(pool, level, place, pages, queries, &taps, x, out, channels);
    }

    fn scan(
        &mut self,
        pool: &mut Pool,
        level: plimsoll_kernels::Level,
        s: &ScanOp,
        queries: &[Queries<'_>],
        pages: &mut Arena,
    ) {
        let shape = Heads {
            heads: size(s.heads),
            rows: size(s.rows),
            cols: size(s.cols),
            groups: size(s.groups),
            skip: self.vector(s.skip),
        };
        let place = self.state(s.state);
        let strides = [s.x, s.steps].map(|b| self.width(b));
        let ([x, steps], out) = self.views([s.x, s.steps], s.out);
        let [x, steps] = [(x, 0), (steps, 1)].map(|(data, i)| Columns {
            data,
            stride: strides[i],
            from: 0,
        });
        let pages = pages.whole_mut();
        scan(pool, level, place, pages, queries, &shape, x, steps, out);
    }

    fn latent<C: Unscaled + Element>(
        &mut self,
        pool: &mut Pool,
        level: plimsoll_kernels::Level,
        a: &LatentOp,
        queries: &[Queries<'_>],
        pages: &mut Arena,
    ) {
        let each = size_of::<C>() as u64;
        let pages = pages.whole_mut::<C>();
        let group = &self.program.geometry.groups[size(a.group)];
        let shape = LatentShape {
            page: size(self.program.geometry.page.get() / each),
            layer: size(a.index) * size(group.rate.get() / each) * size(group.slots),
            slots: size(group.slots),
            k_dim: size(a.rank) + size(a.rope_dim),
            v_dim: size(a.rank),
        };
        let strides = [a.q, a.q_rope, a.latent].map(|b| self.width(b));
        let ([q, q_rope, latent], out) = self.views([a.q, a.q_rope, a.latent], a.out);
        let [q, q_rope, latent] = [(q, 0), (q_rope, 1), (latent, 2)].map(|(data, i)| Columns {
            data,
            stride: strides[i],
            from: 0,
        });
        write_latents(pool, &shape, pages, queries, latent);
        let of = (size(a.heads), a.scale);
        attend_latents(pool, level, &shape, pages, queries, of, [q, q_rope], out);
    }

    fn attention<C: Cached + Element>(
        &mut self,
        pool: &mut Pool,
        level: plimsoll_kernels::Level,
        a: &AttentionOp,
        queries: &[Queries<'_>],
        pages: &mut Arena,
    ) {
        let each = size_of::<C>() as u64;
        let pages = pages.whole_mut::<C>();
        let group = &self.program.geometry.groups[size(a.group)];
        let rate = size(group.rate.get() / each);
        let shape = KvShape {
            page: size(self.program.geometry.page.get() / each),
            layer: size(a.index) * rate * size(group.slots),
            slots: size(group.slots),
            heads: size(a.kv_heads),
            k_dim: size(a.k_dim),
            v_dim: size(a.v_dim),
        };
        let scores = Scores {
            heads: size(a.q_heads),
            scale: a.scale,
            softcap: a.softcap,
            sinks: a.sinks.map(|s| self.vector(s)),
            reach: match group.kind {
                GroupKind::Window(n) => Reach::Window(size(n)),
                GroupKind::Chunk(n) => Reach::Chunk(size(n)),
                _ => Reach::Full,
            },
        };
        let strides = [a.q, a.k, a.v].map(|b| self.width(b));
        let ([q, k, v], out) = self.views([a.q, a.k, a.v], a.out);
        let [q, k, v] = [(q, 0), (k, 1), (v, 2)].map(|(data, i)| Columns {
            data,
            stride: strides[i],
            from: size(a.at[i]),
        });
        write_kv(pool, &shape, pages, queries, k, v);
        attend(pool, level, &shape, pages, queries, &scores, q, out);
    }
}
