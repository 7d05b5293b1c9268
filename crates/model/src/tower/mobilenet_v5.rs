//! MobileNet V5 (`mobilenetv5_300m_enc`), Gemma 3n's vision tower: it has no sizes in a config.
//!
//! Source: timm `models/mobilenetv5.py` (`_gen_mobilenet_v5`) and `models/_efficientnet_blocks.py`.

use crate::{Encoder, ModelError, Role, Shard, SpecBuilder};

/// Channels of its output, once all scales are joined.
pub(crate) const WIDTH: u64 = 2048;

/// A block: what it makes of the channels that reach it.
#[derive(Clone, Copy, Debug)]
enum Block {
    /// One 3 x 3 convolution that widens, one that does not.
    Edge { out: u64, widen: u64 },
    /// Two convolutions of single points, behind one of each channel alone, and around another; kernels of 0 are not there.
    Inverted {
        out: u64,
        widen: u64,
        start: u64,
        mid: u64,
    },
    /// Heads that share one key and one value, of the size given, over fewer points where `shrink` is set.
    Attention { heads: u64, size: u64, shrink: bool },
}

/// All blocks, by stage.
fn stages() -> [Vec<Block>; 4] {
    use Block::{Attention, Edge, Inverted};
    let feed = |out, widen| Inverted {
        out,
        widen,
        start: 0,
        mid: 0,
    };
    let local = |out, start| Inverted {
        out,
        widen: 4,
        start,
        mid: 0,
    };
    let pairs = |count: usize, attention: Block, out: u64| [attention, feed(out, 2)].repeat(count);
    let middle = Attention {
        heads: 12,
        size: 64,
        shrink: true,
    };
    let last = Attention {
        heads: 16,
        size: 96,
        shrink: false,
    };
    [
        vec![Edge { out: 128, widen: 4 }; 3],
        [
            vec![Inverted {
                out: 256,
                widen: 6,
                start: 3,
                mid: 5,
            }],
            [5, 3, 5, 3].map(|k| local(256, k)).to_vec(),
        ]
        .concat(),
        [
            vec![Inverted {
                out: 640,
                widen: 6,
                start: 5,
                mid: 5,
            }],
            vec![local(640, 5); 7],
            vec![feed(640, 1)],
            pairs(14, middle, 640),
        ]
        .concat(),
        [
            vec![Inverted {
                out: 1280,
                widen: 6,
                start: 5,
                mid: 5,
            }],
            pairs(19, last, 1280),
        ]
        .concat(),
    ]
}

/// All tensors, and the encoder, whose output is so many tokens of an image.
///
/// # Errors
/// None; it is what describes models.
pub(crate) fn tensors(b: &mut SpecBuilder, tokens: u64) -> Result<(), ModelError> {
    b.encoder(Encoder {
        hidden: WIDTH,
        layers: stages().iter().map(|s| s.len() as u64).sum(),
        intermediate: 2 * WIDTH,
        patches: Some(tokens),
        // It begins with convolutions of single points.
        patch_elements: 3,
        tokens_per_image: Some(tokens),
    });
    b.scope("model.vision_tower.timm_model.", |b| {
        let stem = 64;
        b.tensor(
            Role::Encoder,
            "conv_stem.conv.bias",
            &[stem],
            Shard::Replicated,
        );
        convolution(b, "conv_stem.conv", [stem, 3, 3]);
        gain(b, "conv_stem.bn.weight", stem);
        let (mut inp, mut joined) = (stem, 0);
        for (s, stage) in stages().iter().enumerate() {
            for (i, block) in stage.iter().enumerate() {
                inp = one(b, &format!("blocks.{s}.{i}."), *block, inp);
            }
            // The last two stages' scales are joined.
            joined += if s >= 2 { inp } else { 0 };
        }
        convolution(b, "msfa.ffn.pw_exp.conv", [2 * joined, joined, 1]);
        gain(b, "msfa.ffn.pw_exp.bn.weight", 2 * joined);
        convolution(b, "msfa.ffn.pw_proj.conv", [WIDTH, 2 * joined, 1]);
        gain(b, "msfa.ffn.pw_proj.bn.weight", WIDTH);
        gain(b, "msfa.norm.weight", WIDTH);
        Ok(())
    })
}

/// A block's tensors; its output's channels.
fn one(b: &mut SpecBuilder, at: &str, block: Block, inp: u64) -> u64 {
    match block {
        Block::Edge { out, widen } => {
            convolution(b, &format!("{at}conv_exp"), [inp * widen, inp, 3]);
            gain(b, &format!("{at}bn1.weight"), inp * widen);
            convolution(b, &format!("{at}conv_pwl"), [out, inp * widen, 1]);
            gain(b, &format!("{at}bn2.weight"), out);
            out
        }
        Block::Inverted {
            out,
            widen,
            start,
            mid,
        } => {
            let wide = inp * widen;
            let parts = [
                ("dw_start", [inp, 1, start]),
                ("pw_exp", [wide, inp, 1]),
                ("dw_mid", [wide, 1, mid]),
                ("pw_proj", [out, wide, 1]),
            ];
            for (name, shape) in parts.into_iter().filter(|(_, [.., kernel])| *kernel > 0) {
                convolution(b, &format!("{at}{name}.conv"), shape);
                gain(b, &format!("{at}{name}.bn.weight"), shape[0]);
            }
            gain(b, &format!("{at}layer_scale.gamma"), out);
            out
        }
        Block::Attention {
            heads,
            size,
            shrink,
        } => {
            gain(b, &format!("{at}norm.weight"), inp);
            for name in ["key", "value"] {
                if shrink {
                    convolution(b, &format!("{at}attn.{name}.down_conv"), [inp, 1, 3]);
                    gain(b, &format!("{at}attn.{name}.norm.weight"), inp);
                }
                convolution(b, &format!("{at}attn.{name}.proj"), [size, inp, 1]);
            }
            convolution(b, &format!("{at}attn.query.proj"), [heads * size, inp, 1]);
            convolution(b, &format!("{at}attn.output.proj"), [inp, heads * size, 1]);
            gain(b, &format!("{at}layer_scale.gamma"), inp);
            inp
        }
    }
}

/// What makes a tower's output, or the words that stand for there being none, inputs of the text model.
pub(crate) fn embedder(
    b: &mut SpecBuilder,
    at: &str,
    rows: u64,
    [width, hidden]: [u64; 2],
) -> Result<(), ModelError> {
    let (e, one) = (Role::Encoder, Shard::Replicated);
    b.scope(at, |b| {
        b.tensor(e, "embedding.weight", &[rows, width], one);
        b.whole(e, "embedding_projection", [hidden, width], false);
        b.tensor(e, "hard_embedding_norm.weight", &[width], one);
        b.tensor(e, "soft_embedding_norm.weight", &[width], one);
        Ok(())
    })
}

fn convolution(b: &mut SpecBuilder, module: &str, [out, inp, kernel]: [u64; 3]) {
    let name = format!("{module}.weight");
    b.tensor(
        Role::Encoder,
        &name,
        &[out, inp, kernel, kernel],
        Shard::Replicated,
    );
}

fn gain(b: &mut SpecBuilder, name: &str, width: u64) {
    b.tensor(Role::Encoder, name, &[width], Shard::Replicated);
}
