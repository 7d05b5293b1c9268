//! `plimsoll`: our own server. Weights, KV pages and swap are exact, and activations where the model lowers: they are
//! those of the program that runs. The rest is a bound.

use plimsoll_model::{Ffn, LayerSpec, Mixer};
use plimsoll_program::{
    Buckets, Exchange, KvRules, Limits, PackedLayout, PoolGeometry, Program, RECORDED_KERNEL, Rank,
    StepInputs, WeightRules, is_read, lower_rank,
};
use plimsoll_units::{Bytes, DType, SizeOverflow, Weights};

pub(crate) mod host;
pub(crate) mod http;

use super::ideal::whole_device;
use super::{Context, EngineStage, Takes, extras, in_use, plain_kv_dtype, weight_terms};
use crate::error::PlanError;
use crate::kv::{Held, LogRule, PagedGroup, PagedLaw, StartRule};
use crate::settings::Settings;
use crate::term::{Kind, Region, Term};
use plimsoll_program::GroupKind;

/// Tokens per block unless `--block-size` says otherwise: the paper's choice (section 7.2).
const BLOCK_SIZE: u64 = 16;
/// Rows of a packed panel (DESIGN section 5).
const PANEL_ROWS: u64 = 32;
/// T unless `--max-num-batched-tokens` says otherwise.
const BATCHED_TOKENS: u64 = 2048;
/// R unless `--max-num-seqs` says otherwise.
const SEQUENCES: u64 = 256;
/// Activations are f32 (DESIGN, invariant 5).
const F32: u64 = 4;
/// Context and modules on a GPU, until warm-up measures them: about twice
/// what contexts with lazily loaded modules were seen to take (FORMULAS section 3.3: 0.3 GB).
pub(crate) const DRIVER_BOUND_MIB: u64 = 640;
/// What NCCL takes on each GPU: about three times what others count for its buffers (FORMULAS section 3.3: 342 to 392 MB). It is not asked
/// to add up in a switch, which would take more.
const NCCL_BOUND_MIB: u64 = 1024;
const EXCHANGE: &str = "plimsoll-program: exchange.rs";

pub(super) fn stage(context: &Context<'_>) -> Result<EngineStage, PlanError> {
    let mut notes = Vec::new();
    let on_cpu = host::is_cpu(context);
    let ranks = context.deployment.parallel.tp;
    let mut largest_weight = Bytes::ZERO;
    let mut host = Vec::new();
    let mut terms = match program(context)? {
        Ok(program) => {
            largest_weight = program.largest_weight();
            if !on_cpu {
                notes.push("what the driver takes is a bound".to_owned());
            }
            if !on_cpu && ranks > 1 {
                host.extend(exchanged(&program)?);
                notes.push(
                    "ranks are threads of one process: each has logits, pages on their way and what it shows the others on the host; everything else there is there once"
                        .to_owned(),
                );
            }
            if context.spec.encoder.is_some() {
                notes.push(
                    "the vision or audio tower does not run yet and is not loaded".to_owned(),
                );
            }
            program_terms(context, &program)?
        }
        Err(why) => {
            let weights = context.settings.weights;
            if weights != Weights::default() {
                return Err(PlanError::Refused {
                    engine: "plimsoll".to_owned(),
                    setting: format!("--weights {weights}"),
                    reason: format!(
                        "weights become another type only where the model runs, and {why}"
                    ),
                });
            }
            notes.push(format!("activations, logits and driver are bounds: {why}"));
            bounds(context)?
        }
    };
    let rules = kv_rules(context)?;
    let parallel = &context.deployment.parallel;
    let geometry = PoolGeometry::new(context.spec, parallel, context.stage, &rules)?;
    let mut law = law(&geometry)?;
    // The same scheduler and block manager, wherever steps are carried out.
    law.start = StartRule::GroupsAndNull;
    // A GPU is the server's alone: what its sequences cannot use keeps prefixes.
    let takes = if on_cpu {
        Takes::AtMost(host::most(context, &geometry)?)
    } else {
        Takes::Blocks
    };
    terms.extend(extras::adapters(context)?);
    let beside = host::terms(context, &geometry, largest_weight)?;
    let mut budget = whole_device(context);
    if on_cpu {
        // What several ranks have together is beside them, once.
        let own = |t: &Term| ranks == 1 || !t.shared;
        let (mine, shared): (Vec<Term>, Vec<Term>) = beside.into_iter().partition(own);
        if ranks > 1 {
            notes.push(
                "ranks are threads of one process: they share the memory of these processors, and what is on the host is there once"
                    .to_owned(),
            );
            let shared = Bytes::sum(shared.iter().map(Term::high))?;
            budget.bytes = Bytes::new(budget.bytes.saturating_sub(shared).get() / ranks);
            budget.formula = format!("({} - what ranks share) / ranks", budget.formula);
        }
        terms.extend(mine);
        host.extend(shared);
    } else {
        terms.extend(driver(ranks)?);
        host.extend(beside);
    }
    if context.settings.swap_file {
        host.extend(host::swap(context, &geometry)?);
    }
    Ok(EngineStage {
        layers: None,
        budget,
        terms,
        outside: in_use(context).into_iter().collect(),
        host,
        kv: Box::new(law),
        takes,
        notes,
    })
}

