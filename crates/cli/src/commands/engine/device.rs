//! Where steps are carried out: this machine's processors, or GPUs.

use plimsoll_cuda::{CompileError, Device as CudaDevice, Gpu, GpuError};
use plimsoll_device::Device;
use plimsoll_host::Env;
use plimsoll_units::Bytes;

use crate::args::doctor::GpuArg;
use crate::args::engine::{DeviceArg, EngineArgs};
use crate::commands::doctor;
use crate::error::{Exit, Failure};
use crate::progress::Progress;

/// What carries steps out.
#[derive(Debug)]
pub(crate) struct Place {
    /// What the plan knows of a rank's device.
    pub(crate) device: Device,
    /// What others have of it.
    pub(crate) in_use: Bytes,
    /// The GPU of each rank, where they are on GPUs.
    pub(crate) gpus: Vec<Box<dyn CudaDevice>>,
    /// Which were taken and why, in words.
    pub(crate) why: String,
}

/// The devices that flags ask for. Their memory is not taken yet.
pub(crate) fn place(args: &EngineArgs) -> Result<Place, Failure> {
    match &args.device {
        DeviceArg::Cpu => cpu(args, "asked for"),
        DeviceArg::Cuda(named) => {
            let numbers = if named.is_empty() {
                first(args.tp)
            } else {
                named.clone()
            };
            let flag = format!("--device {}", args.device);
            if numbers.len() as u64 != args.tp {
                let what = if args.tp > numbers.len() as u64 {
                    format!("no GPU for each of {} ranks", args.tp)
                } else {
                    "more GPUs than there are ranks".to_owned()
                };
                let what = format!("`{flag}` names {what}");
                return Err(Failure::new(Exit::Usage, "E-DEVICE-006", what)
                    .hint("name a GPU for each of the `--tp` ranks, as `cuda:0,1`"));
            }
            gpus(args, &numbers, "asked for").map_err(|e| e.failure(&flag))
        }
        DeviceArg::Fibers => fibers(args),
        DeviceArg::Auto => match gpus(args, &first(args.tp), "found") {
            Ok(place) => Ok(place),
            // GPUs that are there and cannot be used are not passed over in silence.
            Err(why) => cpu(args, &why.to_string()),
        },
    }
}

/// The numbers of the first GPUs.
fn first(ranks: u64) -> Vec<u32> {
    (0..u32::try_from(ranks).unwrap_or(u32::MAX)).collect()
}

/// Some ranks on something, in words.
fn ranks_on(ranks: u64, what: &str) -> String {
    match ranks {
        1 => what.to_owned(),
        n => format!("{n} ranks on {what}"),
    }
}

fn cpu(args: &EngineArgs, why: &str) -> Result<Place, Failure> {
    Ok(Place {
        device: doctor::cpu(args.memory)?,
        in_use: Bytes::ZERO,
        gpus: Vec::new(),
        why: ranks_on(args.tp, &format!("cpu ({why})")),
    })
}

/// A device with its kernels, for whoever has no plan for it.
pub(crate) fn open(which: GpuArg) -> Result<Box<dyn CudaDevice>, Failure> {
    match which {
        GpuArg::Number(n) => match opened(n) {
            Ok(gpu) => Ok(Box::new(gpu)),
            Err(e) => Err(e.failure(&format!("--gpu {n}"))),
        },
        GpuArg::Fibers => stand_in("--gpu 0"),
    }
}

fn stand_in(instead: &str) -> Result<Box<dyn CudaDevice>, Failure> {
    plimsoll_cuda::stand_in().ok_or_else(|| {
        Failure::new(Exit::Usage, "E-DEVICE-006", "this build has no fibers")
            .hint(format!("use `{instead}`"))
    })
}

/// Kernels of a GPU on this machine's processors: only in builds that have them, for tests.
fn fibers(args: &EngineArgs) -> Result<Place, Failure> {
    let gpus = (0..args.tp).map(|_| stand_in("--device auto"));
    let gpus = gpus.collect::<Result<Vec<_>, _>>()?;
    // What a driver and NCCL would take is counted.
    let mib = if args.tp > 1 { 2048 } else { 1024 };
    let usable = args.memory.map_or_else(|| Bytes::from_mib(mib), Ok);
    let usable = usable.map_err(|e| Failure::new(Exit::Usage, "E-DEVICE-006", e.to_string()))?;
    Ok(Place {
        device: Device {
            memory_source: "given, or little".to_owned(),
            ..Device::of_size(usable)
        },
        in_use: Bytes::ZERO,
        why: ranks_on(args.tp, &format!("{} (asked for)", gpus[0].name())),
        gpus,
    })
}

