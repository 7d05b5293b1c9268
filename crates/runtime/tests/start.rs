//! What the kernels cannot carry out is refused before any memory is taken.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_program::{Op, Program};
use plimsoll_runtime::{StartError, check};
use plimsoll_units::DType;
use support::{Model, Server, fixtures};

#[test]
fn programs_that_no_kernel_carries_out_are_refused() {
    let of = |family: &str| {
        let folder = fixtures()
            .into_iter()
            .find(|f| f.ends_with(family))
            .unwrap();
        let good = Model::open(&folder).program(&Server::default());
        check(&good).unwrap();
        good
    };
    let wide = |mut program: Program| {
        for op in &mut program.ops {
            match op {
                Op::Attention(a) => a.v_dim = 512,
                Op::Latent(a) => a.rank = 1024,
                _ => {}
            }
        }
        check(&program)
    };
    let good = of("llama");
    assert!(matches!(wide(good.clone()), Err(StartError::Head(512))));
    assert!(matches!(
        wide(of("deepseek_v2")),
        Err(StartError::Latent(1032))
    ));
    let mut narrow = good;
    narrow.kv_dtype = DType::F16;
    assert!(matches!(
        check(&narrow),
        Err(StartError::KvType(DType::F16))
    ));
    let states = fixtures()
        .into_iter()
        .find(|f| f.ends_with("granite_hybrid"))
        .unwrap();
    let good = Model::open(&states).program(&Server::default());
    check(&good).unwrap();
    let changed = |change: fn(&mut Op)| {
        let mut p = good.clone();
        p.ops.iter_mut().for_each(change);
        matches!(check(&p), Err(StartError::State { .. }))
    };
    assert!(changed(|op| {
        if let Op::Scan(s) = op {
            s.cols = 257;
        }
    }));
    assert!(changed(|op| {
        if let Op::Convolve(c) = op {
            c.taps = 9;
        }
    }));
}
