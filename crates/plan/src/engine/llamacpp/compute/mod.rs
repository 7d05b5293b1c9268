//! The compute buffer: the worst-case graph, and ggml's allocator replayed over it.
//!
//! llama.cpp sizes this buffer by building the graph of a full batch and running its allocator
//! without memory behind it; the answer is the highest address used. There is no closed form, so
//! the same is done here (`llama_context::sched_reserve`, `graph_reserve`). It is exact for the
//! architectures of [`Arch`](super::net::Arch) with all layers on devices or all on the host.
//!
//! Layers repeat, and after a few of them so does the allocator's state. A long row of like layers
//! is therefore replayed in part: once the state before a layer equals the state one or more whole
//! periods earlier, everything after it is the same too. Where it does not recur, all layers run.

mod alloc;
mod attention;
mod bound;
mod build;
mod ffn;
mod graph;
mod sched;
mod state;

use plimsoll_units::{Bytes, SizeOverflow};

use alloc::{Replay, Watch, replay};
pub use bound::upper_bound;

use super::net::{Arch, Net};
use super::run::Run;
use super::split::Split;

/// Alignment of a buffer in a device's memory (CUDA).
pub(super) const DEVICE_ALIGN: u64 = 128;
/// Alignment of a buffer in host memory.
pub(super) const HOST_ALIGN: u64 = 32;
/// Longest repeating pattern of layers that is looked for.
const LONGEST_PERIOD: usize = 8;
/// Periods that are replayed at least, and of which a multiple may be left out.
const KEPT_PERIODS: usize = 6;
const LEFT_OUT: usize = 2;

/// Where the layers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// No device at all.
    Host,
    /// All layers on these devices, split by layer.
    Devices(Split),
}

impl Placement {
    /// On so many devices with equal free memory.
    #[must_use]
    pub const fn equal(devices: u64) -> Self {
        Self::Devices(Split::Equal(devices))
    }
}

/// Compute buffers of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComputeBytes {
    /// One per device, in order.
    pub devices: Vec<Bytes>,
    /// The buffer in host memory.
    pub host: Bytes,
}

/// The architecture whose graph this build makes of the model.
///
/// # Errors
/// Why it is not modelled, in words.
pub fn graph_of(net: &Net, run: &Run) -> Result<Arch, String> {
    let arch = match (net.arch, &net.uncovered) {
        (Some(arch), None) => arch,
        (_, Some(why)) => return Err(why.clone()),
        (None, None) => return Err("its graph is not modelled".to_owned()),
    };
    let rules = &run.rules;
    if rules.fused_norm
        && !matches!(
            arch,
            Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Qwen3Moe
        )
    {
        return Err("the ik fork's graph of this architecture is not modelled".to_owned());
    }
    // These were rewritten within the year before the graphs modelled here.
    let since = match arch {
        Arch::DeepSeek2 => rules.latent_only,
        Arch::Qwen3Next => rules.rotation,
        _ => true,
    };
    if !since {
        return Err("this build's graph of the architecture is not modelled".to_owned());
    }
    Ok(arch)
}

/// The compute buffers, exactly.
///
/// `None` where no graph is modelled; see [`upper_bound`].
///
/// # Errors
/// [`SizeOverflow`].
pub fn compute_buffer_bytes(
    net: &Net,
    run: &Run,
    placement: Placement,
) -> Result<Option<ComputeBytes>, SizeOverflow> {
    let Ok(arch) = graph_of(net, run) else {
        return Ok(None);
    };
    Ok(Some(buffers(
        exact(net, arch, run, placement)?.1,
        placement,
    )))
}

/// The same by replaying every layer: slower, and what tests hold the shortcut against.
///
/// # Errors
/// [`SizeOverflow`].
#[doc(hidden)]
pub fn compute_without_shortcut(
    net: &Net,
    run: &Run,
    placement: Placement,
) -> Result<Option<ComputeBytes>, SizeOverflow> {
    let Ok(arch) = graph_of(net, run) else {
        return Ok(None);
    };
    let all: Vec<usize> = (0..net.layers.len()).collect();
    let replay = run_layers(net, arch, run, placement, &all, false, None)?;
    Ok(Some(buffers(replay, placement)))
}

fn buffers(replay: Replay, placement: Placement) -> ComputeBytes {
    let mut max = replay.max.into_iter().map(Bytes::new);
    let first = max.next().unwrap_or_default();
    match placement {
        Placement::Host => ComputeBytes {
            devices: Vec::new(),
            host: first,
        },
        Placement::Devices(_) => {
            // The buffers are numbered first device, host, other devices.
            let host = max.next().unwrap_or_default();
            ComputeBytes {
                devices: std::iter::once(first).chain(max).collect(),
                host,
            }
        }
    }
}

