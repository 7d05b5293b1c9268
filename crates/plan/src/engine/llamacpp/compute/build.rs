//! The worst-case graph: every slot in use, a full physical batch, every cell attended.
//!
//! Which operations there are, and in which order, is that of `llama-graph.cpp` and `models/*.cpp`
//! (commit 0c1e57098), with the differences of older builds behind [`Rules`].
//!
//! [`Rules`]: super::super::version::Rules

use plimsoll_model::{Attention, Ffn, LayerSpec, Mixer};
use plimsoll_units::{DType, SizeOverflow};

use super::super::net::{Arch, Net};
use super::super::run::{Run, Sizes};
use super::graph::{Graph, Id, Norm, Type};

/// Index inputs and mask of one cache.
#[derive(Clone, Copy)]
pub(super) struct CacheInputs {
    pub(super) k_rows: Option<Id>,
    pub(super) v_rows: Option<Id>,
    pub(super) mask: Id,
}

/// The graph and what the scheduler must know of it.
pub(super) struct Built {
    pub(super) graph: Graph,
    /// Inputs in order of creation.
    pub(super) inputs: Vec<Id>,
    /// Leading nodes that run on the host: the lookup of embeddings.
    pub(super) on_host: usize,
    /// First node of each layer, and the tensor that it reads.
    pub(super) layer_starts: Vec<(usize, Id)>,
}

/// Writes the graph down.
pub(super) struct Builder<'a> {
    pub(super) g: Graph,
    pub(super) net: &'a Net,
    pub(super) arch: Arch,
    pub(super) run: &'a Run,
    pub(super) s: Sizes,
    pub(super) norm: Norm,
    pub(super) gpu: bool,
    pub(super) outside: Id,
    pub(super) pos: Option<Id>,
    pub(super) state_rows: Option<Id>,
    positions: Id,
    inputs: Vec<Id>,
    caches: [Option<CacheInputs>; 2],
    rotations: [[Option<Id>; 2]; 2],
    out_ids: Option<Id>,
}

/// Whether llama.cpp treats a cache type as quantised.
pub(super) const fn quantised(t: DType) -> bool {
    !matches!(t, DType::F16 | DType::F32 | DType::Bf16)
}

/// The graph of `layers` (indices into the net's), the first on `heap_of(0)` and so on.
///
/// `gpu` tells whether there are devices; else all is on the host, which is then heap 0.
pub(super) fn build(
    net: &Net,
    arch: Arch,
    run: &Run,
    layers: &[usize],
    gpu: bool,
    heap_of: &dyn Fn(usize) -> u16,
) -> Result<Built, SizeOverflow> {
    let s = run.sizes()?;
    let mut g = Graph::new(u16::from(gpu), 64 + layers.len() * 48);
    let outside = g.outside();
    let norm = if arch.layer_norm() {
        Norm::Layer
    } else if run.rules.fused_norm {
        Norm::FusedRms
    } else {
        Norm::Rms
    };
    let mut b = Builder {
        g,
        net,
        arch,
        run,
        s,
        norm,
        gpu,
        outside,
        pos: None,
        state_rows: None,
        positions: outside,
        inputs: Vec::new(),
        caches: [None; 2],
        rotations: [[None; 2]; 2],
        out_ids: None,
    };
    let (mut x, on_host) = b.embedding(heap_of(0));
    let mut layer_starts = Vec::with_capacity(layers.len());
    for (n, &i) in layers.iter().enumerate() {
        let Some(layer) = net.layers.get(i) else {
            continue;
        };
        b.g.heap = heap_of(i);
        layer_starts.push((b.g.nodes.len(), x));
        x = b.layer(x, layer, n + 1 == layers.len())?;
    }
    b.g.heap = heap_of(net.layers.len());
    b.head(x)?;
    Ok(Built {
        graph: b.g,
        inputs: b.inputs,
        on_host,
        layer_starts,
    })
}