fn kv_rules(context: &Context<'_>) -> Result<KvRules, PlanError> {
    let dtype = plain_kv_dtype(context, "plimsoll")?;
    let latent = |l: &LayerSpec| matches!(l.mixer, Mixer::Latent(_));
    if dtype == DType::I8 && context.spec.layers.iter().any(latent) {
        return Err(PlanError::Refused {
            engine: "plimsoll".to_owned(),
            setting: "--kv-cache-dtype int8".to_owned(),
            reason: "latents have no heads to scale by: use bf16, f16, f32 or fp8".to_owned(),
        });
    }
    let block_size = context.settings.block_size.unwrap_or(BLOCK_SIZE);
    Ok(KvRules::plimsoll(dtype, block_size))
}

/// The program that runs, or why there is none.
fn program(context: &Context<'_>) -> Result<Result<Program, String>, PlanError> {
    let parallel = &context.deployment.parallel;
    if parallel.pp > 1 {
        return Ok(Err("pipeline stages do not run yet".to_owned()));
    }
    if parallel.expert_parallel {
        return Ok(Err("experts are not dealt out whole yet".to_owned()));
    }
    if let Some(dtype) = context.settings.dtype.filter(|d| *d != DType::Bf16) {
        return Ok(Err(format!("weights of {dtype} do not run yet")));
    }
    let limits = Limits {
        tokens: batched_tokens(context),
        outputs: outputs(context),
        context: context.max_model_len,
        weights: context.settings.weights,
    };
    // All ranks are alike.
    let first = Rank {
        index: 0,
        of: parallel.tp,
    };
    let program = lower_rank(context.spec, first, &limits, &kv_rules(context)?);
    Ok(program.map_err(|e| e.to_string()))
}

/// Weights and activations of a program.
fn program_terms(context: &Context<'_>, program: &Program) -> Result<Vec<Term>, PlanError> {
    let mut terms: Vec<Term> = program
        .bytes_by_role()?
        .into_iter()
        .map(|(role, bytes)| {
            Term::exact(Region::Weights, role.name(), bytes)
                .formula(format!(
                    "packed weights, each up to a multiple of 64 bytes: {} matrices in panels of 32 rows, f32 vectors",
                    context.settings.weights
                ))
                .source("plimsoll-program: lower/")
        })
        .collect();
    let buffers = program.buffers.len();
    terms.push(
        Term::exact(Region::Activations, "activations", program.activation_bytes)
            .formula(
                "f32 buffers of T or R rows, those that are never alive together sharing space",
            )
            .input("T", program.tokens)
            .input("R", program.outputs)
            .input("buffers", buffers)
            .input("longest sequence", context.max_model_len)
            .source("plimsoll-program: lower/place.rs"),
    );
    if !host::is_cpu(context) {
        terms.push(
            Term::exact(
                Region::Workspace,
                "step inputs",
                StepInputs::of(program, context.max_model_len)?.bytes()?,
            )
            .formula("32-bit words: tokens, positions and rows of T tokens, R rows and their block tables, constants; parts of attention")
            .input("T", program.tokens)
            .input("R", program.outputs)
            .input("longest sequence", context.max_model_len)
            .source("plimsoll-program: inputs.rs"),
        );
        terms.extend(graphs(context, program)?);
        if program.rank.of > 1 {
            terms.push(
                Term::exact(
                    Region::Collectives,
                    "what ranks have, before it is added up",
                    Exchange::of(program)?.device,
                )
                .formula("ranks x (T x hidden / ranks, up to a multiple of 16; a row of the vocabulary's part, if more) x 4")
                .input("ranks", program.rank.of)
                .input("T", program.tokens)
                .source(EXCHANGE),
            );
        }
    }
    Ok(terms)
}

