//! With `fibers`: compiles the kernels for this machine's processors; with AddressSanitizer where PLIMSOLL_ASAN is 1.

#[cfg(feature = "fibers")]
#[allow(dead_code, unreachable_pub, reason = "only their text is used here")]
#[path = "src/args.rs"]
mod args;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(plimsoll_asan)");
    #[cfg(feature = "fibers")]
    fibers();
}

#[cfg(feature = "fibers")]
fn fibers() {
    const PARTS: [&str; 9] = [
        "prelude.cuh",
        "rows.cu",
        "linear.cu",
        "linear_staged.cu",
        "linear_mma.cu",
        "attention.cu",
        "attention_mma.cu",
        "state.cu",
        "sample.cu",
    ];
    println!("cargo:rerun-if-env-changed=PLIMSOLL_ASAN");
    println!("cargo:rerun-if-changed=src/args.rs");
    println!("cargo:rerun-if-changed=cu");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let probes = std::path::Path::new("cu/probes.cuh");
    std::fs::copy(probes, out.join("probes.cuh")).expect("kernels that try fibers");
    let mut text = args::STRUCTS.to_owned();
    for part in PARTS {
        // Errors and sanitizers name the file that they are about.
        let path = std::path::Path::new("cu").join(part);
        let path = path.canonicalize().expect("a source of kernels");
        text.push_str(&format!("#include \"{}\"\n", path.display()));
    }
    std::fs::write(out.join("kernels.cuh"), text)
        .expect("the folder that cargo gives can be written");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(true)
        .include(&out)
        .file("cu/fibers.cpp")
        // As on the device: every operation is rounded by itself unless it is written as a fused one.
        .flag("-ffp-contract=off")
        .flag_if_supported("-Wno-unused-function")
        // For the other compiler.
        .flag_if_supported("-Wno-unknown-pragmas")
        .flag_if_supported("-fno-strict-aliasing");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|a| a == "x86_64") {
        // Else each fused multiply-add is a call.
        build.flag_if_supported("-mfma");
    }
    let asan = std::env::var("PLIMSOLL_ASAN").is_ok_and(|v| v == "1");
    if asan {
        build
            .flag("-fsanitize=address,alignment")
            .flag("-fno-sanitize-recover=alignment")
            .flag("-fno-omit-frame-pointer");
    }
    build.compile("plimsoll_fibers");
    if asan {
        // Programs find it before other libraries where it is preloaded (`tools/asan.sh`).
        println!("cargo:rustc-link-lib=dylib=asan");
        println!("cargo:rustc-link-lib=dylib=ubsan");
        println!("cargo:rustc-cfg=plimsoll_asan");
    }
}
