//! Every lowered family against transformers: logits of every position of the checkpoints in
//! `crates/runtime/tests/fixtures`, by a reader of programs that shares nothing with the lowering or the kernels.

mod support;

use plimsoll_model::ModelSpec;
use plimsoll_program::{
    ActivationKind, GroupKind, KvRules, Limits, LowerError, NormKind, Op, Program, Rank, Rows,
    Weight, lower, lower_rank,
};
use plimsoll_units::{DType, Weights};
use support::{Reader, Tensors, fixtures, name, quantised, spec, tensors, together};

/// Share of the largest logit. transformers computes in float32 what is computed here in f64, which leaves less than
/// a third of this; `small_mistakes_show` holds what small mistakes give against it.
const TOLERANCE: f64 = 1e-5;

/// A checkpoint with its program and what transformers says of it.
struct Case {
    name: String,
    spec: ModelSpec,
    program: Program,
    tensors: Tensors,
    prompt: Vec<usize>,
    want: Vec<f64>,
}

impl Case {
    fn all() -> Vec<Self> {
        fixtures().iter().map(|f| Self::read(f, "logits")).collect()
    }

    /// A fixture with these logits of those that are there.
    fn read(folder: &std::path::Path, logits: &str) -> Self {
        let rules = KvRules::plimsoll(DType::Bf16, 16);
        let name = name(folder);
        let spec = spec(folder);
        let mut expected = tensors(&folder.join("expected.safetensors"));
        let tokens = expected.remove("tokens").expect("a prompt").values;
        let limits = Limits {
            tokens: tokens.len() as u64,
            outputs: tokens.len() as u64,
            context: spec.max_context.expect("a context"),
            weights: Weights::default(),
        };
        Self {
            program: lower(&spec, &limits, &rules).unwrap_or_else(|e| panic!("{name}: {e}")),
            name,
            spec,
            tensors: tensors(&folder.join("model.safetensors")),
            prompt: tokens
                .iter()
                .map(|t| format!("{t}").parse().expect("an id"))
                .collect(),
            want: expected.remove(logits).expect("logits").values,
        }
    }

    /// The largest difference of any logit of any position, as a share of the largest logit.
    fn difference(&self, program: &Program) -> f64 {
        self.distance(&Reader::new(program, &self.tensors).logits(&self.prompt))
    }

    fn distance(&self, got: &[f64]) -> f64 {
        assert_eq!(got.len(), self.want.len(), "{}", self.name);
        let size = self.want.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
        let pairs = got.iter().zip(&self.want);
        pairs.fold(0.0_f64, |a, (g, w)| a.max((g - w).abs())) / size
    }
}

#[test]
fn programs_compute_the_logits_of_transformers() {
    for case in Case::all() {
        let d = case.difference(&case.program);
        println!("{}: {d:.1e}", case.name);
        assert!(d <= TOLERANCE, "{}: {d:e}", case.name);
    }
}

/// Quantised matrices, as they are stored, not rounded: every layout's codes, scales, zero points and orders.
#[test]
fn quantised_checkpoints_are_what_they_stand_for() {
    for folder in quantised() {
        let case = Case::read(&folder, "logits_exact");
        let d = case.difference(&case.program);
        println!("{}: {d:.1e}", case.name);
        assert!(d <= TOLERANCE, "{}: {d:e}", case.name);
    }
}

/// What does not divide over two ranks or four, and what is said.
const REFUSED: [&str; 4] = [
    "granite_hybrid on 2: this model cannot be divided so: recurrent layers do not run on several ranks yet",
    "granite_hybrid on 4: this model cannot be divided so: recurrent layers do not run on several ranks yet",
    "granite_hybrid_moe on 2: this model cannot be divided so: recurrent layers do not run on several ranks yet",
    "granite_hybrid_moe on 4: this model cannot be divided so: recurrent layers do not run on several ranks yet",
];