/// Decode steps that are recorded, if they are.
fn graphs(context: &Context<'_>, program: &Program) -> Result<Option<Term>, SizeOverflow> {
    if context.settings.enforce_eager {
        return Ok(None);
    }
    let buckets = Buckets::of(program, context.max_model_len, true)?;
    let bytes = buckets.bytes(program)?;
    Ok((bytes > Bytes::ZERO).then(|| {
        Term::exact(Region::Graphs, "graphs of decode steps", bytes)
            .kind(Kind::Bound)
            .formula(format!(
                "kernels of all sizes of decode steps x {RECORDED_KERNEL}"
            ))
            .input("sizes: rows, and parts of attention", buckets.all().count())
            .input("sizes of the head: rows", buckets.all_rows().count())
            .source("plimsoll-program: buckets.rs: less than 2 KiB a kernel were seen, once, on an H200")
    }))
}

/// What a rank on a GPU shows the others by way of the host.
fn exchanged(program: &Program) -> Result<Option<Term>, SizeOverflow> {
    let bytes = Exchange::of(program)?.host;
    Ok((bytes > Bytes::ZERO).then(|| {
        Term::exact(Region::Collectives, "what ranks show each other", bytes)
            .formula("the larger of T x hidden and R x the vocabulary's part, x 4")
            .input("T", program.tokens)
            .input("R", program.outputs)
            .source(EXCHANGE)
    }))
}

/// What holds for models that do not lower: weights as stored, in panels, and the widest layer. Quantised matrices are
/// multiplied out where we read their layout.
fn bounds(context: &Context<'_>) -> Result<Vec<Term>, PlanError> {
    let rules = WeightRules {
        dtype: context.settings.dtype,
        packed: Some(PackedLayout { rows: PANEL_ROWS }),
        keep_order_index: false,
        widened: is_read(context.spec).then_some(DType::Bf16),
        ..WeightRules::stored()
    };
    let source = "plimsoll-program: weights.rs, panels of 32 rows";
    let mut terms = weight_terms(context, &rules, source)?;
    terms.push(activations(context)?);
    terms.push(logits(context)?);
    Ok(terms)
}

/// T of a server with these settings, on processors or on a GPU, planned for so many sequences.
pub(crate) fn batched_tokens_of(settings: &Settings, on_cpu: bool, users: u64) -> u64 {
    let stated = settings.max_num_batched_tokens;
    if on_cpu {
        // A step has room for a token of every sequence.
        let outputs = outputs_of(settings, on_cpu, users);
        return stated.unwrap_or(host::BATCHED_TOKENS).max(outputs);
    }
    stated.unwrap_or(BATCHED_TOKENS)
}

/// R of it.
pub(crate) fn outputs_of(settings: &Settings, on_cpu: bool, users: u64) -> u64 {
    let default = if on_cpu { host::SEQUENCES } else { SEQUENCES };
    let stated = settings.max_num_seqs.unwrap_or(default);
    stated.max(users.min(SEQUENCES))
}

fn batched_tokens(context: &Context<'_>) -> u64 {
    batched_tokens_of(context.settings, host::is_cpu(context), context.users)
}

fn outputs(context: &Context<'_>) -> u64 {
    outputs_of(context.settings, host::is_cpu(context), context.users)
}

