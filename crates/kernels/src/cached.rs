//! [`Cached`]: what keys and values are kept as.
//!
//! **int8** is symmetric. A head's part of a token's key has one f32 scale, its largest element over 127, and so has its
//! value: it is written with the elements, once, and depends on nothing else. Kernels add products of whole numbers
//! and multiply by the scale after: a score once, a weight once, not every element.

use crate::attention;
use crate::bf16::{bf16_from_f32, f32_from_bf16};
use crate::cpu::Level;
use crate::f8::{f8_from_f32, f32_from_f8};
use crate::f16::{f16_from_f32, f32_from_f16};
use crate::lanes::Lanes;
use crate::latent;
use crate::linear;

/// An element of cached keys and values: f32, bfloat16 (`u16`), [`F16`], [`F8`], or a whole number with a
/// scale (`i8`).
pub trait Cached: Copy + Send + Sync + sealed::Sealed {
    /// Elements of a page that a scale takes; 0 where there are none.
    const SCALE: usize;
    /// The scale of some elements, and what each is multiplied by before it is [narrow](Self::narrow).
    #[doc(hidden)]
    fn scale(x: &[f32]) -> (f32, f32);
    #[doc(hidden)]
    fn narrow(x: f32) -> Self;
    #[doc(hidden)]
    fn wide(self) -> f32;
}

/// One whose elements need no scale: what latents are kept as.
pub trait Unscaled: Cached + sealed::Latents {}

/// An IEEE half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

/// A float8 e4m3, as it is: without a scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F8(pub u8);

mod sealed {
    use super::{Lanes, Level, attention, latent};

    pub trait Sealed: Sized + Default {
        #[allow(private_bounds, private_interfaces, reason = "sealed")]
        fn load<V: Lanes>(x: &[Self]) -> V;
        #[allow(private_interfaces, reason = "sealed")]
        fn attend(level: Level, item: &attention::Item<'_, Self>);
    }

    pub trait Latents: Sized {
        #[allow(private_interfaces, reason = "sealed")]
        fn attend_latents(level: Level, item: &latent::Item<'_, Self>);
    }
}

macro_rules! unscaled {
    ($type:ty, $narrow:expr, $wide:expr, $load:ident, $attend:ident) => {
        impl Cached for $type {
            const SCALE: usize = 0;
            #[inline(always)]
            fn scale(_: &[f32]) -> (f32, f32) {
                (1.0, 1.0)
            }
            #[inline(always)]
            fn narrow(x: f32) -> Self {
                $narrow(x)
            }
            #[inline(always)]
            fn wide(self) -> f32 {
                $wide(self)
            }
        }

        impl sealed::Sealed for $type {
            #[inline(always)]
            #[allow(private_bounds, private_interfaces, reason = "sealed")]
            fn load<V: Lanes>(x: &[Self]) -> V {
                V::$load(x)
            }
            #[allow(private_interfaces, reason = "sealed")]
            fn attend(level: Level, item: &attention::Item<'_, Self>) {
                attention::$attend(level, item);
            }
        }

        impl sealed::Latents for $type {
            #[allow(private_interfaces, reason = "sealed")]
            fn attend_latents(level: Level, item: &latent::Item<'_, Self>) {
                latent::$attend(level, item);
            }
        }

        impl Unscaled for $type {}
    };
}

unscaled!(f32, |x| x, |x| x, load, attend_f32);
unscaled!(u16, bf16_from_f32, f32_from_bf16, load_bf16, attend_bf16);
unscaled!(
    F16,
    |x| F16(f16_from_f32(x)),
    |x: F16| f32_from_f16(x.0),
    load_f16,
    attend_f16
);
unscaled!(
    F8,
    |x| F8(f8_from_f32(x)),
    |x: F8| f32_from_f8(x.0),
    load_f8,
    attend_f8
);

/// Makes `item_of`, generic over [`Lanes`] and [`Cached`], for types and every level: a function for each type that takes a
/// level and an `Item`.
macro_rules! for_types {
    ($($attend:ident, $item:ident, $type:ident;)*) => {$(
        pub(crate) fn $attend(level: Level, item: &Item<'_, $type>) {
            at_level!(level, $item(item));
        }
        for_levels!($item, item_of<$type>(item: &Item<'_, $type>));
    )*};
}

pub(crate) use for_types;

impl Cached for i8 {
    const SCALE: usize = size_of::<f32>();
    #[inline(always)]
    fn scale(x: &[f32]) -> (f32, f32) {
        linear::scale(x)
    }
    /// The nearest whole number, of numbers between −127 and 127.
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let [low, ..] = linear::whole(x).to_le_bytes();
        low.cast_signed()
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from(self)
    }
}

impl sealed::Sealed for i8 {
    #[inline(always)]
    #[allow(private_bounds, private_interfaces, reason = "sealed")]
    fn load<V: Lanes>(x: &[Self]) -> V {
        V::load_i8(x)
    }
    #[allow(private_interfaces, reason = "sealed")]
    fn attend(level: Level, item: &attention::Item<'_, Self>) {
        attention::attend_i8(level, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::numbers;

    #[test]
    fn whole_numbers_are_within_half_a_scale_and_the_largest_is_exact() {
        for (seed, size) in [(1, 1.0), (2, 1e-20), (3, 1e20), (4, 65_504.0)] {
            let x: Vec<f32> = numbers(seed, 64).iter().map(|x| x * size).collect();
            let (scale, by) = i8::scale(&x);
            let top = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            assert_eq!(scale.to_bits(), (top / 127.0).to_bits());
            for x in &x {
                let q = i8::narrow(x * by);
                let error = (f64::from(q) * f64::from(scale) - f64::from(*x)).abs();
                assert!(error <= 0.5001 * f64::from(scale), "{x}: {q} x {scale}");
                assert!(
                    q != i8::MIN && (x.abs() < top || q.abs() == 127),
                    "{x}: {q}"
                );
            }
        }
    }

    #[test]
    fn ties_go_to_even_whole_numbers() {
        let (scale, by) = i8::scale(&[127.0, 0.0]);
        assert_eq!((scale, by), (1.0, 1.0));
        for (x, want) in [(0.5, 0), (1.5, 2), (-2.5, -2), (-3.5, -4), (126.5, 126)] {
            assert_eq!(i8::narrow(x), want, "{x}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_shows() {
        for zeros in [[0.0; 3], [-0.0; 3], [f32::from_bits(1); 3], [1e-31; 3]] {
            let (scale, by) = i8::scale(&zeros);
            assert!(scale.is_finite() && by == 0.0);
            assert_eq!(zeros.map(|x| i8::narrow(x * by)), [0; 3]);
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(i8::scale(&[1.0, bad, 2.0]).0.is_nan());
        }
    }
}
