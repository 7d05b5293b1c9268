//! The program's operations, each one or two kernels.

use std::ops::Range;
use std::sync::Arc;

use plimsoll_cuda::{Launch, args, words};
use plimsoll_program::{
    ActivationKind, BRIEF_WORDS, BufferId, ConvolveOp, GroupKind, NormKind, Op, ROW_WORDS, Rows,
    ScanOp, WeightId, short_words,
};
use plimsoll_schedule::Row;
use plimsoll_units::Bytes;

use super::linear::form;
use super::lists::end_of;
use super::{Cuda, elements, word};
use crate::backend::BackendError;
use crate::sample::{Brief, Shortlists};

/// Threads of a block that treats a row.
pub(super) const THREADS: u32 = 128;
const fn function(kind: ActivationKind) -> u32 {
    match kind {
        ActivationKind::Silu => 0,
        ActivationKind::GeluTanh => 1,
        ActivationKind::Gelu => 2,
        ActivationKind::Relu => 3,
        ActivationKind::Sigmoid => 4,
    }
}

/// How many tokens, sequences and wanted rows an operation has.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) tokens: u64,
    pub(super) rows: u64,
    pub(super) outputs: u64,
}

/// Bytes that a block of `route` shares.
pub(super) const fn route_shared(experts: u64, groups: u64) -> u64 {
    4 * (2 * experts + groups)
}

/// Bytes that a block of `shorten` shares: a sum of either kind for each span.
pub(super) const fn shorten_shared(vocab: u64) -> u64 {
    16 * vocab.div_ceil(1024)
}

impl Cuda {
    /// Carries some operations out, one after the other.
    pub(super) fn walk(
        &mut self,
        tokens: u64,
        rows: u64,
        outputs: u64,
        ops: Range<usize>,
    ) -> Result<(), BackendError> {
        let step = Step {
            tokens,
            rows,
            outputs,
        };
        let program = Arc::clone(&self.program);
        for i in ops {
            self.allowed.iter_mut().for_each(Vec::clear);
            self.op(step, i, &program.ops[i])?;
        }
        Ok(())
    }

    /// Whether a row's table has all pages that its tokens see.
    pub(super) fn covers(
        &self,
        group: usize,
        row: &Row,
        table: &[u32],
    ) -> Result<(), BackendError> {
        let of = &self.program.geometry.groups[group];
        let needed = match of.kind {
            GroupKind::State => of.state_pages,
            _ => end_of(row).div_ceil(of.slots.max(1)),
        };
        if table.len() as u64 >= needed {
            return Ok(());
        }
        Err(BackendError::Step(format!(
            "a table of {} pages, where tokens see {needed}",
            table.len()
        )))
    }

    pub(super) fn rows(&self, id: BufferId, step: Step) -> u64 {
        match self.program.buffer(id).rows {
            Rows::Tokens => step.tokens,
            Rows::Routes(experts) => step.tokens * experts,
            Rows::Outputs => step.outputs,
        }
    }

    pub(super) fn width(&self, id: BufferId) -> u32 {
        word(self.program.buffer(id).width)
    }

    /// Where a buffer lies, `rows` of whose rows are used.
    pub(super) fn buffer(&mut self, id: BufferId, step: Step) -> u64 {
        let rows = self.rows(id, step);
        let b = self.program.buffer(id);
        let (offset, bytes) = (
            b.offset.get(),
            rows.saturating_mul(b.width).saturating_mul(4),
        );
        self.activations
            .mark(Bytes::new(offset.saturating_add(bytes)));
        let at = self.activations.at.plus(offset);
        self.allow(at, bytes);
        at.0
    }

    pub(super) fn weight(&mut self, id: WeightId) -> u64 {
        let w = self.program.weight(id);
        let at = self.weights.at.plus(w.offset.get());
        // Whether it is 64 bits long was seen when the program was lowered.
        let bytes = w.layout.bytes().map_or(0, Bytes::get);
        self.allow(at, bytes);
        at.0
    }

