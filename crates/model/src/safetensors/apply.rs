//! [`spec_with_headers`]: the inventory that a config implies, corrected by what the files hold.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_units::Bytes;

use super::{SafetensorsHeader, StoredTensor};
use crate::json::printable;
use crate::quant;
use crate::spec::ModelSpec;
use crate::tensor::{Role, Shard, TensorSpec};

/// How many names an error or a note lists.
const LISTED: usize = 5;

/// The files do not hold the model that the config describes.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct HeaderMismatch {
    /// Tensors that the config implies and no file holds.
    pub missing: Vec<String>,
    /// Tensors whose stored shape is not the one that the config implies.
    pub mismatched: Vec<String>,
    /// Tensors that are in two files.
    pub twice: Vec<String>,
}

impl HeaderMismatch {
    fn text(&self) -> String {
        let list = |names: &[String]| {
            let shown = names
                .iter()
                .take(LISTED)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ");
            match names.len().checked_sub(LISTED) {
                None | Some(0) => shown,
                Some(more) => format!("{shown} and {more} more"),
            }
        };
        let mut parts = Vec::new();
        for (what, names) in [
            ("missing from the files", &self.missing),
            ("of another shape than the config implies", &self.mismatched),
            ("in two files", &self.twice),
        ] {
            if !names.is_empty() {
                parts.push(format!("{what}: {}", list(names)));
            }
        }
        format!(
            "config and weights are of different models: {}",
            parts.join("; ")
        )
    }

    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty() && self.twice.is_empty()
    }
}

/// Pairs of prefixes under which exporters write the same tensors: a bare decoder drops the name of
/// its wrapper's attribute, and transformers 4.52 moved a wrapper's parts below `model.`.
const PREFIXES: &[(&str, &str)] = &[
    ("transformer.", ""),
    ("model.", ""),
    ("gpt_neox.", ""),
    ("model.decoder.", "decoder."),
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "language_model."),
    ("model.language_model.", "model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
];

/// The stored tensors of all files, by name, with those that are spoken for.
struct Stored<'a> {
    tensors: BTreeMap<&'a str, &'a StoredTensor>,
    used: BTreeSet<&'a str>,
}

impl<'a> Stored<'a> {
    /// The names under which `name` may be stored, its own first.
    fn aliases(name: &str) -> impl Iterator<Item = String> {
        let other = PREFIXES
            .iter()
            .flat_map(|&(a, b)| [(a, b), (b, a)])
            .filter_map(|(from, to)| {
                let rest = name.strip_prefix(from)?;
                Some(format!("{to}{rest}"))
            });
        std::iter::once(name.to_owned()).chain(other)
    }

    fn find(&self, name: &str) -> Option<&'a StoredTensor> {
        // Nearly every name is stored as it is: try that before building aliases.
        if let Some(t) = self.tensors.get(name) {
            return Some(t);
        }
        Self::aliases(name).find_map(|n| self.tensors.get(n.as_str()).copied())
    }

    fn take(&mut self, name: &str) -> Option<&'a StoredTensor> {
        let t = self.find(name)?;
        self.used.insert(&t.name);
        Some(t)
    }

    /// Whether any name continues `stem`.
    fn any(&self, stem: &str) -> bool {
        Self::aliases(stem).any(|s| {
            let next = self.tensors.range(s.as_str()..).next();
            next.is_some_and(|(name, _)| name.starts_with(&s))
        })
    }

    /// Unused tensors whose name continues `stem` and whose first dimension is `experts`: one
    /// tensor for all experts of a layer.
    fn fused(&self, stem: &str, experts: u64) -> Vec<&'a StoredTensor> {
        let under = |stem: &str| -> Vec<&'a StoredTensor> {
            self.tensors
                .range(stem..)
                .take_while(|(name, _)| name.starts_with(stem))
                .filter(|(name, t)| {
                    t.shape.len() > 1
                        && t.shape.first() == Some(&experts)
                        && !self.used.contains(*name)
                })
                .map(|(_, t)| *t)
                .collect()
        };
        Self::aliases(stem)
            .map(|s| under(&s))
            .find(|v| !v.is_empty())
            .unwrap_or_default()
    }
}