/// What lives in the first device's buffer when it is fullest: names and bytes, largest first.
///
/// # Errors
/// [`SizeOverflow`].
pub fn at_the_peak(
    net: &Net,
    run: &Run,
    placement: Placement,
) -> Result<Vec<(&'static str, Bytes)>, SizeOverflow> {
    let Ok(arch) = graph_of(net, run) else {
        return Ok(Vec::new());
    };
    let (layers, first) = exact(net, arch, run, placement)?;
    let again = run_layers(net, arch, run, placement, &layers, false, Some(first.peak))?;
    Ok(again
        .live
        .into_iter()
        .map(|(name, n)| (name, Bytes::new(n)))
        .collect())
}

/// The replay, and the layers that it took.
fn exact(
    net: &Net,
    arch: Arch,
    run: &Run,
    placement: Placement,
) -> Result<(Vec<usize>, Replay), SizeOverflow> {
    if let (Some(cut), Placement::Host | Placement::Devices(Split::Equal(1))) =
        (Cut::of(net), placement)
    {
        let layers: Vec<usize> = (0..cut.from)
            .chain(cut.from + cut.left_out..net.layers.len())
            .collect();
        let short = run_layers(net, arch, run, placement, &layers, true, None)?;
        if cut.recurs(&short) {
            return Ok((layers, short));
        }
    }
    let all: Vec<usize> = (0..net.layers.len()).collect();
    let full = run_layers(net, arch, run, placement, &all, false, None)?;
    Ok((all, full))
}

fn run_layers(
    net: &Net,
    arch: Arch,
    run: &Run,
    placement: Placement,
    layers: &[usize],
    watch: bool,
    stop: Option<usize>,
) -> Result<Replay, SizeOverflow> {
    let split = match placement {
        Placement::Host => Split::Equal(0),
        Placement::Devices(Split::Equal(n)) => Split::Equal(n.clamp(1, u64::from(u16::MAX) - 1)),
        Placement::Devices(split) => split,
    };
    let devices = split.count();
    let count = net.layers.len() as u64;
    let heap_of = |i: usize| {
        let d = split.device_of(i as u64, count);
        // Heap 1 is the host's.
        u16::try_from(if d == 0 { 0 } else { d + 1 }).unwrap_or(u16::MAX)
    };
    let mut built = build::build(net, arch, run, layers, devices > 0, &heap_of)?;
    let mut aligns = vec![DEVICE_ALIGN, HOST_ALIGN];
    let schedule = if devices == 0 {
        aligns = vec![HOST_ALIGN];
        sched::on_host(&built)
    } else {
        let n = usize::try_from(devices).unwrap_or(1);
        aligns.resize(n + 1, DEVICE_ALIGN);
        sched::on_devices(&mut built, n)
    };
    let marks = if watch {
        schedule.marks.as_slice()
    } else {
        &[]
    };
    replay(
        &built.graph,
        &schedule.leafs,
        &schedule.nodes,
        &aligns,
        Watch { marks, stop },
    )
}

/// Layers of a repeating row that need not be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// First layer left out.
    from: usize,
    /// How many are left out.
    left_out: usize,
    /// Layers after which the pattern repeats.
    period: usize,
}

impl Cut {
    /// A cut that leaves at least [`KEPT_PERIODS`] periods, half of them before it; `None` for a
    /// model whose layers do not repeat, or too short to gain.
    fn of(net: &Net) -> Option<Self> {
        let layers = &net.layers;
        let n = layers.len();
        // The shortest pattern in which the last layers repeat decides where the row begins.
        (1..=LONGEST_PERIOD).find_map(|period| {
            let mut start = n.checked_sub(period)?;
            while start > 0 && layers[start - 1] == layers[start - 1 + period] {
                start -= 1;
            }
            let spare = (n - start).checked_sub(KEPT_PERIODS * period)?;
            let unit = LEFT_OUT * period;
            let left_out = spare / unit * unit;
            (left_out > 0).then_some(Self {
                from: start + KEPT_PERIODS * period / 2,
                left_out,
                period,
            })
        })
    }

    /// Whether the state before the cut is one that recurs after a number of layers of which the
    /// cut is a multiple: then the layers left out would only have gone round that circle.
    fn recurs(&self, short: &Replay) -> bool {
        let Some(now) = short.states.get(self.from) else {
            return false;
        };
        (1..=self.left_out / self.period)
            .map(|k| k * self.period)
            .take_while(|back| *back <= self.from)
            .any(|back| {
                self.left_out.is_multiple_of(back)
                    && short.states.get(self.from - back) == Some(now)
            })
    }
}
