//! What lowered programs look like: `tests/golden/`, one file for each fixture; `UPDATE_GOLDEN=1 cargo test -p
//! plimsoll-program --test golden` rewrites them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::fmt::Write as _;
use std::path::Path;

use plimsoll_program::{
    AttentionOp, BufferId, NormKind, Number, Op, Program, Quantised, WeightId, WeightLayout, Zero,
    lower,
};
use support::models::{LIMITS, RULES};
use support::{fixtures, name, spec};

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
