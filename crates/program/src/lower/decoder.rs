//! The decoder that all families are: embedding, layers of a mixer and a feed-forward over one residual stream,
//! final norm and head.

use std::ops::Range;

use plimsoll_model::{
    Activation, Arithmetic, Attention, Ffn, LayerSpec, Mixer, ModelSpec, Moe, Norm, Positions,
    Reach, Residual, Rope, RopeScaling, RouterScore, StateKind,
};
use plimsoll_units::{Bytes, SizeOverflow};

use super::build::{Builder, Inputs, Part};
use super::names::{ExpertNames, LLAMA3_DIVISORS, LONGROPE_DIVISORS, Names};
use super::{LowerError, rope};
use crate::parallel::Rank;
use crate::pool::{GroupKind, KvRules, PoolGeometry, attention_group};
use crate::program::{
    ActivationKind, AttentionOp, BufferId, ExpertGroups, NormKind, Op, RotaryTable, Rows, WeightId,
};

/// A table of angles for the layers with this rope.
struct Table<'a> {
    rope: &'a Rope,
    buffer: BufferId,
}

pub(super) struct Decoder<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) a: &'a Arithmetic,
    pub(super) names: &'a Names,
    geometry: &'a PoolGeometry,
    pub(super) rules: &'a KvRules,
    /// The residual stream.
    x: BufferId,
    tables: Vec<Table<'a>>,
    /// Layers so far of each group of the pool.
    seen: Vec<u64>,
}

/// The operations of a model; returns where its logits are.
pub(super) fn decoder(
    b: &mut Builder<'_>,
    spec: &ModelSpec,
    a: &Arithmetic,
    names: &Names,
    geometry: &PoolGeometry,
    rules: &KvRules,
) -> Result<BufferId, LowerError> {
    let hidden = spec.hidden;
    let x = b.buffer("residual", Rows::Tokens, hidden)?;
    let rank = b.rank();
    let (rows, mine) = rank.vocabulary(spec.vocab);
    let table = [Part::of_vocabulary(names.embedding, spec.vocab, rank)];
    let embedding = b.matrix(None, "embedding", &table, hidden, false)?;
    b.op(Op::Embed {
        table: embedding,
        from: mine.start,
        out: x,
        scale: single(a.embedding_scale),
    });
    b.all_reduce(x);
    let mut d = Decoder {
        spec,
        a,
        names,
        geometry,
        rules,
        x,
        tables: Vec::new(),
        seen: vec![0; geometry.groups.len()],
    };
    d.positions(b)?;
    for (i, layer) in spec.layers.iter().enumerate() {
        d.layer(b, i, layer)?;
    }
    let last = b.buffer("last", Rows::Outputs, hidden)?;
    b.op(Op::Gather { x, out: last });
    if a.final_norm {
        d.norm(
            b,
            None,
            ["final_norm", names.final_norm],
            last,
            last,
            [0, 1, hidden],
        )?;
    }
    let logits = b.buffer("logits", Rows::Outputs, spec.vocab)?;
    let own = if rank.of > 1 {
        b.buffer("own_logits", Rows::Outputs, rows)?
    } else {
        logits
    };
    let head = [Part::of_vocabulary(names.head, spec.vocab, rank)];
    let (weight, bias) = if spec.tied_embeddings {
        (embedding, None)
    } else {
        let weight = b.matrix(None, "head", &head, hidden, false)?;
        (weight, b.biases(None, "head", &head)?)
    };
    b.op(Op::Linear {
        weight,
        bias,
        x: last,
        out: own,
        add: false,
    });
    let (cap, scale) = (a.final_softcap.map(single), single(a.logit_scale));
    if cap.is_some() || scale != 1.0 {
        b.op(Op::Cap { x: own, cap, scale });
    }
    if rank.of > 1 {
        b.op(Op::AllGather {
            x: own,
            out: logits,
        });
    }
    Ok(logits)
}

