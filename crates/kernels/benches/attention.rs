//! `cargo bench -p plimsoll-kernels --bench attention`: one layer's attention of Llama 3.1 8B's sizes, a token of many
//! sequences in GB/s of keys and values as they would be in bf16, and a prompt of one in GFLOP/s; and what writing a
//! prompt's keys and values takes. By the type of the cache.

use divan::Bencher;
use divan::counter::BytesCount;
use plimsoll_kernels::{
    Cached, Columns, F16, KvShape, Level, Pool, Queries, Reach, Scores, attend, write_kv,
};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const SLOTS: usize = 16;

fn main() {
    divan::main();
}

/// One of `sequences` after `before` tokens each, of `tokens` more.
struct Case<C> {
    pool: Pool,
    shape: KvShape,
    pages: Vec<C>,
    tables: Vec<Vec<u32>>,
    before: usize,
    tokens: usize,
    x: Vec<f32>,
}

impl<C: Cached + Default> Case<C> {
    fn new(sequences: usize, before: usize, tokens: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let page = KV_HEADS * (2 * DIM + 2 * C::SCALE) * SLOTS;
        let blocks = (before + tokens).div_ceil(SLOTS);
        let numbers = (0..).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0);
        let mut case = Self {
            pool: Pool::new(threads).expect("threads"),
            shape: KvShape {
                page,
                layer: 0,
                slots: SLOTS,
                heads: KV_HEADS,
                k_dim: DIM,
                v_dim: DIM,
            },
            pages: vec![C::default(); page * blocks * sequences],
            tables: (0..sequences)
                .map(|s| (0..blocks).map(|b| (b * sequences + s) as u32).collect())
                .collect(),
            before: 0,
            tokens: before + tokens,
            x: numbers
                .take((before + tokens) * sequences * HEADS * DIM)
                .collect(),
        };
        case.write();
        (case.before, case.tokens) = (before, tokens);
        case
    }

    fn queries<'a>(tables: &'a [Vec<u32>], start: usize, count: usize) -> Vec<Queries<'a>> {
        let tables = tables.iter().enumerate();
        tables
            .map(|(s, table)| Queries {
                table,
                start,
                count,
                row: s * count,
            })
            .collect()
    }

    fn write(&mut self) {
        let all = Self::queries(&self.tables, self.before, self.tokens);
        let x = columns(&self.x);
        write_kv(&mut self.pool, &self.shape, &mut self.pages, &all, x, x);
    }

    fn attend(&mut self, out: &mut [f32]) {
        let all = Self::queries(&self.tables, self.before, self.tokens);
        let scores = Scores {
            heads: HEADS,
            scale: 0.088,
            softcap: None,
            sinks: None,
            reach: Reach::Full,
        };
        let (pool, level) = (&mut self.pool, Level::detect());
        attend(
            pool,
            level,
            &self.shape,
            &self.pages,
            &all,
            &scores,
            columns(&self.x),
            out,
        );
    }
}

fn columns(data: &[f32]) -> Columns<'_> {
    Columns {
        data,
        stride: HEADS * DIM,
        from: 0,
    }
}

/// "Bytes" are those of bf16, whatever the type: what is faster has more of them.
#[divan::bench(types = [f32, u16, F16, i8], args = [1, 8], sample_count = 20)]
fn one_token<C: Cached + Default>(bencher: Bencher, sequences: usize) {
    let before = 4095;
    let mut case = Case::<C>::new(sequences, before, 1);
    let mut out = vec![0.0; sequences * HEADS * DIM];
    let bytes = sequences * (before + 1) * KV_HEADS * 2 * DIM * 2;
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| case.attend(&mut out));
}

/// "Bytes" are floating-point operations here: two for each element of a key and of a value that a query sees.
#[divan::bench(types = [f32, u16, F16, i8], sample_count = 10)]
fn prompt<C: Cached + Default>(bencher: Bencher) {
    let tokens = 512;
    let mut case = Case::<C>::new(1, 0, tokens);
    let mut out = vec![0.0; tokens * HEADS * DIM];
    let flops = tokens * (tokens + 1) / 2 * HEADS * 2 * DIM * 2;
    bencher
        .counter(BytesCount::new(flops))
        .bench_local(|| case.attend(&mut out));
}

/// 512 tokens of one sequence.
#[divan::bench(types = [f32, u16, F16, i8], sample_count = 20)]
fn write<C: Cached + Default>(bencher: Bencher) {
    let mut case = Case::<C>::new(1, 0, 512);
    bencher.bench_local(|| case.write());
}
