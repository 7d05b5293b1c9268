//! [`Lanes`]: sixteen f32 side by side. Every level computes the same sixteen results, bit by bit, so a kernel
//! is written once and made for each level; arrays of sixteen are the oracle.

#![allow(unsafe_code)]

use crate::bf16::f32_from_bf16;
use crate::cached::{F8, F16};
use crate::f8::{LACK, f32_from_f8, finite_f8};
use crate::f16::f32_from_f16;

/// Elements side by side.
pub(crate) const LANES: usize = 16;

/// Where an e4m3 has its bits once it was shifted from the top of a word by four.
#[cfg(target_arch = "x86_64")]
const F8_PLACES: i32 = 0x87f0_0000_u32.cast_signed();

/// Sixteen f32.
///
/// # Safety
/// Whoever makes one must run where the processor has the instructions of its level. Loads and stores take
/// slices of at least sixteen elements, which they check.
pub(crate) trait Lanes: Copy {
    fn splat(x: f32) -> Self;
    fn load(x: &[f32]) -> Self;
    fn load_bf16(x: &[u16]) -> Self;
    fn load_f16(x: &[F16]) -> Self;
    fn load_f8(x: &[F8]) -> Self;
    fn load_i8(x: &[i8]) -> Self;
    /// Of each of sixteen words the byte of this number, the lowest first: e4m3 that are numbers.
    fn load_bytes_f8<const BYTE: usize>(x: &[u32]) -> Self;
    fn store(self, x: &mut [f32]);
    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// The larger; `b` where either is NaN.
    fn max(self, b: Self) -> Self;
    /// The smaller; `b` where either is NaN.
    fn min(self, b: Self) -> Self;
    /// 2 to the power of whole numbers between −126 and 127.
    fn exp2_whole(self) -> Self;

    /// Whether one register holds all of them, and there are 32 such.
    const WIDE: bool = false;

    /// The largest, NaN aside; negative infinity where there is none.
    #[inline(always)]
    fn largest(self) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        self.array().into_iter().fold(f32::NEG_INFINITY, larger)
    }

    fn array(self) -> [f32; LANES] {
        let mut a = [0.0; LANES];
        self.store(&mut a);
        a
    }

    /// What `x` has of sixteen elements, and `rest` for those that it has not.
    #[inline(always)]
    fn load_some(x: &[f32], rest: f32) -> Self {
        if x.len() >= LANES {
            return Self::load(x);
        }
        let mut a = [rest; LANES];
        a[..x.len()].copy_from_slice(x);
        Self::load(&a)
    }

    /// Stores as many as `x` takes.
    #[inline(always)]
    fn store_some(self, x: &mut [f32]) {
        if x.len() >= LANES {
            self.store(x);
        } else {
            let n = x.len();
            x.copy_from_slice(&self.array()[..n]);
        }
    }

    /// The lanes added up, first to last.
    #[inline(always)]
    fn sum(self) -> f32 {
        self.array().into_iter().fold(0.0, |a, b| a + b)
    }

    /// e to the power of each, to about one unit in the last place; below −87 and above 88 as there.
    ///
    /// x = n ln 2 + r, and a polynomial for e^r (Cephes, `expf`).
    #[inline(always)]
    fn exp(self) -> Self {
        // 1.5 × 2^23: adding it rounds to whole numbers.
        const ROUND: f32 = 12_582_912.0;
        let s = Self::splat;
        let x = self.max(s(-87.0)).min(s(88.0));
        let n = x.fma(s(std::f32::consts::LOG2_E), s(ROUND)).sub(s(ROUND));
        let r = n.fma(s(-0.693_359_4), x);
        let r = n.fma(s(2.121_944_4e-4), r);
        let p = s(1.987_569_1e-4)
            .fma(r, s(1.398_199_9e-3))
            .fma(r, s(8.333_452e-3))
            .fma(r, s(4.166_579_6e-2))
            .fma(r, s(1.666_666_6e-1))
            .fma(r, s(0.5));
        let e = p.fma(r.mul(r), r).add(s(1.0));
        e.mul(n.exp2_whole())
    }

    /// The hyperbolic tangent.
    #[inline(always)]
    fn tanh(self) -> Self {
        // 1 − 2 / (e^2x + 1)
        let s = Self::splat;
        let e = self.add(self).exp();
        s(1.0).sub(s(2.0).div(e.add(s(1.0))))
    }
}