impl<'a> Decoder<'a> {
    /// Learned positions, or the tables of angles that layers share.
    fn positions(&mut self, b: &mut Builder<'_>) -> Result<(), LowerError> {
        let (full, window) = match &self.a.positions {
            Positions::None => return Ok(()),
            Positions::Learned { offset } => return self.learned(b, *offset),
            Positions::Rotary { full, window, .. } => (full, window),
        };
        for layer in &self.spec.layers {
            let (rope, name) = match layer.mixer {
                Mixer::Attention(a) if a.reach != Reach::Full => (window, "window_angles"),
                Mixer::Attention(_) | Mixer::Latent(_) => (full, "angles"),
                Mixer::State(_) | Mixer::None => continue,
            };
            if self.tables.iter().any(|t| t.rope == rope) {
                continue;
            }
            let buffer = b.buffer(name, Rows::Tokens, rope.dim)?;
            let context = b.limits().context;
            let found =
                rope::frequencies(rope, context).ok_or_else(|| LowerError::Unsupported {
                    family: self.spec.family,
                    what: rope::DYNAMIC.to_owned(),
                })?;
            let divisors = divisors(b, rope)?;
            b.op(Op::Rotary(RotaryTable {
                out: buffer,
                frequencies: found.values,
                divisors,
                scale: found.scale,
            }));
            self.tables.push(Table { rope, buffer });
        }
        Ok(())
    }

    fn learned(&self, b: &mut Builder<'_>, offset: u64) -> Result<(), LowerError> {
        let Some(context) = self.spec.max_context else {
            return Err(LowerError::Tensor(
                "the config does not say how many positions there are".to_owned(),
            ));
        };
        if b.limits().context > context {
            return Err(LowerError::Unsupported {
                family: self.spec.family,
                what: format!(
                    "it has {context} learned positions, and sequences of {} are asked for",
                    b.limits().context
                ),
            });
        }
        let rows = context.checked_add(offset).ok_or(SizeOverflow)?;
        let part = [Part::whole(self.names.positions, rows)];
        let table = b.matrix(None, "positions", &part, self.spec.hidden, false)?;
        b.op(Op::AddPosition {
            table,
            x: self.x,
            offset,
        });
        Ok(())
    }

    fn layer(
        &mut self,
        b: &mut Builder<'_>,
        i: usize,
        layer: &LayerSpec,
    ) -> Result<(), LowerError> {
        let not_yet = LowerError::NotYet {
            family: self.spec.family,
        };
        if layer.parallel.is_some() || layer.cross.is_some() {
            return Err(not_yet);
        }
        let (names, hidden) = (self.names, self.spec.hidden);
        let whole = [0, 1, hidden];
        let normed = b.buffer("normed", Rows::Tokens, hidden)?;
        let first = ["attention_norm", names.attention_norm];
        self.norm(b, Some(i), first, self.x, normed, whole)?;
        let (mixed, name, module, columns) = match &layer.mixer {
            Mixer::Attention(a) if !a.shared => {
                let columns = of_heads(b.rank(), a.q_heads, a.v_dim)?;
                let mixed = self.attend(b, i, a, normed)?;
                (mixed, "attention_out", names.output, columns)
            }
            Mixer::Latent(a) => {
                let columns = of_heads(b.rank(), a.q_heads, a.v_dim)?;
                let mixed = self.attend_latent(b, i, a, normed)?;
                (mixed, "attention_out", names.output, columns)
            }
            Mixer::State(_) if b.rank().of > 1 => {
                return Err(LowerError::Divided(
                    "recurrent layers do not run on several ranks yet".to_owned(),
                ));
            }
            Mixer::State(s) if s.kind == StateKind::Mamba2 => {
                let columns = product(s.heads, s.rows)?.into();
                let mixed = self.recur(b, i, s, normed)?;
                (mixed, "state_out", names.state.output, columns)
            }
            Mixer::Attention(_) | Mixer::State(_) | Mixer::None => return Err(not_yet),
        };
        let parallel = self.a.residual == Residual::Parallel;
        let second = names.mlp_norm.map(|n| ["mlp_norm", n]);
        // Beside attention, the feed-forward sees the stream as it was before.
        if parallel && let Some(second) = second {
            self.norm(b, Some(i), second, self.x, normed, whole)?;
        }
        let output = Half {
            name,
            module,
            after: ["after_attention_norm", names.after[0]],
            columns,
        };
        self.add(b, i, &output, mixed)?;
        if !parallel {
            let second = second.unwrap_or(first);
            self.norm(b, Some(i), second, self.x, normed, whole)?;
        }
        match layer.ffn {
            Ffn::Dense {
                intermediate,
                gated,
            } => {
                let modules = Mlp {
                    input: ["mlp_in", "up"],
                    modules: names.mlp_in,
                    active: "active",
                    down: Half {
                        name: "mlp_out",
                        module: names.mlp_out,
                        after: ["after_mlp_norm", names.after[1]],
                        columns: inner_of(b.rank(), intermediate)?,
                    },
                };
                self.dense(b, i, normed, &modules, gated)
            }
            Ffn::Moe(moe) => self.experts(b, i, normed, &moe),
            Ffn::None => Err(not_yet),
        }
    }

