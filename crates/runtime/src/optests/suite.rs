//! The programs: for every operation the cases that it has, their weights, and the steps that they are tried with.

use super::*;

const FORMS: [WeightType; 7] = [
    WeightType::Bf16,
    WeightType::Fp8,
    WeightType::Int8,
    WeightType::Int4,
    WeightType::GROUPED[0],
    WeightType::GROUPED[1],
    WeightType::GROUPED[2],
];

// Attention.
const Q_HEADS: u64 = 6;
const KV_HEADS: u64 = 2;
const K_DIM: u64 = 20;
const V_DIM: u64 = 12;
// Attention over latents.
const RANK: u64 = 40;
const ROPE: u64 = 12;
// A convolution, and a scan.
const CHANNELS: u64 = 37;
const TAPS: u64 = 4;
const HEADS: u64 = 4;
const ROWS: u64 = 19;
const COLS: u64 = 10;
const GROUPS: u64 = 2;

fn geometry(kv: DType) -> PoolGeometry {
    let each = kv.bytes(1).map_or(4, Bytes::get);
    let scales = if kv == DType::I8 { 8 } else { 0 };
    let heads = KV_HEADS * ((K_DIM + V_DIM) * each + scales);
    let latent = (RANK + ROPE) * each;
    let page = (heads * LAYERS * 5).next_multiple_of(16);
    let mut groups: Vec<Group> = Vec::new();
    let mut add = |kind, rate: u64| {
        groups.push(Group {
            kind,
            layers: LAYERS,
            rate: Bytes::new(rate),
            slots: page / (rate * LAYERS),
            state_pages: 0,
            padding: Bytes::ZERO,
        });
    };
    add(GroupKind::Full, heads);
    add(GroupKind::Window(21), heads);
    add(GroupKind::Chunk(32), heads);
    add(GroupKind::Latent, latent);
    let state = 4 * ((TAPS - 1) * CHANNELS + HEADS * ROWS * COLS);
    groups.push(Group {
        kind: GroupKind::State,
        layers: 1,
        rate: Bytes::new(state),
        slots: 0,
        state_pages: state.div_ceil(page),
        padding: Bytes::ZERO,
    });
    PoolGeometry {
        page: Bytes::new(page),
        groups,
    }
}

impl Suite {
    pub(super) fn new(kv: DType) -> Self {
        let mut making = Making {
            program: Program {
                ops: Vec::new(),
                scratch: Vec::new(),
                buffers: Vec::new(),
                activation_bytes: Bytes::ZERO,
                weights: Vec::new(),
                weight_bytes: Bytes::ZERO,
                logits: BufferId(0),
                geometry: geometry(kv),
                kv_dtype: kv,
                vocab: VOCAB,
                tokens: TOKENS,
                outputs: OUTPUTS,
                rank: Rank::ALONE,
            },
            words: Vec::new(),
            cases: Vec::new(),
            random: Random(1),
            offset: 0,
        };
        // The buffer of logits is the first.
        making.tokens();
        if kv == CACHES[0] {
            making.rows();
            making.products();
            making.experts();
            making.states();
        }
        making.attention(kv);
        let Making {
            program,
            words,
            cases,
            mut random,
            ..
        } = making;
        let (steps, pages) = steps(&program, &mut random);
        Self {
            program,
            words,
            cases,
            pages,
            steps,
        }
    }

    pub(super) fn made(&self) -> Made {
        let page = self.program.geometry.page.get();
        Made {
            program: self.program.clone(),
            pages: Bytes::new(page * u64::from(self.pages)),
            swap: Bytes::new(page * 4),
            context: CONTEXT,
        }
    }
}

