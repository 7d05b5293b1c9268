//! ggml's graph allocator, replayed: which address each tensor gets, and so how large each buffer is.
//!
//! Rules (`ggml-alloc.c` of commit 0c1e57098: `ggml_dyn_tallocr_alloc`, `ggml_dyn_tallocr_free_bytes`,
//! `ggml_gallocr_allocate_node`, `ggml_gallocr_alloc_graph_impl`): sizes are rounded up to the
//! buffer's alignment; the best-fitting hole is taken, the later of equals, and the open end only
//! where no hole fits; an operation that may work in place takes over the first source that owns
//! its memory, has the same layout and no other reader; memory is freed after its last reader.

use plimsoll_units::SizeOverflow;

use super::graph::{Graph, Id};

/// Holes of one buffer in order of address; the last is the open end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heap {
    align: u64,
    holes: Vec<(u64, u64)>,
    max: u64,
}

/// The open end: larger than any buffer, and far enough from 2^64 that sums stay inside.
const OPEN: u64 = 1 << 60;

impl Heap {
    fn new(align: u64) -> Self {
        Self {
            align,
            holes: vec![(0, OPEN)],
            max: 0,
        }
    }

    fn round(&self, n: u64) -> Result<u64, SizeOverflow> {
        n.checked_next_multiple_of(self.align)
            .filter(|n| *n < OPEN / 2)
            .ok_or(SizeOverflow)
    }

    fn take(&mut self, bytes: u64) -> Result<u64, SizeOverflow> {
        let n = self.round(bytes)?;
        let end = self.holes.len().saturating_sub(1);
        let mut best = end;
        let mut size = u64::MAX;
        for (i, hole) in self.holes[..end].iter().enumerate() {
            if hole.1 >= n && hole.1 <= size {
                best = i;
                size = hole.1;
            }
        }
        let hole = self.holes.get_mut(best).ok_or(SizeOverflow)?;
        let at = hole.0;
        hole.0 += n;
        hole.1 = hole.1.checked_sub(n).ok_or(SizeOverflow)?;
        if hole.1 == 0 {
            self.holes.remove(best);
        }
        self.max = self.max.max(at + n);
        if self.max >= OPEN / 2 {
            return Err(SizeOverflow);
        }
        Ok(at)
    }

    fn release(&mut self, at: u64, bytes: u64) -> Result<(), SizeOverflow> {
        let n = self.round(bytes)?;
        if n == 0 {
            return Ok(());
        }
        let i = self.holes.partition_point(|h| h.0 < at);
        let joins_before = i > 0 && self.holes[i - 1].0 + self.holes[i - 1].1 == at;
        let joins_after = i < self.holes.len() && at + n == self.holes[i].0;
        match (joins_before, joins_after) {
            (true, true) => {
                self.holes[i - 1].1 += n + self.holes[i].1;
                self.holes.remove(i);
            }
            (true, false) => self.holes[i - 1].1 += n,
            (false, true) => {
                self.holes[i].0 = at;
                self.holes[i].1 += n;
            }
            (false, false) => self.holes.insert(i, (at, n)),
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct State {
    children: u32,
    views: u32,
    seen: bool,
    owns: bool,
    heap: u16,
    at: u64,
}

/// What a replay gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replay {
    /// The size of each buffer.
    pub(super) max: Vec<u64>,
    /// The node at which the first buffer grew to its size.
    pub(super) peak: usize,
    /// For each mark, all that decides what happens after it: holes, and the address of the tensor
    /// that the next layer reads.
    pub(super) states: Vec<(Vec<Heap>, u64)>,
    /// Names and sizes of what lives in the first buffer where the replay ended.
    pub(super) live: Vec<(&'static str, u64)>,
}

/// Where a replay looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch<'a> {
    /// Nodes before which the state is recorded, with the tensor that is read next.
    pub(super) marks: &'a [(usize, Id)],
    /// Stop after this node and list what lives.
    pub(super) stop: Option<usize>,
}

struct Machine<'g> {
    graph: &'g Graph,
    heaps: Vec<Heap>,
    state: Vec<State>,
}

/// Runs the allocator over `nodes`, with `leafs` allocated first.
pub(super) fn replay(
    graph: &Graph,
    leafs: &[Id],
    nodes: &[Id],
    aligns: &[u64],
    watch: Watch<'_>,
) -> Result<Replay, SizeOverflow> {
    if graph.overflow {
        return Err(SizeOverflow);
    }
    let mut m = Machine {
        graph,
        heaps: aligns.iter().map(|a| Heap::new(*a)).collect(),
        state: vec![State::default(); graph.tensors.len()],
    };
    for &t in leafs {
        m.allocate(t)?;
    }
    for &t in nodes {
        let tensor = graph.get(t);
        if let (Some(root), false) = (tensor.root, tensor.link) {
            m.state[root.index()].views += 1;
        }
        for &p in tensor.sources() {
            m.state[p.index()].children += 1;
            if graph.get(p).input {
                m.allocate(p)?;
            }
        }
    }
    let mut states = Vec::with_capacity(watch.marks.len());
    let mut marks = watch.marks.iter().peekable();
    let mut peak = 0;
    for (i, &t) in nodes.iter().enumerate() {
        while let Some(&(_, next)) = marks.next_if(|m| m.0 == i) {
            let read = graph.get(next).root.unwrap_or(next);
            states.push((m.heaps.clone(), m.state[read.index()].at));
        }
        let before = m.heaps.first().map_or(0, |h| h.max);
        for &p in graph.get(t).sources() {
            m.allocate(p)?;
        }
        m.allocate(t)?;
        if m.heaps.first().is_some_and(|h| h.max > before) {
            peak = i;
        }
        if watch.stop == Some(i) {
            break;
        }
        for &p in graph.get(t).sources() {
            m.drop_reader(p)?;
        }
    }
    let live = if watch.stop.is_some() {
        m.live()
    } else {
        Vec::new()
    };
    Ok(Replay {
        max: m.heaps.iter().map(|h| h.max).collect(),
        peak,
        states,
        live,
    })
}

impl Machine<'_> {
    fn allocate(&mut self, t: Id) -> Result<(), SizeOverflow> {
        let tensor = self.graph.get(t);
        if tensor.root.is_some() || self.state[t.index()].seen {
            return Ok(());
        }
        self.state[t.index()].seen = true;
        self.state[t.index()].owns = true;
        self.state[t.index()].heap = tensor.heap;
        if tensor.in_place {
            for &p in tensor.sources() {
                let source = self.graph.get(p);
                let s = self.state[p.index()];
                let free = s.seen && s.owns && s.children == 1 && s.views == 0;
                if source.root.is_none() && free && !source.output && source.same_layout(tensor) {
                    self.state[p.index()].owns = false;
                    let taken = &mut self.state[t.index()];
                    taken.heap = s.heap;
                    taken.at = s.at;
                    return self.release_surplus(t, source.size);
                }
            }
        }
        let heap = usize::from(tensor.heap);
        let at = self.heap(heap)?.take(tensor.size)?;
        self.state[t.index()].at = at;
        Ok(())
    }

