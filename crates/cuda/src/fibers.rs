//! [`Fibers`]: kernels on this machine's processors, for tests.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CString, c_char, c_int, c_void};

use crate::device::{Address, Device, DeviceError, Graph, Lane, Launch, Stream};

unsafe extern "C" {
    fn plimsoll_fibers_launch(
        name: *const c_char,
        grid: *const u32,
        threads: u32,
        shared: u32,
        args: *const c_void,
        len: usize,
    ) -> c_int;
    safe fn plimsoll_fibers_checks() -> c_int;
    /// Only marks memory, and nothing where nothing is checked.
    safe fn plimsoll_fibers_open(at: *const c_void, bytes: usize, open: c_int);
}

/// Bytes that a block of an H100 shares at most (CUDA C++ Programming Guide, compute capability 9.0).
const H100_SHARED: u64 = 227 << 10;

/// A device whose memory is this machine's, and whose threads are fibers. Built with AddressSanitizer, it ends the process
/// where a kernel uses memory that it was not [allowed](Device::allow), and names the line.
#[derive(Debug, Default)]
pub struct Fibers {
    blocks: Vec<(u64, Layout)>,
    /// What kernels may use; everything, where nothing was said.
    allowed: Option<Vec<(Address, u64)>>,
    /// Blocks in the second and third direction of a grid, where not as many as on a GPU.
    most_blocks: Option<u32>,
    /// Bytes that threads of a block share, where not as many as of an H100.
    most_shared: Option<u64>,
    /// Whether it checks though kernels are not stopped.
    strict: bool,
    graphs: Vec<Vec<Kernel>>,
    now: Now,
    lane: Lane,
    /// The lane whose work is done as late as may be, and what waits there.
    late: Option<Lane>,
    waiting: Vec<Work>,
    /// Its number among several.
    number: u32,
}

/// What waits on a lane.
#[derive(Debug)]
enum Work {
    Upload(Address, Vec<u8>),
    Copy(Address, Address, usize),
    Allow(Vec<(Address, u64)>),
    Start(Kernel),
}

/// A kernel that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernel {
    name: &'static str,
    how: Launch,
    args: Vec<u8>,
}

/// What becomes of kernels.
#[derive(Debug, Default)]
enum Now {
    #[default]
    Starts,
    Records(Vec<Kernel>),
    /// They are started, and must be those of a graph: how many were.
    Compares(Graph, usize),
}

impl Fibers {
    /// One.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose grids have at most so many blocks in their second and third direction.
    #[must_use]
    pub fn with_blocks(most: u32) -> Self {
        let mut fibers = Self::new();
        fibers.most_blocks = Some(most);
        fibers
    }

    /// One whose blocks share at most so many bytes.
    #[must_use]
    pub fn with_shared(most: u64) -> Self {
        let mut fibers = Self::new();
        fibers.most_shared = Some(most);
        fibers
    }

    /// One of several, of this number.
    #[must_use]
    pub fn numbered(number: u32) -> Self {
        let mut fibers = Self::new();
        fibers.number = number;
        fibers
    }

    /// One that compares kernels with those that were recorded, as it does where it is built to check.
    #[must_use]
    pub fn strict() -> Self {
        let mut fibers = Self::new();
        fibers.strict = true;
        fibers
    }

    /// One that does what is asked for on a lane when somebody waits for it, and not before: who does not wait finds what
    /// was there.
    #[must_use]
    pub fn late(lane: Lane) -> Self {
        let mut fibers = Self::new();
        fibers.late = Some(lane);
        fibers
    }

    /// Does some work, or notes it.
    fn ask(&mut self, work: Work) -> Result<(), DeviceError> {
        if self.late == Some(self.lane) {
            self.waiting.push(work);
            return Ok(());
        }
        self.carry_out(work)
    }

    fn carry_out(&mut self, work: Work) -> Result<(), DeviceError> {
        match work {
            Work::Upload(to, bytes) => self.write(to, &bytes),
            Work::Copy(from, to, len) => self.move_bytes(from, to, len),
            Work::Allow(parts) => self.open_only(parts),
            Work::Start(kernel) => return start(&kernel),
        }
        Ok(())
    }

    /// Does what waits.
    fn catch_up(&mut self) -> Result<(), DeviceError> {
        for work in std::mem::take(&mut self.waiting) {
            self.carry_out(work)?;
        }
        Ok(())
    }

    /// The same, where it waits on the lane at hand.
    fn catch_up_here(&mut self) -> Result<(), DeviceError> {
        if self.late == Some(self.lane) {
            return self.catch_up();
        }
        Ok(())
    }