/// Replaces types and shapes of `spec`'s inventory by the stored ones.
///
/// Names are matched as the family gives them, then under the prefixes that exporters vary. Routed
/// experts may be stored one by one or all of a layer in one tensor. A tensor that the family does
/// not name becomes [`Role::Other`], with a note; buffers that old exporters stored and nobody
/// loads (rotary frequencies, causal masks) are left out. A head that is not stored is tied.
///
/// # Errors
/// [`HeaderMismatch`] where tensors are missing, are stored twice, or where an unquantised one has
/// another shape than the config implies.
pub fn spec_with_headers(
    mut spec: ModelSpec,
    headers: &[SafetensorsHeader],
) -> Result<ModelSpec, HeaderMismatch> {
    let mut errors = HeaderMismatch::default();
    let mut stored = Stored {
        tensors: BTreeMap::new(),
        used: BTreeSet::new(),
    };
    for t in headers.iter().flat_map(|h| &h.tensors) {
        if stored.tensors.insert(&t.name, t).is_some() {
            errors.twice.push(printable(&t.name));
        }
    }

    let expected = std::mem::take(&mut spec.tensors);
    let has_embedding = expected
        .iter()
        .any(|t| t.role == Role::Embedding && stored.find(&t.name).is_some());
    let mut tensors = Vec::with_capacity(expected.len());
    let mut absent_mtp = 0_u64;
    let mut expert_modules: BTreeMap<(Option<u32>, String), Vec<TensorSpec>> = BTreeMap::new();
    for t in expected {
        if t.experts.is_some() && t.name.contains("{e}") {
            match experts_one_by_one(&t, &mut stored, &mut errors) {
                Some(mut list) => tensors.append(&mut list),
                None => {
                    let stem = t.name.split("{e}").next().unwrap_or_default().to_owned();
                    expert_modules.entry((t.layer, stem)).or_default().push(t);
                }
            }
            continue;
        }
        match stored.take(&t.name) {
            Some(found) => tensors.push(replaced(t, found, &mut errors)),
            None if t.role == Role::Head && has_embedding => {
                if !spec.tied_embeddings {
                    spec.tied_embeddings = true;
                    spec.notes.push(format!(
                        "the files hold no `{}`: the output head is taken for tied to the embedding",
                        t.name
                    ));
                }
            }
            None if t.role == Role::Mtp => absent_mtp += 1,
            None => errors.missing.push(t.name),
        }
    }
    for ((_, stem), expected) in expert_modules {
        // Layers that predict ahead are often left out of an export, experts and all.
        if expected.iter().all(|t| t.role == Role::Mtp) && !stored.any(&stem) {
            absent_mtp += expected.len() as u64;
            continue;
        }
        tensors.extend(fused_experts(&stem, expected, &mut stored, &mut errors));
    }
    if absent_mtp > 0 && !tensors.iter().any(|t| t.role == Role::Mtp) {
        spec.mtp_layers = 0;
        spec.notes
            .push("the files hold no multi-token-prediction layers".to_owned());
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let others = unknown(&mut spec, &stored);
    tensors.extend(others);
    spec.tensors = tensors;
    spec.from_headers = true;
    Ok(spec)
}

fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |a, &d| a.checked_mul(d))
}

/// `expected` with the stored shape and type; a plain weight must have the expected shape.
fn replaced(expected: TensorSpec, found: &StoredTensor, errors: &mut HeaderMismatch) -> TensorSpec {
    // One tensor for all experts of a layer has them along a leading dimension that `shape` lacks.
    let leading = expected.experts.filter(|_| !expected.name.contains("{e}"));
    let shape = match (leading, found.shape.split_first()) {
        (Some(experts), Some((first, rest))) if *first == experts => Some(rest),
        (Some(_), _) => None,
        (None, _) => Some(found.shape.as_slice()),
    };
    let same = shape.is_some_and(|shape| {
        expected.shape == shape
            // Exporters store a scale of one element as [], [1] or [1, 1].
            || (quant::is_auxiliary(&expected.name)
                && elements(shape) == expected.elements().ok())
    });
    if !same {
        errors.mismatched.push(format!(
            "{} {:?}, expected {:?}",
            printable(&found.name),
            found.shape,
            leading
                .into_iter()
                .chain(expected.shape.iter().copied())
                .collect::<Vec<_>>()
        ));
    }
    TensorSpec {
        name: found.name.clone(),
        shape: shape.unwrap_or_default().to_vec(),
        dtype: found.dtype,
        ..expected
    }
}

