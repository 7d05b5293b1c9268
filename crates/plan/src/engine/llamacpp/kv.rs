//! The caches: bytes per layer, and [`CellsLaw`], which allocates them as a context does.
//!
//! Sources: `llama-kv-cache.cpp` and `llama-kv-cache-iswa.cpp` (constructors), `llama-hparams.cpp`
//! (`n_embd_k_gqa`, `n_embd_r`, `n_embd_s`), `llama-memory-recurrent.cpp`, and for row padding
//! `ggml-cuda.cu: get_alloc_size` (commit 0c1e57098). Everything is allocated at load.

use std::cell::Cell;

use plimsoll_model::Mixer;
use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::compute::{
    DEVICE_ALIGN, HOST_ALIGN, Placement, at_the_peak, compute_buffer_bytes, graph_of, upper_bound,
};
use super::net::Net;
use super::run::{MAX_SEQUENCES, Run, Sizes};
use crate::error::PlanError;
use crate::kv::{Capacity, GroupReport, KvLaw, Need};
use crate::settings::Load;
use crate::term::{Kind, Region, Term};

/// Elements per row to which a quantised tensor's last row is filled up on a device.
const ROW_PADDING: u64 = 512;

/// Layers that cache alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    kind: GroupKind,
    layers: u64,
    /// Elements of a row of keys and of values; for a state, of both parts (f32).
    row_k: u64,
    row_v: u64,
}

/// Bytes of the caches of one device, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvBytes {
    /// Layers that attend to everything.
    pub attention: Bytes,
    /// Layers with a window.
    pub window: Bytes,
    /// Recurrent states.
    pub state: Bytes,
}

impl KvBytes {
    /// All of it.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn total(&self) -> Result<Bytes, SizeOverflow> {
        Bytes::sum([self.attention, self.window, self.state])
    }
}

/// What the layers `from..to` cache, grouped.
fn groups(net: &Net, run: &Run, layers: std::ops::Range<u64>) -> Result<Vec<Group>, SizeOverflow> {
    let mul = |a: u64, b: u64| a.checked_mul(b).ok_or(SizeOverflow);
    let mut out: Vec<Group> = Vec::new();
    let mut add = |kind, row_k, row_v| match out
        .iter_mut()
        .find(|g| g.kind == kind && g.row_k == row_k && g.row_v == row_v)
    {
        Some(g) => g.layers += 1,
        None => out.push(Group {
            kind,
            layers: 1,
            row_k,
            row_v,
        }),
    };
    for (i, layer) in net.layers.iter().enumerate() {
        if !layers.contains(&(i as u64)) {
            continue;
        }
        match layer.mixer {
            Mixer::Attention(a) if !a.shared => {
                let k = mul(a.kv_heads, a.k_dim)?;
                let own = mul(a.kv_heads, a.v_dim)?;
                // Transposed values are stored as wide as the widest layer's.
                let v = if run.flash_attention {
                    own
                } else {
                    net.value_row_max
                };
                let kind = Net::window(layer).map_or(GroupKind::Full, GroupKind::Window);
                add(kind, k, v);
            }
            Mixer::Latent(a) if run.rules.latent => {
                let k = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
                let v = if run.rules.latent_only { 0 } else { a.rank };
                add(GroupKind::Latent, k, v);
                if let Some(i) = a.indexer {
                    add(GroupKind::Latent, i.dim, 0);
                }
            }
            Mixer::Latent(a) => {
                let key = a.nope_dim.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
                add(
                    GroupKind::Full,
                    mul(a.q_heads, key)?,
                    mul(a.q_heads, a.v_dim)?,
                );
            }
            Mixer::Attention(_) | Mixer::State(_) | Mixer::None => {}
        }
        let state = match layer.mixer {
            Mixer::State(s) => Some(s),
            _ => layer.parallel,
        };
        if let Some(s) = state {
            let conv = mul(s.conv_taps.saturating_sub(1), s.conv_channels)?;
            let own = Bytes::product([s.heads, s.rows, s.cols])?.get();
            add(GroupKind::State, conv, own);
        }
    }
    Ok(out)
}

