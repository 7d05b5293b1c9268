//! Checkpoints of `tests/quantised` on the real path: every layout that is read computes the logits of what it stands for.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_cuda::Fibers;
use plimsoll_plan::Region;
use plimsoll_runtime::Inside;
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_schedule::Fan;
use plimsoll_units::{DType, WeightType};
use support::{Greedy, Model, Seen, Server, exact, expected, quantised};

/// Largest difference over largest logit: weights are the same bfloat16 on both sides, so only the order of sums in
/// float32 differs (`logits.rs`).
const TOLERANCE: f32 = 2e-5;

#[test]
fn logits_are_those_of_what_weights_stand_for() {
    for folder in quantised() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let model = Model::open(&folder);
        let (prompt, want) = expected(&folder);
        // Ranks cut rows and columns inside words and groups.
        for ranks in [1, 2] {
            let server = Server {
                kv: DType::F32,
                ranks,
                ..Server::default()
            };
            let request = (prompt.clone(), 1, Fan::ONE);
            let (_, seen, _) = model.serve(&server, &[request]);
            let size = want.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            let mut worst = 0.0_f32;
            for (i, want) in (0..).zip(want.chunks(want.len() / prompt.len())) {
                for (g, w) in seen[&(0, 0, i)].iter().zip(want) {
                    worst = worst.max((f32::from_bits(*g) - w).abs());
                }
            }
            println!("{name}, {ranks} ranks: {worst:.2e} of {size:.2}");
            assert!(
                worst <= TOLERANCE * size,
                "{name}, {ranks} ranks: {worst} of {size}"
            );
        }
    }
}

/// What goes up to a device is what lies in memory here.
#[test]
fn weights_lie_on_a_device_as_on_processors() {
    for folder in quantised() {
        let model = Model::open(&folder);
        for weights in WeightType::ALL {
            let server = Server {
                weights,
                ..Server::default()
            };
            let len = model.program(&server).weight_bytes.get();
            let mut both = [(); 2].map(|()| vec![1; usize::try_from(len).unwrap()]);
            let [here, there] = &mut both;
            let mut cpu = model.engine(&server);
            let device = Box::new(Fibers::new());
            let mut gpu = model.engine_of(&server, device, Greedy::default(), Arithmetic::Exact);
            let region = Region::Weights;
            let cpu = cpu.executor_mut().backend_mut();
            cpu.read(region, 0, here).unwrap();
            let gpu = gpu.executor_mut().backend_mut();
            gpu.read(region, 0, there).unwrap();
            assert!(here == there, "{}, {weights}", folder.display());
        }
    }
}

/// Those of four bits in neighbouring groups with scales of 16 bits: kept as they are stored.
const GROUPED: [&str; 2] = ["awq", "awq_experts"];
/// Those of e4m3 whose scales are for whole groups of columns: kept, too.
const FLOATS: [&str; 4] = ["float8", "float8_static", "fp8_tensor", "fp8_wide"];

