//! Places in swap space: a hard cap, generations, and what a page was when it went there.

use crate::planted::{self, Bug};

/// There are not enough places: nothing was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("swap space has {free} free pages and {needed} are needed")]
pub struct SwapFull {
    /// Places that would be taken.
    pub needed: u32,
    /// Places there are.
    pub free: u32,
}

/// One place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Tables that point here, and transfers under way.
    pub(crate) refs: u32,
    pub(crate) generation: u32,
    /// The page that it was.
    pub(crate) page: u32,
    /// What it was.
    pub(crate) filled: u32,
    pub(crate) group: u8,
    /// Its content address, where it had one: a copy may still be cached on the device.
    pub(crate) address: Option<u128>,
}

/// Swap space of one device.
#[derive(Debug)]
pub(crate) struct SwapSpace {
    places: Vec<Place>,
    free: Vec<u32>,
    cap: u32,
}

impl SwapSpace {
    pub(crate) fn new(cap: u32) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            cap,
        }
    }

    pub(crate) fn cap(&self) -> u32 {
        self.cap
    }

    pub(crate) fn used(&self) -> u32 {
        u32::try_from(self.places.len() - self.free.len()).unwrap_or(self.cap)
    }

    pub(crate) fn free(&self) -> u32 {
        self.cap - self.used() + u32::from(planted::is(Bug::SwapCapExceeded))
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(crate) fn place(&self, slot: u32) -> &Place {
        &self.places[slot as usize]
    }

    pub(crate) fn place_mut(&mut self, slot: u32) -> &mut Place {
        &mut self.places[slot as usize]
    }

    /// A place that nobody holds yet; the caller has asked [`SwapSpace::free`] first.
    pub(crate) fn take(&mut self) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            debug_assert!(
                self.places.len() < self.cap as usize,
                "swap space is capped"
            );
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).unwrap_or(self.cap)
        });
        let place = &mut self.places[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        place.refs = 0;
        slot
    }

    /// One holder less; the last one frees the place.
    pub(crate) fn release(&mut self, slot: u32) {
        let place = &mut self.places[slot as usize];
        debug_assert!(place.refs > 0, "place {slot} released more often than held");
        place.refs -= 1;
        if place.refs == 0 {
            place.generation = place.generation.wrapping_add(1);
            self.free.push(slot);
        }
    }
}
