//! [`Quantised`]: where the numbers lie that a quantised matrix is stored as.
//!
//! Every published layout is three grids over outputs and inputs, of codes, scales and zero points. They differ in
//! what a number is, how many outputs and inputs share it, which axis comes first and along which several are packed
//! in one word. Which layout has which is known to `lower/quantised.rs` alone.

use plimsoll_model::Axis;
use plimsoll_units::{DType, GroupSize, SizeOverflow, WeightType};

/// A matrix whose elements are `scale × (code − zero)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantised {
    /// Outputs and inputs of what is stored.
    pub size: [u64; 2],
    /// A code for each output and input.
    pub codes: Grid,
    /// A scale for each output, or so many of them, and group of inputs.
    pub scales: Grid,
    /// What codes are less.
    pub zero: Zero,
    /// Where it is said which group each input is of, where that does not follow from its number.
    pub order: Option<Order>,
}

/// A tensor (I32) with the group of each input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What its name ends with.
    pub leaf: &'static str,
    /// Whether the config says that inputs of a group are together, in order.
    pub sorted: bool,
}

/// What codes are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// The same everywhere.
    Same(u8),
    /// A number of its own beside each scale.
    Stored(Grid),
}

/// Numbers in a stored tensor, one for each block of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// What the tensor's name ends with, after that of the module.
    pub leaf: &'static str,
    /// What the tensor is stored as.
    pub dtype: DType,
    /// What its numbers are.
    pub number: Number,
    /// Outputs and inputs that share one.
    pub block: [u64; 2],
    /// Whether a line of the tensor has one input's numbers, not one output's.
    pub inputs_first: bool,
}

/// What the numbers of a grid are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Those of the tensor's type.
    Plain,
    /// Powers of two, 127 added to the exponent.
    Power,
    /// Whole numbers of some bits, several in an element of the tensor.
    Whole(Packed),
    /// Four-bit floats: a sign, two bits of an exponent, one of a mantissa; two in a byte.
    E2m1(Packed),
}

/// Numbers that lie together in an element of a tensor, the first in the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Bits of a number: 2, 4 or 8.
    pub bits: u8,
    /// What changes from one to the next.
    pub along: Axis,
    /// Whether odd ones of eight come after the even ones (AWQ).
    pub interleaved: bool,
    /// Added to each element of the tensor first (GPTQ's zero points, which are stored less one).
    pub plus: u32,
}

impl Grid {
    /// How many numbers there are along outputs and inputs of a matrix of this size.
    #[must_use]
    pub fn numbers(&self, size: [u64; 2]) -> [u64; 2] {
        [0, 1].map(|i| size[i].div_ceil(self.block[i].max(1)))
    }

    /// Lines of the tensor and elements of a line, for a matrix of this size.
    #[must_use]
    pub fn shape(&self, size: [u64; 2]) -> [u64; 2] {
        let [mut out, mut inp] = self.numbers(size);
        if let Some(p) = self.packed() {
            match p.along {
                Axis::Out => out = out.div_ceil(self.per_element()),
                Axis::In => inp = inp.div_ceil(self.per_element()),
            }
        }
        if self.inputs_first {
            [inp, out]
        } else {
            [out, inp]
        }
    }

    /// How its numbers are packed, if they are.
    #[must_use]
    pub const fn packed(&self) -> Option<Packed> {
        match self.number {
            Number::Plain | Number::Power => None,
            Number::Whole(p) | Number::E2m1(p) => Some(p),
        }
    }

    /// Numbers in an element of the tensor.
    #[must_use]
    pub fn per_element(&self) -> u64 {
        self.packed().map_or(1, |p| {
            (self.dtype.block_bytes() * 8 / u64::from(p.bits.max(1))).max(1)
        })
    }

    /// The element that has the number at `index` along an axis, and from which bit on; for the axis along which nothing
    /// is packed the element is the number.
    #[must_use]
    pub fn place(&self, axis: Axis, index: u64) -> (u64, u32) {
        let Some(p) = self.packed().filter(|p| p.along == axis) else {
            return (index, 0);
        };
        let per = self.per_element();
        let at = index % per;
        let at = if p.interleaved {
            at / 2 + at % 2 * (per / 2)
        } else {
            at
        };
        // Below 32: a number lies inside its element.
        let shift = u32::try_from(at * u64::from(p.bits)).unwrap_or(0);
        (index / per, shift)
    }
}