    fn heap(&mut self, i: usize) -> Result<&mut Heap, SizeOverflow> {
        self.heaps.get_mut(i).ok_or(SizeOverflow)
    }

    /// What the taken-over block has more than `t` needs goes back.
    fn release_surplus(&mut self, t: Id, had: u64) -> Result<(), SizeOverflow> {
        let s = self.state[t.index()];
        let needs = self.graph.get(t).size;
        let heap = self.heap(usize::from(s.heap))?;
        let (had, needs) = (heap.round(had)?, heap.round(needs)?);
        heap.release(s.at + needs, had.saturating_sub(needs))
    }

    fn drop_reader(&mut self, p: Id) -> Result<(), SizeOverflow> {
        let s = &mut self.state[p.index()];
        s.children = s.children.saturating_sub(1);
        if s.children > 0 || s.views > 0 {
            return Ok(());
        }
        match self.graph.get(p).root {
            Some(root) => {
                let r = &mut self.state[root.index()];
                r.views = r.views.saturating_sub(1);
                if r.views == 0 && r.children == 0 && r.owns {
                    return self.free(root);
                }
                Ok(())
            }
            None if s.owns => self.free(p),
            None => Ok(()),
        }
    }

    fn free(&mut self, t: Id) -> Result<(), SizeOverflow> {
        let tensor = self.graph.get(t);
        if tensor.output {
            return Ok(());
        }
        let s = self.state[t.index()];
        self.state[t.index()].owns = false;
        self.heap(usize::from(s.heap))?.release(s.at, tensor.size)
    }

    fn live(&self) -> Vec<(&'static str, u64)> {
        let mut all: Vec<_> = self
            .graph
            .tensors
            .iter()
            .zip(&self.state)
            .filter(|(t, s)| t.root.is_none() && s.owns && s.heap == 0)
            .map(|(t, _)| (t.name, t.size))
            .collect();
        // Largest first; equals stay in the order of the graph.
        all.sort_by_key(|t| std::cmp::Reverse(t.1));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_hole_is_taken_and_the_later_of_equals() {
        let mut h = Heap::new(32);
        let at: Vec<u64> = (0..6).map(|_| h.take(64).unwrap()).collect();
        assert_eq!(at, [0, 64, 128, 192, 256, 320]);
        h.release(0, 64).unwrap();
        h.release(128, 64).unwrap();
        h.release(256, 64).unwrap();
        assert_eq!(h.take(40), Ok(256));
        assert_eq!(h.take(64), Ok(128));
        // Neighbours merge, so a larger tensor fits where two smaller ones were.
        h.release(64, 64).unwrap();
        assert_eq!(h.take(128), Ok(0));
        assert_eq!(h.max, 384);
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        let mut h = Heap::new(128);
        assert!(h.take(u64::MAX).is_err());
        assert!(h.take(OPEN).is_err());
    }
}