/// Three sequences on scattered pages, and how many pages there are.
fn steps(program: &Program, random: &mut Random) -> (Vec<Step>, u32) {
    let groups = &program.geometry.groups;
    let blocks = |g: &Group| match g.kind {
        GroupKind::State => g.state_pages,
        _ => CONTEXT.div_ceil(g.slots),
    };
    // Two that nobody has, for copies.
    let pages = small(3 * groups.iter().map(blocks).sum::<u64>() + 3);
    let mut free: Vec<u32> = (1..pages - 2).collect();
    for i in (1..free.len()).rev() {
        free.swap(i, index(random.next() % (i as u64 + 1)));
    }
    let request = RequestId(0);
    let mut first = Step::default();
    for (seq, n) in (0..3).map(SeqId).zip(0..) {
        first.events.push((
            0,
            SeqEvent::Start {
                seq,
                request,
                index: n,
            },
        ));
        for (g, group) in groups.iter().enumerate() {
            for i in 0..small(blocks(group)) {
                let page = BlockId(free.pop().unwrap_or_default());
                first.kv.deltas.push(Delta {
                    seq,
                    group: u8::try_from(g).unwrap_or(u8::MAX),
                    op: DeltaOp::Append { index: i, page },
                });
            }
        }
    }
    let mut starts = [0; 3];
    let mut steps = Vec::new();
    for (number, counts) in (1..).zip(STEPS) {
        let mut step = std::mem::take(&mut first);
        step.number = number;
        for (i, (start, count)) in starts.iter_mut().zip(counts).enumerate() {
            if count == 0 {
                continue;
            }
            let from = small(step.tokens.len() as u64);
            let tokens = (0..count).map(|_| small(random.next() % VOCAB));
            step.tokens.extend(tokens);
            step.rows.push(Row {
                seq: SeqId(i as _),
                request,
                index: small(i as u64),
                start: *start,
                tokens: from..small(step.tokens.len() as u64),
                output: Output::Sample { draws: 1 },
            });
            *start += small(count);
        }
        steps.push(step);
    }
    (steps, pages)
}

struct Making {
    program: Program,
    words: Vec<u32>,
    cases: Vec<Case>,
    random: Random,
    /// Where the case's next buffer begins: those of different cases are never alive together.
    offset: u64,
}

impl Making {
    /// What the operations that `f` adds do together; the last one is what is looked at.
    fn case(&mut self, how: impl Into<String>, f: impl FnOnce(&mut Self)) {
        self.offset = 0;
        let (op, buffer) = (self.program.ops.len(), self.program.buffers.len());
        f(self);
        let ops = op..self.program.ops.len();
        let Some(last) = self.program.ops.last() else {
            return;
        };
        self.cases.push(Case {
            op: name(last),
            how: how.into(),
            ops,
            buffers: small(buffer as u64) as u16..small(self.program.buffers.len() as u64) as u16,
            paged: matches!(
                last,
                Op::Attention(_) | Op::Latent(_) | Op::Convolve(_) | Op::Scan(_)
            ),
        });
    }

    fn op(&mut self, op: Op) {
        self.op_in(op, None);
    }

    fn op_in(&mut self, op: Op, scratch: Option<BufferId>) {
        self.program.ops.push(op);
        self.program.scratch.push(scratch);
    }

    fn buffer(&mut self, rows: Rows, width: u64) -> BufferId {
        let id = BufferId(small(self.program.buffers.len() as u64) as u16);
        self.program.buffers.push(Buffer {
            name: "buffer",
            rows,
            width,
            offset: Bytes::new(self.offset),
        });
        let rows = rows.most([TOKENS, OUTPUTS]).unwrap_or(0);
        self.offset = (self.offset + 4 * rows * width).next_multiple_of(64);
        let all = &mut self.program.activation_bytes;
        *all = (*all).max(Bytes::new(self.offset));
        id
    }

    fn each(&mut self, width: u64) -> BufferId {
        self.buffer(Rows::Tokens, width)
    }

    fn weight(&mut self, layout: WeightLayout, words: Vec<u32>) -> WeightId {
        let id = WeightId(small(self.program.weights.len() as u64));
        self.program.weights.push(Weight {
            name: "weight".to_owned(),
            role: Role::Mlp,
            layout,
            sources: Vec::new(),
            padding: 0,
            offset: Bytes::new(4 * self.words.len() as u64),
        });
        self.words.extend(words);
        self.words.resize(self.words.len().next_multiple_of(16), 0);
        self.program.weight_bytes = Bytes::new(4 * self.words.len() as u64);
        id
    }

