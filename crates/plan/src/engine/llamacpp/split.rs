//! [`Split`]: which device runs which layer.
//!
//! Source: `llama-model.cpp: load_tensors`: the first device whose cumulative share of free memory exceeds
//! `i / (layers + 1)`.

use plimsoll_units::Bytes;

/// Most devices of a process with shares of their own (`LLAMA_MAX_DEVICES`).
pub const MAX_DEVICES: usize = 16;

/// Devices among which layers are split, by the free memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// So many alike.
    Equal(u64),
    /// The free bytes of each; zeros after the last.
    Free([u64; MAX_DEVICES]),
}

impl Split {
    /// Devices with so much free memory each; `None` where there are none, too many, or one without any.
    #[must_use]
    pub fn of(free: &[Bytes]) -> Option<Self> {
        let mut all = [0_u64; MAX_DEVICES];
        if free.is_empty() || free.len() > all.len() || free.contains(&Bytes::ZERO) {
            return None;
        }
        for (place, bytes) in all.iter_mut().zip(free) {
            *place = bytes.get();
        }
        Some(Self::Free(all))
    }

    /// How many devices.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Equal(n) => *n,
            Self::Free(all) => all.iter().filter(|b| **b > 0).count() as u64,
        }
    }

    /// Which device runs layer `i` of `layers`; the output counts as layer `layers`.
    #[must_use]
    pub fn device_of(&self, i: u64, layers: u64) -> u64 {
        let places = layers.saturating_add(1);
        match self {
            Self::Equal(n) => (i.saturating_mul(*n) / places).min(n.saturating_sub(1)),
            Self::Free(all) => {
                let total: u128 = all.iter().map(|b| u128::from(*b)).sum();
                let mut before = 0_u128;
                let mut device = 0;
                for (d, bytes) in (0_u64..).zip(all.iter().filter(|b| **b > 0)) {
                    before += u128::from(*bytes);
                    device = d;
                    // The share of the devices so far, beside that of the layers so far.
                    if before.saturating_mul(places.into()) > total.saturating_mul(i.into()) {
                        break;
                    }
                }
                device
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_memory_is_an_equal_split() {
        for n in 1..=16_u64 {
            let free = vec![Bytes::new(7_000_000_007); usize::try_from(n).unwrap()];
            let split = Split::of(&free).unwrap();
            assert_eq!(split.count(), n);
            for layers in [1_u64, 2, 31, 32, 80, 127] {
                for i in 0..=layers {
                    let equal = Split::Equal(n).device_of(i, layers);
                    assert_eq!(split.device_of(i, layers), equal, "{n} {layers} {i}");
                }
            }
        }
    }

    #[test]
    fn more_memory_takes_more_layers() {
        let gib = |n: u64| Bytes::new(n << 30);
        let split = Split::of(&[gib(24), gib(8)]).unwrap();
        let devices: Vec<u64> = (0..=7).map(|i| split.device_of(i, 7)).collect();
        assert_eq!(devices, [0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(Split::of(&[]), None);
        assert_eq!(Split::of(&[gib(1), Bytes::ZERO]), None);
        assert_eq!(Split::of(&[gib(1); 17]), None);
    }
}