    pub(super) fn vector(&mut self, id: Option<WeightId>) -> u64 {
        id.map_or(0, |id| self.weight(id))
    }

    /// Where a list of `len` words lies that begins at word `from`.
    pub(super) fn told(&mut self, from: u64, len: u64) -> u64 {
        let at = self.inputs.at.plus(4 * from);
        self.allow(at, 4 * len);
        at.0
    }

    /// The rows of a group of layers, and all tables.
    pub(super) fn seqs(&mut self, group: u64, step: Step) -> [u64; 2] {
        let seqs = self.told(self.lists.rows[elements(group)], ROW_WORDS * step.rows);
        if self.allowed.is_some() {
            let seen = std::mem::take(&mut self.lists.seen[elements(group)]);
            for at in &seen.tables {
                self.told(self.lists.tables + at.start, at.end - at.start);
            }
            self.lists.seen[elements(group)] = seen;
        }
        [seqs, self.inputs.at.plus(4 * self.lists.tables).0]
    }

    /// The pages, `part` of each of which is a layer's.
    pub(super) fn pages(&mut self, group: u64, part: Range<u64>) -> u64 {
        if self.allowed.is_some() {
            let seen = std::mem::take(&mut self.lists.seen[elements(group)]);
            for &page in &seen.pages {
                let at = self.pages.at.plus(self.page(page) + part.start);
                self.allow(at, part.end - part.start);
            }
            self.lists.seen[elements(group)] = seen;
        }
        self.pages.at.0
    }

    /// The part of a page that one layer of a group has.
    pub(super) fn layer(&self, group: u64, index: u64) -> Range<u64> {
        let of = &self.program.geometry.groups[elements(group)];
        let bytes = of.rate.get() * of.slots;
        index * bytes..(index + 1) * bytes
    }

    pub(super) fn launch(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), BackendError> {
        if how.grid.contains(&0) {
            return Ok(());
        }
        let [first, other] = self.device.most_blocks();
        if how.grid[0] > first || how.grid[1..].iter().any(|n| *n > other) {
            return Err(BackendError::Step(format!("{kernel}: too many blocks")));
        }
        self.start(kernel, how, args)
    }

    /// A block for each row.
    pub(super) fn each(
        &mut self,
        kernel: &'static str,
        rows: u64,
        args: &[u8],
    ) -> Result<(), BackendError> {
        self.launch(kernel, Launch::blocks(word(rows), THREADS), args)
    }

