//! NVIDIA's management library, loaded where it is installed: the one file with `unsafe`.
//!
//! The library comes with the driver and is absent elsewhere, so it cannot be linked. Only nine
//! functions are used, all of them stable since NVML 4; names and signatures are those of `nvml.h`.

#![allow(
    unsafe_code,
    reason = "functions of a C library that is loaded at run time can be called in no other way"
)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::{Library, Symbol};
use plimsoll_units::Bytes;

use crate::gpu::{DetectedGpu, Vendor};

/// `NVML_SUCCESS`.
const SUCCESS: c_int = 0;
/// Longer than any of `NVML_DEVICE_NAME_V2_BUFFER_SIZE`, `…_UUID_V2_…` and
/// `NVML_SYSTEM_DRIVER_VERSION_…` (96, 96 and 80).
const TEXT: usize = 128;
/// More devices than any machine has; a larger count is not believed.
const MAX_DEVICES: c_uint = 256;

#[cfg(windows)]
const NAMES: &[&str] = &["nvml.dll"];
#[cfg(not(windows))]
const NAMES: &[&str] = &["libnvidia-ml.so.1"];

/// `nvmlDevice_t`: an opaque pointer.
type Device = *mut c_void;

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// The functions that are used.
struct Nvml<'a> {
    shutdown: Symbol<'a, unsafe extern "C" fn() -> c_int>,
    count: Symbol<'a, unsafe extern "C" fn(*mut c_uint) -> c_int>,
    handle: Symbol<'a, unsafe extern "C" fn(c_uint, *mut Device) -> c_int>,
    name: Symbol<'a, unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int>,
    uuid: Symbol<'a, unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int>,
    memory: Symbol<'a, unsafe extern "C" fn(Device, *mut Memory) -> c_int>,
    compute: Symbol<'a, unsafe extern "C" fn(Device, *mut c_int, *mut c_int) -> c_int>,
    driver: Symbol<'a, unsafe extern "C" fn(*mut c_char, c_uint) -> c_int>,
}

/// All devices that the library reports; none where it is absent or does not start.
pub(crate) fn devices() -> Vec<DetectedGpu> {
    // SAFETY: loading runs the library's initialisers. It is the driver's own library, found by
    // the system's loader under the name that the vendor reserves; whoever can replace it owns
    // the machine already.
    let library = NAMES.iter().find_map(|n| unsafe { Library::new(*n) }.ok());
    match library.as_ref().and_then(Nvml::start) {
        Some(nvml) => nvml.devices(),
        None => Vec::new(),
    }
}

impl<'a> Nvml<'a> {
    /// Finds all functions, then starts the library; `None` where either fails.
    fn start(library: &'a Library) -> Option<Self> {
        // SAFETY: every signature below is that of `nvml.h` for this name; the `_v2` names exist
        // since 2012 and never changed. The symbols cannot outlive the library they borrow.
        let (init, nvml) = unsafe {
            let init: Symbol<'_, unsafe extern "C" fn() -> c_int> =
                library.get(b"nvmlInit_v2\0").ok()?;
            let nvml = Self {
                shutdown: library.get(b"nvmlShutdown\0").ok()?,
                count: library.get(b"nvmlDeviceGetCount_v2\0").ok()?,
                handle: library.get(b"nvmlDeviceGetHandleByIndex_v2\0").ok()?,
                name: library.get(b"nvmlDeviceGetName\0").ok()?,
                uuid: library.get(b"nvmlDeviceGetUUID\0").ok()?,
                memory: library.get(b"nvmlDeviceGetMemoryInfo\0").ok()?,
                compute: library.get(b"nvmlDeviceGetCudaComputeCapability\0").ok()?,
                driver: library.get(b"nvmlSystemGetDriverVersion\0").ok()?,
            };
            (init, nvml)
        };
        // SAFETY: takes no argument; `devices` calls the matching shutdown.
        (unsafe { init() } == SUCCESS).then_some(nvml)
    }

    fn devices(self) -> Vec<DetectedGpu> {
        // SAFETY: the function writes a text with its NUL into the buffer of the length given.
        let driver = text(|buf, len| unsafe { (self.driver)(buf, len) });
        let mut count = 0;
        // SAFETY: writes one unsigned int.
        let counted = unsafe { (self.count)(&raw mut count) } == SUCCESS;
        let mut list = Vec::new();
        for index in 0..if counted { count.min(MAX_DEVICES) } else { 0 } {
            let mut device: Device = std::ptr::null_mut();
            // SAFETY: writes one handle, which stays valid until shutdown.
            if unsafe { (self.handle)(index, &raw mut device) } != SUCCESS {
                continue;
            }
            list.push(self.device(device, driver.clone()));
        }
        // SAFETY: ends what `start` began; no handle is used after it.
        unsafe { (self.shutdown)() };
        list
    }

    fn device(&self, device: Device, driver: Option<String>) -> DetectedGpu {
        let mut memory = Memory::default();
        // SAFETY: `device` is a handle of this session; writes one `nvmlMemory_t`.
        let known = unsafe { (self.memory)(device, &raw mut memory) } == SUCCESS;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: as above; writes two ints.
        let compute = unsafe { (self.compute)(device, &raw mut major, &raw mut minor) } == SUCCESS;
        let bytes = |n: u64| known.then(|| Bytes::new(n));
        DetectedGpu {
            vendor: Vendor::Nvidia,
            // SAFETY: as for the driver's version, with a handle of this session.
            name: text(|buf, len| unsafe { (self.name)(device, buf, len) })
                .unwrap_or_else(|| "NVIDIA GPU".to_owned()),
            total: bytes(memory.total),
            used: bytes(memory.used),
            free: bytes(memory.free),
            // SAFETY: as above.
            uuid: text(|buf, len| unsafe { (self.uuid)(device, buf, len) }),
            driver,
            compute: compute
                .then(|| Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?)))
                .flatten(),
        }
    }
}

/// A text that a function writes into a buffer.
fn text(write: impl FnOnce(*mut c_char, c_uint) -> c_int) -> Option<String> {
    let mut buf = [0_u8; TEXT];
    let len = c_uint::try_from(buf.len()).ok()?;
    if write(buf.as_mut_ptr().cast(), len) != SUCCESS {
        return None;
    }
    let text = CStr::from_bytes_until_nul(&buf).ok()?.to_string_lossy();
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}
