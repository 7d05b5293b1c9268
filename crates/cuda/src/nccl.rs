//! [`Nccl`]: messages between the GPUs of this process, by NVIDIA's library of that name, found when the program runs.
//!
//! Messages alone: what NCCL adds up, it adds up in an order of its own. All communicators are made by one call, and
//! tried: a call that passes messages afterwards only begins them, on the rank's own stream, and waits for nobody.

#![allow(unsafe_code)]

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use libloading::Library;

use crate::device::{Address, Stream};

/// What the library is called, as those who package it install it and as its own build does.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// `ncclFloat32` (nccl.h, `ncclDataType_t`).
const FLOAT32: c_int = 7;
/// Bytes of an f32.
const F32: u64 = 4;
/// Times of a millisecond that a call has to come back before its communicator is ended under it.
const PATIENCE: u32 = 1000;

/// Why NCCL is not to be had, or what it could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// The library is not there.
    #[error("NCCL (libnccl.so.2) cannot be loaded: {0}")]
    Missing(String),
    /// It is another library, or an old one.
    #[error("NCCL has no `{0}`: use version 2.7 or later")]
    Function(&'static str),
    /// A call failed.
    #[error("NCCL: {what}: {reason}")]
    Call {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// Its communicators were ended because a rank was lost.
    #[error("NCCL does not connect these ranks any more: one of them was lost")]
    Cut,
}

/// Where a rank works.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    /// Its GPU, and what messages are passed on.
    pub stream: Stream,
    /// Memory of one element more than there are ranks: connections are tried with it.
    pub scratch: Address,
}

/// Some f32 on their way from one rank to another. Both name them, in the same order.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// They go.
    Send {
        /// To whom.
        peer: u64,
        /// Where they lie.
        from: Address,
        /// How many.
        len: u64,
    },
    /// They come.
    Receive {
        /// From whom.
        peer: u64,
        /// Where they will lie.
        to: Address,
        /// How many.
        len: u64,
    },
}

impl Message {
    const fn elements(&self) -> u64 {
        match *self {
            Self::Send { len, .. } | Self::Receive { len, .. } => len,
        }
    }
}

/// `ncclComm_t`, `cudaStream_t`.
type Handle = *mut c_void;

/// What is called (nccl.h of 2.7 and later).
struct Calls {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    init_all: unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    /// Functions are its, so it stays.
    _library: Library,
}

impl Calls {
    fn load(names: &[&str]) -> Result<Self, NcclError> {
        let mut why = String::new();
        for name in names {
            // SAFETY: loading NCCL runs what it does at its start, which has no conditions.
            match unsafe { Library::new(*name) } {
                Ok(library) => return Self::of(library),
                // Of the first name, which is the usual one.
                Err(e) if why.is_empty() => {
                    // What the loader says stands below what was asked of it.
                    why = e
                        .source()
                        .map_or_else(|| e.to_string(), ToString::to_string);
                }
                Err(_) => {}
            }
        }
        Err(NcclError::Missing(why))
    }

    fn of(library: Library) -> Result<Self, NcclError> {
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of the function in nccl.h, and the library outlives the pointer.
                *unsafe { library.get($name) }.map_err(|_| NcclError::Function($name))?
            };
        }
        Ok(Self {
            version: function!("ncclGetVersion"),
            error: function!("ncclGetErrorString"),
            init_all: function!("ncclCommInitAll"),
            abort: function!("ncclCommAbort"),
            group_start: function!("ncclGroupStart"),
            group_end: function!("ncclGroupEnd"),
            send: function!("ncclSend"),
            receive: function!("ncclRecv"),
            _library: library,
        })
    }

    fn check(&self, what: &'static str, code: c_int) -> Result<(), NcclError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it takes any number.
        let text = unsafe { (self.error)(code) };
        let reason = if text.is_null() {
            format!("error {code}")
        } else {
            // SAFETY: a text of the library's own, which stays.
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned()
        };
        Err(NcclError::Call { what, reason })
    }

    /// Begins messages of communicators together, each on its stream.
    fn pass<'a>(
        &self,
        all: impl IntoIterator<Item = (Handle, Stream, &'a Message)>,
    ) -> Result<(), NcclError> {
        // SAFETY: has no conditions.
        self.check("ncclGroupStart", unsafe { (self.group_start)() })?;
        let mut begun = Ok(());
        for (comm, stream, message) in all {
            let stream = stream.handle as Handle;
            // A number that is none of theirs is refused by NCCL.
            let peer_of = |peer: u64| c_int::try_from(peer).unwrap_or(-1);
            let count = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
            let code = match *message {
                Message::Send { peer, from, len } => {
                    let (from, peer) = (from.0 as *const c_void, peer_of(peer));
                    // SAFETY: the communicator is alive, as whoever calls sees to; memory and stream are of its GPU, and
                    // whoever gave them leaves them as they are until the stream has come to its end.
                    unsafe { (self.send)(from, count(len), FLOAT32, peer, comm, stream) }
                }
                Message::Receive { peer, to, len } => {
                    let (to, peer) = (to.0 as *mut c_void, peer_of(peer));
                    // SAFETY: as above.
                    unsafe { (self.receive)(to, count(len), FLOAT32, peer, comm, stream) }
                }
            };
            begun = self.check("a message", code);
            if begun.is_err() {
                break;
            }
        }
        // SAFETY: begun above. A group is ended, too, where a part of it failed.
        let ended = self.check("ncclGroupEnd", unsafe { (self.group_end)() });
        begun.and(ended)
    }
}