/// Sixteen f32 in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Lanes for Scalar {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        Self(std::array::from_fn(|i| x[i]))
    }
    #[inline(always)]
    fn load_bf16(x: &[u16]) -> Self {
        Self(std::array::from_fn(|i| f32_from_bf16(x[i])))
    }
    #[inline(always)]
    fn load_f16(x: &[F16]) -> Self {
        Self(std::array::from_fn(|i| f32_from_f16(x[i].0)))
    }
    #[inline(always)]
    fn load_f8(x: &[F8]) -> Self {
        Self(std::array::from_fn(|i| f32_from_f8(x[i].0)))
    }
    #[inline(always)]
    fn load_i8(x: &[i8]) -> Self {
        Self(std::array::from_fn(|i| f32::from(x[i])))
    }
    #[inline(always)]
    fn load_bytes_f8<const BYTE: usize>(x: &[u32]) -> Self {
        Self(std::array::from_fn(|i| {
            finite_f8((x[i] >> (8 * BYTE)) as u8)
        }))
    }
    #[inline(always)]
    fn store(self, x: &mut [f32]) {
        x[..LANES].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "whole numbers below 128")]
    fn exp2_whole(self) -> Self {
        Self(
            self.0
                .map(|n| f32::from_bits(((n as i32 + 127) << 23).cast_unsigned())),
        )
    }
}

