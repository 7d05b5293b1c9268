//! The scheduler's part: which copies a graph over several buffers needs.
//!
//! The graph falls into runs of operations on one device. Whatever a run reads from elsewhere is
//! copied to its device when the run starts. With several devices (pipelined), every graph input
//! and every copy exists [`COPIES`] times and is never freed, so that batches can overlap
//! (`ggml-backend.cpp: ggml_backend_sched_split_graph`, `GGML_SCHED_MAX_COPIES`).

use super::build::Built;
use super::graph::Id;

/// `GGML_SCHED_MAX_COPIES`.
const COPIES: usize = 4;

/// What the allocator is given: tensors that come first, then the order of execution.
pub(super) struct Schedule {
    pub(super) leafs: Vec<Id>,
    pub(super) nodes: Vec<Id>,
    /// Starts of the layers among `nodes`, with the tensor that each reads.
    pub(super) marks: Vec<(usize, Id)>,
}

/// The schedule of a graph that runs on the host alone.
pub(super) fn on_host(built: &Built) -> Schedule {
    Schedule {
        leafs: built.inputs.clone(),
        nodes: built.graph.nodes.clone(),
        marks: built.layer_starts.clone(),
    }
}

/// The schedule of a graph on `devices` devices; the graph's sources are replaced by their copies.
pub(super) fn on_devices(built: &mut Built, devices: usize) -> Schedule {
    let pipelined = devices > 1;
    let g = &mut built.graph;
    let all = std::mem::take(&mut g.nodes);
    let mut leafs = Vec::new();
    if pipelined {
        for &t in &built.inputs {
            if let Some(tensor) = g.tensors.get_mut(t.index()) {
                tensor.output = true;
            }
            leafs.push(t);
            leafs.extend((1..COPIES).map(|_| g.copy(t, g.host, true)));
        }
    }
    let first = built.on_host.min(all.len());
    let mut nodes: Vec<Id> = Vec::with_capacity(all.len() + 32);
    nodes.extend_from_slice(&all[..first]);
    let mut made: Vec<(Id, u16, Id)> = Vec::new();
    let mut marks = Vec::with_capacity(built.layer_starts.len());
    let mut starts = built.layer_starts.iter().peekable();
    let mut k = first;
    while k < all.len() {
        let here = g.get(all[k]).heap;
        let end = all[k..]
            .iter()
            .position(|t| g.get(*t).heap != here)
            .map_or(all.len(), |n| k + n);
        for &t in &all[k..end] {
            for i in 0..g.get(t).sources().len() {
                let p = g.get(t).sources()[i];
                if g.get(p).root.is_some() || g.get(p).heap == here {
                    continue;
                }
                let known = made.iter().find(|(of, at, _)| *of == p && *at == here);
                let copy = match known {
                    Some((_, _, c)) => *c,
                    None => {
                        let c = g.copy(p, here, pipelined);
                        made.push((p, here, c));
                        nodes.push(g.dependency(p));
                        nodes.push(c);
                        if pipelined {
                            leafs.push(c);
                            leafs.extend((1..COPIES).map(|_| g.copy(p, here, true)));
                        }
                        c
                    }
                };
                g.tensors[t.index()].sources_mut()[i] = copy;
            }
        }
        let offset = nodes.len();
        while let Some(&(at, x)) = starts.next_if(|s| s.0 < end) {
            // A layer that starts with a run reads the copy of its input, made just before.
            let copy = made.iter().find(|(of, to, _)| *of == x && *to == here);
            marks.push((offset + at - k, copy.map_or(x, |c| c.2)));
        }
        nodes.extend_from_slice(&all[k..end]);
        k = end;
    }
    for &t in &built.inputs {
        if !pipelined {
            leafs.push(t);
        }
    }
    Schedule {
        leafs,
        nodes,
        marks,
    }
}