    #[allow(clippy::too_many_lines, reason = "one arm for each operation")]
    fn op(&mut self, step: Step, number: usize, op: &Op) -> Result<(), BackendError> {
        let scratch = self.program.scratch[number];
        match *op {
            Op::Embed {
                table,
                from,
                out,
                scale,
            } => {
                let m = self.matrices(&[table])?;
                let a = args::Embed {
                    words: m.words,
                    tokens: self.told(self.lists.tokens, step.tokens),
                    out: self.buffer(out, step),
                    form: form(m.form),
                    k: word(m.k),
                    width: self.width(out),
                    from: word(from),
                    rows: word(m.n),
                    scale,
                };
                self.each("embed", step.tokens, a.bytes())
            }
            Op::AddPosition { table, x, offset } => {
                let m = self.matrices(&[table])?;
                let a = args::AddPosition {
                    words: m.words,
                    positions: self.told(self.lists.positions, step.tokens),
                    x: self.buffer(x, step),
                    form: form(m.form),
                    k: word(m.k),
                    width: self.width(x),
                    offset: word(offset),
                };
                self.each("add_position", step.tokens, a.bytes())
            }
            Op::Rotary(ref table) => {
                let pairs = table.frequencies.len() as u64;
                let a = args::Rotary {
                    positions: self.told(self.lists.positions, step.tokens),
                    frequencies: self.told(self.constants[number], pairs),
                    divisors: self.vector(table.divisors),
                    out: self.buffer(table.out, step),
                    pairs: word(pairs),
                    scale: table.scale,
                };
                self.each("rotary", step.tokens, a.bytes())
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
                let (layer, eps) = match kind {
                    NormKind::Rms { eps } => (0, eps),
                    NormKind::Layer { eps } => (1, eps),
                };
                let a = args::Norm {
                    x: self.buffer(x, step),
                    out: self.buffer(out, step),
                    weight: self.vector(weight),
                    bias: self.vector(bias),
                    width: self.width(out),
                    from: word(from),
                    heads: word(heads),
                    head: word(head),
                    layer,
                    eps,
                };
                let rows = self.rows(out, step).saturating_mul(heads);
                self.each("norm", rows, a.bytes())
            }
            Op::Linear {
                weight,
                bias,
                x,
                out,
                add,
            } => {
                let m = self.matrices(&[weight])?;
                let rows = self.rows(out, step);
                let a = args::Linear {
                    x: self.buffer(x, step),
                    y: self.buffer(out, step),
                    bias: self.vector(bias),
                    rows: word(rows),
                    step: 1,
                    share: 1,
                    start: match (add, bias) {
                        (true, _) => 2,
                        (false, Some(_)) => 1,
                        (false, None) => 0,
                    },
                    ..args::Linear::default()
                };
                let scratch = scratch.map_or(0, |b| self.buffer(b, step));
                self.linear(&m, a, rows, scratch, 1)
            }
            Op::Heads {
                ref weights,
                x,
                out,
            } => {
                let m = self.matrices(weights)?;
                let a = args::Linear {
                    x: self.buffer(x, step),
                    y: self.buffer(out, step),
                    rows: word(self.rows(out, step)),
                    step: word(weights.len() as u64),
                    share: 1,
                    ..args::Linear::default()
                };
                self.linear(&m, a, 0, 0, weights.len() as u64)
            }
            Op::Experts {
                ref weights,
                biases,
                routes,
                x,
                out,
            } => {
                let m = self.matrices(weights)?;
                let (rows, x_rows) = (self.rows(out, step), self.rows(x, step));
                let a = args::Linear {
                    x: self.buffer(x, step),
                    y: self.buffer(out, step),
                    bias: self.vector(biases),
                    routes: self.buffer(routes, step),
                    rows: word(rows),
                    step: 1,
                    share: word(rows / x_rows.max(1)),
                    wide: self.width(routes),
                    start: u32::from(biases.is_some()),
                    ..args::Linear::default()
                };
                let scratch = scratch.map_or(0, |b| self.buffer(b, step));
                self.linear(&m, a, x_rows, scratch, 1)
            }
            Op::Rotate {
                table,
                x,
                from,
                heads,
                head,
                interleaved,
            } => {
                let a = args::Rotate {
                    table: self.buffer(table, step),
                    x: self.buffer(x, step),
                    width: self.width(x),
                    from: word(from),
                    heads: word(heads),
                    head: word(head),
                    pairs: self.width(table) / 2,
                    interleaved: interleaved.into(),
                };
                let rows = self.rows(x, step);
                self.each("rotate", rows, a.bytes())
            }
            Op::Activate {
                kind,
                x,
                out,
                gated,
            } => {
                let (gate, width) = (self.buffer(x, step), self.width(out));
                let a = args::Activate {
                    gate,
                    up: if gated {
                        gate + 4 * u64::from(width)
                    } else {
                        0
                    },
                    out: self.buffer(out, step),
                    gate_stride: self.width(x),
                    up_stride: self.width(x),
                    width,
                    kind: function(kind),
                };
                let rows = self.rows(out, step);
                self.each("activate", rows, a.bytes())
            }
            Op::Gate {
                kind,
                gate,
                from,
                x,
                out,
            } => {
                let width = self.width(out);
                let a = args::Activate {
                    gate: self.buffer(gate, step) + 4 * from,
                    up: self.buffer(x, step),
                    out: self.buffer(out, step),
                    gate_stride: self.width(gate),
                    up_stride: width,
                    width,
                    kind: function(kind),
                };
                let rows = self.rows(out, step);
                self.each("activate", rows, a.bytes())
            }
            Op::ClampedSwiglu {
                x,
                out,
                limit,
                alpha,
            } => {
                let a = args::ClampedSwiglu {
                    x: self.buffer(x, step),
                    out: self.buffer(out, step),
                    width: self.width(out),
                    limit,
                    alpha,
                    none: 0,
                };
                let rows = self.rows(out, step);
                self.each("clamped_swiglu", rows, a.bytes())
            }
            Op::Add { x, out, scale } => {
                let len = self.rows(out, step) * u64::from(self.width(out));
                let a = args::Add {
                    x: self.buffer(x, step),
                    out: self.buffer(out, step),
                    len,
                    scale,
                    none: 0,
                };
                self.each("add", len.div_ceil(THREADS.into()), a.bytes())
            }
            Op::Cap { x, cap, scale } => {
                let len = self.rows(x, step) * u64::from(self.width(x));
                let a = args::Cap {
                    x: self.buffer(x, step),
                    len,
                    cap: cap.unwrap_or(0.0),
                    scale,
                    capped: cap.is_some().into(),
                    none: 0,
                };
                self.each("cap", len.div_ceil(THREADS.into()), a.bytes())
            }
            Op::AddWeighted {
                x,
                weights,
                from,
                out,
                scale,
                add,
            } => {
                let wide = self.width(weights);
                let a = args::AddWeighted {
                    x: self.buffer(x, step),
                    weights: self.buffer(weights, step),
                    out: self.buffer(out, step),
                    width: self.width(out),
                    wide,
                    from: word(from),
                    count: wide - word(from),
                    scale,
                    add: add.into(),
                };
                let rows = self.rows(out, step);
                self.each("add_weighted", rows, a.bytes())
            }
            Op::AllReduce { x } => self.all_reduce(step, x),
            Op::AllGather { x, out } => self.all_gather(step, x, out),
            Op::Gather { x, out } => {
                let a = args::Gather {
                    x: self.buffer(x, step),
                    wanted: self.told(self.lists.wanted, step.outputs),
                    out: self.buffer(out, step),
                    width: self.width(out),
                    none: 0,
                };
                self.each("gather", step.outputs, a.bytes())
            }
            Op::Route {
                logits,
                out,
                renormalise,
                sigmoid,
                bias,
                groups,
            } => {
                let experts = self.width(logits);
                let groups = groups.map_or([0; 3], |g| [g.count, g.taken, g.best].map(word));
                let a = args::Route {
                    logits: self.buffer(logits, step),
                    bias: self.vector(bias),
                    out: self.buffer(out, step),
                    experts,
                    taken: self.width(out) / 2,
                    renormalise: renormalise.into(),
                    sigmoid: sigmoid.into(),
                    groups: groups[0],
                    groups_taken: groups[1],
                    best: groups[2],
                    none: 0,
                };
                let how = Launch {
                    shared: word(route_shared(experts.into(), groups[0].into())),
                    ..Launch::blocks(word(self.rows(out, step)), THREADS)
                };
                self.launch("route", how, a.bytes())
            }
            Op::Steps {
                x,
                from,
                bias,
                decay,
                limits,
                out,
            } => {
                let a = args::Steps {
                    x: self.buffer(x, step),
                    bias: self.weight(bias),
                    decay: self.weight(decay),
                    out: self.buffer(out, step),
                    wide: self.width(x),
                    from: word(from),
                    heads: self.width(out) / 2,
                    least: limits[0],
                    most: limits[1],
                    none: 0,
                };
                let rows = self.rows(out, step);
                self.each("steps", rows, a.bytes())
            }
            Op::Attention(ref a) => self.attention(step, a),
            Op::Latent(ref a) => self.latent(step, a),
            Op::Convolve(ref c) => self.convolve(step, c),
            Op::Scan(ref s) => self.scan(step, s),
        }
    }