/// The experts of one projection, each stored on its own; `None` where not even the first is.
fn experts_one_by_one(
    t: &TensorSpec,
    stored: &mut Stored<'_>,
    errors: &mut HeaderMismatch,
) -> Option<Vec<TensorSpec>> {
    let name = |e: u64| t.name.replace("{e}", &e.to_string());
    stored.find(&name(0))?;
    let mut found = Vec::new();
    for e in 0..t.copies() {
        match stored.take(&name(e)) {
            Some(s) => found.push(s),
            None => errors.missing.push(name(e)),
        }
    }
    let first = found.first()?;
    if found
        .iter()
        .all(|s| s.dtype == first.dtype && s.shape == first.shape)
    {
        let one = replaced(t.clone(), first, errors);
        return Some(vec![TensorSpec {
            name: t.name.clone(),
            ..one
        }]);
    }
    // Experts of different types or shapes stay single tensors.
    Some(
        found
            .into_iter()
            .map(|s| TensorSpec {
                experts: None,
                ..replaced(t.clone(), s, errors)
            })
            .collect(),
    )
}

/// All experts of a layer in one tensor per projection (or pair of projections).
fn fused_experts(
    stem: &str,
    expected: Vec<TensorSpec>,
    stored: &mut Stored<'_>,
    errors: &mut HeaderMismatch,
) -> Vec<TensorSpec> {
    let Some(first) = expected.first().cloned() else {
        return Vec::new();
    };
    let experts = first.copies();
    let found = stored.fused(stem, experts);
    let have = found
        .iter()
        .filter(|s| s.dtype.is_scalar())
        .try_fold(0_u64, |acc, s| acc.checked_add(elements(&s.shape)?));
    let want = expected.iter().try_fold(0_u64, |acc, t| {
        acc.checked_add(t.elements().ok()?.checked_mul(t.copies())?)
    });
    if found.is_empty() || have != want {
        errors.missing.extend(expected.into_iter().map(|t| t.name));
        return Vec::new();
    }
    found
        .into_iter()
        .map(|s| {
            stored.used.insert(&s.name);
            // The split of a fused tensor is that of its first part: columns of the same MLP.
            TensorSpec {
                name: s.name.clone(),
                shape: s.shape.get(1..).unwrap_or_default().to_vec(),
                dtype: s.dtype,
                experts: Some(experts),
                linear: None,
                ..first.clone()
            }
        })
        .collect()
}

/// Buffers that exporters of old stored beside the weights; no engine loads them.
fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".masked_bias")
        || name.ends_with(".attn.bias")
        || name.ends_with(".attention.bias")
        || name.ends_with("rope.freqs")
        || name.ends_with("position_ids")
}

/// The number after `.layers.` in a name.
fn layer_of(name: &str) -> Option<u64> {
    let rest = name.split_once("layers.")?.1;
    rest.split('.').next()?.parse().ok()
}

