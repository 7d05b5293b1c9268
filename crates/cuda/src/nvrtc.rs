//! Kernels compiled by NVRTC, which needs no GPU.

#![allow(unsafe_code)]

use std::ffi::CString;

use cudarc::nvrtc::{result, sys};

/// Architectures that kernels are known to compile for, as NVRTC names them after `sm_`.
pub const ARCHITECTURES: [&str; 8] = ["75", "80", "86", "89", "90", "90a", "100a", "120"];

/// Why kernels are not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// There is no NVRTC.
    #[error(
        "the CUDA runtime compiler (libnvrtc.so) is not on the loader's path: install the CUDA toolkit, or \
         `pip install nvidia-cuda-nvrtc` and add its lib folder to LD_LIBRARY_PATH"
    )]
    Missing,
    /// It does not compile them.
    #[error("the CUDA runtime compiler cannot make kernels for sm_{architecture}: {log}")]
    Failed {
        /// For which.
        architecture: String,
        /// What it said.
        log: String,
    },
}

/// Machine code of the kernels for an architecture: `90` is sm_90.
///
/// # Errors
/// [`CompileError`].
pub fn compile(source: &str, architecture: &str) -> Result<Vec<u8>, CompileError> {
    let failed = |log: String| CompileError::Failed {
        architecture: architecture.to_owned(),
        log,
    };
    // SAFETY: looks for a library that has no effect but to be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::Missing);
    }
    let text = CString::new(source).map_err(|e| failed(e.to_string()))?;
    let program = result::create_program(&text, Some(c"plimsoll.cu"))
        .map_err(|e| failed(format!("{e:?}")))?;
    // Nothing is contracted, flushed or approximated: kernels say themselves what is fused.
    let options = [
        format!("--gpu-architecture=sm_{architecture}"),
        "--fmad=false".to_owned(),
        "--std=c++17".to_owned(),
        "--generate-line-info".to_owned(),
    ];
    // SAFETY: the program was created above, and is destroyed below, once.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let code = match compiled {
            Ok(()) => cubin(program).map_err(|e| failed(format!("{e:?}"))),
            Err(e) => {
                let log = result::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.iter().map(|c| c.to_le_bytes()[0]).collect();
                let log = String::from_utf8_lossy(&log);
                Err(failed(format!("{e:?}\n{}", log.trim_end_matches('\0'))))
            }
        };
        // What it was asked for is here: that it cannot be destroyed does no harm.
        let _ = result::destroy_program(program);
        code
    }
}

/// Which compiler there is: what it makes differs from version to version.
///
/// # Errors
/// [`CompileError::Missing`].
pub fn compiler_version() -> Result<String, CompileError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: as above; it writes two numbers.
    unsafe {
        if !sys::is_culib_present() {
            return Err(CompileError::Missing);
        }
        // Where it does not say, it is called 0.0.
        let _ = sys::nvrtcVersion(&raw mut major, &raw mut minor);
    }
    Ok(format!("{major}.{minor}"))
}

/// # Safety
/// A program that was compiled.
unsafe fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut len = 0;
    // SAFETY: the caller's; there is room for as many bytes as it says.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut len).result()?;
        let mut code = vec![0_u8; len];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
        Ok(code)
    }
}
