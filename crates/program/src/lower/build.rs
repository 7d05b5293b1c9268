//! [`Builder`]: collects operations, buffers and weights.

use std::collections::BTreeSet;
use std::ops::Range;

use plimsoll_model::quant::QuantScheme;
use plimsoll_model::{ModelSpec, Role, TensorSpec};
use plimsoll_units::{Bytes, SizeOverflow, WeightType, Weights};

use super::place::place;
use super::quantised::Stored;
use super::{Inventory, Limits, LowerError};
use crate::parallel::Rank;
use crate::pool::{KvRules, PoolGeometry};
use crate::program::{Buffer, BufferId, Op, Program, Rows, Source, Weight, WeightId, WeightLayout};

/// Weights begin at cache lines.
const ALIGNMENT: Bytes = Bytes::new(64);

/// Part of a weight: some ranges of a tensor's `rows` output rows, and rows below the last part that hold nothing.
pub(super) struct Part {
    pub(super) module: &'static str,
    pub(super) rows: u64,
    pub(super) taken: Vec<Range<u64>>,
    pub(super) padding: u64,
}

impl Part {
    /// All rows of a module.
    pub(super) fn whole(module: &'static str, rows: u64) -> Self {
        Self {
            module,
            rows,
            taken: std::iter::once(0..rows).collect(),
            padding: 0,
        }
    }

    /// Some rows of a module.
    pub(super) const fn some(module: &'static str, rows: u64, taken: Vec<Range<u64>>) -> Self {
        Self {
            module,
            rows,
            taken,
            padding: 0,
        }
    }

    /// A rank's rows of a module that has one for each of a vocabulary.
    pub(super) fn of_vocabulary(module: &'static str, rows: u64, rank: Rank) -> Self {
        let (each, taken) = rank.vocabulary(rows);
        Self {
            module,
            rows,
            padding: each - (taken.end - taken.start),
            taken: std::iter::once(taken).collect(),
        }
    }
}

/// Columns of a stored matrix, and those that are taken.
#[derive(Clone)]
pub(super) struct Inputs {
    pub(super) stored: u64,
    pub(super) taken: Range<u64>,
}

impl From<u64> for Inputs {
    /// All of them.
    fn from(stored: u64) -> Self {
        Self {
            stored,
            taken: 0..stored,
        }
    }
}

impl Inputs {
    pub(super) const fn count(&self) -> u64 {
        self.taken.end - self.taken.start
    }

    /// The first one, where not all are taken.
    fn first(&self) -> Option<u64> {
        (self.count() != self.stored).then_some(self.taken.start)
    }
}

pub(super) struct Builder<'a> {
    tensors: &'a Inventory<'a>,
    used: BTreeSet<&'a str>,
    limits: &'a Limits,
    rank: Rank,
    ops: Vec<Op>,
    buffers: Vec<Buffer>,
    weights: Vec<Weight>,
    weight_bytes: Bytes,
}

impl<'a> Builder<'a> {
    pub(super) fn new(tensors: &'a Inventory<'a>, limits: &'a Limits, rank: Rank) -> Self {
        Self {
            tensors,
            used: BTreeSet::new(),
            limits,
            rank,
            ops: Vec::new(),
            buffers: Vec::new(),
            weights: Vec::new(),
            weight_bytes: Bytes::ZERO,
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        self.limits
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    /// Adds up over all ranks what each has in a buffer, where there are several.
    pub(super) fn all_reduce(&mut self, x: BufferId) {
        if self.rank.of > 1 {
            self.op(Op::AllReduce { x });
        }
    }

    /// The bias of sums over all ranks: each rank holds it, and the first one begins with it.
    pub(super) fn bias_of_sums(&self, bias: Option<WeightId>) -> Option<WeightId> {
        bias.filter(|_| self.rank.index == 0)
    }

    pub(super) fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// The buffer of this name and width; layers share it.
    pub(super) fn buffer(
        &mut self,
        name: &'static str,
        rows: Rows,
        width: u64,
    ) -> Result<BufferId, LowerError> {
        let same = |b: &Buffer| b.name == name && b.rows == rows && b.width == width;
        let place = self.buffers.iter().position(same).unwrap_or_else(|| {
            self.buffers.push(Buffer {
                name,
                rows,
                width,
                offset: Bytes::ZERO,
            });
            self.buffers.len() - 1
        });
        Ok(BufferId(u16::try_from(place).map_err(|_| SizeOverflow)?))
    }

    /// Whether a tensor is there.
    pub(super) fn has(&self, layer: Option<usize>, name: &str) -> bool {
        self.tensors.find(layer, name).is_some()
    }

    /// How the checkpoint's matrices are quantised, where they are.
    pub(super) fn scheme(&self) -> Option<&'a QuantScheme> {
        self.tensors.quant
    }

    pub(super) fn find(&self, layer: Option<usize>, name: &str) -> Option<&'a TensorSpec> {
        self.tensors.find(layer, name)
    }

