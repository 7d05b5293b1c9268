//! Detection, on made-up machines.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use plimsoll_host::gpu::{Roots, Vendor, detect, detect_in};
use plimsoll_host::memory::{HostMemory, host, host_in};
use plimsoll_units::Bytes;

/// A machine made of files.
struct Machine(PathBuf);

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let root =
            std::env::temp_dir().join(format!("plimsoll-machine-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        for (name, text) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(root)
    }

    fn roots(&self) -> Roots {
        Roots {
            proc: self.0.join("proc"),
            sys: self.0.join("sys"),
            nvml: false,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn gib(n: u64) -> Bytes {
    Bytes::new(n << 30)
}

#[test]
fn nothing_found_is_an_empty_answer() {
    let none = Machine::new(&[]);
    assert_eq!(detect_in(&none.roots()), []);
    assert_eq!(host_in(&none.roots()), HostMemory::default());
    assert_eq!(host_in(&none.roots()).usable(), None);
}

#[test]
fn this_machine_does_not_make_it_fail() {
    for gpu in detect() {
        assert!(!gpu.name.is_empty());
        if let (Some(total), Some(used), Some(free)) = (gpu.total, gpu.used, gpu.free) {
            assert!(used.add(free).unwrap() <= total, "{gpu:?}");
        }
    }
    if let (Some(total), Some(available)) = (host().total, host().available) {
        assert!(available <= total);
    }
}

#[test]
fn an_nvidia_driver_without_its_library_gives_names() {
    let m = Machine::new(&[
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\nGCC version: 12\n",
        ),
        (
            "proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 1\nGPU UUID: \t GPU-12345678-aaaa\n",
        ),
        (
            "proc/driver/nvidia/gpus/0000:02:00.0/information",
            "Model: \t\t NVIDIA A100-SXM4-40GB\nGPU UUID: \t GPU-????????-????\n",
        ),
        (
            "proc/driver/nvidia/gpus/0000:03:00.0/information",
            "nothing of use",
        ),
    ]);
    let list = detect_in(&m.roots());
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].name, "NVIDIA A100-SXM4-40GB");
    assert_eq!(list[0].driver.as_deref(), Some("535.104.05"));
    assert_eq!(list[0].uuid.as_deref(), Some("GPU-12345678-aaaa"));
    assert_eq!((list[1].uuid.as_deref(), list[1].total), (None, None));
}

#[test]
fn amd_cards_are_read_from_sysfs() {
    let m = Machine::new(&[
        ("sys/module/amdgpu/version", "6.8.5\n"),
        ("sys/class/drm/card1/device/vendor", "0x1002\n"),
        ("sys/class/drm/card1/device/device", "0x74a1\n"),
        (
            "sys/class/drm/card1/device/product_name",
            "AMD Instinct MI300X\n",
        ),
        (
            "sys/class/drm/card1/device/mem_info_vram_total",
            "206158430208\n",
        ),
        (
            "sys/class/drm/card1/device/mem_info_vram_used",
            "1073741824\n",
        ),
        ("sys/class/drm/card1/device/unique_id", "abcdef\n"),
        ("sys/class/drm/card1-DP-1/device/vendor", "0x1002\n"),
        ("sys/class/drm/card2/device/vendor", "0x8086\n"),
        ("sys/class/drm/card2/device/mem_info_vram_total", "1\n"),
        ("sys/class/drm/card3/device/vendor", "0x1002\n"),
        ("sys/class/drm/card3/device/mem_info_vram_total", "a lot\n"),
        ("sys/class/drm/card4/device/vendor", "0x1002\n"),
        ("sys/class/drm/card4/device/device", "0x744c\n"),
        ("sys/class/drm/card4/device/mem_info_vram_total", "1000\n"),
        ("sys/class/drm/card4/device/mem_info_vram_used", "2000\n"),
        ("sys/class/drm/version", "drm 1.1.0"),
    ]);
    let list = detect_in(&m.roots());
    assert_eq!(list.len(), 2);
    assert_eq!(
        (list[0].vendor, list[0].name.as_str()),
        (Vendor::Amd, "AMD Instinct MI300X")
    );
    assert_eq!(
        (list[0].total, list[0].free),
        (Some(gib(192)), Some(gib(191)))
    );
    assert_eq!(list[0].driver.as_deref(), Some("6.8.5"));
    assert_eq!(
        (list[1].name.as_str(), list[1].used),
        ("AMD GPU 0x744c", None)
    );
}

const MEMINFO: (&str, &str) = (
    "proc/meminfo",
    "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   33554432 kB\n",
);