/// Why there is no GPU to be had.
#[derive(Debug, thiserror::Error)]
enum NoGpu {
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("the driver does not say how much memory it has: {0}")]
    Memory(#[from] plimsoll_cuda::DeviceError),
}

impl NoGpu {
    fn failure(&self, flag: &str) -> Failure {
        Failure::new(Exit::Usage, "E-DEVICE-006", format!("`{flag}`: {self}"))
            .hint("`plimsoll doctor` lists what there is; `--device cpu` needs none")
    }
}

fn opened(number: u32) -> Result<Gpu, NoGpu> {
    let mut gpu = Gpu::new(number)?;
    load(&mut gpu)?;
    Ok(gpu)
}

/// Loads the kernels; the architecture that they are for.
fn load(gpu: &mut Gpu) -> Result<String, NoGpu> {
    let architecture = gpu.architecture();
    gpu.load(&kernels(&architecture)?)?;
    Ok(architecture)
}

fn gpus(args: &EngineArgs, numbers: &[u32], why: &str) -> Result<Place, NoGpu> {
    let driver = plimsoll_plan::driver_bound();
    let (mut gpus, mut names) = (Vec::<Box<dyn CudaDevice>>::new(), Vec::new());
    let mut least: Option<(Device, Bytes)> = None;
    for &number in numbers {
        let mut gpu = Gpu::new(number)?;
        let (free, total) = gpu.memory()?;
        let architecture = load(&mut gpu)?;
        let name = gpu.name();
        // Ranks of one GPU have equal shares of it.
        let sharing = numbers.iter().filter(|n| **n == number).count() as u64;
        let device = described(args, &name, total, sharing);
        // What the plan counts as the driver's is not that of others.
        let in_use = Bytes::new(total.saturating_sub(free) / sharing).saturating_sub(driver);
        // Ranks are alike, so all are planned for the GPU that has least.
        let left = |(d, used): &(Device, Bytes)| d.usable.saturating_sub(*used);
        let this = (device, in_use);
        if least.as_ref().is_none_or(|l| left(&this) < left(l)) {
            least = Some(this);
        }
        names.push(format!("cuda:{number}, {name}, sm_{architecture}"));
        gpus.push(Box::new(gpu));
    }
    let (device, in_use) = least.ok_or(GpuError::None(0, 0))?;
    Ok(Place {
        device,
        in_use,
        gpus,
        why: ranks_on(args.tp, &format!("{} ({why})", names.join("; "))),
    })
}

/// What the plan knows of a GPU that so many ranks share.
fn described(args: &EngineArgs, name: &str, total: u64, sharing: u64) -> Device {
    let known = plimsoll_device::find(name)
        .filter(|d| sharing == 1 && d.driver_total.get().abs_diff(total) < 1 << 30);
    let total = Bytes::new(total / sharing);
    let mut device = known.cloned().unwrap_or_else(|| Device {
        name: name.to_owned(),
        memory_source: "the driver's total on this machine".to_owned(),
        ..Device::of_size(total)
    });
    if let Some(given) = args.memory {
        device.usable = given.min(total);
        device.memory_source = "given (--memory)".to_owned();
    }
    device
}

/// Machine code of the kernels: from the cache, or compiled now and kept there.
fn kernels(architecture: &str) -> Result<Vec<u8>, CompileError> {
    let source = plimsoll_cuda::source();
    let compiler = plimsoll_cuda::compiler_version()?;
    let name = plimsoll_host::cache::name("kernels", &[&source, architecture, &compiler]);
    let env = Env::process();
    if let Some(code) = plimsoll_host::cache::read(&env, &name) {
        return Ok(code);
    }
    let progress = Progress::new();
    progress.show(|| {
        format!("compiling the GPU's kernels for sm_{architecture}, once: some tens of seconds")
    });
    let code = plimsoll_cuda::compile(&source, architecture)?;
    drop(progress);
    // Where it cannot be kept it is compiled again next time.
    plimsoll_host::cache::write(&env, &name, &code);
    Ok(code)
}