    fn convolve(&mut self, step: Step, c: &ConvolveOp) -> Result<(), BackendError> {
        let channels = self.width(c.out);
        let [seqs, tables] = self.seqs(c.state.group, step);
        let a = args::Convolve {
            pages: self.pages(c.state.group, 0..self.program.geometry.page.get()),
            seqs,
            tables,
            x: self.buffer(c.x, step),
            weight: self.weight(c.weight),
            bias: self.vector(c.bias),
            out: self.buffer(c.out, step),
            from: c.state.from,
            page: word(self.program.geometry.page.get() / 4),
            channels,
            taps: word(c.taps),
            stride: self.width(c.x),
            x_from: word(c.from),
            none: 0,
        };
        let how = Launch {
            grid: [channels.div_ceil(THREADS), word(step.rows), 1],
            threads: THREADS,
            shared: 0,
        };
        self.launch("convolve", how, a.bytes())
    }

    fn scan(&mut self, step: Step, s: &ScanOp) -> Result<(), BackendError> {
        let [seqs, tables] = self.seqs(s.state.group, step);
        let a = args::Scan {
            pages: self.pages(s.state.group, 0..self.program.geometry.page.get()),
            seqs,
            tables,
            x: self.buffer(s.x, step),
            steps: self.buffer(s.steps, step),
            skip: self.weight(s.skip),
            out: self.buffer(s.out, step),
            from: s.state.from,
            page: word(self.program.geometry.page.get() / 4),
            heads: word(s.heads),
            rows: word(s.rows),
            cols: word(s.cols),
            groups: word(s.groups),
            x_stride: self.width(s.x),
        };
        let how = Launch {
            grid: [
                word((s.heads * s.rows).div_ceil(THREADS.into())),
                word(step.rows),
                1,
            ],
            threads: THREADS,
            shared: 0,
        };
        self.launch("scan", how, a.bytes())
    }