    fn vector(&mut self, n: u64) -> WeightId {
        let words = (0..n).map(|_| self.random.gain().to_bits()).collect();
        self.weight(WeightLayout::F32 { n }, words)
    }

    fn matrix(&mut self, form: WeightType, n: u64, k: u64) -> WeightId {
        let panel = index(form.row_words(k)) * PANEL;
        let mut words = vec![0; panel * index(n.div_ceil(PANEL as u64))];
        for row in 0..index(n) {
            let values: Vec<f32> = (0..k).map(|_| self.random.number() / 8.0).collect();
            match form {
                WeightType::Bf16 => {
                    let halves = values.iter().map(|x| bf16_from_f32(*x));
                    pack_row(&mut words, index(k), row, halves);
                }
                _ => {
                    let panel = &mut words[row / PANEL * panel..][..panel];
                    quantise_row(form, panel, row % PANEL, &values);
                }
            }
        }
        self.weight(WeightLayout::Packed { form, n, k }, words)
    }

    /// Where an operation quantises its input.
    fn scratch(&mut self, form: WeightType, rows: Rows, k: u64) -> Option<BufferId> {
        let words = form.input_words(k);
        (words > 0).then(|| self.buffer(rows, words))
    }

    /// What looks at tokens, positions and rows whose logits are wanted.
    fn tokens(&mut self) {
        self.case("rows of logits", |m| {
            let (out, x) = (m.buffer(Rows::Outputs, VOCAB), m.each(VOCAB));
            m.op(Op::Gather { x, out });
        });
        for form in FORMS {
            // The last ones are a rank's part.
            for (from, rows, scale) in [(0, VOCAB, 1.0), (0, VOCAB, 1.25), (15, 20, 1.25)] {
                self.case(
                    format!("{form}, {rows} from {from} on, times {scale}"),
                    |m| {
                        let (table, out) = (m.matrix(form, rows, 77), m.each(77));
                        m.op(Op::Embed {
                            table,
                            from,
                            out,
                            scale,
                        });
                    },
                );
            }
            self.case(form.to_string(), |m| {
                let (table, x) = (m.matrix(form, CONTEXT + 2, 77), m.each(77));
                m.op(Op::AddPosition {
                    table,
                    x,
                    offset: 2,
                });
            });
        }
        for divided in [false, true] {
            self.case(if divided { "divided" } else { "plain" }, |m| {
                let frequencies: Vec<f32> = (0..9_u8)
                    .map(|i| 10_000_f32.powf(-f32::from(i) / 9.0))
                    .collect();
                let divisors = divided.then(|| m.vector(9));
                let out = m.each(18);
                m.op(Op::Rotary(RotaryTable {
                    out,
                    frequencies,
                    divisors,
                    scale: 1.1,
                }));
            });
        }
    }