/// Two registers of eight.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use super::{F8, F8_PLACES, F16, LACK, LANES, Lanes};
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY, of all blocks below: made only where the processor has AVX2, FMA and F16C; slices are checked to hold
    // sixteen elements.
    impl Lanes for Avx2 {
        #[inline(always)]
        fn largest(self) -> f32 {
            // Of two numbers the second is taken where one is NaN.
            unsafe {
                let none = _mm256_set1_ps(f32::NEG_INFINITY);
                let m = _mm256_max_ps(_mm256_max_ps(self.0, none), _mm256_max_ps(self.1, none));
                let m = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m));
                let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
                _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps::<1>(m, m)))
            }
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            let v = unsafe { _mm256_set1_ps(x) };
            Self(v, v)
        }
        #[inline(always)]
        fn load(x: &[f32]) -> Self {
            let x = x[..LANES].as_ptr();
            unsafe { Self(_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))) }
        }
        #[inline(always)]
        fn load_bf16(x: &[u16]) -> Self {
            let x = x[..LANES].as_ptr();
            let half = |p: *const u16| unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self(half(x), half(unsafe { x.add(8) }))
        }
        #[inline(always)]
        fn load_f16(x: &[F16]) -> Self {
            let x = x[..LANES].as_ptr();
            let half = |p: *const F16| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) };
            Self(half(x), half(unsafe { x.add(8) }))
        }
        #[inline(always)]
        fn load_f8(x: &[F8]) -> Self {
            let x = x[..LANES].as_ptr();
            // As `f32_from_f8`, lane by lane.
            let half = |p: *const F8| unsafe {
                let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let nan = _mm256_set1_epi32(0x7f);
                let rest = _mm256_and_si256(codes, nan);
                let sign = _mm256_slli_epi32::<24>(_mm256_xor_si256(codes, rest));
                let number = _mm256_mul_ps(
                    _mm256_castsi256_ps(_mm256_slli_epi32::<20>(rest)),
                    _mm256_castsi256_ps(_mm256_set1_epi32((127 + 120) << 23)),
                );
                let special =
                    _mm256_slli_epi32::<22>(_mm256_srli_epi32::<23>(_mm256_cmpeq_epi32(rest, nan)));
                let bits = _mm256_or_si256(_mm256_castps_si256(number), special);
                _mm256_castsi256_ps(_mm256_or_si256(bits, sign))
            };
            Self(half(x), half(unsafe { x.add(8) }))
        }
        #[inline(always)]
        fn load_i8(x: &[i8]) -> Self {
            let x = x[..LANES].as_ptr();
            let half = |p: *const i8| unsafe {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
            };
            Self(half(x), half(unsafe { x.add(8) }))
        }
        #[inline(always)]
        fn load_bytes_f8<const BYTE: usize>(x: &[u32]) -> Self {
            let x = x[..LANES].as_ptr();
            // The byte comes to the top, its sign stays there and its other bits go where those of an f32 are.
            let half = |p: *const u32| unsafe {
                let words = _mm256_loadu_si256(p.cast());
                let top = match BYTE {
                    0 => _mm256_slli_epi32::<24>(words),
                    1 => _mm256_slli_epi32::<16>(words),
                    2 => _mm256_slli_epi32::<8>(words),
                    _ => words,
                };
                let places = _mm256_set1_epi32(F8_PLACES);
                let bits = _mm256_and_si256(_mm256_srai_epi32::<4>(top), places);
                _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(LACK))
            };
            Self(half(x), half(unsafe { x.add(8) }))
        }
        #[inline(always)]
        fn store(self, x: &mut [f32]) {
            let x = x[..LANES].as_mut_ptr();
            unsafe {
                _mm256_storeu_ps(x, self.0);
                _mm256_storeu_ps(x.add(8), self.1);
            }
        }
        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            unsafe {
                Self(
                    _mm256_fmadd_ps(self.0, b.0, c.0),
                    _mm256_fmadd_ps(self.1, b.1, c.1),
                )
            }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            unsafe { Self(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            unsafe { Self(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            unsafe { Self(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            unsafe { Self(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn exp2_whole(self) -> Self {
            let half = |n: __m256| unsafe {
                let i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(i))
            };
            Self(half(self.0), half(self.1))
        }
    }
}

/// One register of sixteen.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use super::{F8, F8_PLACES, F16, LACK, LANES, Lanes};
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY, of all blocks below: made only where the processor has AVX-512 F, BW and VL; slices are checked to
    // hold sixteen elements.
    impl Lanes for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        fn largest(self) -> f32 {
            // Of two numbers the second is taken where one is NaN.
            unsafe {
                _mm512_reduce_max_ps(_mm512_max_ps(self.0, _mm512_set1_ps(f32::NEG_INFINITY)))
            }
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        fn load(x: &[f32]) -> Self {
            let x = x[..LANES].as_ptr();
            unsafe { Self(_mm512_loadu_ps(x)) }
        }
        #[inline(always)]
        fn load_bf16(x: &[u16]) -> Self {
            let x = x[..LANES].as_ptr();
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        fn load_f16(x: &[F16]) -> Self {
            let x = x[..LANES].as_ptr();
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(x.cast()))) }
        }
        #[inline(always)]
        fn load_f8(x: &[F8]) -> Self {
            let x = x[..LANES].as_ptr();
            // As `f32_from_f8`, lane by lane.
            unsafe {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.cast()));
                let nan = _mm512_set1_epi32(0x7f);
                let rest = _mm512_and_si512(codes, nan);
                let sign = _mm512_slli_epi32::<24>(_mm512_xor_si512(codes, rest));
                let number = _mm512_mul_ps(
                    _mm512_castsi512_ps(_mm512_slli_epi32::<20>(rest)),
                    _mm512_castsi512_ps(_mm512_set1_epi32((127 + 120) << 23)),
                );
                let special =
                    _mm512_maskz_set1_epi32(_mm512_cmpeq_epi32_mask(rest, nan), 0x7fc0_0000);
                let bits = _mm512_or_si512(_mm512_castps_si512(number), special);
                Self(_mm512_castsi512_ps(_mm512_or_si512(bits, sign)))
            }
        }
        #[inline(always)]
        fn load_i8(x: &[i8]) -> Self {
            let x = x[..LANES].as_ptr();
            unsafe {
                let wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(x.cast()));
                Self(_mm512_cvtepi32_ps(wide))
            }
        }
        #[inline(always)]
        fn load_bytes_f8<const BYTE: usize>(x: &[u32]) -> Self {
            let x = x[..LANES].as_ptr();
            // As in half as many lanes.
            unsafe {
                let words = _mm512_loadu_si512(x.cast());
                let top = match BYTE {
                    0 => _mm512_slli_epi32::<24>(words),
                    1 => _mm512_slli_epi32::<16>(words),
                    2 => _mm512_slli_epi32::<8>(words),
                    _ => words,
                };
                let places = _mm512_set1_epi32(F8_PLACES);
                let bits = _mm512_and_si512(_mm512_srai_epi32::<4>(top), places);
                Self(_mm512_mul_ps(
                    _mm512_castsi512_ps(bits),
                    _mm512_set1_ps(LACK),
                ))
            }
        }
        #[inline(always)]
        fn store(self, x: &mut [f32]) {
            let x = x[..LANES].as_mut_ptr();
            unsafe { _mm512_storeu_ps(x, self.0) }
        }
        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            unsafe { Self(_mm512_sub_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            unsafe { Self(_mm512_div_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            unsafe { Self(_mm512_max_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            unsafe { Self(_mm512_min_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn exp2_whole(self) -> Self {
            unsafe {
                let i = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(i)))
            }
        }
    }
}

/// Calls a kernel that is generic over [`Lanes`] for a level.
macro_rules! at_level {
    ($level:expr, $kernel:ident($($arg:expr),* $(,)?)) => {
        match $level {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Level::Avx512 => {
                // SAFETY: this level is chosen only where the processor has it.
                unsafe { $kernel::avx512($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Level::Avx2 => {
                // SAFETY: as above.
                unsafe { $kernel::avx2($($arg),*) }
            }
            _ => $kernel::scalar($($arg),*),
        }
    };
}

/// Makes a kernel, generic over [`Lanes`], for every level: a module of its name with one function for each.
macro_rules! for_levels {
    ($name:ident, $generic:ident $(<$($more:ident),*>)? ($($arg:ident: $type:ty),* $(,)?)) => {
        mod $name {
            #[allow(unused_imports, reason = "not every kernel names types of its module")]
            use super::*;

            pub(super) fn scalar($($arg: $type),*) {
                $crate::cpu::fused(
                    #[inline(always)]
                    || $generic::<$crate::lanes::Scalar $($(, $more)*)?>($($arg),*),
                );
            }

            /// # Safety
            /// AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            pub(super) unsafe fn avx2($($arg: $type),*) {
                $generic::<$crate::lanes::avx2::Avx2 $($(, $more)*)?>($($arg),*)
            }

            /// # Safety
            /// AVX-512 F, BW and VL.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
            pub(super) unsafe fn avx512($($arg: $type),*) {
                $generic::<$crate::lanes::avx512::Avx512 $($(, $more)*)?>($($arg),*)
            }
        }
    };
}

pub(crate) use {at_level, for_levels};