    /// Says that a tensor is left out on purpose.
    pub(super) fn unread(&mut self, name: &str) {
        if let Some(t) = self.tensors.find(None, name) {
            self.used.insert(&t.name);
        }
    }

    /// The tensor of this name, which is read.
    pub(super) fn found(
        &mut self,
        layer: Option<usize>,
        name: &str,
    ) -> Result<&'a TensorSpec, LowerError> {
        let place = layer.map_or_else(String::new, |i| format!(" in layer {i}"));
        let Some(t) = self.tensors.find(layer, name) else {
            return Err(LowerError::Tensor(format!("no `{name}`{place}")));
        };
        self.used.insert(&t.name);
        Ok(t)
    }

    pub(super) fn take(
        &mut self,
        layer: Option<usize>,
        name: &str,
        shape: &[u64],
    ) -> Result<&'a TensorSpec, LowerError> {
        let t = self.found(layer, name)?;
        if t.shape != shape {
            return Err(LowerError::Tensor(format!(
                "`{}` is {:?}, expected {shape:?}",
                t.name, t.shape
            )));
        }
        Ok(t)
    }

    fn weight(
        &mut self,
        name: String,
        role: Role,
        layout: WeightLayout,
        sources: Vec<Source>,
        padding: u64,
    ) -> Result<WeightId, LowerError> {
        let id = u32::try_from(self.weights.len()).map_err(|_| SizeOverflow)?;
        let offset = self.weight_bytes.round_up(ALIGNMENT)?;
        self.weight_bytes = offset.add(layout.bytes()?)?;
        self.weights.push(Weight {
            name,
            role,
            layout,
            sources,
            padding,
            offset,
        });
        Ok(WeightId(id))
    }

    fn packed(
        &self,
        role: Role,
        n: u64,
        inputs: &Inputs,
        sources: &[Source],
    ) -> Result<WeightLayout, LowerError> {
        let form = match (role, self.limits.weights) {
            // Which experts a token takes changes at once where their scores change a little, and these are small.
            (Role::Router, _) => WeightType::Bf16,
            (_, Weights::As(form)) => {
                whole_groups(form, sources, inputs)?;
                form
            }
            (_, Weights::Stored) => {
                let form = stored_form(sources);
                match whole_groups(form, sources, inputs) {
                    Ok(()) => form,
                    // Ranks whose columns cut a group of these widen the matrix; others keep theirs.
                    Err(_) => WeightType::Bf16,
                }
            }
        };
        let k = inputs.count();
        Ok(WeightLayout::Packed { form, n, k })
    }

    /// The matrix of `parts`, one below the other, with these columns of what is stored.
    pub(super) fn matrix(
        &mut self,
        layer: Option<usize>,
        name: &str,
        parts: &[Part],
        inputs: impl Into<Inputs>,
        transposed: bool,
    ) -> Result<WeightId, LowerError> {
        let inputs = inputs.into();
        let columns = inputs.stored;
        let (mut sources, mut role, mut n) = (Vec::new(), Role::Other, 0_u64);
        let mut padding = 0;
        for part in parts {
            let stored = self.stored(layer, part.module, [part.rows, columns], transposed)?;
            let t = stored.tensor;
            whole_blocks(t, &inputs)?;
            role = t.role;
            n = n.checked_add(part.padding).ok_or(SizeOverflow)?;
            padding = part.padding;
            for rows in &part.taken {
                n = n.checked_add(rows.end - rows.start).ok_or(SizeOverflow)?;
                sources.push(Source {
                    tensor: t.name.clone(),
                    rows: rows.clone(),
                    transposed: stored.transposed,
                    input: inputs.first(),
                    quantised: stored.quantised.clone(),
                    plus: 0,
                });
            }
        }
        let layout = self.packed(role, n, &inputs, &sources)?;
        self.weight(named(layer, name), role, layout, sources, padding)
    }

    /// The matrices that take each head to the latents of width `rank`, and back: `up` has, for each head, `key` rows of
    /// its keys and `value` rows of its values; of the heads `taken`.
    pub(super) fn latent_heads(
        &mut self,
        layer: usize,
        up: &str,
        taken: Range<u64>,
        [heads, key, value, rank]: [u64; 4],
    ) -> Result<[Vec<WeightId>; 2], LowerError> {
        let each = key.checked_add(value).ok_or(SizeOverflow)?;
        let rows = heads.checked_mul(each).ok_or(SizeOverflow)?;
        let stored = self.stored(Some(layer), up, [rows, rank], false)?;
        let t = stored.tensor;
        let mut ways = [Vec::new(), Vec::new()];
        for h in taken {
            let from = h * each;
            // A query's head is multiplied by what would make its keys, the other way around.
            let to_latent = Source {
                tensor: t.name.clone(),
                rows: 0..rank,
                transposed: true,
                input: Some(from),
                quantised: stored.quantised.clone(),
                plus: 0,
            };
            let back = Source {
                rows: from + key..from + each,
                transposed: false,
                input: None,
                ..to_latent.clone()
            };
            let sides = [
                ("absorb", to_latent, [rank, key]),
                ("values", back, [value, rank]),
            ];
            for (way, (name, source, [n, k])) in ways.iter_mut().zip(sides) {
                let name = named(Some(layer), &format!("heads.{h}.{name}"));
                // Small, and met by latents, which all later attention reads: not quantised.
                let form = WeightType::Bf16;
                let layout = WeightLayout::Packed { form, n, k };
                way.push(self.weight(name, t.role, layout, vec![source], 0)?);
            }
        }
        Ok(ways)
    }

    /// The matrices of a layer's experts, each of its own part of `parts`.
    pub(super) fn experts(
        &mut self,
        layer: usize,
        name: &str,
        experts: u64,
        parts: &[Part],
        inputs: impl Into<Inputs>,
    ) -> Result<Vec<WeightId>, LowerError> {
        let inputs = inputs.into();
        let stored = parts
            .iter()
            .map(|part| self.expert_matrices(layer, experts, part, &inputs))
            .collect::<Result<Vec<_>, _>>()?;
        let mut all = Vec::new();
        for e in 0..experts {
            let (mut sources, mut role, mut n) = (Vec::new(), Role::Other, 0_u64);
            for (stored, part) in stored.iter().zip(parts) {
                let t = stored.tensor;
                // One tensor may have the matrices of all experts, one below the other.
                let numbered = t.name.contains("{e}");
                let before = if numbered { 0 } else { e };
                let from = before.checked_mul(part.rows).ok_or(SizeOverflow)?;
                let shift = |row: u64| row.checked_add(from).ok_or(SizeOverflow);
                role = t.role;
                for rows in &part.taken {
                    n = n.checked_add(rows.end - rows.start).ok_or(SizeOverflow)?;
                    sources.push(Source {
                        tensor: t.name.replace("{e}", &e.to_string()),
                        rows: shift(rows.start)?..shift(rows.end)?,
                        transposed: stored.transposed,
                        input: inputs.first(),
                        quantised: stored.quantised.clone(),
                        plus: 0,
                    });
                }
            }
            let layout = self.packed(role, n, &inputs, &sources)?;
            let name = named(Some(layer), &format!("experts.{e}.{name}"));
            all.push(self.weight(name, role, layout, sources, 0)?);
        }
        Ok(all)
    }

    /// Where the matrices of `part`'s experts are: by output under `weight`, as MXFP4, or all of them in one tensor with
    /// inputs first.
    fn expert_matrices(
        &mut self,
        layer: usize,
        experts: u64,
        part: &Part,
        inputs: &Inputs,
    ) -> Result<Stored<'a>, LowerError> {
        let size = [part.rows, inputs.stored];
        let (at, module) = (Some(layer), part.module);
        let stored = if self.has(at, &format!("{module}_blocks")) {
            self.mxfp4(layer, module, experts, size)?
        } else if self.has(at, module) {
            Stored {
                tensor: self.take(at, module, &[inputs.stored, part.rows])?,
                transposed: true,
                quantised: None,
            }
        } else {
            self.stored(at, module, size, false)?
        };
        whole_blocks(stored.tensor, inputs)?;
        if stored.tensor.experts != Some(experts) {
            return Err(LowerError::Tensor(format!(
                "`{}` is not of {experts} experts",
                stored.tensor.name
            )));
        }
        Ok(stored)
    }

    /// The biases of all experts of a module, one after the other, where they have them.
    pub(super) fn expert_biases(
        &mut self,
        layer: usize,
        name: &str,
        experts: u64,
        parts: &[Part],
    ) -> Result<Option<WeightId>, LowerError> {
        let [part] = parts else {
            return Ok(None);
        };
        let stored = format!("{}_bias", part.module);
        if !self.has(Some(layer), &stored) {
            return Ok(None);
        }
        let t = self.take(Some(layer), &stored, &[part.rows])?;
        part.rows.checked_mul(experts).ok_or(SizeOverflow)?;
        let (mut sources, mut n) = (Vec::<Source>::new(), 0);
        for e in 0..experts {
            for rows in &part.taken {
                n += rows.end - rows.start;
                let rows = e * part.rows + rows.start..e * part.rows + rows.end;
                match sources.last_mut().filter(|s| s.rows.end == rows.start) {
                    Some(last) => last.rows.end = rows.end,
                    None => sources.push(vector(&t.name, rows, 0)),
                }
            }
        }
        let name = named(Some(layer), &format!("experts.{name}.bias"));
        self.weight(name, t.role, WeightLayout::F32 { n }, sources, 0)
            .map(Some)
    }

    /// The biases of `parts`, where they have them.
    pub(super) fn biases(
        &mut self,
        layer: Option<usize>,
        name: &str,
        parts: &[Part],
    ) -> Result<Option<WeightId>, LowerError> {
        let stored = |p: &Part| format!("{}.bias", p.module);
        if !parts.iter().any(|p| self.has(layer, &stored(p))) {
            return Ok(None);
        }
        let (mut sources, mut role, mut n) = (Vec::new(), Role::Other, 0_u64);
        let mut padding = 0;
        for part in parts {
            let t = self.take(layer, &stored(part), &[part.rows])?;
            role = t.role;
            n = n.checked_add(part.padding).ok_or(SizeOverflow)?;
            padding = part.padding;
            for rows in &part.taken {
                n = n.checked_add(rows.end - rows.start).ok_or(SizeOverflow)?;
                sources.push(vector(&t.name, rows.clone(), 0));
            }
        }
        let name = format!("{}.bias", named(layer, name));
        self.weight(name, role, WeightLayout::F32 { n }, sources, padding)
            .map(Some)
    }

    /// A vector of `n` elements stored as `tensor`, with `plus` added.
    pub(super) fn vector(
        &mut self,
        layer: Option<usize>,
        name: &str,
        tensor: &str,
        n: u64,
        plus: i8,
    ) -> Result<WeightId, LowerError> {
        self.elements(layer, [name, tensor], &[n], 0..n, plus)
    }

    /// The elements `taken` of a tensor of this shape, as they are stored.
    pub(super) fn elements(
        &mut self,
        layer: Option<usize>,
        [name, tensor]: [&str; 2],
        shape: &[u64],
        taken: Range<u64>,
        plus: i8,
    ) -> Result<WeightId, LowerError> {
        let t = self.take(layer, tensor, shape)?;
        let n = taken.end - taken.start;
        let sources = vec![vector(&t.name, taken, plus)];
        let layout = WeightLayout::F32 { n };
        self.weight(named(layer, name), t.role, layout, sources, 0)
    }

    /// A buffer for each operation that quantises its input, with a row for each of the input's.
    fn scratch(&mut self) -> Result<Vec<Option<BufferId>>, LowerError> {
        (0..self.ops.len())
            .map(|i| {
                let (weight, x) = match &self.ops[i] {
                    Op::Linear { weight, x, .. } => (Some(weight), x),
                    Op::Experts { weights, x, .. } => (weights.first(), x),
                    _ => return Ok(None),
                };
                let width = match weight.map(|w| self.weights[w.0 as usize].layout) {
                    Some(WeightLayout::Packed { form, k, .. }) => form.input_words(k),
                    _ => 0,
                };
                let rows = self.buffers[usize::from(x.0)].rows;
                if width == 0 {
                    return Ok(None);
                }
                self.buffer("quantised", rows, width).map(Some)
            })
            .collect()
    }

    /// Places buffers and checks that nothing was left out.
    pub(super) fn finish(
        mut self,
        spec: &ModelSpec,
        geometry: PoolGeometry,
        rules: &KvRules,
        logits: BufferId,
    ) -> Result<Program, LowerError> {
        if let Some(t) = self.tensors.all().find(|t| !self.used.contains(&*t.name)) {
            return Err(LowerError::Unsupported {
                family: spec.family,
                what: format!("no operation reads its `{}`", t.name),
            });
        }
        let Limits {
            tokens, outputs, ..
        } = *self.limits;
        let scratch = self.scratch()?;
        let ops = self.ops.iter().zip(scratch.iter().copied());
        let activation_bytes = place(&mut self.buffers, ops, logits, [tokens, outputs])?;
        Ok(Program {
            ops: self.ops,
            scratch,
            buffers: self.buffers,
            activation_bytes,
            weights: self.weights,
            weight_bytes: self.weight_bytes,
            logits,
            geometry,
            kv_dtype: rules.dtype,
            vocab: spec.vocab,
            tokens,
            outputs,
            rank: self.rank,
        })
    }
}

