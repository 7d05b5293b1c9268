//! The token pool: how a budget becomes tokens, windows' tokens and slots of states, and what requests hold of them.
//!
//! Source: SGLang `srt/model_executor/model_runner.py` (`profile_max_num_token`, `handle_max_mamba_cache`,
//! `set_num_token_hybrid`), from 0.5.11 on `pool_configurator.py`, from 0.5.15 on `srt/mem_cache/kv_cache_configurator.py`.
//! Checked against these functions (`tools/oracles/sglang_memory.py`).
//! Not modelled: drafts, context parallelism, hierarchical caches, the compressed caches of DeepSeek V4.

use plimsoll_model::{Mixer, Reach, local_kv_heads};
use plimsoll_program::{GroupKind, state_bytes};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::super::{Context, Version, activation_dtype, plain_kv_dtype};
use super::{Defaults, sparse};
use crate::error::PlanError;
use crate::kv::{Capacity, GroupReport, KvLaw, Need};
use crate::settings::Load;

/// Windows' tokens per token of full attention (`--swa-full-tokens-ratio`), in tenths.
const WINDOW_TENTHS: u64 = 8;
/// Memory of states per memory of tokens (`--mamba-full-memory-ratio`), in tenths.
const STATE_TENTHS: u64 = 9;
/// Slots of states that a running request has with cached prefixes: its own and two snapshots
/// (`MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO`).
const STATE_SLOTS: u64 = 3;
/// From here on the states' pool has a slot that nobody uses: in 0.5.23, not in 0.5.20.
const PADDING_SLOT: Version = Version {
    major: 0,
    minor: 5,
    patch: 23,
};
/// From here on layers with windows and learned sinks have a pool of their own: in 0.5.8, not in 0.5.2.
const SINKS_APART: Version = Version {
    major: 0,
    minor: 5,
    patch: 3,
};

/// From here on `--max-total-tokens` counts tokens of full attention; before, as if all layers had as many.
const CAP_AFTER_SPLIT: Version = Version {
    major: 0,
    minor: 5,
    patch: 11,
};

/// The pools of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPools {
    page: u64,
    /// Bytes of a token in all layers of full attention (or latents, or windows that are treated so), as the pool is
    /// divided.
    full: Bytes,
    /// The same as allocated: more where what divides the pool leaves scales out.
    stored: Bytes,
    full_kind: GroupKind,
    full_layers: u64,
    /// Bytes of a token in all layers with a pool of their own for windows, and the window.
    windows: Option<Windows>,
    /// Bytes of a sequence's states in all layers.
    state: Bytes,
    state_layers: u64,
    padding_slot: bool,
    /// `--max-total-tokens`.
    most: Option<u64>,
    /// `--max-running-requests`.
    requests: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    bytes: Bytes,
    kind: GroupKind,
    reach: u64,
    layers: u64,
}

/// A pool, divided.
struct Divided {
    tokens: u64,
    slots: Option<u64>,
}

/// The type of the pool: the model's, 8 bits, or bf16 where the release takes its name (`srt/server_args.py`:
/// `--kv-cache-dtype`).
fn pool_dtype(context: &Context<'_>, version: Version) -> Result<DType, PlanError> {
    let kv = plain_kv_dtype(context, "sglang")?;
    let named = match kv {
        DType::F8E4m3 | DType::F8E5m2 => true,
        DType::Bf16 => version >= super::BF16_BY_NAME,
        _ => false,
    };
    if named || kv == activation_dtype(context) {
        return Ok(kv);
    }
    Err(PlanError::Refused {
        engine: format!("sglang {version}"),
        setting: format!("--kv-cache-dtype {}", context.settings.kv_type),
        reason: format!(
            "its pools have the model's type, fp8_e4m3 or fp8_e5m2, and from {} on bf16",
            super::BF16_BY_NAME
        ),
    })
}

