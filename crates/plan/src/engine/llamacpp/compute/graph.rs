//! The tensors of a graph, in the order in which ggml would run them.
//!
//! Only what the allocator looks at is kept: shape, type, sources, whether an operation may work in
//! place, and who owns the memory. An operation that works in place on a tensor with no other
//! reader changes nothing about memory; most of those (biases, scales, caps) are left out.

/// A tensor's place in [`Graph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

impl Id {
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element types that occur in graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    F32,
    F16,
    I32,
    I64,
}

impl Type {
    const fn bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// Most sources of one operation (the gated delta rule has six).
const MAX_SOURCES: usize = 6;

/// One tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    pub(super) name: &'static str,
    pub(super) ne: [u64; 4],
    pub(super) ty: Type,
    /// Whether its rows lie apart, so that no operation on it counts as the same layout.
    pub(super) strided: bool,
    /// Whether the operation may take over a source's memory.
    pub(super) in_place: bool,
    /// Filled from outside, so allocated before everything else.
    pub(super) input: bool,
    /// Kept to the end.
    pub(super) output: bool,
    /// Stands for a dependency between devices, not for an operation.
    pub(super) link: bool,
    /// Which buffer it lives in.
    pub(super) heap: u16,
    pub(super) size: u64,
    /// The owner of the memory, for a view.
    pub(super) root: Option<Id>,
    sources: [Id; MAX_SOURCES],
    count: u8,
}

impl Tensor {
    pub(super) fn sources(&self) -> &[Id] {
        &self.sources[..usize::from(self.count)]
    }

    pub(super) fn sources_mut(&mut self) -> &mut [Id] {
        &mut self.sources[..usize::from(self.count)]
    }

    pub(super) fn same_layout(&self, other: &Self) -> bool {
        self.ty == other.ty && self.ne == other.ne && self.strided == other.strided
    }
}

/// The graph while it is written down.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) tensors: Vec<Tensor>,
    pub(super) nodes: Vec<Id>,
    /// Set once a size left 64 bits; sizes are saturated from then on.
    pub(super) overflow: bool,
    /// Where new operations run.
    pub(super) heap: u16,
    /// Where inputs live.
    pub(super) host: u16,
}

impl Graph {
    pub(super) fn new(host: u16, capacity: usize) -> Self {
        Self {
            tensors: Vec::with_capacity(capacity),
            nodes: Vec::with_capacity(capacity),
            overflow: false,
            heap: 0,
            host,
        }
    }

    pub(super) fn get(&self, t: Id) -> &Tensor {
        &self.tensors[t.index()]
    }

    pub(super) fn ne(&self, t: Id) -> [u64; 4] {
        self.get(t).ne
    }

    fn size(&mut self, ne: [u64; 4], ty: Type) -> u64 {
        let n = ne
            .iter()
            .try_fold(ty.bytes(), |acc: u64, d| acc.checked_mul(*d));
        n.unwrap_or_else(|| {
            self.overflow = true;
            0
        })
    }

    fn push(&mut self, t: Tensor) -> Id {
        let id = Id(u32::try_from(self.tensors.len()).unwrap_or(u32::MAX));
        self.tensors.push(t);
        id
    }

    fn tensor(&mut self, name: &'static str, ne: &[u64], ty: Type, sources: &[Id]) -> Tensor {
        let mut all = [1; 4];
        for (to, from) in all.iter_mut().zip(ne) {
            *to = *from;
        }
        let mut list = [Id(0); MAX_SOURCES];
        let mut count = 0_u8;
        for (to, from) in list.iter_mut().zip(sources) {
            *to = *from;
            count += 1;
        }
        Tensor {
            name,
            ne: all,
            ty,
            strided: false,
            in_place: false,
            input: false,
            output: false,
            link: false,
            heap: self.heap,
            size: self.size(all, ty),
            root: None,
            sources: list,
            count,
        }
    }

    fn node(&mut self, t: Tensor) -> Id {
        let id = self.push(t);
        self.nodes.push(id);
        id
    }

    /// An input, outside the order of execution.
    pub(super) fn input(&mut self, name: &'static str, ne: &[u64], ty: Type) -> Id {
        let mut t = self.tensor(name, ne, ty, &[]);
        t.input = true;
        t.heap = self.host;
        self.push(t)
    }

    /// An operation with a new f32 result.
    pub(super) fn op(&mut self, name: &'static str, ne: &[u64], sources: &[Id]) -> Id {
        let t = self.tensor(name, ne, Type::F32, sources);
        self.node(t)
    }