/// Divided over two ranks and four, models compute the same: whatever does not divide says so in one sentence.
#[test]
fn ranks_together_compute_the_logits_of_transformers() {
    let rules = KvRules::plimsoll(DType::Bf16, 16);
    let mut refused = Vec::new();
    let read = |f: &std::path::PathBuf| Case::read(f, "logits_exact");
    for case in Case::all().into_iter().chain(quantised().iter().map(read)) {
        let whole = &case.program;
        let limits = Limits {
            tokens: whole.tokens,
            outputs: whole.outputs,
            context: case.spec.max_context.expect("a context"),
            weights: Weights::default(),
        };
        let ranks = |of| -> Result<Vec<Program>, LowerError> {
            Rank::all(of)
                .map(|rank| lower_rank(&case.spec, rank, &limits, &rules))
                .collect()
        };
        for of in [2, 4] {
            let programs = match ranks(of) {
                Ok(programs) => programs,
                Err(e) => {
                    refused.push(format!("{} on {of}: {e}", case.name));
                    continue;
                }
            };
            for p in &programs {
                alike(p, &programs[0], &case.name);
            }
            let least = whole.weight_bytes.get() / of;
            assert!(programs[0].weight_bytes.get() >= least);
            let readers: Vec<Reader<'_>> = programs
                .iter()
                .map(|p| Reader::new(p, &case.tensors))
                .collect();
            for got in together_of(&readers, &case.prompt) {
                let d = case.distance(&got);
                println!("{} on {of}: {d:.1e}", case.name);
                assert!(d <= TOLERANCE, "{} on {of}: {d:e}", case.name);
            }
        }
    }
    assert_eq!(refused, REFUSED);
}

/// Ranks have weights of the same sizes at the same places, the same buffers and the same pool.
fn alike(a: &Program, b: &Program, name: &str) {
    // Heads of latent attention have their numbers in their names.
    let places = |p: &Program| -> Vec<_> {
        let place = |w: &Weight| (w.role, w.layout, w.offset);
        p.weights.iter().map(place).collect()
    };
    assert_eq!(places(a), places(b), "{name}");
    assert_eq!(a.buffers, b.buffers, "{name}");
    assert_eq!(a.geometry, b.geometry, "{name}");
    assert_eq!(
        (a.weight_bytes, a.activation_bytes, a.logits),
        (b.weight_bytes, b.activation_bytes, b.logits),
        "{name}"
    );
}

