//! `cargo bench -p plimsoll-kernels --bench state`: one layer of a selective state space of Granite 4's sizes, a token of
//! many sequences and a prompt of one, in GB/s of states and GFLOP/s.

use divan::Bencher;
use divan::counter::BytesCount;
use plimsoll_kernels::{Columns, Heads, Level, Pool, Queries, StateShape, scan};

const HEADS: usize = 48;
const ROWS: usize = 64;
const COLS: usize = 128;
const STATE: usize = HEADS * ROWS * COLS;
/// A page ends inside a head.
const PAGE: usize = 5000;

fn main() {
    divan::main();
}

fn run(bencher: Bencher, sequences: usize, tokens: usize, counted: usize) {
    let mut pool =
        Pool::new(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    let each = STATE.div_ceil(PAGE);
    let mut pages = vec![0.0; sequences * each * PAGE];
    let all: Vec<u32> = (0..).take(sequences * each).collect();
    let queries: Vec<Queries<'_>> = all
        .chunks(each)
        .enumerate()
        .map(|(s, table)| Queries {
            table,
            start: 1,
            count: tokens,
            row: s * tokens,
        })
        .collect();
    let rows = sequences * tokens;
    let stride = HEADS * ROWS + 2 * COLS;
    let (x, steps) = (vec![0.5; rows * stride], vec![0.5; rows * 2 * HEADS]);
    let mut out = vec![0.0; rows * HEADS * ROWS];
    let skip = [1.0; HEADS];
    let shape = Heads {
        heads: HEADS,
        rows: ROWS,
        cols: COLS,
        groups: 1,
        skip: &skip,
    };
    let columns = |data, stride| Columns {
        data,
        stride,
        from: 0,
    };
    let place = StateShape {
        page: PAGE,
        from: 0,
    };
    bencher.counter(BytesCount::new(counted)).bench_local(|| {
        scan(
            &mut pool,
            Level::detect(),
            place,
            &mut pages,
            &queries,
            &shape,
            columns(&x, stride),
            columns(&steps, 2 * HEADS),
            &mut out,
        );
    });
}

/// Every state is read and written once.
#[divan::bench(args = [1, 8, 64], sample_count = 40)]
fn one_token(bencher: Bencher, sequences: usize) {
    run(bencher, sequences, 1, sequences * STATE * 8);
}

/// "Bytes" are floating-point operations here: five for each element of the state and token.
#[divan::bench(args = [64, 512], sample_count = 20)]
fn prompt(bencher: Bencher, tokens: usize) {
    run(bencher, 1, tokens, tokens * STATE * 5);
}