/// Bytes of one tensor of `rows` rows, with the padding of the place where it lies.
fn tensor(ty: DType, row: u64, rows: u64, on_device: bool) -> Result<Bytes, SizeOverflow> {
    if row == 0 || rows == 0 {
        return Ok(Bytes::ZERO);
    }
    let plain = ty.bytes(row)?.times(rows)?;
    if !on_device {
        return plain.round_up(Bytes::new(HOST_ALIGN));
    }
    let over = row % ROW_PADDING;
    let padding = if ty.is_scalar() || over == 0 {
        Bytes::ZERO
    } else {
        ty.bytes(ROW_PADDING - over)?
    };
    plain.add(padding)?.round_up(Bytes::new(DEVICE_ALIGN))
}

impl Group {
    /// Rows of each of the group's tensors: cells of all streams, or sequences for a state.
    fn rows(&self, run: &Run, s: &Sizes) -> Result<u64, SizeOverflow> {
        let cells = match self.kind {
            GroupKind::State => return Ok(s.slots),
            GroupKind::Window(n) | GroupKind::Chunk(n) => run.window_cells(s, n)?,
            GroupKind::Full | GroupKind::Latent => s.cells,
        };
        cells.checked_mul(s.streams).ok_or(SizeOverflow)
    }

    fn bytes(&self, run: &Run, s: &Sizes, on_device: bool) -> Result<Bytes, SizeOverflow> {
        let (k, v) = self.types(run);
        let rows = self.rows(run, s)?;
        tensor(k, self.row_k, rows, on_device)?
            .add(tensor(v, self.row_v, rows, on_device)?)?
            .times(self.layers)
    }

    /// States are f32 whatever the cache's types.
    const fn types(&self, run: &Run) -> (DType, DType) {
        match self.kind {
            GroupKind::State => (DType::F32, DType::F32),
            _ => (run.type_k, run.type_v),
        }
    }

    /// Bytes of one row of keys and values, of all layers.
    fn rate(&self, run: &Run) -> Result<Bytes, SizeOverflow> {
        let (k, v) = self.types(run);
        k.bytes(self.row_k)?
            .add(v.bytes(self.row_v)?)?
            .times(self.layers)
    }
}

/// Bytes of the caches of the layers that device `device` of `placement` runs.
///
/// # Errors
/// [`SizeOverflow`].
pub fn kv_buffer_bytes(
    net: &Net,
    run: &Run,
    placement: Placement,
    device: u64,
) -> Result<KvBytes, SizeOverflow> {
    let s = run.sizes()?;
    let on_device = placement != Placement::Host;
    let mut out = KvBytes::default();
    for g in groups(net, run, super::layers_of(net, placement, device))? {
        let bytes = g.bytes(run, &s, on_device)?;
        let sum = match g.kind {
            GroupKind::State => &mut out.state,
            GroupKind::Window(_) | GroupKind::Chunk(_) => &mut out.window,
            GroupKind::Full | GroupKind::Latent => &mut out.attention,
        };
        *sum = sum.add(bytes)?;
    }
    Ok(out)
}

/// llama.cpp's allocation on one device: cells for every slot, taken at load.
#[derive(Clone, Debug)]
pub struct CellsLaw {
    net: Net,
    /// Flags; `n_ctx`, `n_parallel` and outputs follow from the load.
    run: Run,
    placement: Placement,
    device: u64,
    groups: Vec<Group>,
    /// Cells per sequence, where the user fixed them.
    length: Option<u64>,
    /// Slots, where the user fixed them.
    slots: u64,
    /// The last answer of [`CellsLaw::compute`]: a plan asks for its own load several times.
    last: Cell<Option<(Run, Compute)>>,
}

/// This device's compute buffer, the host's, and how well they are known.
type Compute = (Bytes, Bytes, Kind);

