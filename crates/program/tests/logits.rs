//! Every lowered family against transformers: logits of every position of the checkpoints in
//! `crates/runtime/tests/fixtures`, by a reader of programs that shares nothing with the lowering or the kernels.

mod support;

use plimsoll_program::{KvRules, Limits, lower};
use plimsoll_units::DType;
use support::{Reader, fixtures, name, spec, tensors};

/// transformers computes in float32 what is computed here in f64: over a few layers of width 64 that is some ten
/// roundings of 6e-8, amplified by scores and norms. A wrong eps, frequency or order of norms is a hundred times larger.
const TOLERANCE: f64 = 2e-5;

#[test]
fn programs_compute_the_logits_of_transformers() {
    let rules = KvRules {
        dtype: DType::Bf16,
        state_dtype: DType::F32,
        block_size: 16,
    };
    for folder in fixtures() {
        let case = name(&folder);
        let spec = spec(&folder);
        let expected = tensors(&folder.join("expected.safetensors"));
        let prompt = &expected["tokens"].values;
        let limits = Limits {
            tokens: prompt.len() as u64,
            outputs: prompt.len() as u64,
            context: spec.max_context.expect("a context"),
        };
        let program = lower(&spec, &limits, &rules).unwrap_or_else(|e| panic!("{case}: {e}"));
        let tensors = tensors(&folder.join("model.safetensors"));
        let ids: Vec<usize> = prompt
            .iter()
            .map(|t| format!("{t}").parse().expect("an id"))
            .collect();
        let got = Reader::new(&program, &tensors).logits(&ids);
        let want = &expected["logits"].values;
        assert_eq!(got.len(), want.len(), "{case}");
        let size = want.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
        let worst = got
            .iter()
            .zip(want)
            .fold(0.0_f64, |a, (g, w)| a.max((g - w).abs()));
        println!("{case}: largest difference {worst:.2e} of {size:.2}");
        assert!(worst <= TOLERANCE * size, "{case}: {worst} of {size}");
    }
}