/// Kept as it is stored, a matrix takes its codes and a word for each group; only inputs are rounded, to 127 steps of each
/// 128: 0.5 % of a product, passed on by layers of sharp attention (`logits.rs`), where four bits of our own are off by 8.5 %.
#[test]
fn published_groups_stay_as_they_are() {
    for folder in quantised() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let model = Model::open(&folder);
        let stored = Server {
            kv: DType::F32,
            stored: true,
            ..Server::default()
        };
        let plain = Server {
            kv: DType::F32,
            ..Server::default()
        };
        let bytes = |s: &Server| model.program(s).weight_bytes.get();
        if !GROUPED.contains(&name) {
            // Of the last one, matrices of no more inputs than its blocks have.
            let kept = FLOATS.contains(&name) || name == "fp8_block";
            assert_eq!(bytes(&stored) != bytes(&plain), kept, "{name}");
            continue;
        }
        assert!(bytes(&stored) < bytes(&plain), "{name}");
        let (prompt, _) = expected(&folder);
        let want = exact(&folder);
        let request = (prompt.clone(), 1, Fan::ONE);
        let (_, seen, _) = model.serve(&stored, std::slice::from_ref(&request));
        let error = |seen: &Seen| {
            let (mut off, mut size) = (0.0, 0.0);
            for (i, want) in (0..).zip(want.chunks(want.len() / prompt.len())) {
                for (g, w) in seen[&(0, 0, i)].iter().zip(want) {
                    let (g, w) = (f64::from(f32::from_bits(*g)), f64::from(*w));
                    off += (g - w).powi(2);
                    size += w * w;
                }
            }
            (off / size).sqrt()
        };
        let off = error(&seen);
        println!("{name}: {off:.4}");
        assert!(off > 0.0 && off < 0.1, "{name}: {off}");
        // The same to the bit without SIMD, and on a device.
        let scalar = Server {
            level: plimsoll_kernels::Level::Scalar,
            ..stored.clone()
        };
        assert_eq!(
            model.serve(&scalar, std::slice::from_ref(&request)).1,
            seen,
            "{name}"
        );
        let device = Box::new(Fibers::new());
        let gpu = model.engine_of(&stored, device, Greedy::default(), Arithmetic::Exact);
        let there = model.serve_on(gpu, std::slice::from_ref(&request)).1;
        assert_eq!(there, seen, "{name}");
        // Tensor cores multiply what they stand for, rounded to bfloat16 as inputs are.
        let device = Box::new(Fibers::new());
        let gpu = model.engine_of(&stored, device, Greedy::default(), Arithmetic::Fast);
        let off = error(&model.serve_on(gpu, &[request]).1);
        println!("{name} on tensor cores: {off:.4}");
        assert!(off > 0.0 && off < 0.03, "{name} on tensor cores: {off}");
    }
}

/// Kept as they are stored, e4m3 matrices lose nothing: logits are those of what they stand for in float32, and only the
/// order of sums differs. The same from two ranks, where `--weights fp8` says so, without SIMD and on a device.
#[test]
fn published_floats_stay_as_they_are() {
    for name in FLOATS {
        let folder = quantised().into_iter().find(|f| f.ends_with(name)).unwrap();
        let model = Model::open(&folder);
        let (prompt, _) = expected(&folder);
        let want = exact(&folder);
        let size = want.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        let request = [(prompt.clone(), 1, Fan::ONE)];
        let off = |seen: &Seen| {
            let each = want.chunks(want.len() / prompt.len());
            let pairs = (0..).zip(each).flat_map(|(i, want)| {
                let got = seen[&(0, 0, i)].iter().map(|g| f32::from_bits(*g));
                got.zip(want)
            });
            pairs.fold(0.0_f32, |a, (g, w)| a.max((g - w).abs())) / size
        };
        let stored = Server {
            kv: DType::F32,
            stored: true,
            ..Server::default()
        };
        let (_, seen, _) = model.serve(&stored, &request);
        for ranks in [1, 2] {
            let server = Server {
                ranks,
                ..stored.clone()
            };
            let off = off(&model.serve(&server, &request).1);
            println!("{name}, {ranks} ranks: {off:.2e}");
            assert!(off <= TOLERANCE, "{name}, {ranks} ranks: {off}");
        }
        let scalar = Server {
            level: plimsoll_kernels::Level::Scalar,
            ..stored.clone()
        };
        assert_eq!(model.serve(&scalar, &request).1, seen, "{name}");
        let device = Box::new(Fibers::new());
        let gpu = model.engine_of(&stored, device, Greedy::default(), Arithmetic::Exact);
        assert_eq!(model.serve_on(gpu, &request).1, seen, "{name}");
        // Tensor cores multiply what they stand for, rounded to bfloat16 as inputs are.
        let device = Box::new(Fibers::new());
        let gpu = model.engine_of(&stored, device, Greedy::default(), Arithmetic::Fast);
        let off = off(&model.serve_on(gpu, &request).1);
        println!("{name} on tensor cores: {off:.4}");
        assert!(
            off > TOLERANCE && off < 0.05,
            "{name} on tensor cores: {off}"
        );
    }
}
