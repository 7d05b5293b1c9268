//! ggml's tensor types by number (`ggml.h`, enum `ggml_type`, as of 43 types).

use plimsoll_units::DType;

/// The type with this number.
///
/// # Errors
/// What is known of the number, to follow "has the type N,": removed types are named.
pub fn dtype(number: u32) -> Result<DType, String> {
    let removed =
        |name: &str, instead: &str| Err(format!("{name}, which ggml has removed: use {instead}"));
    Ok(match number {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        4 => return removed("q4_2", "q4_0 or q4_K"),
        5 => return removed("q4_3", "q4_1 or q4_K"),
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        9 => DType::Q8_1,
        10 => DType::Q2K,
        11 => DType::Q3K,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        15 => DType::Q8K,
        16 => DType::Iq2Xxs,
        17 => DType::Iq2Xs,
        18 => DType::Iq3Xxs,
        19 => DType::Iq1S,
        20 => DType::Iq4Nl,
        21 => DType::Iq3S,
        22 => DType::Iq2S,
        23 => DType::Iq4Xs,
        24 => DType::I8,
        25 => DType::I16,
        26 => DType::I32,
        27 => DType::I64,
        28 => DType::F64,
        29 => DType::Iq1M,
        30 => DType::Bf16,
        31 => return removed("q4_0_4_4", "q4_0, which is repacked when loaded"),
        32 => return removed("q4_0_4_8", "q4_0, which is repacked when loaded"),
        33 => return removed("q4_0_8_8", "q4_0, which is repacked when loaded"),
        34 => DType::Tq1_0,
        35 => DType::Tq2_0,
        36 => return removed("iq4_nl_4_4", "iq4_nl, which is repacked when loaded"),
        37 => return removed("iq4_nl_4_8", "iq4_nl, which is repacked when loaded"),
        38 => return removed("iq4_nl_8_8", "iq4_nl, which is repacked when loaded"),
        39 => DType::Mxfp4,
        40 => DType::Nvfp4,
        41 => DType::Q1_0,
        42 => DType::Q2_0,
        _ => return Err("which is unknown".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_ggmls() {
        // (number, elements per block, bytes per block) of every living type: `type_traits` in
        // ggml.c with the block structs of ggml-common.h.
        let table = [
            (0, 1, 4),
            (1, 1, 2),
            (2, 32, 18),
            (3, 32, 20),
            (6, 32, 22),
            (7, 32, 24),
            (8, 32, 34),
            (9, 32, 36),
            (10, 256, 84),
            (11, 256, 110),
            (12, 256, 144),
            (13, 256, 176),
            (14, 256, 210),
            (15, 256, 292),
            (16, 256, 66),
            (17, 256, 74),
            (18, 256, 98),
            (19, 256, 50),
            (20, 32, 18),
            (21, 256, 110),
            (22, 256, 82),
            (23, 256, 136),
            (24, 1, 1),
            (25, 1, 2),
            (26, 1, 4),
            (27, 1, 8),
            (28, 1, 8),
            (29, 256, 56),
            (30, 1, 2),
            (34, 256, 54),
            (35, 256, 66),
            (39, 32, 17),
            (40, 64, 36),
            (41, 128, 18),
            (42, 64, 18),
        ];
        for (number, elements, bytes) in table {
            let d = dtype(number).unwrap();
            assert_eq!(
                (d.block_elements(), d.block_bytes()),
                (elements, bytes),
                "{d}"
            );
        }
        let living = (0..43).filter(|&n| dtype(n).is_ok()).count();
        assert_eq!(living, table.len());
        assert!(dtype(31).unwrap_err().contains("q4_0_4_4"));
        assert!(dtype(43).is_err() && dtype(u32::MAX).is_err());
    }
}
