//! Prints lengths of requests as the PagedAttention paper's data sets have them, one request a line: tokens of its
//! prompt, tokens of its output. `lengths sharegpt|alpaca REQUESTS MOST`: those longer than MOST are left out.

use std::error::Error;

use plimsoll_simulate::paper::{ALPACA, Lengths, PROMPT_CV, SHAREGPT, Shape, fit};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

#[allow(clippy::print_stdout, reason = "its output is the lengths")]
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dataset, requests, most] = args.as_slice() else {
        return Err("lengths sharegpt|alpaca REQUESTS MOST".into());
    };
    let dataset = match dataset.as_str() {
        "sharegpt" => SHAREGPT,
        "alpaca" => ALPACA,
        other => return Err(format!("`{other}` is no data set: sharegpt or alpaca").into()),
    };
    let (requests, most): (usize, u64) = (requests.parse()?, most.parse()?);
    let lengths = Lengths::new(
        &dataset,
        PROMPT_CV,
        Shape::Lognormal,
        fit(Shape::Lognormal)?,
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let draws = std::iter::repeat_with(|| lengths.sample(&mut rng));
    for (prompt, output) in draws.filter(|(p, o)| p + o <= most).take(requests) {
        println!("{prompt} {output}");
    }
    Ok(())
}