    /// The same with another type.
    pub(super) fn op_typed(
        &mut self,
        name: &'static str,
        ne: &[u64],
        ty: Type,
        sources: &[Id],
    ) -> Id {
        let t = self.tensor(name, ne, ty, sources);
        self.node(t)
    }

    /// An operation with `extra` bytes behind its result.
    pub(super) fn op_with(
        &mut self,
        name: &'static str,
        ne: &[u64],
        sources: &[Id],
        extra: u64,
    ) -> Id {
        let mut t = self.tensor(name, ne, Type::F32, sources);
        match t.size.checked_add(extra) {
            Some(n) => t.size = n,
            None => self.overflow = true,
        }
        self.node(t)
    }

    /// An operation that may work in place on one of its sources.
    pub(super) fn in_place(&mut self, name: &'static str, ne: &[u64], sources: &[Id]) -> Id {
        let mut t = self.tensor(name, ne, Type::F32, sources);
        t.in_place = true;
        self.node(t)
    }

    /// The same with the shape of its first source.
    pub(super) fn like(&mut self, name: &'static str, sources: &[Id]) -> Id {
        let ne = sources.first().map_or([1; 4], |x| self.ne(*x));
        self.in_place(name, &ne, sources)
    }

    /// The same memory in another shape.
    pub(super) fn view(&mut self, of: Id, ne: &[u64]) -> Id {
        self.view_with(of, ne, &[], false)
    }

    /// A part of the same memory, whose rows lie apart.
    pub(super) fn part(&mut self, of: Id, ne: &[u64]) -> Id {
        self.view_with(of, ne, &[], true)
    }

    /// A view that also reads `more`.
    pub(super) fn view_with(&mut self, of: Id, ne: &[u64], more: &[Id], strided: bool) -> Id {
        let source = *self.get(of);
        let mut list = [of; MAX_SOURCES];
        let mut count = 1;
        for (to, from) in list.iter_mut().skip(1).zip(more) {
            *to = *from;
            count += 1;
        }
        let mut t = self.tensor(source.name, ne, source.ty, &list[..count]);
        t.root = Some(source.root.unwrap_or(of));
        t.strided = strided;
        self.node(t)
    }

    /// A write into memory outside this buffer (the cache).
    pub(super) fn store(&mut self, name: &'static str, sources: &[Id], outside: Id) -> Id {
        let mut t = self.tensor(name, &[1], Type::F16, sources);
        t.root = Some(outside);
        self.node(t)
    }

    /// A tensor that no operation of this graph makes and that owns nothing here.
    pub(super) fn outside(&mut self) -> Id {
        let t = self.tensor("outside", &[1], Type::F32, &[]);
        self.push(t)
    }

    /// Where an operation without a weight runs: the scheduler leaves it on the device of the
    /// operation before it, unless that is the host.
    pub(super) fn heap_of_last(&self) -> u16 {
        let own = |t: &&Id| self.get(**t).root.is_none();
        match self.nodes.iter().rev().find(own) {
            Some(&t) if self.get(t).heap != self.host => self.get(t).heap,
            _ => self.heap,
        }
    }

    /// Normalisation and its weight. Only `RMS_NORM` may work in place; the first of the two has no
    /// weight of its own.
    pub(super) fn norm(&mut self, x: Id, norm: Norm) -> Id {
        if norm == Norm::FusedRms {
            let ne = self.ne(x);
            return self.op("norm", &ne, &[x]);
        }
        let mut t = self.tensor("norm", &self.ne(x), Type::F32, &[x]);
        t.in_place = norm == Norm::Rms;
        t.heap = self.heap_of_last();
        let h = self.node(t);
        self.like("norm_weight", &[h])
    }

    /// A copy of `of` on another device.
    pub(super) fn copy(&mut self, of: Id, heap: u16, kept: bool) -> Id {
        let mut t = *self.get(of);
        t.heap = heap;
        t.root = None;
        t.count = 0;
        t.strided = false;
        t.in_place = false;
        t.input = kept;
        t.output = kept;
        self.push(t)
    }

    /// Keeps `of` alive up to here.
    pub(super) fn dependency(&mut self, of: Id) -> Id {
        let source = *self.get(of);
        let mut t = self.tensor(source.name, &source.ne, source.ty, &[of]);
        t.root = Some(source.root.unwrap_or(of));
        t.link = true;
        t.heap = source.heap;
        self.push(t)
    }
}

/// Kinds of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norm {
    Rms,
    Layer,
    /// RMS with its weight in one operation (ik).
    FusedRms,
}