    /// Writes bytes, whose place was checked.
    fn write(&self, to: Address, bytes: &[u8]) {
        self.touch(to, bytes.len(), true);
        // SAFETY: inside one of our blocks, as checked, which no slice is of.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        self.touch(to, bytes.len(), false);
    }

    /// Copies bytes, whose places were checked.
    fn move_bytes(&self, from: Address, to: Address, len: usize) {
        for at in [from, to] {
            self.touch(at, len, true);
        }
        // SAFETY: inside our blocks, as checked.
        unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, len) };
        for at in [from, to] {
            self.touch(at, len, false);
        }
    }

    /// Lets kernels use these parts alone.
    fn open_only(&mut self, parts: Vec<(Address, u64)>) {
        match &mut self.allowed {
            None => {
                for (block, layout) in &self.blocks {
                    Self::open(Address(*block), layout.size() as u64, false);
                }
            }
            Some(before) => {
                for (at, bytes) in before.drain(..) {
                    Self::open(at, bytes, false);
                }
            }
        }
        for (at, bytes) in &parts {
            Self::open(*at, *bytes, true);
        }
        self.allowed = Some(parts);
    }

    /// Whether something else than kernels may be asked for.
    fn between(&self) -> Result<(), DeviceError> {
        let what = match &self.now {
            Now::Starts => return Ok(()),
            Now::Records(_) => "only kernels are recorded".to_owned(),
            Now::Compares(graph, n) => format!("of {graph:?} only {n} kernels were started"),
        };
        Err(DeviceError::Failed(what))
    }

    /// Lets kernels use some bytes, or not.
    fn open(at: Address, bytes: u64, open: bool) {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        plimsoll_fibers_open(at.0 as *const c_void, bytes, open.into());
    }

    /// The same for what is read or written from here.
    fn touch(&self, at: Address, len: usize, open: bool) {
        if self.allowed.is_some() {
            Self::open(at, len as u64, open);
        }
    }

    /// Whether some bytes are of one block.
    fn check(&self, at: Address, len: usize) -> Result<(), DeviceError> {
        let inside = |(from, layout): &(u64, Layout)| {
            at.0.checked_sub(*from)
                .is_some_and(|o| o + len as u64 <= layout.size() as u64)
        };
        if len == 0 || self.blocks.iter().any(inside) {
            return Ok(());
        }
        Err(DeviceError::Failed(format!("no {len} bytes at {at:?}")))
    }
}

impl Device for Fibers {
    fn name(&self) -> String {
        "fibers on this machine's processors".to_owned()
    }

    fn capability(&self) -> u32 {
        crate::TENSOR_CORES
    }

    fn stream(&self) -> Stream {
        Stream {
            gpu: self.number,
            handle: 0,
        }
    }

    fn most_shared(&mut self, _: &'static str) -> Result<u64, DeviceError> {
        Ok(self.most_shared.unwrap_or(H100_SHARED))
    }

