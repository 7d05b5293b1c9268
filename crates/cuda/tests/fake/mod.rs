//! A library that stands in for NCCL (`nccl.c`), compiled for a test.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A library of its own, whose file is gone after the test.
pub(crate) struct Library(PathBuf);

impl Library {
    /// One of which the message numbered so that rank 1 would send fails, if one does.
    pub(crate) fn new(fails: Option<u32>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plimsoll-nccl-{}-{n}.so", std::process::id());
        let path = std::env::temp_dir().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda/tests/fake/nccl.c");
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-shared", "-fPIC", "-pthread", "-Wall", "-Werror", "-o"])
            .args([&path, &source])
            .args(fails.map(|n| format!("-DFAILS={n}")));
        assert!(cc.status().unwrap().success(), "{cc:?}");
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