/// A rank's communicator.
struct Comm {
    /// None before it was made and after it was ended.
    handle: AtomicPtr<c_void>,
    /// Held while it is used.
    using: Mutex<()>,
}

impl Comm {
    /// Ends it and whatever waits for messages of it.
    fn end(&self, calls: &Calls) {
        // A call that passes messages comes back at once, but where a stream that waits for a lost rank is full: then ending
        // the communicator is what releases it.
        let mut using = self.using.try_lock();
        for _ in 0..PATIENCE {
            if !matches!(using, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            using = self.using.try_lock();
        }
        let handle = self.handle.swap(null_mut(), Ordering::AcqRel);
        if !handle.is_null() {
            // What it says changes nothing.
            // SAFETY: it was made by `init_all`, and nobody has it any more, or hangs in it.
            unsafe { (calls.abort)(handle) };
        }
    }
}

/// The GPUs of ranks, connected.
pub struct Nccl {
    calls: Calls,
    stations: Vec<Station>,
    /// One for each.
    comms: Vec<Comm>,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nccl({:?})", self.stations)
    }
}

impl Nccl {
    /// Connects ranks that have a GPU each. To be ended ([`Nccl::cut`]) before their devices are.
    ///
    /// # Errors
    /// [`NcclError`].
    pub fn new(stations: Vec<Station>) -> Result<Arc<Self>, NcclError> {
        Self::by(&NAMES, stations)
    }

    /// The same by the first library of these names, or paths, that is there.
    ///
    /// # Errors
    /// [`NcclError`].
    pub fn by(names: &[&str], stations: Vec<Station>) -> Result<Arc<Self>, NcclError> {
        let comm = |_: &Station| Comm {
            handle: AtomicPtr::new(null_mut()),
            using: Mutex::new(()),
        };
        let all = Self {
            calls: Calls::load(names)?,
            comms: stations.iter().map(comm).collect(),
            stations,
        };
        all.connect()?;
        Ok(Arc::new(all))
    }

    /// Its version, in words.
    #[must_use]
    pub fn name(&self) -> String {
        let mut version = 0;
        // SAFETY: writes one number there.
        let code = unsafe { (self.calls.version)(&raw mut version) };
        match version {
            v if code != 0 || v <= 0 => "NCCL".to_owned(),
            // Before 2.9 versions had two digits less.
            v if v < 10_000 => format!("NCCL {}.{}.{}", v / 1000, v / 100 % 10, v % 100),
            v => format!("NCCL {}.{}.{}", v / 10_000, v / 100 % 100, v % 100),
        }
    }

    /// Connects ranks that are not connected; none of them may use it meanwhile.
    ///
    /// # Errors
    /// [`NcclError::Call`]: then none is connected.
    pub fn connect(&self) -> Result<(), NcclError> {
        self.cut();
        let gpus = self.stations.iter().map(|s| s.stream.gpu.cast_signed());
        let gpus: Vec<c_int> = gpus.collect();
        let mut handles: Vec<Handle> = vec![null_mut(); gpus.len()];
        let ranks = c_int::try_from(gpus.len()).unwrap_or(c_int::MAX);
        // SAFETY: there is a place for the communicator of each GPU.
        let code = unsafe { (self.calls.init_all)(handles.as_mut_ptr(), ranks, gpus.as_ptr()) };
        self.calls.check("ncclCommInitAll", code)?;
        for (comm, handle) in self.comms.iter().zip(&handles) {
            comm.handle.store(*handle, Ordering::Release);
        }
        // Two ranks are connected by their first message.
        let mut all = Vec::new();
        for (station, handle) in self.stations.iter().zip(&handles) {
            for peer in 0..self.stations.len() as u64 {
                let (from, len) = (station.scratch, 1);
                let to = from.plus(F32 * (1 + peer));
                for message in [
                    Message::Send { peer, from, len },
                    Message::Receive { peer, to, len },
                ] {
                    all.push((*handle, station.stream, message));
                }
            }
        }
        let tried = self.calls.pass(all.iter().map(|(h, s, m)| (*h, *s, m)));
        tried.inspect_err(|_| self.cut())
    }

    /// Begins messages of a rank, on its stream. All ranks begin those that meet each other.
    ///
    /// # Errors
    /// [`NcclError::Call`], and [`NcclError::Cut`] where ranks are not connected.
    pub fn pass(&self, rank: usize, messages: &[Message]) -> Result<(), NcclError> {
        let (comm, stream) = (&self.comms[rank], self.stations[rank].stream);
        let _using = comm.using.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = comm.handle.load(Ordering::Acquire);
        if handle.is_null() {
            return Err(NcclError::Cut);
        }
        // Messages of nothing are not sent: old versions wait for them.
        let some = messages.iter().filter(|m| m.elements() > 0);
        self.calls.pass(some.map(|m| (handle, stream, m)))
    }

    /// Ends all connections, and whatever waits for a message: a rank was lost, or all are to go.
    pub fn cut(&self) {
        for comm in &self.comms {
            comm.end(&self.calls);
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.cut();
    }
}