    /// What goes row by row.
    fn rows(&mut self) {
        let kinds = [NormKind::Rms { eps: 1e-5 }, NormKind::Layer { eps: 1e-6 }];
        for kind in kinds {
            for (weight, bias) in [(false, false), (true, false), (true, true)] {
                let what = match kind {
                    NormKind::Rms { .. } => "rms",
                    NormKind::Layer { .. } => "layer",
                };
                self.case(format!("{what}, gains {weight}, biases {bias}"), |m| {
                    let (x, out) = (m.each(77), m.each(77));
                    let weight = weight.then(|| m.vector(77));
                    let bias = bias.then(|| m.vector(77));
                    m.op(Op::Norm {
                        kind,
                        weight,
                        bias,
                        x,
                        out,
                        from: 0,
                        heads: 1,
                        head: 77,
                    });
                });
            }
            self.case("heads in place", |m| {
                let (x, weight) = (m.each(77), Some(m.vector(19)));
                m.op(Op::Norm {
                    kind,
                    weight,
                    bias: None,
                    x,
                    out: x,
                    from: 5,
                    heads: 3,
                    head: 19,
                });
            });
        }
        for interleaved in [false, true] {
            self.case(format!("interleaved {interleaved}"), |m| {
                let (table, x) = (m.each(14), m.each(77));
                m.op(Op::Rotate {
                    table,
                    x,
                    from: 3,
                    heads: 4,
                    head: 18,
                    interleaved,
                });
            });
        }
        for kind in [
            ActivationKind::Silu,
            ActivationKind::GeluTanh,
            ActivationKind::Gelu,
            ActivationKind::Relu,
            ActivationKind::Sigmoid,
        ] {
            for gated in [false, true] {
                self.case(format!("{kind:?}, gated {gated}"), |m| {
                    let (x, out) = (m.each(if gated { 154 } else { 77 }), m.each(77));
                    m.op(Op::Activate {
                        kind,
                        x,
                        out,
                        gated,
                    });
                });
            }
            self.case(format!("{kind:?}"), |m| {
                let (gate, x, out) = (m.each(85), m.each(77), m.each(77));
                m.op(Op::Gate {
                    kind,
                    gate,
                    from: 8,
                    x,
                    out,
                });
            });
        }
        self.case("of pairs", |m| {
            let (x, out) = (m.each(154), m.each(77));
            m.op(Op::ClampedSwiglu {
                x,
                out,
                limit: 1.5,
                alpha: 1.702,
            });
        });
        self.case("times 0.75", |m| {
            let (x, out) = (m.each(77), m.each(77));
            m.op(Op::Add {
                x,
                out,
                scale: 0.75,
            });
        });
        for cap in [None, Some(3.0)] {
            self.case(format!("{cap:?}"), |m| {
                let x = m.buffer(Rows::Outputs, VOCAB);
                m.op(Op::Cap { x, cap, scale: 0.5 });
            });
        }
    }

    fn products(&mut self) {
        for form in FORMS {
            for (n, k) in [(45, 77), (32, 256), (70, 130), (1, 1)] {
                for (bias, add) in [(false, false), (true, false), (false, true)] {
                    self.case(
                        format!("{form}, {n} x {k}, bias {bias}, added {add}"),
                        |m| {
                            let weight = m.matrix(form, n, k);
                            let bias = bias.then(|| m.vector(n));
                            let (x, out) = (m.each(k), m.each(n));
                            let scratch = m.scratch(form, Rows::Tokens, k);
                            let op = Op::Linear {
                                weight,
                                bias,
                                x,
                                out,
                                add,
                            };
                            m.op_in(op, scratch);
                        },
                    );
                }
            }
        }
        self.case("three of 21 x 35", |m| {
            let weights = (0..3).map(|_| m.matrix(WeightType::Bf16, 21, 35)).collect();
            let (x, out) = (m.each(3 * 35), m.each(3 * 21));
            m.op(Op::Heads { weights, x, out });
        });
    }

    fn route(&mut self, sigmoid: bool, renormalise: bool, limited: bool) -> BufferId {
        let (logits, out) = (self.each(12), self.each(2 * 3));
        let bias = limited.then(|| self.vector(12));
        let groups = limited.then_some(ExpertGroups {
            count: 4,
            taken: 2,
            best: 2,
        });
        self.op(Op::Route {
            logits,
            out,
            renormalise,
            sigmoid,
            bias,
            groups,
        });
        out
    }

    fn experts(&mut self) {
        for sigmoid in [false, true] {
            for renormalise in [false, true] {
                for limited in [false, true] {
                    let how =
                        format!("sigmoid {sigmoid}, shares {renormalise}, in groups {limited}");
                    self.case(how, |m| {
                        m.route(sigmoid, renormalise, limited);
                    });
                }
            }
        }
        let routed = Rows::Routes(3);
        for form in FORMS {
            for (biased, of) in [(false, Rows::Tokens), (true, Rows::Tokens), (true, routed)] {
                self.case(format!("{form}, biases {biased}, {of:?}"), |m| {
                    let routes = m.route(false, true, false);
                    let weights = (0..12).map(|_| m.matrix(form, 45, 77)).collect();
                    let biases = biased.then(|| m.vector(12 * 45));
                    let (x, out) = (m.buffer(of, 77), m.buffer(routed, 45));
                    let scratch = m.scratch(form, of, 77);
                    let op = Op::Experts {
                        weights,
                        biases,
                        routes,
                        x,
                        out,
                    };
                    m.op_in(op, scratch);
                });
            }
        }
        for add in [true, false] {
            self.case(
                format!("of three experts, to what lies there: {add}"),
                |m| {
                    let weights = m.route(true, true, false);
                    let (x, out) = (m.buffer(routed, 77), m.each(77));
                    m.op(Op::AddWeighted {
                        x,
                        weights,
                        from: 3,
                        out,
                        scale: 1.5,
                        add,
                    });
                },
            );
        }
    }