fn law(geometry: &PoolGeometry) -> Result<PagedLaw, PlanError> {
    let groups = geometry
        .groups
        .iter()
        .map(|g| {
            Ok(PagedGroup {
                kind: g.kind,
                own_pages: false,
                layers: g.layers,
                padding_layers: 0,
                block_size: if g.kind == GroupKind::State {
                    1
                } else {
                    g.slots
                },
                page: if g.kind == GroupKind::State {
                    geometry.page
                } else {
                    g.rate.times(g.slots)?
                },
                row: g.rate.times(g.layers)?,
                held: match g.kind {
                    GroupKind::Full | GroupKind::Latent => Held::PerToken,
                    GroupKind::Window(n) => Held::Capped {
                        cap: n.saturating_sub(1),
                        extra: 1,
                        always_extra: false,
                    },
                    GroupKind::Chunk(n) => Held::Capped {
                        cap: n,
                        extra: 0,
                        always_extra: false,
                    },
                    GroupKind::State => Held::Fixed(g.state_pages),
                },
                shares: matches!(g.kind, GroupKind::Full | GroupKind::Latent),
            })
        })
        .collect::<Result<_, SizeOverflow>>()?;
    Ok(PagedLaw {
        block_bytes: geometry.page,
        null_blocks: 1,
        groups,
        log: LogRule::ConcurrencyTimesLength,
        start: StartRule::None,
    })
}

/// The widest layer's inputs, outputs and inner buffers for T tokens, all alive at once: of a feed-forward, what
/// its function takes and gives.
fn activations(context: &Context<'_>) -> Result<Term, PlanError> {
    let spec = context.spec;
    let tp = context.deployment.parallel.tp.max(1);
    let t = batched_tokens(context);
    let mut widest = 0_u64;
    for layer in &spec.layers {
        let mixer = match layer.mixer {
            Mixer::Attention(a) => {
                (a.q_heads * (a.k_dim + a.v_dim) + a.elements_per_token(a.kv_heads)) / tp
            }
            Mixer::Latent(a) => {
                // Queries in the latents' space, and what they found there.
                a.q_heads * (2 * a.rank + a.rope_dim + a.nope_dim + a.v_dim) / tp
                    + a.rank
                    + a.rope_dim
            }
            Mixer::State(s) => (s.conv_channels * 2 + s.heads * (s.rows + s.cols)) / tp,
            Mixer::None => 0,
        };
        let ffn = match layer.ffn {
            Ffn::Dense {
                intermediate,
                gated,
            } => intermediate * (2 + u64::from(gated)) / tp,
            Ffn::Moe(m) => m
                .top_k
                .saturating_mul(3 * m.intermediate / tp + spec.hidden)
                .saturating_add(3 * m.shared / tp),
            Ffn::None => 0,
        };
        widest = widest.max(mixer.max(ffn));
    }
    let row = widest.saturating_add(3 * spec.hidden);
    let bytes = Bytes::product([t, row, F32])?;
    Ok(Term::exact(Region::Activations, "activations", bytes)
        .kind(Kind::Bound)
        .formula("T x (widest layer's buffers + 3 x hidden) x 4")
        .input("T", t)
        .input("widest layer, elements per token", widest)
        .input("hidden", spec.hidden)
        .source("plimsoll-plan: engine/plimsoll.rs"))
}

/// f32 logits of every row that samples.
fn logits(context: &Context<'_>) -> Result<Term, PlanError> {
    let (r, vocab) = (outputs(context), context.spec.vocab);
    let bytes = Bytes::product([r, vocab, F32])?;
    Ok(Term::exact(Region::Activations, "logits", bytes)
        .kind(Kind::Bound)
        .formula("R x vocabulary x 4")
        .input("R", r)
        .input("vocabulary", vocab)
        .source("plimsoll-plan: engine/plimsoll.rs"))
}

/// What a GPU's driver takes, and where ranks meet the library by which they do.
fn driver(ranks: u64) -> Result<Vec<Term>, SizeOverflow> {
    let bound = |name: &str, mib, formula: &str| -> Result<Term, SizeOverflow> {
        let term = Term::exact(Region::Driver, name, Bytes::from_mib(mib)?);
        let source = "plimsoll-plan: engine/plimsoll.rs";
        Ok(term.kind(Kind::Bound).formula(formula).source(source))
    };
    let mut all = vec![bound(
        "context and modules",
        DRIVER_BOUND_MIB,
        "fixed bound: a context, its kernels, a stream, and allocations in whole 2 MiB",
    )?];
    if ranks > 1 {
        all.push(bound(
            "NCCL",
            NCCL_BOUND_MIB,
            "fixed bound: a communicator and its connections",
        )?);
    }
    Ok(all)
}