    fn dense(
        &self,
        b: &mut Builder<'_>,
        i: usize,
        normed: BufferId,
        mlp: &Mlp,
        gated: bool,
    ) -> Result<(), LowerError> {
        let inner = &mlp.down.columns;
        let [name, buffer] = mlp.input;
        let factors = 1 + u64::from(gated);
        let up = b.buffer(buffer, Rows::Tokens, product(inner.count(), factors)?)?;
        let input = parts(mlp.modules, factors, inner)?;
        self.linear(b, i, name, &input, normed, up)?;
        let active = b.buffer(mlp.active, Rows::Tokens, inner.count())?;
        self.activate(b, up, active, gated);
        self.add(b, i, &mlp.down, active)
    }

    /// Routed experts, and the one that every token passes, where there is such.
    fn experts(
        &self,
        b: &mut Builder<'_>,
        i: usize,
        normed: BufferId,
        moe: &Moe,
    ) -> Result<(), LowerError> {
        let hidden = self.spec.hidden;
        let Some(names) = self.names.experts else {
            return Err(LowerError::Unsupported {
                family: self.spec.family,
                what: "experts of GGUF files do not run yet: use the checkpoint in safetensors"
                    .to_owned(),
            });
        };
        let scale = single(self.a.residual_scale * self.a.router.scale);
        let logits = b.buffer("router", Rows::Tokens, moe.experts)?;
        let router = [Part::whole(names.router, moe.experts)];
        self.linear(b, i, "router", &router, normed, logits)?;
        let routes = b.buffer("routes", Rows::Tokens, product(2, moe.top_k)?)?;
        let sigmoid = self.a.router.score == RouterScore::Sigmoid;
        let bias = if sigmoid {
            Some(b.vector(Some(i), "router_bias", names.bias, moe.experts, 0)?)
        } else {
            None
        };
        b.op(Op::Route {
            logits,
            out: routes,
            renormalise: self.a.renormalise,
            sigmoid,
            bias,
            groups: self.a.router.groups.map(|g| ExpertGroups {
                count: g.count,
                taken: g.taken,
                best: g.best,
            }),
        });
        let each = Rows::Routes(moe.top_k);
        let inner = inner_of(b.rank(), moe.intermediate)?;
        let up = b.buffer("expert_up", each, product(2, inner.count())?)?;
        let input = match self.a.clamped {
            Some(_) => pairs(names.input, &inner)?,
            None => parts(names.input, 2, &inner)?,
        };
        let weights = b.experts(i, "in", moe.experts, &input, hidden)?;
        let biases = b.expert_biases(i, "in", moe.experts, &input)?;
        b.op(Op::Experts {
            weights,
            biases,
            routes,
            x: normed,
            out: up,
        });
        let active = b.buffer("expert_active", each, inner.count())?;
        match self.a.clamped {
            Some(c) => b.op(Op::ClampedSwiglu {
                x: up,
                out: active,
                limit: single(c.limit),
                alpha: single(c.alpha),
            }),
            None => self.activate(b, up, active, true),
        }
        let results = b.buffer("expert_out", each, hidden)?;
        let output = [Part::whole(names.output, hidden)];
        let weights = b.experts(i, "out", moe.experts, &output, inner)?;
        let biases = b.expert_biases(i, "out", moe.experts, &output)?;
        let biases = b.bias_of_sums(biases);
        b.op(Op::Experts {
            weights,
            biases,
            routes,
            x: active,
            out: results,
        });
        let add = b.rank().of == 1;
        let sum = if add {
            self.x
        } else {
            b.buffer("projected", Rows::Tokens, hidden)?
        };
        b.op(Op::AddWeighted {
            x: results,
            weights: routes,
            from: moe.top_k,
            out: sum,
            scale,
            add,
        });
        if !add {
            b.all_reduce(sum);
            b.op(Op::Add {
                x: sum,
                out: self.x,
                scale: 1.0,
            });
        }
        if moe.shared > 0 {
            self.shared_expert(b, i, normed, moe.shared, &names)?;
        }
        Ok(())
    }

