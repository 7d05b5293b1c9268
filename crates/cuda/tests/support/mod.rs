//! Numbers, memory of fibers that is written and read, and types that elements are kept as.

#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use plimsoll_cuda::{Address, Device, Fibers};

/// Numbers that look random, the same in every run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn word(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Between -1 and 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

pub(crate) fn to_bf16(x: f32) -> u16 {
    let b = x.to_bits();
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

pub(crate) fn of_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Of numbers below 65504 that are not smaller than normal ones.
pub(crate) fn to_f16(x: f32) -> u16 {
    let (b, sign) = (x.to_bits(), (x.to_bits() >> 16 & 0x8000) as u16);
    let size = b & 0x7fff_ffff;
    if size < 0x3880_0000 {
        return sign | (x.abs() * (1 << 24) as f32).round_ties_even() as u16;
    }
    sign | ((size - (112 << 23) + 0xfff + (size >> 13 & 1)) >> 13) as u16
}

pub(crate) fn of_f16(x: u16) -> f32 {
    let size = u32::from(x & 0x7fff);
    let number = f32::from_bits(size << 13) * f32::from_bits((127 + 112) << 23);
    if x & 0x8000 != 0 { -number } else { number }
}

pub(crate) fn bytes<T: Copy, const N: usize>(x: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    x.iter().flat_map(|x| f(*x)).collect()
}

pub(crate) fn put(device: &mut Fibers, bytes: &[u8]) -> Address {
    let at = device.allocate(bytes.len() as u64).unwrap();
    device.upload(at, bytes).unwrap();
    at
}

pub(crate) fn put_floats(device: &mut Fibers, x: &[f32]) -> Address {
    put(device, &bytes(x, f32::to_ne_bytes))
}

pub(crate) fn put_words(device: &mut Fibers, x: &[u32]) -> Address {
    put(device, &bytes(x, u32::to_ne_bytes))
}

pub(crate) fn words(device: &mut Fibers, at: Address, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * n];
    device.download(at, &mut bytes).unwrap();
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| u32::from_ne_bytes(*b))
        .collect()
}

pub(crate) fn floats(device: &mut Fibers, at: Address, n: usize) -> Vec<f32> {
    words(device, at, n)
        .into_iter()
        .map(f32::from_bits)
        .collect()
}

/// Whether `y` is near the sum of products in binary64, and the sizes of what was added say how near.
pub(crate) fn near(y: f32, start: f32, products: impl Iterator<Item = f64>, what: &str) {
    let (mut sum, mut size) = (f64::from(start), f64::from(start.abs()));
    for p in products {
        sum += p;
        size += p.abs();
    }
    // As many roundings as there are sums of sixteen, at most.
    assert!(
        (f64::from(y) - sum).abs() <= size * 4e-6,
        "{what}: {y} for {sum}"
    );
}

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kept {
    Bf16,
    F16,
    Fp8,
    Int8,
}

impl Kept {
    pub(crate) const ALL: [Self; 4] = [Self::Bf16, Self::F16, Self::Fp8, Self::Int8];

    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8 | Self::Int8 => 1,
        }
    }

    /// As queries are rounded.
    pub(crate) fn query(self, x: f32) -> f32 {
        match self {
            Self::F16 => of_f16(to_f16(x)),
            _ => of_bf16(to_bf16(x)),
        }
    }

    /// The bytes of each of a head's elements, what they stand for, and the scale that they have together.
    pub(crate) fn keep(self, x: &[f32]) -> (Vec<Vec<u8>>, Vec<f32>, f32) {
        let top = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let scale = top / 127.0;
        let one = |x: f32| match self {
            Self::Bf16 => (to_bf16(x).to_ne_bytes().to_vec(), of_bf16(to_bf16(x))),
            Self::F16 => (to_f16(x).to_ne_bytes().to_vec(), of_f16(to_f16(x))),
            Self::Fp8 => {
                // The nearest of all that there are.
                let off = |code: &u8| (of_fp8(*code) - x).abs();
                let codes = (0..=u8::MAX).filter(|c| c & 0x7f != 0x7f);
                let code = codes.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
                (vec![code], of_fp8(code))
            }
            Self::Int8 => {
                let whole = (x * (127.0 / top)).round_ties_even();
                (vec![(whole as i8).cast_unsigned()], whole * scale)
            }
        };
        let (bytes, values) = x.iter().map(|x| one(*x)).unzip();
        (bytes, values, scale)
    }
}

pub(crate) fn of_fp8(code: u8) -> f32 {
    let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match e {
        0 => m / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + m / 8.0) * 2_f32.powi(e - 7),
    };
    if code >> 7 == 1 { -size } else { size }
}