impl CellsLaw {
    /// The law of device `device`. `length` and `slots` are lower ends that the user set.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn new(
        net: Net,
        run: Run,
        placement: Placement,
        device: u64,
        length: Option<u64>,
        slots: u64,
    ) -> Result<Self, SizeOverflow> {
        let groups = groups(&net, &run, super::layers_of(&net, placement, device))?;
        Ok(Self {
            net,
            run,
            placement,
            device,
            groups,
            length,
            slots,
            last: Cell::new(None),
        })
    }

    /// What the server is started with for `load`: `-np` sequences, `-c` their tokens together.
    fn run_for(&self, load: &Load) -> Result<Run, PlanError> {
        let asked = load.users.checked_mul(load.sequences).ok_or(SizeOverflow)?;
        let slots = asked.max(self.slots).max(1);
        if slots > MAX_SEQUENCES {
            // No context has more; searches take this for a plain no.
            return Err(PlanError::Size(SizeOverflow));
        }
        let each = self.length.unwrap_or(0).max(load.context).max(1);
        Ok(Run {
            n_ctx: each.checked_mul(slots).ok_or(SizeOverflow)?,
            n_parallel: slots,
            // The server samples one token per slot and step.
            n_outputs_max: Some(slots),
            ..self.run
        })
    }

    fn bytes(&self, run: &Run) -> Result<Bytes, SizeOverflow> {
        let s = run.sizes()?;
        self.groups.iter().try_fold(Bytes::ZERO, |sum, g| {
            sum.add(g.bytes(run, &s, self.placement != Placement::Host)?)
        })
    }

    /// The compute buffers; the host's is zero where only a bound is known.
    fn compute(&self, run: &Run) -> Result<Compute, SizeOverflow> {
        if let Some((_, known)) = self.last.get().filter(|(of, _)| of == run) {
            return Ok(known);
        }
        let computed = match compute_buffer_bytes(&self.net, run, self.placement)? {
            Some(c) => {
                let d = usize::try_from(self.device).unwrap_or(usize::MAX);
                let own = c.devices.get(d).copied().unwrap_or(c.host);
                (own, c.host, Kind::Derived)
            }
            None => (upper_bound(&self.net, run)?, Bytes::ZERO, Kind::Bound),
        };
        self.last.set(Some((*run, computed)));
        Ok(computed)
    }

    /// The logits that the caller reads, where they lie with everything else: one row per slot (`output_reserve`).
    fn output(&self, run: &Run) -> Result<Bytes, SizeOverflow> {
        match self.placement {
            Placement::Host => Bytes::product([self.net.vocab, run.n_parallel, 4]),
            Placement::Devices(_) => Ok(Bytes::ZERO),
        }
    }

    /// f16 copies of one layer's quantised cache, which older CUDA builds take at run time.
    fn run_time_copies(&self, run: &Run) -> Result<Bytes, SizeOverflow> {
        if !run.f16_copies || run.rules.copies_in_buffer || !run.flash_attention {
            return Ok(Bytes::ZERO);
        }
        let s = run.sizes()?;
        let mut most = Bytes::ZERO;
        for g in self.groups.iter().filter(|g| g.kind != GroupKind::State) {
            let rows = g.rows(run, &s)?;
            let half = |ty: DType, row: u64| {
                if ty.is_scalar() {
                    Ok(Bytes::ZERO)
                } else {
                    Bytes::product([row, rows, 2])
                }
            };
            most = most.max(half(run.type_k, g.row_k)?.add(half(run.type_v, g.row_v)?)?);
        }
        Ok(most)
    }
}

impl KvLaw for CellsLaw {
    fn need(&self, load: &Load) -> Result<Need, PlanError> {
        if load.users == 0 {
            return Ok(Need::default());
        }
        let run = self.run_for(load)?;
        let pool = self.bytes(&run)?;
        let sequences = load.users.checked_mul(load.sequences).ok_or(SizeOverflow)?;
        let each = (run.n_ctx / run.n_parallel).max(load.context);
        let (mut live, mut held) = (Bytes::ZERO, Bytes::ZERO);
        for g in &self.groups {
            let (now, later) = match g.kind {
                GroupKind::State => (1, 1),
                GroupKind::Window(n) | GroupKind::Chunk(n) => (load.context.min(n), each.min(n)),
                GroupKind::Full | GroupKind::Latent => (load.context, each),
            };
            let rate = g.rate(&run)?;
            live = live.add(rate.times(now)?.times(sequences)?)?;
            held = held.add(rate.times(later)?.times(run.n_parallel)?)?;
        }
        let live = live.min(pool);
        let held = held.min(pool).max(live);
        Ok(Need {
            pool,
            token_states: live,
            // Cells that a longer sequence or a further slot may come to use.
            reserved: held.saturating_sub(live),
            internal: pool.saturating_sub(held),
            external: Bytes::ZERO,
        })
    }

    fn beside(&self, load: &Load) -> Result<Bytes, PlanError> {
        if load.users == 0 {
            return Ok(Bytes::ZERO);
        }
        let run = self.run_for(load)?;
        let (own, ..) = self.compute(&run)?;
        Ok(Bytes::sum([
            own,
            self.run_time_copies(&run)?,
            self.output(&run)?,
        ])?)
    }