/// What the family does not name: [`Role::Other`], a copy of the tied head left out.
fn unknown(spec: &mut ModelSpec, stored: &Stored<'_>) -> Vec<TensorSpec> {
    let mut others = Vec::new();
    let mut bytes = Bytes::ZERO;
    let mut copies = Vec::new();
    for (name, t) in &stored.tensors {
        if stored.used.contains(name) || is_buffer(name) {
            continue;
        }
        if spec.tied_embeddings && name.ends_with("lm_head.weight") {
            copies.push(printable(name));
            continue;
        }
        let beyond = layer_of(name).is_some_and(|l| l >= spec.layers.len() as u64);
        let role = if name.starts_with("mtp.") || (spec.mtp_layers > 0 && beyond) {
            Role::Mtp
        } else {
            bytes = bytes.add(Bytes::new(t.end - t.begin)).unwrap_or(Bytes::MAX);
            Role::Other
        };
        others.push(TensorSpec {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype: t.dtype,
            role,
            layer: None,
            shard: Shard::Replicated,
            experts: None,
            linear: None,
        });
    }
    for name in copies {
        spec.notes.push(format!(
            "`{name}` is stored although the head is tied to the embedding; it is not loaded"
        ));
    }
    let names: Vec<String> = others
        .iter()
        .filter(|t| t.role == Role::Other)
        .map(|t| printable(&t.name))
        .collect();
    if !names.is_empty() {
        let shown = names
            .iter()
            .take(3)
            .map(|n| format!("`{n}`"))
            .collect::<Vec<_>>()
            .join(", ");
        spec.notes.push(format!(
            "{} stored tensors ({bytes}) are none that the {} family names: {shown}{}; they count as role \"other\"",
            names.len(),
            spec.family,
            if names.len() > 3 { " ..." } else { "" },
        ));
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Assume, from_config};
    use plimsoll_units::DType;
    use serde_json::json;

    fn llama(tied: bool) -> ModelSpec {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 100, "torch_dtype": "bfloat16", "tie_word_embeddings": tied,
        });
        from_config(&config, Assume::Nothing).unwrap()
    }

    /// A header that holds exactly what `spec` implies, each expert on its own.
    fn header(spec: &ModelSpec) -> SafetensorsHeader {
        let mut h = SafetensorsHeader::default();
        for t in &spec.tensors {
            for e in 0..t.copies() {
                add(
                    &mut h,
                    &t.name.replace("{e}", &e.to_string()),
                    &t.shape,
                    t.dtype,
                );
            }
        }
        h
    }

    fn add(h: &mut SafetensorsHeader, name: &str, shape: &[u64], dtype: DType) {
        let begin = h.tensors.last().map_or(0, |t| t.end);
        let bytes = dtype.bytes(shape.iter().product()).unwrap().get();
        h.tensors.push(StoredTensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            begin,
            end: begin + bytes,
        });
    }

    #[test]
    fn a_faithful_header_changes_nothing_but_the_flag() {
        let spec = llama(false);
        let read = spec_with_headers(spec.clone(), &[header(&spec)]).unwrap();
        assert!(read.from_headers);
        assert_eq!(read.tensors, spec.tensors);
        assert_eq!(read.notes, spec.notes);
    }

    #[test]
    fn stored_types_win() {
        let spec = llama(false);
        let mut h = header(&spec);
        for t in &mut h.tensors {
            t.dtype = DType::F32;
        }
        let read = spec_with_headers(spec.clone(), &[h]).unwrap();
        assert_eq!(
            read.stored_bytes().unwrap().get(),
            2 * spec.stored_bytes().unwrap().get()
        );
    }

    #[test]
    fn i7_names_what_is_missing_mismatched_and_extra() {
        let spec = llama(false);
        let mut h = header(&spec);
        h.tensors.retain(|t| !t.name.starts_with("model.layers.1."));
        let err = spec_with_headers(spec.clone(), &[h]).unwrap_err();
        assert_eq!(err.missing.len(), 9);
        let text = err.to_string();
        assert!(
            text.contains("model.layers.1.self_attn.q_proj.weight") && text.contains("and 4 more"),
            "{text}"
        );

        let mut h = header(&spec);
        for t in &mut h.tensors {
            if t.name.ends_with("0.mlp.down_proj.weight") {
                t.shape.reverse();
            }
            if t.name == "model.embed_tokens.weight" {
                t.shape[0] += 1;
            }
        }
        let err = spec_with_headers(spec.clone(), &[h]).unwrap_err();
        assert_eq!(err.mismatched.len(), 2, "{err}");

        let mut h = header(&spec);
        add(
            &mut h,
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            &[8],
            DType::F32,
        );
        add(&mut h, "model.layers.0.secret", &[8], DType::F32);
        let read = spec_with_headers(spec.clone(), &[h.clone()]).unwrap();
        let other: Vec<_> = read
            .tensors
            .iter()
            .filter(|t| t.role == Role::Other)
            .collect();
        assert_eq!(other.len(), 1);
        assert!(
            read.notes
                .iter()
                .any(|n| n.contains("`model.layers.0.secret`")),
            "{:?}",
            read.notes
        );

        let err = spec_with_headers(spec, &[h.clone(), h]).unwrap_err();
        assert!(err.to_string().contains("in two files"), "{err}");
    }

    #[test]
    fn a_head_may_be_stored_or_not() {
        let untied = llama(false);
        let mut h = header(&untied);
        h.tensors.retain(|t| t.name != "lm_head.weight");
        let read = spec_with_headers(untied.clone(), &[h]).unwrap();
        assert!(read.tied_embeddings);
        assert!(!read.tensors.iter().any(|t| t.role == Role::Head));

        let read = spec_with_headers(llama(true), &[header(&untied)]).unwrap();
        assert!(!read.tensors.iter().any(|t| t.name == "lm_head.weight"));
        assert!(read.notes.iter().any(|n| n.contains("not loaded")));
    }

    #[test]
    fn layers_that_predict_ahead_may_be_left_out() {
        let mut spec = llama(false);
        spec.mtp_layers = 1;
        let base = header(&spec);
        for (name, experts) in [("mlp.experts.{e}.up_proj", Some(4)), ("eh_proj", None)] {
            spec.tensors.push(TensorSpec {
                name: format!("model.layers.2.{name}.weight"),
                shape: vec![8, 8],
                dtype: DType::Bf16,
                role: Role::Mtp,
                layer: None,
                shard: Shard::Replicated,
                experts,
                linear: None,
            });
        }
        let with = spec_with_headers(spec.clone(), &[header(&spec)]).unwrap();
        assert_eq!((with.mtp_layers, &with.tensors), (1, &spec.tensors));
        let without = spec_with_headers(spec, &[base]).unwrap();
        assert_eq!(without.mtp_layers, 0);
        assert!(!without.tensors.iter().any(|t| t.role == Role::Mtp));
        assert!(without.notes.iter().any(|n| n.contains("multi-token")));
    }

    #[test]
    fn experts_of_a_layer_in_one_tensor_lead_its_shape() {
        let mut spec = llama(false);
        spec.tensors.push(TensorSpec {
            name: "model.layers.0.mlp.experts.down_proj_blocks".to_owned(),
            shape: vec![8, 2, 16],
            dtype: DType::U8,
            role: Role::Experts,
            layer: Some(0),
            shard: Shard::Replicated,
            experts: Some(4),
            linear: None,
        });
        // As stored: `header` above writes experts one by one, under equal names.
        let mut h = SafetensorsHeader::default();
        for t in &spec.tensors {
            for (name, shape) in t.stored() {
                add(&mut h, &name, &shape, t.dtype);
            }
        }
        let read = spec_with_headers(spec.clone(), &[h.clone()]).unwrap();
        assert_eq!(read.tensors, spec.tensors);
        for wrong in [vec![8, 2, 16], vec![3, 8, 2, 16], vec![4, 8, 2, 32]] {
            h.tensors.last_mut().unwrap().shape = wrong;
            let err = spec_with_headers(spec.clone(), &[h.clone()]).unwrap_err();
            assert!(err.to_string().contains("[4, 8, 2, 16]"), "{err}");
        }
    }

    #[test]
    fn a_bare_decoder_lacks_the_prefix() {
        let config = json!({
            "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 1, "n_head": 2,
            "n_positions": 16, "vocab_size": 10,
        });
        let spec = from_config(&config, Assume::Nothing).unwrap();
        let mut h = header(&spec);
        for t in &mut h.tensors {
            t.name = t.name.replace("transformer.", "");
        }
        add(&mut h, "h.0.attn.bias", &[1, 1, 16, 16], DType::F32);
        let read = spec_with_headers(spec.clone(), &[h]).unwrap();
        assert_eq!(read.tensors.len(), spec.tensors.len());
        assert_eq!(read.stored_bytes(), spec.stored_bytes());
    }

    #[test]
    fn experts_may_be_stored_apart_or_fused() {
        let mut spec = llama(false);
        let expert = |name: &str, shape: [u64; 2]| TensorSpec {
            name: format!("model.layers.0.mlp.experts.{{e}}.{name}.weight"),
            shape: shape.to_vec(),
            dtype: DType::Bf16,
            role: Role::Experts,
            layer: Some(0),
            shard: Shard::Replicated,
            experts: Some(4),
            linear: None,
        };
        let base = header(&spec);
        spec.tensors.push(expert("gate_proj", [32, 64]));
        spec.tensors.push(expert("up_proj", [32, 64]));
        spec.tensors.push(expert("down_proj", [64, 32]));
        let apart = spec_with_headers(spec.clone(), &[header(&spec)]).unwrap();
        assert_eq!(apart.tensors, spec.tensors);

        let mut fused = base.clone();
        add(
            &mut fused,
            "model.layers.0.mlp.experts.gate_up_proj",
            &[4, 64, 64],
            DType::Bf16,
        );
        add(
            &mut fused,
            "model.layers.0.mlp.experts.down_proj",
            &[4, 32, 64],
            DType::Bf16,
        );
        let read = spec_with_headers(spec.clone(), &[fused]).unwrap();
        assert_eq!(read.stored_bytes(), spec.stored_bytes());
        assert_eq!(
            read.tensors
                .iter()
                .filter(|t| t.role == Role::Experts)
                .count(),
            2
        );

        let mut short = header(&spec);
        short.tensors.retain(|t| !t.name.contains("experts.3.up"));
        let err = spec_with_headers(spec.clone(), &[short]).unwrap_err();
        assert_eq!(err.missing, ["model.layers.0.mlp.experts.3.up_proj.weight"]);
        assert_eq!(
            spec_with_headers(spec, &[base]).unwrap_err().missing.len(),
            3
        );
    }
}
