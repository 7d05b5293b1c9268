//! Every operation of CUDA's backend on fibers, against the processors', to the bit.

use plimsoll_cuda::Fibers;
use plimsoll_kernels::Pool;
use plimsoll_runtime::cuda::Arithmetic;
use plimsoll_runtime::optests::{on_device, on_processors, run};

#[test]
fn every_operation_computes_the_same_to_the_bit() {
    let mut pool = Pool::new(2).unwrap();
    let device = |made| on_device(Box::new(Fibers::new()), Arithmetic::Exact, made);
    let all = run(&mut pool, on_processors, device, |_| {}).unwrap();
    for outcome in &all {
        assert!(outcome.wrong.is_empty(), "{outcome:#?}");
        assert!(outcome.cases > 0 && outcome.elements > 0, "{outcome:?}");
    }
    assert!(all.len() == 24, "{all:#?}");
}