    fn beside_terms(&self, load: &Load) -> Result<Vec<Term>, PlanError> {
        if load.users == 0 {
            return Ok(Vec::new());
        }
        let run = self.run_for(load)?;
        let s = run.sizes()?;
        let (own, host, kind) = self.compute(&run)?;
        let mut term = Term::exact(Region::Activations, "compute buffer", own)
            .kind(kind)
            .input("n_ctx", s.cells.saturating_mul(s.streams))
            .input("n_parallel", s.slots)
            .input("n_ubatch", s.ubatch)
            .input("rows of logits", s.outputs)
            .input("flash attention", run.flash_attention);
        if kind == Kind::Derived {
            if self.placement != Placement::Host {
                term = term.input("in host memory", host);
            }
            term = term
                .formula("ggml's allocator replayed over the graph of a full batch")
                .source("llama.cpp: llama-context.cpp sched_reserve, ggml-alloc.c, models/*.cpp");
            if self.device == 0 {
                for (name, bytes) in at_the_peak(&self.net, &run, self.placement)?
                    .into_iter()
                    .take(3)
                {
                    term = term.input(format!("at the peak: {name}"), bytes);
                }
            }
        } else {
            term = term
                .formula("the widest layer with all its results alive, inputs and logits")
                .input("why", graph_of(&self.net, &run).err().unwrap_or_default())
                .source("plimsoll-plan: engine/llamacpp/compute/bound.rs");
        }
        let mut out = vec![term];
        let output = self.output(&run)?;
        if output > Bytes::ZERO {
            out.push(
                Term::exact(Region::Workspace, "output buffer", output)
                    .formula("vocabulary × slots × 4 bytes")
                    .input("vocabulary", self.net.vocab)
                    .input("slots", run.n_parallel)
                    .source("llama.cpp: llama-context.cpp output_reserve"),
            );
        }
        let copies = self.run_time_copies(&run)?;
        if copies > Bytes::ZERO {
            out.push(
                Term::exact(Region::Workspace, "f16 copies of the cache", copies)
                    .kind(Kind::Derived)
                    .formula("cells × row × 2 bytes of the largest layer, taken at run time")
                    .source("llama.cpp: ggml-cuda, fattn-common.cuh"),
            );
        }
        Ok(out)
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "a ratio for print, as other engines print it"
    )]
    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError> {
        let run = Run {
            n_ctx: max_len.max(1),
            n_parallel: 1,
            ..self.run
        };
        let one = self.bytes(&run)?;
        let max_concurrency = if one == Bytes::ZERO {
            0.0
        } else {
            (pool.get() as f64 / one.get() as f64).min(MAX_SEQUENCES as f64)
        };
        let per_cell = self
            .groups
            .iter()
            .filter(|g| matches!(g.kind, GroupKind::Full | GroupKind::Latent))
            .try_fold(Bytes::ZERO, |sum, g| sum.add(g.rate(&run)?))?;
        let unit = run.rules.pad_context(run.flash_attention);
        // Cells of one sequence, in whole units: searched, since windows stop growing.
        let fits = |units: u64| -> Result<bool, SizeOverflow> {
            let n_ctx = units.checked_mul(unit).ok_or(SizeOverflow)?;
            Ok(self.bytes(&Run { n_ctx, ..run })? <= pool)
        };
        let (mut low, mut high) = (0_u64, (1_u64 << 32) / unit);
        while low < high {
            let mid = low + (high - low).div_ceil(2);
            if fits(mid)? {
                low = mid;
            } else {
                high = mid - 1;
            }
        }
        let tokens = low.saturating_mul(unit);
        let s = run.sizes()?;
        let mut groups = Vec::with_capacity(self.groups.len());
        for g in &self.groups {
            groups.push(GroupReport {
                kind: g.kind,
                layers: g.layers,
                padding_layers: 0,
                block_size: 1,
                page: Bytes::new(g.rate(&run)?.get() / g.layers.max(1)),
                blocks_per_request: g.rows(&run, &s)?,
            });
        }
        Ok(Capacity {
            blocks: Some(tokens),
            bytes_per_block: per_cell,
            block_size: 1,
            tokens,
            max_concurrency,
            groups,
        })
    }
}
