//! What each kernel is told: one struct, the same in Rust and in CUDA, whose text is made here.

#![allow(unsafe_code)]

/// Makes argument structs for both languages.
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($type:ident $field:ident,)* })*) => {
        $(
            $(#[$doc])*
            #[allow(missing_docs, reason = "kernels say what they do with each")]
            #[derive(Clone, Copy, Debug, Default)]
            #[repr(C)]
            pub struct $name { $(pub $field: $type,)* }

            impl $name {
                /// Its bytes, as a device is given them.
                #[must_use]
                pub fn bytes(&self) -> &[u8] {
                    const { assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding") };
                    // SAFETY: plain numbers without padding, as was just seen.
                    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
                }
            }
        )*

        /// The same structs, as kernels' sources begin.
        pub const STRUCTS: &str = concat!(
            "typedef unsigned int u32;\ntypedef unsigned long long u64;\ntypedef unsigned long long ptr;\ntypedef float f32;\n",
            $("struct ", stringify!($name), " { ", $(stringify!($type), " ", stringify!($field), "; ",)* "};\n",)*
        );
    };
}

/// An address on the device.
#[allow(non_camel_case_types, reason = "as it is called in kernels")]
pub type ptr = u64;

// Wide fields first: no padding, so that every byte is one of a field.
arguments! {
    /// `embed`: rows of a packed table, by tokens; those from `from` on are there.
    Embed { ptr words, ptr tokens, ptr out, u32 form, u32 k, u32 width, u32 from, u32 rows, f32 scale, }
    /// `add_position`: rows of a packed table, by positions, added.
    AddPosition { ptr words, ptr positions, ptr x, u32 form, u32 k, u32 width, u32 offset, }
    /// `rotary`: cosines, then sines.
    Rotary { ptr positions, ptr frequencies, ptr divisors, ptr out, u32 pairs, f32 scale, }
    /// `norm`: heads of rows.
    Norm { ptr x, ptr out, ptr weight, ptr bias, u32 width, u32 from, u32 heads, u32 head, u32 layer, f32 eps, }
    /// `rotate`: heads of rows, in place.
    Rotate { ptr table, ptr x, u32 width, u32 from, u32 heads, u32 head, u32 pairs, u32 interleaved, }
    /// `activate`: `f(gate)`, or `f(gate) · up`.
    Activate { ptr gate, ptr up, ptr out, u32 gate_stride, u32 up_stride, u32 width, u32 kind, }
    /// `clamped_swiglu`: of pairs.
    ClampedSwiglu { ptr x, ptr out, u32 width, f32 limit, f32 alpha, u32 none, }
    /// `add`: `out += x · scale`.
    Add { ptr x, ptr out, u64 len, f32 scale, u32 none, }
    /// `add_weighted`: `out += scale · Σ weight · x`, or `out =`.
    AddWeighted { ptr x, ptr weights, ptr out, u32 width, u32 wide, u32 from, u32 count, f32 scale, u32 add, }
    /// `gather`: rows by their numbers.
    Gather { ptr x, ptr wanted, ptr out, u32 width, u32 none, }
    /// `cap`: in place.
    Cap { ptr x, u64 len, f32 cap, f32 scale, u32 capped, u32 none, }
    /// `route`: the experts of each row.
    Route { ptr logits, ptr bias, ptr out, u32 experts, u32 taken, u32 renormalise, u32 sigmoid, u32 groups, u32 groups_taken, u32 best, u32 none, }
    /// `linear_…`: rows of x, and for each the matrix that it meets.
    Linear { ptr words, ptr x, ptr y, ptr bias, ptr routes, u64 matrix_words, u32 form, u32 n, u32 k, u32 rows, u32 step, u32 share, u32 x_stride, u32 wide, u32 start, u32 none, }
    /// `quantise`: rows of inputs.
    Quantise { ptr x, ptr out, u32 k, u32 rows, }
    /// `write_kv_…`, `attend_…`, `combine`: a layer's keys and values.
    Kv { ptr pages, ptr seqs, ptr of, ptr tables, ptr q, ptr k, ptr v, ptr out, ptr sinks, ptr partials, u64 page, u64 layer, u32 slots, u32 q_heads, u32 kv_heads, u32 k_dim, u32 v_dim, u32 q_stride, u32 k_stride, u32 v_stride, u32 reach, u32 reach_of, u32 capped, u32 split, u32 splits, f32 scale, f32 cap, u32 none, }
    /// `write_latents_…`, `attend_latents_…`: a layer's latents.
    Latents { ptr pages, ptr seqs, ptr of, ptr tables, ptr q, ptr q_rope, ptr latent, ptr out, ptr partials, u64 page, u64 layer, u32 slots, u32 heads, u32 k_dim, u32 v_dim, u32 q_stride, u32 rope_stride, u32 latent_stride, u32 out_stride, u32 split, u32 splits, f32 scale, u32 none, }
    /// `convolve`: channels of sequences.
    Convolve { ptr pages, ptr seqs, ptr tables, ptr x, ptr weight, ptr bias, ptr out, u64 from, u32 page, u32 channels, u32 taps, u32 stride, u32 x_from, u32 none, }
    /// `scan`: rows of heads of sequences.
    Scan { ptr pages, ptr seqs, ptr tables, ptr x, ptr steps, ptr skip, ptr out, u64 from, u32 page, u32 heads, u32 rows, u32 cols, u32 groups, u32 x_stride, }
    /// `steps`: of a selective state space.
    Steps { ptr x, ptr bias, ptr decay, ptr out, u32 wide, u32 from, u32 heads, f32 least, f32 most, u32 none, }
    /// `shorten`: what rows of logits come to, each as its brief asks.
    Shorten { ptr logits, ptr briefs, ptr out, u32 vocab, u32 words, }
    /// `sum_ranks`: what all ranks have of some elements, one after the other.
    SumRanks { ptr parts, ptr out, u64 len, u32 ranks, u32 none, }
    /// `join_ranks`: rows of all ranks, one after the other, into rows of all elements.
    JoinRanks { ptr parts, ptr out, u32 rows, u32 each, u32 width, u32 none, }
    /// `copy_pages`: pairs of pages.
    CopyPages { ptr pages, ptr pairs, u64 bytes, }
    /// `move_pages`: pairs of a page and a place in the host's memory, to it or from there.
    MovePages { ptr pages, ptr pairs, ptr host, u64 bytes, u32 out, u32 none, }
}