/// The law of one rank.
pub(super) fn law(
    context: &Context<'_>,
    version: Version,
    defaults: &Defaults,
) -> Result<TokenPools, PlanError> {
    let rows = sparse::rows(context, version)?;
    let kv = match &rows {
        Some(rows) => rows.dtype,
        None => pool_dtype(context, version)?,
    };
    let dtype = activation_dtype(context);
    let tp = context.deployment.parallel.tp;
    let spec = context.spec;
    // Windows alone do not make a pool: Gemma 2 and 3, Mistral and others keep all layers alike. Chunks do, and sinks.
    let sinks = spec.tensors.iter().any(|t| t.name.ends_with(".sinks"));
    let mut law = TokenPools {
        page: defaults.page,
        full: Bytes::ZERO,
        stored: Bytes::ZERO,
        full_kind: GroupKind::Full,
        full_layers: 0,
        windows: None,
        state: Bytes::ZERO,
        state_layers: 0,
        padding_slot: version >= PADDING_SLOT,
        most: context.settings.max_total_tokens,
        requests: context.settings.max_num_seqs,
    };
    for (i, layer) in spec.layers.iter().enumerate() {
        if !context.stage.layers.contains(&(i as u64)) {
            continue;
        }
        match layer.mixer {
            Mixer::Attention(a) if a.shared => {}
            Mixer::Attention(a) => {
                let elements =
                    Bytes::product([local_kv_heads(a.kv_heads, tp)?, a.k_dim + a.v_dim])?;
                let bytes = kv.bytes(elements.get())?;
                let own = match a.reach {
                    Reach::Chunk(n) => Some((GroupKind::Chunk(n), n)),
                    Reach::Window(n) if sinks && version >= SINKS_APART => {
                        Some((GroupKind::Window(n), n))
                    }
                    Reach::Window(_) | Reach::Full => None,
                };
                match own {
                    Some((kind, reach)) => {
                        let w = law.windows.get_or_insert(Windows {
                            bytes: Bytes::ZERO,
                            kind,
                            reach,
                            layers: 0,
                        });
                        w.bytes = w.bytes.add(bytes)?;
                        w.layers += 1;
                    }
                    None => {
                        law.full = law.full.add(bytes)?;
                        law.stored = law.stored.add(bytes)?;
                        law.full_layers += 1;
                    }
                }
            }
            Mixer::Latent(a) => {
                let (counted, stored) = match &rows {
                    Some(rows) => rows.of(&a)?,
                    None => {
                        let row = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
                        (kv.bytes(row)?, kv.bytes(row)?)
                    }
                };
                law.full = law.full.add(counted)?;
                law.stored = law.stored.add(stored)?;
                law.full_kind = GroupKind::Latent;
                law.full_layers += 1;
            }
            Mixer::State(_) | Mixer::None => {}
        }
        let alone = match layer.mixer {
            Mixer::State(s) => Some(s),
            _ => None,
        };
        for s in alone.into_iter().chain(layer.parallel) {
            // Convolutions in bf16 whatever the model's type, states in f32 unless the config says otherwise.
            let conv = if dtype == DType::F32 {
                dtype
            } else {
                DType::Bf16
            };
            law.state = law.state.add(state_bytes(&s, tp, conv, DType::F32)?)?;
            law.state_layers += 1;
        }
    }
    if let (Some(most), Some(w), true) = (law.most, law.windows, version < CAP_AFTER_SPLIT) {
        let alike = u128::from(law.full.add(w.bytes)?.get()) * 10 * u128::from(most);
        let cells = u128::from(law.ten_cells()?.max(1));
        law.most = Some(u64::try_from(alike / cells).map_err(|_| SizeOverflow)?);
    }
    Ok(law)
}

fn mul(a: u64, b: u64) -> Result<u64, SizeOverflow> {
    a.checked_mul(b).ok_or(SizeOverflow)
}

impl TokenPools {
    /// Ten times the bytes that a token takes, its share of the windows' pool included.
    fn ten_cells(&self) -> Result<u64, SizeOverflow> {
        let windows = self.windows.map_or(0, |w| w.bytes.get());
        if self.full == Bytes::ZERO {
            return mul(windows, 10);
        }
        mul(self.full.get(), 10)?
            .checked_add(mul(windows, WINDOW_TENTHS)?)
            .ok_or(SizeOverflow)
    }

