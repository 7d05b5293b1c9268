//! Compiles the kernels for every architecture, or for those that are named, without a GPU: how large each is.

use std::process::ExitCode;

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]
fn main() -> ExitCode {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let all = plimsoll_cuda::ARCHITECTURES.map(str::to_owned).to_vec();
    let source = plimsoll_cuda::source();
    for architecture in if named.is_empty() { all } else { named } {
        match plimsoll_cuda::compile(&source, &architecture) {
            Ok(code) => println!("sm_{architecture}: {} bytes", code.len()),
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