impl Builder<'_> {
    pub(super) fn input(&mut self, name: &'static str, ne: &[u64], ty: Type) -> Id {
        let t = self.g.input(name, ne, ty);
        self.inputs.push(t);
        t
    }

    fn embedding(&mut self, first: u16) -> (Id, usize) {
        let (w, n) = (self.net.width, self.s.tokens);
        let tokens = self.input("token ids", &[n], Type::I32);
        if self.run.rules.embd_input {
            self.input("input embeddings", &[w, n], Type::F32);
        }
        self.g.heap = self.g.host;
        let mut x = self.g.op("embedding", &[w, n], &[tokens]);
        let recurrent = |l: &LayerSpec| matches!(l.mixer, Mixer::State(_));
        if self.net.layers.iter().any(recurrent) {
            let rows = self.input("state rows", &[self.s.slots], Type::I32);
            self.state_rows = Some(rows);
        }
        let pos = self.input("positions", &[n], Type::I32);
        self.positions = pos;
        let mut on_host = 1;
        if self.arch.learned_positions() {
            let table = self.g.op("position embedding", &[w, n], &[pos]);
            on_host = 2;
            self.g.heap = first;
            x = self.g.like("embedding", &[x, table]);
        } else {
            self.pos = Some(pos);
        }
        self.g.heap = first;
        if self.arch.scales_embedding() {
            x = self.g.like("embedding", &[x]);
        }
        (x, if self.gpu { on_host } else { 0 })
    }

    pub(super) fn cells(&self, window: Option<u64>) -> Result<u64, SizeOverflow> {
        match window {
            Some(n) => self.run.window_cells(&self.s, n),
            None => Ok(self.s.cells),
        }
    }

    /// The inputs of the cache of full layers, or of layers with a window; made at first use.
    pub(super) fn cache_inputs(
        &mut self,
        window: Option<u64>,
        latent: bool,
    ) -> Result<CacheInputs, SizeOverflow> {
        let which = usize::from(window.is_some());
        if let Some(c) = self.caches[which] {
            return Ok(c);
        }
        let cells = self.cells(window)?;
        let (n, rules, flash) = (self.s.tokens, self.run.rules, self.run.flash_attention);
        let (mut k_rows, mut v_rows) = (None, None);
        if rules.index_inputs {
            k_rows = Some(self.input("key rows", &[n], Type::I64));
            if !latent {
                let each = if flash { 1 } else { self.net.value_row_max };
                v_rows = Some(self.input("value rows", &[n, each], Type::I64));
            }
        }
        let mut rows = n / self.s.streams.max(1);
        if !rules.f16_mask {
            // GGML_KQ_MASK_PAD of those builds.
            rows = rows.checked_next_multiple_of(64).ok_or(SizeOverflow)?;
        }
        let ty = if flash && rules.f16_mask {
            Type::F16
        } else {
            Type::F32
        };
        let ne = [cells, rows, 1, self.s.streams];
        let mut mask = self.input("mask", &ne, ty);
        if flash && !rules.f16_mask {
            mask = self.g.op_typed("mask", &ne, Type::F16, &[mask]);
        }
        let made = CacheInputs {
            k_rows,
            v_rows,
            mask,
        };
        self.caches[which] = Some(made);
        Ok(made)
    }

    /// The rotation matrix of a quantised cache; made at first use.
    pub(super) fn rotation(&mut self, window: bool, value: bool, block: u64) -> Id {
        let slot = (usize::from(window), usize::from(value));
        if let Some(t) = self.rotations[slot.0][slot.1] {
            return t;
        }
        let t = self.input("rotation", &[block, block], Type::F32);
        if self.caches.iter().all(Option::is_none) && !value {
            // The graph is visited from rotated queries down: their matrix comes before positions.
            if let Some(at) = self.inputs.iter().position(|i| *i == self.positions) {
                self.inputs.pop();
                self.inputs.insert(at, t);
            }
        }
        self.rotations[slot.0][slot.1] = Some(t);
        t
    }

    /// The rows whose logits are wanted.
    fn pick(&mut self, t: Id) -> Id {
        let ids = match self.out_ids {
            Some(ids) => ids,
            None => {
                let ids = self.input("output rows", &[self.s.outputs], Type::I32);
                self.out_ids = Some(ids);
                ids
            }
        };
        let wide = self.g.ne(t)[0];
        let here = self.g.heap;
        self.g.heap = self.g.heap_of_last();
        let picked = self.g.op("picked rows", &[wide, self.s.outputs], &[t, ids]);
        self.g.heap = here;
        picked
    }

    fn layer(&mut self, x: Id, layer: &LayerSpec, last: bool) -> Result<Id, SizeOverflow> {
        let mut x = x;
        let w = self.net.width;
        let h = self.g.norm(x, self.norm);
        let mut y = match layer.mixer {
            Mixer::Attention(a) => {
                let y = self.attention(h, &a, Net::window(layer))?;
                if self.arch == Arch::GptNeoX {
                    return Ok(self.parallel_residual(x, y, (layer, &a), last));
                }
                self.g.op("attention output", &[w, self.s.tokens], &[y])
            }
            Mixer::Latent(a) => self.latent(h, &a)?,
            Mixer::State(s) => self.gated_delta(h, &s)?,
            Mixer::None => return Ok(x),
        };
        if last && !self.arch.picks_rows_late() {
            y = self.pick(y);
            x = self.pick(x);
        }
        if self.arch.post_norms() {
            y = self.g.norm(y, self.norm);
        }
        x = self.g.like("residual", &[y, x]);
        let h = self.g.norm(x, self.norm);
        let mut f = self.feed_forward(h, &layer.ffn);
        if self.arch.post_norms() {
            f = self.g.norm(f, self.norm);
        }
        let order = if self.arch == Arch::Phi3 {
            [x, f]
        } else {
            [f, x]
        };
        Ok(self.g.like("residual", &order))
    }

    /// GPT-NeoX: the graph visits the feed-forward first, then the attention's projection.
    fn parallel_residual(
        &mut self,
        x: Id,
        y: Id,
        (layer, a): (&LayerSpec, &Attention),
        last: bool,
    ) -> Id {
        let mut x = x;
        if last {
            x = self.pick(x);
        }
        let h = self.g.norm(x, self.norm);
        let f = self.feed_forward(h, &layer.ffn);
        let f = self.g.like("residual", &[f, x]);
        let y = self.rotate_back(y, a, false);
        let mut y = self
            .g
            .op("attention output", &[self.net.width, self.s.tokens], &[y]);
        if last {
            y = self.pick(y);
        }
        self.g.like("residual", &[f, y])
    }

    fn head(&mut self, x: Id) -> Result<(), SizeOverflow> {
        let mut x = x;
        if self.arch == Arch::GptOss {
            // Kept for draft heads.
            self.keep(x);
            x = self.pick(x);
        }
        let mut h = self.g.norm(x, self.norm);
        if matches!(self.arch, Arch::Qwen3Next | Arch::Gemma4) {
            self.keep(h);
            h = self.pick(h);
        }
        // The result of the norm is an output of its own (embeddings).
        self.keep(h);
        let ne = [self.net.vocab, self.s.outputs];
        let y = self.g.op("logits", &ne, &[h]);
        self.keep(y);
        if self.g.overflow {
            return Err(SizeOverflow);
        }
        Ok(())
    }

    fn keep(&mut self, t: Id) {
        if let Some(t) = self.g.tensors.get_mut(t.index()) {
            t.output = true;
        }
    }

    /// The feed-forward of a layer, dense or routed.
    fn feed_forward(&mut self, h: Id, ffn: &Ffn) -> Id {
        match ffn {
            Ffn::Dense { intermediate, .. } => self.dense(h, *intermediate),
            Ffn::Moe(m) => self.routed(h, m),
            Ffn::None => h,
        }
    }
}