/// Checks that no rank begins inside a block of a row that is stored in blocks.
fn whole_blocks(t: &TensorSpec, inputs: &Inputs) -> Result<(), LowerError> {
    whole(&t.name, "blocks", t.dtype.block_elements(), inputs)
}

fn whole(tensor: &str, what: &str, block: u64, inputs: &Inputs) -> Result<(), LowerError> {
    let cut = |at: u64| at != inputs.stored && !at.is_multiple_of(block);
    if cut(inputs.taken.start) || cut(inputs.taken.end) {
        return Err(LowerError::Divided(format!(
            "`{tensor}` has {what} of {block} elements, and ranks of {} columns would cut them",
            inputs.count()
        )));
    }
    Ok(())
}

/// That the columns taken are whole groups of a published scale, where `form` keeps the groups.
fn whole_groups(form: WeightType, sources: &[Source], inputs: &Inputs) -> Result<(), LowerError> {
    for source in sources {
        let stored = source.quantised.as_ref();
        let columns = match form {
            WeightType::Grouped(group) => group.columns(),
            // One scale for all columns is that of any.
            WeightType::Fp8 if stored.is_some_and(|q| q.is_f8() && q.groups() > 1) => {
                WeightType::SCALED
            }
            _ => continue,
        };
        whole(&source.tensor, "groups", columns, inputs)?;
    }
    Ok(())
}

/// What a matrix of these parts is kept as where it is kept as it is stored.
fn stored_form(sources: &[Source]) -> WeightType {
    let mut forms = sources
        .iter()
        .map(|s| s.quantised.as_ref().and_then(|q| q.kept()));
    match forms.next().flatten() {
        Some(form) if forms.all(|f| f == Some(form)) => form,
        _ => WeightType::Bf16,
    }
}

fn named(layer: Option<usize>, name: &str) -> String {
    layer.map_or_else(|| name.to_owned(), |i| format!("layers.{i}.{name}"))
}

fn vector(tensor: &str, rows: Range<u64>, plus: i8) -> Source {
    Source {
        tensor: tensor.to_owned(),
        rows,
        transposed: false,
        input: None,
        quantised: None,
        plus,
    }
}
