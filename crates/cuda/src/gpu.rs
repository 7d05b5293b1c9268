//! [`Gpu`]: an NVIDIA GPU, through the driver that is found when the program runs.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};

use cudarc::driver::{DriverError, result, sys};

use crate::device::{Address, Device, DeviceError, Graph, Lane, Launch, Stream};

/// Bytes that the threads of a block share without being asked for specially.
const SHARED: u32 = 48 << 10;

/// Bytes of a kernel's arguments at most.
const ARGUMENTS: usize = 256;

/// Why there is no GPU to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no driver.
    #[error(
        "the NVIDIA driver (libcuda.so.1) is not on the loader's path: install it, or give the container the GPU"
    )]
    Driver,
    /// There is none of that number.
    #[error("there is no GPU {0}: the driver knows {1} (CUDA_VISIBLE_DEVICES hides others)")]
    None(u32, u32),
    /// The driver refused something at the start.
    #[error("GPU {gpu}: {what}: {reason}")]
    Start {
        /// Which.
        gpu: u32,
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

fn text(e: DriverError) -> String {
    let name = |c: Result<&std::ffi::CStr, DriverError>| {
        c.map_or_else(
            |_| format!("{:?}", e.0),
            |c| c.to_string_lossy().into_owned(),
        )
    };
    format!("{}: {}", name(e.error_name()), name(e.error_string()))
}

/// An NVIDIA GPU.
pub struct Gpu {
    number: u32,
    name: String,
    capability: u32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// The stream of each lane, and what says how far it was when another began to wait for it.
    lanes: [(sys::CUstream, sys::CUevent); 2],
    lane: Lane,
    module: Option<sys::CUmodule>,
    functions: BTreeMap<&'static str, (sys::CUfunction, u32)>,
    memory: Vec<sys::CUdeviceptr>,
    /// Where the host's memory lies, and how long it is.
    host: Vec<(u64, usize)>,
    graphs: Vec<sys::CUgraphExec>,
    /// Whether kernels are recorded: the stream is captured.
    records: bool,
}

// SAFETY: handles of the driver, which any thread may use; each call makes the context current first.
unsafe impl Send for Gpu {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({}, {})", self.number, self.name)
    }
}

impl Gpu {
    /// How many GPUs the driver knows.
    ///
    /// # Errors
    /// [`GpuError::Driver`], or [`GpuError::Start`] where the driver does not start.
    pub fn count() -> Result<u32, GpuError> {
        // SAFETY: looks for a library that has no effect but to be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::Driver);
        }
        let start = |what| {
            move |e| GpuError::Start {
                gpu: 0,
                what,
                reason: text(e),
            }
        };
        result::init().map_err(start("the driver's start"))?;
        let count = result::device::get_count().map_err(start("how many there are"))?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// GPU `number`, with a context of its own in this process.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn new(number: u32) -> Result<Self, GpuError> {
        let count = Self::count()?;
        if number >= count {
            return Err(GpuError::None(number, count));
        }
        let start = |what| {
            move |e| GpuError::Start {
                gpu: number,
                what,
                reason: text(e),
            }
        };
        let ordinal = i32::try_from(number).map_err(|_| GpuError::None(number, count))?;
        let device = result::device::get(ordinal).map_err(start("its handle"))?;
        let name = result::device::get_name(device).map_err(start("its name"))?;
        let capability = capability(device).map_err(start("its architecture"))?;
        // SAFETY: the device was given above; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(start("a context"))?;
        // SAFETY: retained above.
        unsafe { result::ctx::set_current(context) }.map_err(start("its context"))?;
        let lane = || -> Result<_, DriverError> {
            Ok((
                result::stream::create(result::stream::StreamKind::NonBlocking)?,
                result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
            ))
        };
        let made = || lane().map_err(start("a stream"));
        let lanes = [made()?, made()?];
        Ok(Self {
            number,
            name,
            capability,
            device,
            context,
            lanes,
            lane: Lane::default(),
            module: None,
            functions: BTreeMap::new(),
            memory: Vec::new(),
            host: Vec::new(),
            graphs: Vec::new(),
            records: false,
        })
    }

    /// Its architecture, as NVRTC names it after `sm_`.
    #[must_use]
    pub fn architecture(&self) -> String {
        self.capability.to_string()
    }

    /// Loads kernels: machine code for this architecture.
    ///
    /// # Errors
    /// [`GpuError::Start`].
    pub fn load(&mut self, code: &[u8]) -> Result<(), GpuError> {
        let gpu = self.number;
        let start = |what| {
            move |e| GpuError::Start {
                gpu,
                what,
                reason: text(e),
            }
        };
        // SAFETY: the context is alive; the code is what NVRTC made, whole.
        unsafe {
            result::ctx::set_current(self.context).map_err(start("its context"))?;
            let module = result::module::load_data(code.as_ptr().cast());
            let old = self.module.replace(module.map_err(start("its kernels"))?);
            self.functions.clear();
            if let Some(old) = old {
                // What is not unloaded stays: no harm.
                let _ = result::module::unload(old);
            }
        }
        Ok(())
    }

    /// Free bytes and all of them, as the driver says.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.current()?;
        let (free, total) = result::mem_get_info().map_err(failed)?;
        Ok((free as u64, total as u64))
    }

    fn current(&self) -> Result<(), DeviceError> {
        // SAFETY: retained at the start.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed)
    }

    const fn stream(&self) -> sys::CUstream {
        self.lanes[self.lane as usize].0
    }

    /// Waits for a lane.
    fn wait_for(&self, lane: Lane) -> Result<(), DeviceError> {
        self.unrecorded()?;
        // SAFETY: the stream is ours.
        unsafe { result::stream::synchronize(self.lanes[lane as usize].0) }.map_err(failed)
    }

    /// The context, for what is no kernel: copies would be recorded with addresses of the host that are gone by then.
    fn unrecorded(&self) -> Result<(), DeviceError> {
        if self.records {
            return Err(DeviceError::Failed("only kernels are recorded".to_owned()));
        }
        self.current()
    }

    fn function(&mut self, kernel: &'static str, shared: u32) -> Result<sys::CUfunction, String> {
        if let Some((function, most)) = self.functions.get(kernel)
            && shared <= *most
        {
            return Ok(*function);
        }
        let module = self
            .module
            .ok_or_else(|| "no kernels are loaded".to_owned())?;
        let name = CString::new(format!("plimsoll_{kernel}")).map_err(|e| e.to_string())?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(module, name) }.map_err(text)?;
        let most = shared.max(SHARED);
        if most > SHARED {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(most).map_err(|e| e.to_string())?;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function, which, bytes) }
                .map_err(|e| format!("{most} shared bytes: {}", text(e)))?;
        }
        self.functions.insert(kernel, (function, most));
        Ok(function)
    }
}