    /// Bytes that states take of a pool, and their slots.
    fn states(&self, pool: Bytes) -> (Bytes, Option<u64>) {
        let each = self.state.get();
        if each == 0 {
            return (Bytes::ZERO, None);
        }
        // 9 of 19 parts, in 128 bits: the product may pass 64.
        let share =
            u128::from(pool.get()) * u128::from(STATE_TENTHS) / u128::from(STATE_TENTHS + 10);
        let share = u64::try_from(share).unwrap_or(pool.get());
        let padding = u64::from(self.padding_slot);
        let slots = (share / each).saturating_sub(padding);
        let held = if slots == 0 {
            0
        } else {
            (slots + padding) * each
        };
        (Bytes::new(held), Some(slots))
    }

    fn divide(&self, pool: Bytes) -> Result<Divided, SizeOverflow> {
        let (states, slots) = self.states(pool);
        let rest = pool.saturating_sub(states).get();
        let cells = self.ten_cells()?;
        let tokens = if cells == 0 {
            u64::MAX
        } else {
            u64::try_from(u128::from(rest) * 10 / u128::from(cells)).unwrap_or(u64::MAX)
        };
        let tokens = self.most.map_or(tokens, |m| m.min(tokens));
        Ok(Divided {
            tokens: tokens / self.page * self.page,
            slots,
        })
    }

    /// Bytes of keys and values of a pool of `tokens`, windows' included, as the pool is divided.
    pub(super) fn bytes(&self, tokens: u64) -> Result<Bytes, SizeOverflow> {
        let ten = u128::from(self.ten_cells()?) * u128::from(tokens);
        u64::try_from(ten.div_ceil(10))
            .map(Bytes::new)
            .map_err(|_| SizeOverflow)
    }

    /// What `tokens` take beyond [`Self::bytes`]: it comes out of the reserve.
    fn uncounted(&self, tokens: u64) -> Result<Bytes, SizeOverflow> {
        self.stored.saturating_sub(self.full).times(tokens)
    }

    /// What the tokens of `pool` take beyond it.
    pub(super) fn beyond(&self, pool: Bytes) -> Result<Bytes, SizeOverflow> {
        self.uncounted(self.divide(pool)?.tokens)
    }

    /// Requests at once where nobody says how many, and the longest length is `max_len`.
    ///
    /// Source: `resolve_max_num_reqs`.
    pub(super) fn requests(&self, pool: Bytes, max_len: u64) -> Result<u64, SizeOverflow> {
        let d = self.divide(pool)?;
        let by_tokens = u128::from(d.tokens) * 512 / u128::from(max_len.max(1));
        let by_tokens = u64::try_from(by_tokens).unwrap_or(4096).clamp(2048, 4096);
        let requests = self.requests.unwrap_or(by_tokens).min(d.tokens / 2);
        Ok(d.slots.map_or(requests, |s| requests.min(s / STATE_SLOTS)))
    }

    /// Tokens of the two pools, rounded to pages, that a load holds: full attention, and windows.
    fn held(&self, load: &Load) -> Result<(u64, u64), SizeOverflow> {
        let pages = |tokens: u64| tokens.div_ceil(self.page);
        let whole = |tokens: u64| tokens / self.page;
        let prompt = if load.sequences > 1 {
            whole(load.prompt.min(load.context))
        } else {
            0
        };
        let each = mul(pages(load.context) - prompt, load.sequences)?
            .checked_add(prompt)
            .ok_or(SizeOverflow)?;
        let shared = whole(load.shared_prefix.min(load.context));
        let full = mul(each, load.users)?
            .saturating_sub(mul(shared, load.sharing_users().saturating_sub(1))?);
        let windows = match self.windows {
            // A window may begin inside a page.
            Some(w) => mul(
                mul(pages(load.context.min(w.reach)) + 1, load.sequences)?,
                load.users,
            )?,
            None => 0,
        };
        Ok((mul(full, self.page)?, mul(windows, self.page)?))
    }

