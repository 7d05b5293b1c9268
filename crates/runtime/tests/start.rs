//! What the kernels cannot carry out is refused before any memory is taken.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_cuda::{DeviceError, Fibers};
use plimsoll_program::{Op, Program};
use plimsoll_runtime::BackendError;
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_runtime::{StartError, check};
use plimsoll_schedule::Fan;
use plimsoll_units::{DType, WeightType};
use support::{Greedy, Model, Server, expected, fixtures};

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

/// A device is asked at the start for what blocks of kernels share: with as much as the largest needs everything runs, and
/// with a byte less nothing begins.
#[test]
fn a_device_whose_blocks_share_too_little_is_refused() {
    for (family, weights, arithmetic, largest) in [
        (
            "llama",
            WeightType::Fp8,
            Arithmetic::Fast,
            "linear_mma_fp8_128",
        ),
        (
            "llama",
            WeightType::Bf16,
            Arithmetic::Exact,
            "linear_staged_32",
        ),
        (
            "deepseek_v2",
            WeightType::Int4,
            Arithmetic::Fast,
            "linear_mma_bf16_16",
        ),
        (
            "mixtral",
            WeightType::Int8,
            Arithmetic::Exact,
            "linear_staged_32",
        ),
    ] {
        let folder = fixtures()
            .into_iter()
            .find(|f| f.ends_with(family))
            .unwrap();
        let model = Model::open(&folder);
        let server = Server {
            weights,
            ..Server::default()
        };
        let refused = |most: u64| {
            let device = Box::new(Fibers::with_shared(most));
            match model.started(&server, 0, device, arithmetic) {
                Err(StartError::Device(BackendError::Device(e))) => Some(e),
                other => {
                    other.unwrap();
                    None
                }
            }
        };
        let (mut most, mut named) = (0, String::new());
        while let Some(e) = refused(most) {
            let DeviceError::Shared { kernel, needs, has } = &e else {
                panic!("{e}");
            };
            assert!(*has == most && *needs > most, "{e}");
            let said = format!("`{kernel}` needs {needs} bytes");
            assert!(e.to_string().contains(&said), "{e}");
            (most, named) = (*needs, kernel.clone());
        }
        assert_eq!(named, largest, "{family}: {most}");
        assert!(refused(most - 1).is_some());
        let device = Box::new(Fibers::with_shared(most));
        let engine = model.engine_of(&server, device, Greedy::default(), arithmetic);
        model.serve_on(engine, &[(expected(&folder).0, 2, Fan::ONE)]);
    }
}
