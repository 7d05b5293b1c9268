//! CUDA kernels, and the devices that run them.
//!
//! Kernels compute what `plimsoll-kernels` computes, operation by operation in the same order, so that what a GPU answers
//! is what a processor answers, to the bit, and depends on batches no more than there. Their sources (`cu/`) need no
//! header of NVIDIA's; NVRTC compiles them for the machine's own architecture. A [`Device`] is a GPU through its driver
//! ([`Gpu`]), or, in tests, fibers on this machine's processors (`Fibers`). Several GPUs pass messages by [`Nccl`].

pub mod args;
mod device;
#[cfg(feature = "fibers")]
mod fibers;
mod gpu;
mod nccl;
mod nvrtc;

pub use device::{
    Address, Device, DeviceError, Graph, Lane, Launch, Stream, TENSOR_CORES, bytes_of, floats,
    words,
};
#[cfg(feature = "fibers")]
pub use fibers::Fibers;
pub use gpu::{Gpu, GpuError};
pub use nccl::{Message, Nccl, NcclError, Station};
pub use nvrtc::{ARCHITECTURES, CompileError, compile, compiler_version};

const PARTS: [&str; 9] = [
    include_str!("../cu/prelude.cuh"),
    include_str!("../cu/rows.cu"),
    include_str!("../cu/linear.cu"),
    include_str!("../cu/linear_staged.cu"),
    include_str!("../cu/linear_mma.cu"),
    include_str!("../cu/attention.cu"),
    include_str!("../cu/attention_mma.cu"),
    include_str!("../cu/state.cu"),
    include_str!("../cu/sample.cu"),
];

/// The kernels, as one source for NVRTC.
#[must_use]
pub fn source() -> String {
    std::iter::once(args::STRUCTS).chain(PARTS).collect()
}

/// A device for builds that test: fibers, where they were asked for.
#[must_use]
pub fn stand_in() -> Option<Box<dyn Device>> {
    #[cfg(feature = "fibers")]
    return Some(Box::new(Fibers::new()));
    #[cfg(not(feature = "fibers"))]
    None
}
