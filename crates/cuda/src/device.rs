//! [`Device`]: memory that kernels work on, and what is asked of whoever has it.

#![allow(unsafe_code)]

/// An address in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// `bytes` further on.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// The least [capability](Device::capability) whose tensor cores kernels use: those multiply bfloat16, and copies to shared
/// memory are not waited for.
pub const TENSOR_CORES: u32 = 80;

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, in three directions.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes that the threads of a block share.
    pub shared: u32,
}

impl Launch {
    /// So many blocks in one direction.
    #[must_use]
    pub const fn blocks(blocks: u32, threads: u32) -> Self {
        Self {
            grid: [blocks, 1, 1],
            threads,
            shared: 0,
        }
    }
}

/// Where a device does what is asked of it: in order on each, and side by side otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// Steps.
    #[default]
    Compute,
    /// Pages on their way between the device and the host.
    Transfers,
}

/// Kernels that a device has [recorded](Device::record).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub(crate) usize);

/// Where a device does what it is asked for: told to libraries that work there, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The device's number among GPUs.
    pub gpu: u32,
    /// What the driver calls the stream.
    pub handle: u64,
}

/// What a device could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// It has not the memory.
    #[error(
        "the device has no {bytes} bytes to give ({reason}); free memory, or plan for less (`--memory`)"
    )]
    Memory {
        /// How many were asked for.
        bytes: u64,
        /// What it said.
        reason: String,
    },
    /// A kernel needs more than there is.
    #[error(
        "kernel `{kernel}` needs {needs} bytes that the threads of a block share, and the device has {has} for it"
    )]
    Shared {
        /// Its name.
        kernel: String,
        /// What it is to be started with.
        needs: u64,
        /// What it can be started with.
        has: u64,
    },
    /// A kernel could not be started, or failed.
    #[error("kernel `{kernel}`: {reason}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// What went wrong.
        reason: String,
    },
    /// Bytes could not be moved, or what was started before failed.
    #[error("the device: {0}")]
    Failed(String),
}

/// Bytes of the host as the numbers that they are.
///
/// # Errors
/// [`DeviceError::Failed`] where they do not begin at one.
pub fn floats(bytes: &mut [u8]) -> Result<&mut [f32], DeviceError> {
    // SAFETY: any four bytes are an f32.
    let (before, all, after) = unsafe { bytes.align_to_mut() };
    if before.is_empty() && after.is_empty() {
        return Ok(all);
    }
    Err(DeviceError::Failed("bytes that are no numbers".to_owned()))
}

/// Bytes of the host as 64-bit words.
///
/// # Errors
/// [`DeviceError::Failed`] where they do not begin at one.
pub fn words(bytes: &[u8]) -> Result<&[u64], DeviceError> {
    // SAFETY: any eight bytes are a u64.
    let (before, all, after) = unsafe { bytes.align_to() };
    if before.is_empty() && after.is_empty() {
        return Ok(all);
    }
    Err(DeviceError::Failed("bytes that are no words".to_owned()))
}

/// Words as they lie in a device's memory: the numbers of a little-endian host, as every host of a GPU is.
#[must_use]
pub const fn bytes_of(words: &[u32]) -> &[u8] {
    // SAFETY: as long as the words, whose bytes are all plain.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// Memory that kernels work on. What is asked of it is done in order, on the [lane](Device::on) that it is asked for; only
/// [`Device::download`], [`Device::host`] and [`Device::wait`] wait.
pub trait Device: std::fmt::Debug + Send {
    /// What it calls itself.
    fn name(&self) -> String;

    /// Its compute capability, ten times the major number and the minor one: 90 is sm_90.
    fn capability(&self) -> u32;

    /// The stream on which it does what it is asked for.
    fn stream(&self) -> Stream;

    /// Blocks of a grid at most, in its first direction and in each of the others.
    fn most_blocks(&self) -> [u32; 2] {
        // CUDA's, of every capability.
        [i32::MAX.cast_unsigned(), 65_535]
    }

    /// Bytes that the threads of a block share at most, where a kernel is started with so many.
    ///
    /// # Errors
    /// [`DeviceError::Kernel`] where there is no such kernel.
    fn most_shared(&mut self, kernel: &'static str) -> Result<u64, DeviceError>;

    /// So many bytes of it, zeros, at a multiple of 256; they are its until the device is dropped.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError>;

    /// Writes bytes there.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Reads bytes from there, after everything that was asked for before on this lane.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// So many bytes of the host's memory, zeros, at a multiple of 256, which kernels and [copies](Self::copy) reach as
    /// well and no pager moves; they are its until the device is dropped.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    fn allocate_host(&mut self, bytes: u64) -> Result<Address, DeviceError>;

    /// What lies in the host's memory there, after everything that was asked for before on this lane.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn host(&mut self, at: Address, len: usize) -> Result<&mut [u8], DeviceError>;

    /// Copies bytes from one place to another, each of which is the device's or the host's.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), DeviceError>;

    /// Whether kernels are stopped that use other memory than they were [allowed](Self::allow).
    fn checks(&self) -> bool {
        false
    }

    /// From now on kernels use these parts, each so many bytes, and nothing else.
    fn allow(&mut self, _: &[(Address, u64)]) {}

    /// Starts a kernel; `args` is its struct ([`crate::args`]).
    ///
    /// # Errors
    /// [`DeviceError::Kernel`].
    fn launch(&mut self, kernel: &'static str, how: Launch, args: &[u8])
    -> Result<(), DeviceError>;

    /// From now on kernels are not started but recorded, and nothing else may be asked for.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn record(&mut self) -> Result<(), DeviceError>;

    /// The kernels that were recorded, which are the device's until it is dropped: kernels are started again, whatever this says.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn recorded(&mut self) -> Result<Graph, DeviceError>;

    /// Starts recorded kernels, with what they were told then, in their order. False where it [checks](Self::checks): then they
    /// are to be started one by one, each [allowed](Self::allow) what it uses now, and are compared with those.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] or [`DeviceError::Kernel`].
    fn replay(&mut self, graph: Graph) -> Result<bool, DeviceError>;

    /// What is asked for from now on is done on this lane.
    fn on(&mut self, lane: Lane);

    /// What is asked for from now on, on the lane at hand, begins when everything is done that was asked for before, on all.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn after_all(&mut self) -> Result<(), DeviceError>;

    /// Bytes that it has left, where it knows.
    fn free(&self) -> Option<u64> {
        None
    }

    /// Waits for everything that was asked for, on all lanes.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn wait(&mut self) -> Result<(), DeviceError>;
}