fn together_of(ranks: &[Reader<'_>], tokens: &[usize]) -> Vec<Vec<f64>> {
    match ranks {
        [a, b] => together([a, b], tokens).into(),
        [a, b, c, d] => together([a, b, c, d], tokens).into(),
        _ => panic!("two or four"),
    }
}

/// Each of these changes a program a little, where it has what is changed.
type Mistake = (&'static str, fn(&mut Program) -> bool);

const MISTAKES: &[Mistake] = &[
    ("a tenth of eps", |p| {
        let mut large = false;
        for op in &mut p.ops {
            if let Op::Norm {
                kind: NormKind::Rms { eps } | NormKind::Layer { eps },
                ..
            } = op
            {
                // OPT's is fixed, and too small to be seen in float32.
                large = *eps > 1e-4;
                *eps /= 10.0;
            }
        }
        large
    }),
    ("one frequency off by a hundredth", |p| {
        let tables = p.ops.iter_mut().filter_map(|op| match op {
            Op::Rotary(t) => Some(t),
            _ => None,
        });
        tables.fold(false, |_, t| {
            let middle = t.frequencies.len() / 2;
            t.frequencies[middle] *= 1.01;
            true
        })
    }),
    ("a window longer by one", |p| {
        let groups = p.geometry.groups.iter_mut();
        groups.fold(false, |any, g| match &mut g.kind {
            GroupKind::Window(n) => {
                *n += 1;
                true
            }
            _ => any,
        })
    }),
    ("scores off by a thousandth", |p| {
        for op in &mut p.ops {
            match op {
                Op::Attention(a) => a.scale *= 1.001,
                Op::Latent(a) => a.scale *= 1.001,
                _ => {}
            }
        }
        true
    }),
    ("the other formula of GELU", |p| {
        let mut any = false;
        for op in &mut p.ops {
            if let Op::Activate { kind, .. } = op {
                (*kind, any) = match *kind {
                    ActivationKind::Gelu => (ActivationKind::GeluTanh, true),
                    ActivationKind::GeluTanh => (ActivationKind::Gelu, true),
                    other => (other, any),
                };
            }
        }
        any
    }),
    ("weights of experts over all or over the chosen", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Route {
                renormalise,
                sigmoid: false,
                ..
            } => {
                *renormalise = !*renormalise;
                true
            }
            _ => any,
        })
    }),
    ("experts chosen without groups", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Route { groups, .. } => groups.take().is_some() || any,
            _ => any,
        })
    }),
    ("groups judged by another number of experts", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Route {
                groups: Some(g), ..
            } => {
                g.best = 3 - g.best;
                true
            }
            _ => any,
        })
    }),
    ("experts chosen without their biases", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Route { bias, .. } => bias.take().is_some() || any,
            _ => any,
        })
    }),
    ("weights of experts by their sigmoids alone", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Route {
                renormalise,
                sigmoid: true,
                ..
            } => {
                *renormalise = !*renormalise;
                true
            }
            _ => any,
        })
    }),
    ("latents' norms with the eps of others", |p| {
        let mut any = false;
        for op in &mut p.ops {
            if let Op::Norm {
                kind: NormKind::Rms { eps },
                ..
            } = op
                && *eps < 1e-5
            {
                *eps = 1e-3;
                any = true;
            }
        }
        any
    }),
    ("attention without its sinks", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Attention(a) => a.sinks.take().is_some() || any,
            _ => any,
        })
    }),
    ("a limit off by a hundredth", |p| {
        let mut reached = false;
        for op in &mut p.ops {
            if let Op::ClampedSwiglu { limit, .. } = op {
                // The published limit is beyond what these weights give.
                reached = *limit < 2.0;
                *limit *= 1.01;
            }
        }
        reached
    }),
    ("a sigmoid's factor off by a hundredth", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::ClampedSwiglu { alpha, .. } => {
                *alpha *= 1.01;
                true
            }
            _ => any,
        })
    }),
    ("experts without their biases", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Experts { biases, .. } => biases.take().is_some() || any,
            _ => any,
        })
    }),
    ("the last two experts in each other's place", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Experts { weights, .. } => {
                let last = weights.len() - 1;
                weights.swap(last - 1, last);
                true
            }
            _ => any,
        })
    }),
    ("what experts add off by a hundredth", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::AddWeighted { scale, .. } => {
                *scale *= 1.01;
                true
            }
            _ => any,
        })
    }),
    ("a shared expert without its sigmoid", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Activate { kind, .. } if *kind == ActivationKind::Sigmoid => {
                *kind = ActivationKind::Relu;
                true
            }
            _ => any,
        })
    }),
    ("a convolution of the channels beside", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Convolve(c) => {
                c.from += 1;
                true
            }
            _ => any,
        })
    }),
    ("steps that no limit holds, or the other way round", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Steps { limits, .. } => {
                *limits = if limits[1].is_finite() {
                    [0.0, f32::INFINITY]
                } else {
                    [0.1, 0.5]
                };
                true
            }
            _ => any,
        })
    }),
    ("gates by a sigmoid alone", |p| {
        p.ops.iter_mut().fold(false, |any, op| match op {
            Op::Gate { kind, .. } => {
                *kind = ActivationKind::Sigmoid;
                true
            }
            _ => any,
        })
    }),
    ("no final norm", |p| {
        let outputs = |op: &Op| match op {
            Op::Norm { x, .. } => p.buffer(*x).rows == Rows::Outputs,
            _ => false,
        };
        let place = p.ops.iter().position(outputs);
        place.map(|i| p.ops.remove(i)).is_some()
    }),
];

#[test]
fn small_mistakes_show() {
    let cases = Case::all();
    for (what, change) in MISTAKES {
        let mut least = f64::INFINITY;
        for case in &cases {
            let mut program = case.program.clone();
            if change(&mut program) {
                let d = case.difference(&program);
                assert!(d > 10.0 * TOLERANCE, "{what}, {}: {d:e}", case.name);
                least = least.min(d);
            }
        }
        println!("{what}: at least {least:.1e}");
        assert!(least.is_finite(), "{what} was nowhere");
    }
}