    fn states(&mut self) {
        let group = 4;
        self.case("with biases", |m| {
            let (x, out) = (m.each(CHANNELS + 6), m.each(CHANNELS));
            let weight = m.vector(CHANNELS * TAPS);
            let bias = Some(m.vector(CHANNELS));
            m.op(Op::Convolve(ConvolveOp {
                x,
                from: 6,
                out,
                taps: TAPS,
                weight,
                bias,
                state: StatePlace { group, from: 0 },
            }));
        });
        let steps = |m: &mut Self| {
            let (x, out) = (m.each(HEADS + 3), m.each(2 * HEADS));
            let (bias, decay) = (m.vector(HEADS), m.vector(HEADS));
            m.op(Op::Steps {
                x,
                from: 3,
                bias,
                decay,
                limits: [1e-3, 1.5],
                out,
            });
            out
        };
        self.case("limited", |m| {
            steps(m);
        });
        self.case("two groups", |m| {
            let steps = steps(m);
            let x = m.each(HEADS * ROWS + 2 * GROUPS * COLS);
            let (out, skip) = (m.each(HEADS * ROWS), m.vector(HEADS));
            m.op(Op::Scan(ScanOp {
                x,
                steps,
                skip,
                out,
                heads: HEADS,
                rows: ROWS,
                cols: COLS,
                groups: GROUPS,
                state: StatePlace {
                    group,
                    from: (TAPS - 1) * CHANNELS,
                },
            }));
        });
    }

    fn attention(&mut self, kv: DType) {
        for (group, seen) in (0..).zip(["all", "a window", "a chunk"]) {
            for (layer, (capped, sinks)) in
                (0..LAYERS).zip([(false, false), (true, false), (false, true), (true, true)])
            {
                let how = format!("{kv}, {seen}, capped {capped}, sinks {sinks}");
                self.case(how, |m| {
                    let sizes = [Q_HEADS * K_DIM, KV_HEADS * K_DIM, KV_HEADS * V_DIM];
                    // One buffer of all three, or three.
                    let (all, at) = if layer % 2 == 0 {
                        let one = m.each(sizes.iter().sum());
                        ([one; 3], [0, sizes[0], sizes[0] + sizes[1]])
                    } else {
                        (sizes.map(|n| m.each(n)), [0; 3])
                    };
                    let out = m.each(Q_HEADS * V_DIM);
                    let sinks = sinks.then(|| m.vector(Q_HEADS));
                    m.op(Op::Attention(AttentionOp {
                        q: all[0],
                        k: all[1],
                        v: all[2],
                        at,
                        out,
                        q_heads: Q_HEADS,
                        kv_heads: KV_HEADS,
                        k_dim: K_DIM,
                        v_dim: V_DIM,
                        group,
                        index: layer,
                        scale: 0.3,
                        softcap: capped.then_some(5.0),
                        sinks,
                    }));
                });
            }
        }
        if kv == DType::I8 {
            // Latents have no scales.
            return;
        }
        for layer in 0..2 {
            self.case(format!("{kv}, layer {layer}"), |m| {
                let heads = 5;
                let (q, q_rope) = (m.each(heads * RANK), m.each(heads * ROPE));
                let (latent, out) = (m.each(RANK + ROPE), m.each(heads * RANK));
                m.op(Op::Latent(LatentOp {
                    q,
                    q_rope,
                    latent,
                    out,
                    heads,
                    rank: RANK,
                    rope_dim: ROPE,
                    group: 3,
                    index: layer,
                    scale: 0.2,
                }));
            });
        }
    }
}