#[test]
fn limits_of_control_groups_of_both_versions() {
    let plain = Machine::new(&[
        MEMINFO,
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/b/memory.max", "max\n"),
    ]);
    let m = host_in(&plain.roots());
    assert_eq!(
        (m.total, m.available, m.limit),
        (Some(gib(64)), Some(gib(32)), None)
    );
    assert_eq!(m.usable(), Some(gib(32)));

    let v2 = Machine::new(&[
        MEMINFO,
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/b/memory.max", "17179869184\n"),
        ("sys/fs/cgroup/a/b/memory.current", "1073741824\n"),
        // The parent's is tighter.
        ("sys/fs/cgroup/a/memory.max", "8589934592\n"),
        ("sys/fs/cgroup/a/memory.current", "2147483648\n"),
    ]);
    let m = host_in(&v2.roots());
    assert_eq!(
        (m.limit, m.limit_used, m.usable()),
        (Some(gib(8)), Some(gib(2)), Some(gib(6)))
    );

    let v1 = Machine::new(&[
        MEMINFO,
        (
            "proc/self/cgroup",
            "5:cpu,cpuacct:/x\n4:memory:/docker/c0\n",
        ),
        (
            "sys/fs/cgroup/memory/docker/c0/memory.limit_in_bytes",
            "9223372036854771712\n",
        ),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5368709120\n"),
    ]);
    let m = host_in(&v1.roots());
    assert_eq!((m.limit, m.usable()), (Some(gib(4)), Some(Bytes::ZERO)));

    // A container's own view: the path of the host is not there, the root is.
    let inside = Machine::new(&[
        ("proc/self/cgroup", "0::/../../other\n"),
        ("sys/fs/cgroup/memory.max", "1073741824\n"),
    ]);
    assert_eq!(host_in(&inside.roots()).usable(), Some(gib(1)));
}

/// A management library with two devices, the second of which tells nothing but its handle.
#[cfg(all(unix, target_pointer_width = "64"))]
const FAKE_NVML: &str = r#"
#include <string.h>
typedef struct { unsigned long long total, free, used; } mem;
static int alive;
int nvmlInit_v2(void) { alive = 1; return 0; }
int nvmlShutdown(void) { alive = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = alive ? 3 : 0; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return i < 2 ? 0 : 15; }
static int put(char *out, unsigned len, const char *s) { if (strlen(s) >= len) return 7; strcpy(out, s); return 0; }
int nvmlDeviceGetName(void *d, char *out, unsigned len) { return d == (void *)1 ? put(out, len, "NVIDIA Test 80GB") : 3; }
int nvmlDeviceGetUUID(void *d, char *out, unsigned len) { return d == (void *)1 ? put(out, len, "GPU-0") : 3; }
int nvmlDeviceGetMemoryInfo(void *d, mem *m) { m->total = 80ull << 30; m->used = 1ull << 30; m->free = 79ull << 30; return d == (void *)1 ? 0 : 3; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = 9; *b = 0; return d == (void *)1 ? 0 : 3; }
int nvmlSystemGetDriverVersion(char *out, unsigned len) { return put(out, len, "550.1"); }
"#;

/// Compiles the library above and runs this very test again with it in the loader's path.
#[cfg(all(unix, target_pointer_width = "64"))]
#[test]
fn nvidias_library_is_loaded_where_it_is() {
    if std::env::var_os("PLIMSOLL_FAKE_NVML").is_some() {
        let list = detect_in(&Roots {
            nvml: true,
            ..Machine::new(&[]).roots()
        });
        assert_eq!(list.len(), 2, "{list:?}");
        assert_eq!(
            (list[0].name.as_str(), list[0].compute),
            ("NVIDIA Test 80GB", Some((9, 0)))
        );
        assert_eq!(
            (list[0].total, list[0].used, list[0].free),
            (Some(gib(80)), Some(gib(1)), Some(gib(79)))
        );
        assert_eq!(
            (list[0].uuid.as_deref(), list[0].driver.as_deref()),
            (Some("GPU-0"), Some("550.1"))
        );
        assert_eq!(
            (list[1].name.as_str(), list[1].total, list[1].compute),
            ("NVIDIA GPU", None, None)
        );
        return;
    }
    let dir = Machine::new(&[("nvml.c", FAKE_NVML)]);
    let library = dir.0.join("libnvidia-ml.so.1");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(dir.0.join("nvml.c"))
        .status();
    if !built.is_ok_and(|s| s.success()) {
        eprintln!("skipped: there is no C compiler");
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nvidias_library_is_loaded_where_it_is"])
        .env("PLIMSOLL_FAKE_NVML", "1")
        .env("LD_LIBRARY_PATH", &dir.0)
        .status()
        .unwrap();
    assert!(status.success());
}