    /// The least pool with so many tokens and slots.
    fn pool(&self, tokens: u64, slots: u64) -> Result<Bytes, SizeOverflow> {
        let bytes = self.bytes(tokens)?;
        if self.state == Bytes::ZERO {
            return Ok(bytes);
        }
        // Both shares of the pool must do: 9 parts of 19 for states, what they leave for tokens.
        let parts = STATE_TENTHS + 10;
        let states = self.state.times(slots + u64::from(self.padding_slot))?;
        let for_states = states.times(parts)?.get().div_ceil(STATE_TENTHS);
        let for_tokens = bytes.times(parts)?.get().div_ceil(10);
        Ok(Bytes::new(for_states.max(for_tokens)))
    }
}

impl KvLaw for TokenPools {
    fn need(&self, load: &Load) -> Result<Need, PlanError> {
        let (full, windows) = self.held(load)?;
        // The windows' pool is 0.8 of the other, so a load may need the other to be larger for it.
        let tokens = if self.full == Bytes::ZERO {
            windows
        } else {
            full.max(mul(windows, 10)?.div_ceil(WINDOW_TENTHS))
        };
        let sequences = mul(load.users, load.sequences)?;
        let slots = if self.state == Bytes::ZERO {
            0
        } else {
            mul(sequences, STATE_SLOTS)?
        };
        let tokens = mul(tokens.div_ceil(self.page), self.page)?;
        let pool = self.pool(tokens, slots)?;
        let live = |reach: u64| mul(mul(load.context.min(reach), load.sequences)?, load.users);
        let mut live_bytes = self.state.times(sequences)?;
        // What sharing saves is no token of its own.
        live_bytes = live_bytes.add(self.full.times(full.min(live(u64::MAX)?))?)?;
        if let Some(w) = self.windows {
            live_bytes = live_bytes.add(w.bytes.times(live(w.reach)?)?)?;
        }
        let live_bytes = live_bytes.min(pool);
        Ok(Need {
            pool,
            token_states: live_bytes,
            internal: pool.saturating_sub(live_bytes),
            ..Need::default()
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "a ratio, for print")]
    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError> {
        let d = self.divide(pool)?;
        let of = |kind, layers, block, page, per_request| GroupReport {
            kind,
            layers,
            padding_layers: 0,
            block_size: block,
            page,
            blocks_per_request: per_request,
        };
        let pages = |n: u64| n.div_ceil(self.page);
        let mut groups = Vec::new();
        if let Some(each) = self.stored.get().checked_div(self.full_layers) {
            let page = Bytes::new(each).times(self.page)?;
            groups.push(of(
                self.full_kind,
                self.full_layers,
                self.page,
                page,
                pages(max_len),
            ));
        }
        if let Some(w) = self.windows {
            let page = Bytes::new(w.bytes.get() / w.layers.max(1)).times(self.page)?;
            let held = pages(max_len.min(w.reach)) + 1;
            groups.push(of(w.kind, w.layers, self.page, page, held));
        }
        if let Some(page) = self.state.get().checked_div(self.state_layers) {
            groups.push(of(
                GroupKind::State,
                self.state_layers,
                1,
                Bytes::new(page),
                STATE_SLOTS,
            ));
        }
        let by_tokens = d.tokens as f64 / max_len.max(1) as f64;
        Ok(Capacity {
            // Where states take a part, the pool is not pages alone.
            blocks: d.slots.is_none().then_some(d.tokens / self.page),
            bytes_per_block: self.bytes(self.page)?.add(self.uncounted(self.page)?)?,
            block_size: self.page,
            tokens: d.tokens,
            max_concurrency: match d.slots {
                Some(s) => by_tokens.min((s / STATE_SLOTS) as f64),
                None => by_tokens,
            },
            groups,
        })
    }
}
