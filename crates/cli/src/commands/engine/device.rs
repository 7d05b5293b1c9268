//! Where steps are carried out: this machine's processors, or a GPU.

use plimsoll_cuda::{CompileError, Device as CudaDevice, Gpu, GpuError};
use plimsoll_device::Device;
use plimsoll_host::Env;
use plimsoll_units::Bytes;

use crate::args::doctor::GpuArg;
use crate::args::engine::{DeviceArg, EngineArgs};
use crate::commands::doctor;
use crate::error::{Exit, Failure};
use crate::progress::Progress;

/// A device that carries steps out.
#[derive(Debug)]
pub(crate) struct Place {
    /// What the plan knows of it.
    pub(crate) device: Device,
    /// What others have of it.
    pub(crate) in_use: Bytes,
    /// The GPU, where it is one.
    pub(crate) gpu: Option<Box<dyn CudaDevice>>,
    /// Which was taken and why, in words.
    pub(crate) why: String,
}

/// The device that flags ask for. Its memory is not taken yet.
pub(crate) fn place(args: &EngineArgs) -> Result<Place, Failure> {
    if args.tp > 1 {
        return ranks(args);
    }
    match args.device {
        DeviceArg::Cpu => cpu(args, "asked for"),
        DeviceArg::Cuda(n) => {
            gpu(args, n, "asked for").map_err(|e| e.failure(&format!("--device cuda:{n}")))
        }
        DeviceArg::Fibers => fibers(args),
        DeviceArg::Auto => match gpu(args, 0, "found") {
            Ok(place) => Ok(place),
            // A GPU that is there and cannot be used is not passed over in silence.
            Err(why) => cpu(args, &why.to_string()),
        },
    }
}

/// Several ranks are on processors, so far.
fn ranks(args: &EngineArgs) -> Result<Place, Failure> {
    let place = match args.device {
        DeviceArg::Cpu => cpu(args, "asked for")?,
        DeviceArg::Auto => cpu(args, "ranks are not on GPUs yet")?,
        DeviceArg::Cuda(_) | DeviceArg::Fibers => {
            let what = format!(
                "`--tp {}` is for processors: ranks are not on GPUs yet",
                args.tp
            );
            return Err(Failure::new(Exit::Usage, "E-DEVICE-006", what)
                .hint("leave `--tp` out, or use `--device cpu`"));
        }
    };
    Ok(Place {
        why: format!("{} ranks on {}", args.tp, place.why),
        ..place
    })
}

fn cpu(args: &EngineArgs, why: &str) -> Result<Place, Failure> {
    Ok(Place {
        device: doctor::cpu(args.memory)?,
        in_use: Bytes::ZERO,
        gpu: None,
        why: format!("cpu ({why})"),
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
    let fibers = stand_in("--device auto")?;
    let usable = args.memory.map_or_else(|| Bytes::from_mib(1024), Ok);
    let usable = usable.map_err(|e| Failure::new(Exit::Usage, "E-DEVICE-006", e.to_string()))?;
    Ok(Place {
        device: Device {
            memory_source: "given, or 1 GiB".to_owned(),
            ..Device::of_size(usable)
        },
        in_use: Bytes::ZERO,
        why: format!("{} (asked for)", fibers.name()),
        gpu: Some(fibers),
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

fn gpu(args: &EngineArgs, number: u32, why: &str) -> Result<Place, NoGpu> {
    let mut gpu = Gpu::new(number)?;
    let (free, total) = gpu.memory()?;
    let architecture = load(&mut gpu)?;
    let name = gpu.name();
    let total = Bytes::new(total);
    let driver = plimsoll_plan::driver_bound();
    let known = plimsoll_device::find(&name)
        .filter(|d| d.driver_total.get().abs_diff(total.get()) < 1 << 30);
    let mut device = known.cloned().unwrap_or_else(|| Device {
        name: name.clone(),
        memory_source: "the driver's total on this machine".to_owned(),
        ..Device::of_size(total)
    });
    if let Some(given) = args.memory {
        device.usable = given.min(total);
        device.memory_source = "given (--memory)".to_owned();
    }
    Ok(Place {
        // What the plan counts as the driver's is not that of others.
        in_use: total
            .saturating_sub(Bytes::new(free))
            .saturating_sub(driver),
        device,
        why: format!("cuda:{number}, {name}, sm_{architecture} ({why})"),
        gpu: Some(Box::new(gpu)),
    })
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