impl Quantised {
    /// The grid of zero points, where they are stored.
    #[must_use]
    pub const fn zeros(&self) -> Option<&Grid> {
        match &self.zero {
            Zero::Same(_) => None,
            Zero::Stored(grid) => Some(grid),
        }
    }

    /// The tensor beside that of the codes whose name ends with `leaf`.
    #[must_use]
    pub fn beside(&self, codes: &str, leaf: &str) -> String {
        let module = codes.strip_suffix(self.codes.leaf).unwrap_or(codes);
        format!("{module}{leaf}")
    }

    /// The tensors beside that of the codes.
    pub fn others(&self, codes: &str) -> impl Iterator<Item = String> {
        let zeros = self.zeros().map(|g| g.leaf);
        let order = self.order.map(|o| o.leaf);
        let leaves = [Some(self.scales.leaf), zeros, order];
        leaves.into_iter().flatten().map(|l| self.beside(codes, l))
    }

    /// The groups in which it can be kept as it is: of four bits, inputs in order, scales of 16 bits.
    #[must_use]
    pub fn group_size(&self) -> Option<GroupSize> {
        let four = matches!(self.codes.number, Number::Whole(p) if p.bits == 4);
        let narrow = matches!(self.scales.dtype, DType::F16 | DType::Bf16);
        let sorted = self.order.is_none_or(|o| o.sorted);
        let [outputs, inputs] = self.scales.block;
        let size = GroupSize::of(inputs).filter(|_| outputs == 1);
        size.filter(|_| four && narrow && sorted)
    }

    /// Whether it can be kept as it is among e4m3 with a scale for each row and group of inputs: inputs of a group have one.
    #[must_use]
    pub fn is_f8(&self) -> bool {
        let floats = (self.codes.number, self.codes.dtype) == (Number::Plain, DType::F8E4m3);
        let [_, inputs] = self.scales.block;
        let whole = inputs.is_multiple_of(WeightType::SCALED) || inputs >= self.size[1];
        floats && whole && self.zero == Zero::Same(0) && self.order.is_none()
    }

    /// What it can be kept as without loss, but for what everything can.
    #[must_use]
    pub fn kept(&self) -> Option<WeightType> {
        let groups = self.group_size().map(WeightType::Grouped);
        groups.or_else(|| self.is_f8().then_some(WeightType::Fp8))
    }

    /// Groups of inputs that have a scale of their own.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.scales.numbers(self.size)[1]
    }

    /// Bytes that the codes of so many elements take.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn code_bytes(&self, elements: u64) -> Result<u64, SizeOverflow> {
        let bytes = elements.checked_mul(self.codes.dtype.block_bytes());
        Ok(bytes.ok_or(SizeOverflow)? / self.codes.per_element())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_published_packings() {
        let grid = |along, interleaved, bits, dtype| Grid {
            leaf: ".qweight",
            dtype,
            number: Number::Whole(Packed {
                bits,
                along,
                interleaved,
                plus: 0,
            }),
            block: [1, 1],
            inputs_first: true,
        };
        // AutoAWQ's pack order: nibble i of a word has column [0, 2, 4, 6, 1, 3, 5, 7][i].
        let awq = grid(Axis::Out, true, 4, DType::I32);
        for (nibble, column) in [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate() {
            let shift = 4 * u32::try_from(nibble).unwrap();
            assert_eq!(awq.place(Axis::Out, 16 + column), (2, shift));
        }
        assert_eq!(awq.place(Axis::In, 19), (19, 0));
        assert_eq!(awq.shape([24, 64]), [64, 3]);
        let gptq = grid(Axis::In, false, 8, DType::I32);
        assert_eq!(gptq.place(Axis::In, 7), (1, 24));
        assert_eq!(gptq.shape([24, 65]), [17, 24]);
        let bytes = grid(Axis::In, false, 4, DType::U8);
        assert_eq!(bytes.place(Axis::In, 7), (3, 4));
    }
}