    fn shared_expert(
        &self,
        b: &mut Builder<'_>,
        i: usize,
        normed: BufferId,
        inner: u64,
        names: &ExpertNames,
    ) -> Result<(), LowerError> {
        let hidden = self.spec.hidden;
        let Some(gate_module) = names.shared_gate else {
            let mlp = Mlp {
                input: ["shared_in", "shared_up"],
                modules: names.shared_input,
                active: "shared_active",
                down: Half {
                    name: "shared_out",
                    module: names.shared_output,
                    after: ["after_mlp_norm", self.names.after[1]],
                    columns: inner_of(b.rank(), inner)?,
                },
            };
            return self.dense(b, i, normed, &mlp, true);
        };
        let inner = inner_of(b.rank(), inner)?;
        let up = b.buffer("shared_up", Rows::Tokens, product(2, inner.count())?)?;
        let input = parts(names.shared_input, 2, &inner)?;
        self.linear(b, i, "shared_in", &input, normed, up)?;
        let active = b.buffer("shared_active", Rows::Tokens, inner.count())?;
        self.activate(b, up, active, true);
        let result = b.buffer("projected", Rows::Tokens, hidden)?;
        let output = [Part::whole(names.shared_output, hidden)];
        let weight = b.matrix(Some(i), "shared_out", &output, inner, false)?;
        b.op(Op::Linear {
            weight,
            bias: None,
            x: active,
            out: result,
            add: false,
        });
        b.all_reduce(result);
        let gate = b.buffer("shared_gate", Rows::Tokens, 1)?;
        let module = [Part::whole(gate_module, 1)];
        self.linear(b, i, "shared_gate", &module, normed, gate)?;
        let share = b.buffer("shared_share", Rows::Tokens, 1)?;
        b.op(Op::Activate {
            kind: ActivationKind::Sigmoid,
            x: gate,
            out: share,
            gated: false,
        });
        b.op(Op::AddWeighted {
            x: result,
            weights: share,
            from: 0,
            out: self.x,
            scale: single(self.a.residual_scale),
            add: true,
        });
        Ok(())
    }

    pub(super) fn activate(&self, b: &mut Builder<'_>, x: BufferId, out: BufferId, gated: bool) {
        b.op(Op::Activate {
            kind: match self.a.activation {
                Activation::Silu => ActivationKind::Silu,
                Activation::GeluTanh => ActivationKind::GeluTanh,
                Activation::Gelu => ActivationKind::Gelu,
                Activation::Relu => ActivationKind::Relu,
            },
            x,
            out,
            gated,
        });
    }