    fn most_blocks(&self) -> [u32; 2] {
        [i32::MAX.cast_unsigned(), self.most_blocks.unwrap_or(65_535)]
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        let fail = |reason: &str| DeviceError::Memory {
            bytes,
            reason: reason.to_owned(),
        };
        let size = usize::try_from(bytes).map_err(|_| fail("more than there are addresses"))?;
        let layout = Layout::from_size_align(size.max(1), 256).map_err(|e| fail(&e.to_string()))?;
        // SAFETY: the layout has at least one byte.
        let block = unsafe { alloc_zeroed(layout) };
        if block.is_null() {
            return Err(fail("the system gives none"));
        }
        self.blocks.push((block as u64, layout));
        self.touch(Address(block as u64), layout.size(), false);
        Ok(Address(block as u64))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.between()?;
        self.check(to, bytes.len())?;
        self.ask(Work::Upload(to, bytes.to_vec()))
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.between()?;
        self.check(from, bytes.len())?;
        self.catch_up_here()?;
        self.touch(from, bytes.len(), true);
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len())
        };
        self.touch(from, bytes.len(), false);
        Ok(())
    }

    fn allocate_host(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.allocate(bytes)
    }

    fn host(&mut self, at: Address, len: usize) -> Result<&mut [u8], DeviceError> {
        self.between()?;
        self.check(at, len)?;
        self.catch_up_here()?;
        if let Some(allowed) = &mut self.allowed {
            Self::open(at, len as u64, true);
            // Until kernels are allowed something else.
            allowed.push((at, len as u64));
        }
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: inside one of our blocks, as checked; kernels that write there have ended, and none starts while the
        // slice lives, which borrows the device.
        Ok(unsafe { std::slice::from_raw_parts_mut(at.0 as *mut u8, len) })
    }

    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), DeviceError> {
        self.between()?;
        let len = usize::try_from(bytes).map_err(|e| DeviceError::Failed(e.to_string()))?;
        self.check(from, len)?;
        self.check(to, len)?;
        self.ask(Work::Copy(from, to, len))
    }

    fn checks(&self) -> bool {
        self.strict || plimsoll_fibers_checks() != 0
    }

    fn allow(&mut self, parts: &[(Address, u64)]) {
        // Nothing of it fails.
        let _ = self.ask(Work::Allow(parts.to_vec()));
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        let has = self.most_shared(kernel)?;
        if u64::from(how.shared) > has {
            return Err(DeviceError::Shared {
                kernel: kernel.to_owned(),
                needs: how.shared.into(),
                has,
            });
        }
        let this = Kernel {
            name: kernel,
            how,
            args: args.to_vec(),
        };
        match &mut self.now {
            Now::Starts => {}
            Now::Records(kernels) => {
                kernels.push(this);
                return Ok(());
            }
            Now::Compares(graph, n) => {
                let kernels = &self.graphs[graph.0];
                if kernels.get(*n) != Some(&this) {
                    return Err(DeviceError::Kernel {
                        kernel: kernel.to_owned(),
                        reason: format!("is not the one that was recorded: {:?}", kernels.get(*n)),
                    });
                }
                *n += 1;
                if *n == kernels.len() {
                    self.now = Now::Starts;
                }
            }
        }
        self.ask(Work::Start(this))
    }

    fn record(&mut self) -> Result<(), DeviceError> {
        self.between()?;
        self.now = Now::Records(Vec::new());
        Ok(())
    }

    fn recorded(&mut self) -> Result<Graph, DeviceError> {
        match std::mem::take(&mut self.now) {
            Now::Records(kernels) if !kernels.is_empty() => {
                self.graphs.push(kernels);
                Ok(Graph(self.graphs.len() - 1))
            }
            _ => Err(DeviceError::Failed("nothing was recorded".to_owned())),
        }
    }

    fn replay(&mut self, graph: Graph) -> Result<bool, DeviceError> {
        self.between()?;
        let unknown = || DeviceError::Failed(format!("there is no {graph:?}"));
        let kernels = self.graphs.get(graph.0).ok_or_else(unknown)?.clone();
        if self.checks() {
            self.now = Now::Compares(graph, 0);
            return Ok(false);
        }
        for k in kernels {
            self.ask(Work::Start(k))?;
        }
        Ok(true)
    }

    fn on(&mut self, lane: Lane) {
        self.lane = lane;
    }

    fn after_all(&mut self) -> Result<(), DeviceError> {
        self.between()?;
        if self.late == Some(self.lane) {
            // What it waits for is done.
            return Ok(());
        }
        self.catch_up()
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.between()?;
        self.catch_up()
    }
}

/// Carries a kernel out.
fn start(kernel: &Kernel) -> Result<(), DeviceError> {
    let Kernel { name, how, args } = kernel;
    let fail = |reason: &str| DeviceError::Kernel {
        kernel: (*name).to_owned(),
        reason: reason.to_owned(),
    };
    let name = CString::new(*name).map_err(|_| fail("its name has a zero"))?;
    // SAFETY: the arguments are as long as the kernel's, which is checked there; that addresses in them are of this
    // device is what kernels are trusted with.
    let rc = unsafe {
        plimsoll_fibers_launch(
            name.as_ptr(),
            how.grid.as_ptr(),
            how.threads,
            how.shared,
            args.as_ptr().cast(),
            args.len(),
        )
    };
    match rc {
        0 => Ok(()),
        1 => Err(fail("there is none of that name")),
        2 => Err(fail("its arguments have another size")),
        3 => Err(fail("its threads wait for each other")),
        4 => Err(fail("no memory for fibers")),
        6 => Err(fail("more copies are on their way than a thread keeps")),
        _ => Err(fail("a block has at most 1024 threads")),
    }
}

impl Drop for Fibers {
    fn drop(&mut self) {
        for (block, layout) in self.blocks.drain(..) {
            // SAFETY: allocated with this layout, and nobody has it any more.
            unsafe { dealloc(block as *mut u8, layout) };
        }
    }
}
