//! Ranks on GPUs: the backend that they are together, and by what they meet.

use std::sync::Arc;

use plimsoll_cuda::{Nccl, Station};
use plimsoll_runtime::cuda::{Cuda, seated};
use plimsoll_runtime::{Backend, Ranks};

/// The only rank, or all of them; and how these meet, in words.
pub(super) fn together(
    mut ranks: Vec<Cuda>,
    threads: usize,
) -> std::io::Result<(Box<dyn Backend>, Option<String>)> {
    if ranks.len() == 1 {
        return Ok((Box::new(ranks.remove(0)), None));
    }
    let (nccl, how) = match connected(ranks.iter().map(Cuda::station).collect()) {
        Ok(nccl) => {
            let how = format!("by {}", nccl.name());
            (Some(nccl), how)
        }
        // Slower, and the same answers.
        Err(why) => (None, format!("through the host's memory: {why}")),
    };
    let (ranks, meeting) = seated(ranks, nccl);
    Ok((
        Box::new(Ranks::new(ranks, meeting, threads)?),
        Some(format!("ranks meet {how}")),
    ))
}

fn connected(stations: Vec<Station>) -> Result<Arc<Nccl>, String> {
    let mut gpus: Vec<u32> = stations.iter().map(|s| s.stream.gpu).collect();
    gpus.sort_unstable();
    gpus.dedup();
    if gpus.len() < stations.len() {
        return Err("some of them are on one device".to_owned());
    }
    Nccl::new(stations).map_err(|e| e.to_string())
}
