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
    let of_kv = |mut program: Program, kv_dtype| {
        program.kv_dtype = kv_dtype;
        check(&program)
    };
    for kv in [DType::F16, DType::F32, DType::F8E4m3, DType::I8] {
        of_kv(good.clone(), kv).unwrap();
    }
    let other = of_kv(good, DType::F8E5m2);
    assert!(matches!(other, Err(StartError::KvType(DType::F8E5m2))));
    for kv in [DType::F16, DType::F8E4m3] {
        of_kv(of("deepseek_v2"), kv).unwrap();
    }
    let latents = of_kv(of("deepseek_v2"), DType::I8);
    assert!(matches!(latents, Err(StartError::LatentType(DType::I8))));
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