    /// Projects, rotates and attends; returns where the heads' results are.
    fn attend(
        &mut self,
        b: &mut Builder<'_>,
        i: usize,
        at: &Attention,
        normed: BufferId,
    ) -> Result<BufferId, LowerError> {
        let rank = b.rank();
        let heads = [
            rank.share(at.q_heads, HEADS)?,
            rank.kv_heads(at.kv_heads)?,
            rank.kv_heads(at.kv_heads)?,
        ];
        let [q_heads, kv_heads, _] = [0, 1, 2].map(|i| heads[i].end - heads[i].start);
        let q = product(q_heads, at.k_dim)?;
        let k = product(kv_heads, at.k_dim)?;
        let v = product(kv_heads, at.v_dim)?;
        let (qk, all) = (sum(q, k)?, sum(sum(q, k)?, v)?);
        let qkv = b.buffer("qkv", Rows::Tokens, all)?;
        let parts = qkv_parts(self.names, at, &heads)?;
        self.linear(b, i, "qkv", &parts, normed, qkv)?;
        if self.a.qk_norm {
            let [qn, kn] = self.names.qk_norms;
            let heads = [0, q_heads, at.k_dim];
            self.norm(b, Some(i), ["q_norm", qn], qkv, qkv, heads)?;
            let heads = [q, kv_heads, at.k_dim];
            self.norm(b, Some(i), ["k_norm", kn], qkv, qkv, heads)?;
        }
        if let Positions::Rotary {
            full,
            window,
            interleaved,
        } = &self.a.positions
        {
            let rope = if at.reach == Reach::Full {
                full
            } else {
                window
            };
            if let Some(table) = self.table(rope) {
                // Query heads and key heads lie one after the other and are alike.
                b.op(Op::Rotate {
                    table,
                    x: qkv,
                    from: 0,
                    heads: sum(q_heads, kv_heads)?,
                    head: at.k_dim,
                    interleaved: *interleaved,
                });
            }
        }
        let sinks = if b.has(Some(i), self.names.sinks) {
            let (names, all) = (["sinks", self.names.sinks], [at.q_heads]);
            let [mine, ..] = heads;
            Some(b.elements(Some(i), names, &all, mine, 0)?)
        } else {
            None
        };
        let out = b.buffer("attended", Rows::Tokens, product(q_heads, at.v_dim)?)?;
        let (group, index) = self.place(attention_group(at, rank.of, self.rules.dtype)?)?;
        b.op(Op::Attention(AttentionOp {
            q: qkv,
            k: qkv,
            v: qkv,
            at: [0, q, qk],
            out,
            q_heads,
            kv_heads,
            k_dim: at.k_dim,
            v_dim: at.v_dim,
            group,
            index,
            scale: single(self.a.attention_scale),
            softcap: self.a.attention_softcap.map(single),
            sinks,
        }));
        Ok(out)
    }

    /// The angles of a rope.
    pub(super) fn table(&self, rope: &Rope) -> Option<BufferId> {
        let found = self.tables.iter().find(|t| t.rope == rope);
        found.map(|t| t.buffer)
    }

    /// The group in the pool of a layer that keeps this, and its place there.
    pub(super) fn place(&mut self, key: (GroupKind, Bytes)) -> Result<(u64, u64), LowerError> {
        let mut groups = self.geometry.groups.iter().zip(&mut self.seen).zip(0_u64..);
        let found = groups.find(|((g, _), _)| (g.kind, g.rate) == key);
        let Some(((_, seen), group)) = found else {
            return Err(LowerError::Size(SizeOverflow));
        };
        let index = *seen;
        *seen += 1;
        Ok((group, index))
    }

    /// Adds a half's result to the residual stream.
    fn add(
        &self,
        b: &mut Builder<'_>,
        i: usize,
        half: &Half,
        from: BufferId,
    ) -> Result<(), LowerError> {
        let hidden = self.spec.hidden;
        let parts = [Part::whole(half.module, hidden)];
        let weight = b.matrix(
            Some(i),
            half.name,
            &parts,
            half.columns.clone(),
            self.names.transposed,
        )?;
        let bias = b.biases(Some(i), half.name, &parts)?;
        let ranks = b.rank().of;
        let scale = single(self.a.residual_scale);
        let sandwich = self.a.residual == Residual::Sandwich;
        let direct = bias.is_none() && scale == 1.0 && !sandwich && ranks == 1;
        let bias = b.bias_of_sums(bias);
        let out = if direct {
            self.x
        } else {
            b.buffer("projected", Rows::Tokens, hidden)?
        };
        b.op(Op::Linear {
            weight,
            bias,
            x: from,
            out,
            add: direct,
        });
        b.all_reduce(out);
        if sandwich {
            self.norm(b, Some(i), half.after, out, out, [0, 1, hidden])?;
        }
        if !direct {
            b.op(Op::Add {
                x: out,
                out: self.x,
                scale,
            });
        }
        Ok(())
    }