    /// Has the device look at rows of logits, of each as its brief asks.
    pub(super) fn shorten(
        &mut self,
        briefs: &[Option<Brief>],
    ) -> Result<Shortlists<'_>, BackendError> {
        let rows = briefs.len() as u64;
        let vocab = self.program.vocab;
        let each = short_words(vocab);
        let bytes = Bytes::new(8 * rows * each);
        let from = self.sizes.before_briefs();
        self.words.clear();
        let told: Vec<u32> = briefs
            .iter()
            .flat_map(|b| Brief::words(b.as_ref()))
            .collect();
        let told = self.list(from, self.sizes.briefs, &told)?;
        self.send(from)?;
        self.allowed.iter_mut().for_each(Vec::clear);
        self.allow(self.shortlists.at, bytes.get());
        self.shortlists.mark(bytes);
        let step = Step {
            tokens: 0,
            rows: 0,
            outputs: rows,
        };
        let a = args::Shorten {
            logits: self.buffer(self.program.logits, step),
            briefs: self.told(told, rows * BRIEF_WORDS),
            out: self.shortlists.at.0,
            vocab: word(vocab),
            words: word(each),
        };
        let how = Launch {
            shared: word(shorten_shared(vocab)),
            ..Launch::blocks(word(rows), 512)
        };
        self.launch("shorten", how, a.bytes())?;
        let bytes = self
            .device
            .host(self.shortlists.at, elements(bytes.get()))?;
        Ok(Shortlists {
            words: words(bytes)?,
            each: elements(each),
        })
    }

    /// What steps do before any was seen: bounds are measured by the warm-up.
    pub(super) fn measured(&mut self) -> Result<crate::backend::Measured, BackendError> {
        super::weights::measured(self)
    }
}