/// As [`Device::capability`] has it.
fn capability(device: sys::CUdevice) -> Result<u32, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the device was given by the driver.
    let ask = |which| unsafe { result::device::get_attribute(device, which) };
    let (major, minor) = (ask(MAJOR)?, ask(MINOR)?);
    Ok(u32::try_from(10 * major + minor).unwrap_or(0))
}

fn failed(e: DriverError) -> DeviceError {
    DeviceError::Failed(text(e))
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn capability(&self) -> u32 {
        self.capability
    }

    fn stream(&self) -> Stream {
        Stream {
            gpu: self.number,
            // Steps are there, and messages between ranks among them.
            handle: self.lanes[Lane::Compute as usize].0 as u64,
        }
    }

    fn most_shared(&mut self, kernel: &'static str) -> Result<u64, DeviceError> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST;
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as OWN;
        self.current()?;
        let fail = |reason: String| DeviceError::Kernel {
            kernel: kernel.to_owned(),
            reason,
        };
        let function = self.function(kernel, 0).map_err(fail)?;
        let device = result::device::get(self.number.cast_signed()).map_err(failed)?;
        // SAFETY: the driver gave the device, and the function is of a loaded module.
        let [most, own] = unsafe {
            [
                result::device::get_attribute(device, MOST).map_err(failed)?,
                result::function::get_function_attribute(function, OWN).map_err(failed)?,
            ]
        };
        // What the kernel always has is among it.
        Ok(u64::try_from(most - own).unwrap_or(0))
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        let fail = |reason: String| DeviceError::Memory { bytes, reason };
        self.unrecorded()?;
        let size = usize::try_from(bytes.max(1)).map_err(|e| fail(e.to_string()))?;
        // SAFETY: the context is current; the memory is freed once, when this is dropped.
        let at = unsafe { result::malloc_sync(size) }.map_err(|e| fail(text(e)))?;
        self.memory.push(at);
        // SAFETY: inside what was just allocated.
        unsafe { result::memset_d8_async(at, 0, size, self.stream()) }.map_err(failed)?;
        Ok(Address(at))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.unrecorded()?;
        // SAFETY: the address is of this device; the driver is done with pageable bytes when it returns.
        unsafe { result::memcpy_htod_async(to.0, bytes, self.stream()) }.map_err(failed)
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.unrecorded()?;
        // SAFETY: the address is of this device; the bytes are waited for.
        unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream()) }.map_err(failed)?;
        self.wait_for(self.lane)
    }

    fn allocate_host(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        let fail = |reason: String| DeviceError::Memory { bytes, reason };
        self.unrecorded()?;
        let size = usize::try_from(bytes.max(1)).map_err(|e| fail(e.to_string()))?;
        // SAFETY: the context is current; the memory is freed once, when this is dropped.
        let at = unsafe { result::malloc_host(size, 0) }.map_err(|e| fail(text(e)))?;
        // SAFETY: just allocated, so long, and nobody else's.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, size) };
        // With one space of addresses, as every 64-bit system has, a kernel's address is the host's.
        self.host.push((at as u64, size));
        Ok(Address(at as u64))
    }

    fn host(&mut self, at: Address, len: usize) -> Result<&mut [u8], DeviceError> {
        let inside = |(from, size): &(u64, usize)| {
            let offset = at.0.checked_sub(*from);
            offset.is_some_and(|o| o.saturating_add(len as u64) <= *size as u64)
        };
        if !self.host.iter().any(inside) {
            return Err(DeviceError::Failed(format!(
                "no {len} bytes of the host at {at:?}"
            )));
        }
        self.wait_for(self.lane)?;
        // SAFETY: inside what was allocated, as checked; what was asked for on this lane is done, whoever uses another one has
        // it wait, and nothing more is asked for while the slice lives, which borrows the device.
        Ok(unsafe { std::slice::from_raw_parts_mut(at.0 as *mut u8, len) })
    }

    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), DeviceError> {
        self.unrecorded()?;
        let len = usize::try_from(bytes).map_err(|e| DeviceError::Failed(e.to_string()))?;
        // SAFETY: both are of this device, or of memory of the host that it was given; the driver knows which.
        let done = unsafe { sys::cuMemcpyAsync(to.0, from.0, len, self.stream()) };
        done.result().map_err(failed)
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        let fail = |reason: String| DeviceError::Kernel {
            kernel: kernel.to_owned(),
            reason,
        };
        self.current()?;
        let function = self.function(kernel, how.shared).map_err(fail)?;
        let [x, y, z] = how.grid;
        // The driver reads a struct of the kernel's own size from there, at a multiple of eight.
        let mut words = [0_u64; ARGUMENTS / 8];
        if args.len() > ARGUMENTS {
            return Err(fail(format!("{} bytes of arguments", args.len())));
        }
        for (word, bytes) in words.iter_mut().zip(args.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        let mut params = [words.as_mut_ptr().cast::<c_void>()];
        // SAFETY: the function is loaded, and its one argument is read before this returns; addresses in it are of this
        // device, which outlives the kernel.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (how.threads, 1, 1),
                how.shared,
                self.stream(),
                &mut params,
            )
        }
        .map_err(|e| fail(text(e)))
    }

    fn record(&mut self) -> Result<(), DeviceError> {
        self.unrecorded()?;
        // Relaxed: a kernel that is met for the first time is loaded meanwhile, and nobody else uses this stream.
        let how = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours.
        unsafe { result::stream::begin_capture(self.stream(), how) }.map_err(failed)?;
        self.records = true;
        Ok(())
    }

    fn recorded(&mut self) -> Result<Graph, DeviceError> {
        self.current()?;
        self.records = false;
        // SAFETY: the stream is ours.
        let graph = unsafe { result::stream::end_capture(self.stream()) }.map_err(failed)?;
        if graph.is_null() {
            return Err(DeviceError::Failed("nothing was recorded".to_owned()));
        }
        // SAFETY: given above, and released once; what was made of it is released when this is dropped.
        let made = unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let released = result::graph::destroy(graph);
            made.and_then(|made| released.map(|()| made))
        };
        self.graphs.push(made.map_err(failed)?);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<bool, DeviceError> {
        self.unrecorded()?;
        let unknown = || DeviceError::Failed(format!("there is no {graph:?}"));
        let graph = *self.graphs.get(graph.0).ok_or_else(unknown)?;
        // SAFETY: made above; addresses in it are of this device, which outlives the kernels.
        unsafe { result::graph::launch(graph, self.stream()) }.map_err(failed)?;
        Ok(true)
    }

    fn free(&self) -> Option<u64> {
        self.memory().ok().map(|(free, _)| free)
    }

    fn on(&mut self, lane: Lane) {
        self.lane = lane;
    }

    fn after_all(&mut self) -> Result<(), DeviceError> {
        self.unrecorded()?;
        let other = match self.lane {
            Lane::Compute => Lane::Transfers,
            Lane::Transfers => Lane::Compute,
        };
        let (stream, event) = self.lanes[other as usize];
        let how = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams and events are ours. The wait is for what the event says now: it may say something else later.
        unsafe {
            result::event::record(event, stream)
                .and_then(|()| result::stream::wait_event(self.stream(), event, how))
        }
        .map_err(failed)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.wait_for(Lane::Compute)?;
        self.wait_for(Lane::Transfers)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What fails here was lost before, and the process's end frees the rest.
        // SAFETY: each was made once, and nobody has it any more.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            for (stream, _) in self.lanes {
                let _ = result::stream::synchronize(stream);
            }
            for graph in self.graphs.drain(..) {
                let _ = result::graph::exec_destroy(graph);
            }
            for at in self.memory.drain(..) {
                let _ = result::free_sync(at);
            }
            for (at, _) in self.host.drain(..) {
                let _ = result::free_host(at as *mut c_void);
            }
            if let Some(module) = self.module.take() {
                let _ = result::module::unload(module);
            }
            for (stream, event) in self.lanes {
                let _ = result::stream::destroy(stream);
                let _ = result::event::destroy(event);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