    pub(super) fn linear(
        &self,
        b: &mut Builder<'_>,
        i: usize,
        name: &str,
        parts: &[Part],
        x: BufferId,
        out: BufferId,
    ) -> Result<(), LowerError> {
        self.project(b, i, name, parts, self.spec.hidden, [x, out])
    }

    /// A linear layer of `columns` inputs.
    pub(super) fn project(
        &self,
        b: &mut Builder<'_>,
        i: usize,
        name: &str,
        parts: &[Part],
        columns: u64,
        [x, out]: [BufferId; 2],
    ) -> Result<(), LowerError> {
        let weight = b.matrix(Some(i), name, parts, columns, self.names.transposed)?;
        let bias = b.biases(Some(i), name, parts)?;
        b.op(Op::Linear {
            weight,
            bias,
            x,
            out,
            add: false,
        });
        Ok(())
    }

    /// The norm `name` with the gains of `module`, over `heads` heads of `head` elements.
    fn norm(
        &self,
        b: &mut Builder<'_>,
        layer: Option<usize>,
        [name, module]: [&str; 2],
        x: BufferId,
        out: BufferId,
        [from, heads, head]: [u64; 3],
    ) -> Result<(), LowerError> {
        let (gains, plus) = match self.a.norm {
            Norm::Rms { plus_one, .. } => (true, i8::from(plus_one)),
            Norm::Layer { affine, .. } => (affine, 0),
        };
        let stored = |leaf: &str| format!("{module}.{leaf}");
        let weight = if gains {
            Some(b.vector(layer, name, &stored("weight"), head, plus)?)
        } else {
            None
        };
        let bias = if gains && b.has(layer, &stored("bias")) {
            let name = format!("{name}.bias");
            Some(b.vector(layer, &name, &stored("bias"), head, 0)?)
        } else {
            None
        };
        b.op(Op::Norm {
            kind: self.norm_kind(),
            weight,
            bias,
            x,
            out,
            from,
            heads,
            head,
        });
        Ok(())
    }

    pub(super) fn norm_kind(&self) -> NormKind {
        match self.a.norm {
            Norm::Rms { eps, .. } => NormKind::Rms { eps: single(eps) },
            Norm::Layer { eps, .. } => NormKind::Layer { eps: single(eps) },
        }
    }
}

/// A feed-forward of one function.
struct Mlp {
    /// Name of the first matrix, and of the buffer that it writes.
    input: [&'static str; 2],
    modules: &'static [&'static str],
    /// The buffer of what the function gives.
    active: &'static str,
    down: Half,
}

