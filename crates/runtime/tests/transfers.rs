//! Pages that move beside steps: none is read before it has arrived, nor overwritten before it has left, however late a
//! device does what is asked for on either lane.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::path::Path;

use plimsoll_cuda::{Fibers, Lane};
use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, Delta, DeltaOp, SwapOp};
use plimsoll_plan::Region;
use plimsoll_runtime::cuda::{Arithmetic, Cuda};
use plimsoll_runtime::{Backend as _, Inside as _};
use plimsoll_schedule::{Output, RequestId, Row, SeqEvent, Step, Tables};
use plimsoll_units::{BlockId, SeqId};

use support::{Disk, Model, Server};

fn swaps() -> Server {
    Server {
        swap: 4,
        pages: 8,
        ..Server::default()
    }
}

fn cuda(server: &Server, fibers: Fibers) -> Cuda {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    Model::open(&folder).cuda(server, 0, Box::new(fibers), Arithmetic::Exact)
}

fn page_bytes(cuda: &Cuda) -> usize {
    usize::try_from(cuda.program().geometry.page.get()).unwrap()
}

/// What a step computes, as it were: a page full of one number.
fn fill(cuda: &mut Cuda, page: u64, with: u8) {
    let bytes = vec![with; page_bytes(cuda)];
    let from = page * bytes.len() as u64;
    cuda.write(Region::KvCache, from, &bytes).unwrap();
}

/// The number that a page is full of.
fn filled(cuda: &mut Cuda, page: u64) -> u8 {
    let mut bytes = vec![0; page_bytes(cuda)];
    let from = page * bytes.len() as u64;
    cuda.read(Region::KvCache, from, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == bytes[0]), "page {page}");
    bytes[0]
}

fn swap(page: u32, slot: u32) -> SwapOp {
    SwapOp {
        tag: 0,
        page: BlockId(page),
        slot,
        generation: 0,
    }
}

fn copy(from: u32, to: u32) -> BlockCopy {
    BlockCopy {
        from: BlockId(from),
        to: BlockId(to),
    }
}

/// A step of one token in page 7, beside pages that go out.
fn step(swaps_out: Vec<SwapOp>) -> (Step, Tables) {
    let (seq, request) = (SeqId(1), RequestId(1));
    let mut step = Step {
        tokens: vec![1],
        ..Step::default()
    };
    let start = SeqEvent::Start {
        seq,
        request,
        index: 0,
    };
    step.events.push((0, start));
    let page = BlockId(7);
    let op = DeltaOp::Append { index: 0, page };
    step.kv.deltas.push(Delta { seq, group: 0, op });
    step.kv.swaps_out = swaps_out;
    step.rows.push(Row {
        seq,
        request,
        index: 0,
        start: 0,
        tokens: 0..1,
        output: Output::None,
    });
    let mut tables = Tables::new(1);
    tables.apply(&step, |_| {});
    (step, tables)
}

#[test]
fn a_page_has_left_before_it_is_another_s_and_has_arrived_before_it_is_read() {
    let mut pool = Pool::new(1).unwrap();
    for lane in [Lane::Compute, Lane::Transfers] {
        let mut cuda = cuda(&swaps(), Fibers::late(lane));
        // What was just computed goes out, and a copy takes its place.
        fill(&mut cuda, 1, 7);
        fill(&mut cuda, 3, 9);
        cuda.swap_out(&mut pool, &[swap(1, 2)]).unwrap();
        cuda.copy(&[copy(3, 1)]).unwrap();
        // It goes out once more, and so does another page with the next step: it is this step's then.
        cuda.swap_out(&mut pool, &[swap(1, 0)]).unwrap();
        cuda.swap_out(&mut pool, &[swap(3, 1)]).unwrap();
        fill(&mut cuda, 1, 11);
        let (outs, tables) = step(vec![swap(3, 1)]);
        cuda.begin(&outs, &tables).unwrap();
        let (none, _) = step(Vec::new());
        cuda.begin(&none, &tables).unwrap();
        fill(&mut cuda, 3, 13);
        // They come back elsewhere, and are copied on.
        cuda.swap_in(&mut pool, &[swap(4, 2), swap(5, 0)]).unwrap();
        cuda.copy(&[copy(4, 6)]).unwrap();
        cuda.swap_in(&mut pool, &[swap(2, 1)]).unwrap();
        let all = [1, 2, 3, 4, 5, 6].map(|page| filled(&mut cuda, page));
        assert_eq!(all, [11, 9, 13, 7, 9, 7], "{lane:?}");
    }
}

#[test]
fn a_file_of_swap_space_is_reached_by_way_of_the_host() {
    let mut pool = Pool::new(1).unwrap();
    for (disk, not_out, not_back) in [
        (Disk::File, vec![], vec![]),
        (Disk::NoReads, vec![], vec![0, 1]),
        (Disk::NoWrites, vec![0, 1], vec![0, 1]),
    ] {
        let server = Server { disk, ..swaps() };
        let mut cuda = cuda(&server, Fibers::late(Lane::Transfers));
        fill(&mut cuda, 1, 7);
        fill(&mut cuda, 3, 9);
        let outs = [swap(1, 2), swap(3, 0)];
        assert_eq!(cuda.swap_out(&mut pool, &outs).unwrap(), not_out);
        let ins = [swap(4, 2), swap(5, 0)];
        assert_eq!(cuda.swap_in(&mut pool, &ins).unwrap(), not_back);
        if not_back.is_empty() {
            assert_eq!([4, 5].map(|page| filled(&mut cuda, page)), [7, 9]);
        }
        let usage = cuda.usage();
        let swap = usage.iter().find(|u| u.region == Region::SwapFile).unwrap();
        let page = cuda.program().geometry.page;
        assert_eq!(
            [swap.committed, swap.high_water].map(|b| b.whole(page)),
            [4, 3]
        );
    }
}