/// Attention's or the feed-forward's last projection.
struct Half {
    name: &'static str,
    module: &'static str,
    /// Name and module of the norm that follows, where norms do.
    after: [&'static str; 2],
    columns: Inputs,
}

/// Of each of `factors` matrices of a feed-forward's inner rows, those that are `taken`; `modules` have one each, or
/// one has all.
fn parts(
    modules: &[&'static str],
    factors: u64,
    inner: &Inputs,
) -> Result<Vec<Part>, SizeOverflow> {
    let each = factors / modules.len() as u64;
    let rows = product(inner.stored, each)?;
    let taken = |n: u64| n * inner.stored + inner.taken.start..n * inner.stored + inner.taken.end;
    let taken: Vec<_> = if inner.count() == inner.stored {
        std::iter::once(0..rows).collect()
    } else {
        (0..each).map(taken).collect()
    };
    let part = |m: &&'static str| Part::some(m, rows, taken.clone());
    Ok(modules.iter().map(part).collect())
}

/// Of modules that have a gate and an up of each inner row beside each other, those that are taken.
fn pairs(modules: &[&'static str], inner: &Inputs) -> Result<Vec<Part>, SizeOverflow> {
    let rows = product(2, inner.stored)?;
    let taken = 2 * inner.taken.start..2 * inner.taken.end;
    let part = |m: &&'static str| Part::some(m, rows, std::iter::once(taken.clone()).collect());
    Ok(modules.iter().map(part).collect())
}

/// Query, key and value rows of the heads that are taken of each.
fn qkv_parts(
    names: &Names,
    at: &Attention,
    heads: &[Range<u64>; 3],
) -> Result<Vec<Part>, SizeOverflow> {
    let counts = [at.q_heads, at.kv_heads, at.kv_heads];
    let sizes = [at.k_dim, at.k_dim, at.v_dim];
    let mut rows = [0; 3];
    for i in 0..3 {
        rows[i] = product(counts[i], sizes[i])?;
    }
    let all = sum(sum(rows[0], rows[1])?, rows[2])?;
    let taken = |i: usize, before: u64| {
        let at = |head: u64| before + head * sizes[i];
        at(heads[i].start)..at(heads[i].end)
    };
    Ok(match names.qkv {
        // Query, key and value of the first head, then of the second.
        [one] if names.by_head => {
            let row = |h: u64, i: u64| (3 * h + i) * at.k_dim..(3 * h + i + 1) * at.k_dim;
            let of = |i: u64| heads[0].clone().map(move |h| row(h, i));
            vec![Part::some(one, all, (0..3).flat_map(of).collect())]
        }
        [one] if heads[0].end - heads[0].start == at.q_heads => vec![Part::whole(one, all)],
        [one] => {
            let before = [0, rows[0], rows[0] + rows[1]];
            let taken = (0..3).map(|i| taken(i, before[i])).collect();
            vec![Part::some(one, all, taken)]
        }
        several => several
            .iter()
            .enumerate()
            .map(|(i, m)| Part::some(m, rows[i], std::iter::once(taken(i, 0)).collect()))
            .collect(),
    })
}

/// What a part of heads is called in errors.
pub(super) const HEADS: &str = "attention heads";

/// The elements of a rank's share of heads, of all heads' elements.
fn of_heads(rank: Rank, heads: u64, each: u64) -> Result<Inputs, LowerError> {
    let mine = rank.share(heads, HEADS)?;
    Ok(Inputs {
        stored: product(heads, each)?,
        taken: mine.start * each..mine.end * each,
    })
}

/// A rank's share of a feed-forward's inner columns.
fn inner_of(rank: Rank, inner: u64) -> Result<Inputs, LowerError> {
    Ok(Inputs {
        stored: inner,
        taken: rank.share(inner, "MLP columns")?,
    })
}

/// The tensor of a GGUF file that divides the frequencies, where it has one.
fn divisors(b: &mut Builder<'_>, rope: &Rope) -> Result<Option<WeightId>, LowerError> {
    let (name, other) = match &rope.scaling {
        RopeScaling::LongRope {
            divisors: None,
            original,
            ..
        } => {
            let [short, long] = LONGROPE_DIVISORS;
            if b.limits().context > *original {
                (long, Some(short))
            } else {
                (short, Some(long))
            }
        }
        RopeScaling::None if b.has(None, LLAMA3_DIVISORS) => (LLAMA3_DIVISORS, None),
        _ => return Ok(None),
    };
    if let Some(other) = other {
        b.unread(other);
    }
    b.vector(None, "rotary_divisors", name, rope.dim / 2, 0)
        .map(Some)
}

pub(super) fn product(a: u64, b: u64) -> Result<u64, SizeOverflow> {
    a.checked_mul(b).ok_or(SizeOverflow)
}

pub(super) fn sum(a: u64, b: u64) -> Result<u64, SizeOverflow> {
    a.checked_add(b).ok_or(SizeOverflow)
}

/// Models multiply in f32.
#[allow(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what is meant"
)]
pub(super) fn single(x: f64) -> f32 {
    x as f32
}
