//! The event log of a run as lines of JSON, and the replay that makes every decision again.
//!
//! The first line says what the scheduler was told; each other line is one input; the last one holds the
//! decision hash. Streamed both ways: memory does not grow with the log. Log probabilities are written
//! as the bits of an f32, so that nothing is lost. The last line also holds a digest of the lines before it: a
//! changed token rarely changes a decision, and is noticed all the same.

use std::io::{BufRead, Seek, Write};

use plimsoll_kv::{GroupLayout, KvCache, KvConfig, Layout, Scope, TenantId};
use plimsoll_program::GroupKind;
use plimsoll_schedule::{
    Admission, AttentionWork, Beam, CostModel, Draw, Fan, Input, Limits, Log, Preempt, Rates,
    Request, RequestId, RowOutput, Scheduler, SchedulerConfig, StepOutput, Tables, Tenant, Work,
    replay,
};
use plimsoll_units::{Bytes, Nanos};
use serde::{Deserialize, Serialize};

use crate::sharing::Sharing;

/// Version of this form.
pub const VERSION: u32 = 1;

/// The largest pool that a simulation makes: 16 million pages, which take about 1.5 GiB to keep account of.
pub const PAGES_MAX: u32 = 1 << 24;

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It cannot be read.
    #[error("cannot read the log: {0}")]
    Io(#[from] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line} of the log is not one of ours: {why}")]
    Line {
        /// Which.
        line: u64,
        /// Why.
        why: String,
    },
    /// It is of another version.
    #[error("the log is of version {0} and this program reads version {VERSION}")]
    Version(u32),
    /// It stops early.
    #[error("the log has no last line: it was cut off, and its decisions cannot be compared")]
    CutOff,
    /// It is not what was written.
    #[error("the log was changed since it was written: its lines do not match their digest")]
    Changed,
}

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Decision hash in the log.
    pub recorded: u64,
    /// Decision hash of the replay.
    pub replayed: u64,
    /// Digests of the block tables of every row, recorded and replayed, where an executor recorded its own.
    pub tables: Option<(u64, u64)>,
    /// Blocks that sharing saved.
    pub sharing: Sharing,
    /// Inputs fed.
    pub inputs: u64,
    /// Steps scheduled.
    pub steps: u64,
}

impl Replay {
    /// Whether the replay decided as the recorded run did, and has its block tables.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.recorded == self.replayed && self.tables.is_none_or(|(run, replay)| run == replay)
    }
}

/// What every version's first line has.
#[derive(Deserialize)]
struct Version {
    plimsoll_log: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    plimsoll_log: u32,
    scheduler: SchedulerWire,
    kv: KvWire,
    cost: CostWire,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchedulerWire {
    max_batched_tokens: u32,
    max_seqs: u32,
    max_model_len: u32,
    vocab: u32,
    max_width: u32,
    tenants: Vec<(u32, u32)>,
    max_queued: u64,
    admission: String,
    preempt: String,
    max_preemptions: u32,
    headroom_tokens: u32,
    class_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvWire {
    page_bytes: u64,
    groups: Vec<GroupWire>,
    unit: u32,
    snapshot: u32,
    pages: u32,
    swap_pages: u32,
    prefix_cache: bool,
    key: [u8; 16],
    fingerprint: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupWire {
    kind: String,
    reach: Option<u64>,
    slots: u32,
    state_pages: u32,
    row_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CostWire {
    weight_bytes: u64,
    token_flops: u64,
    head_flops: u64,
    attention: Vec<(Option<u64>, u64, u64)>,
    flops_per_s: u64,
    memory_bytes_per_s: u64,
    link_bytes_per_s: u64,
    transfer_ns: u64,
    transfers_per_block: u64,
    step_ns: u64,
    row_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Arrive {
        at: u64,
        id: u64,
        prompt: Prompt,
        max_tokens: u32,
        fan: FanWire,
        tenant: u16,
        salt: Vec<u8>,
        adapter: Option<u64>,
        media: Vec<[u8; 32]>,
        priority: i32,
        /// Whether the prefix cache is not read.
        #[serde(default, skip_serializing_if = "is_false")]
        uncached: bool,
    },
    Cancel {
        at: u64,
        id: u64,
    },
    Schedule(u64),
    Output {
        at: u64,
        elapsed: u64,
        failed: Vec<u64>,
        rows: Vec<Vec<(u32, u32, bool)>>,
        /// Rows of which nothing could be chosen, by number.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        broken: Vec<usize>,
    },
    Failed(u64),
    Believe(CostWire),
    Drain,
    Restart,
    End {
        decision_hash: String,
        /// Of an executor's block tables.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tables: Option<String>,
        digest: String,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_false(x: &bool) -> bool {
    !*x
}

/// A prompt: its tokens, or how many blanks it is where nobody looks at them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Blank(u64),
    Tokens(Vec<u32>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum FanWire {
    Sample {
        n: u32,
        best_of: u32,
    },
    Beam {
        width: u32,
        length_penalty_bits: u64,
        early_stopping: bool,
    },
}

impl CostWire {
    fn new(c: &CostModel) -> Self {
        Self {
            weight_bytes: c.work.weight_bytes,
            token_flops: c.work.token_flops,
            head_flops: c.work.head_flops,
            attention: c
                .work
                .attention
                .iter()
                .map(|a| (a.reach, a.token_bytes, a.pair_flops))
                .collect(),
            flops_per_s: c.rates.flops_per_s,
            memory_bytes_per_s: c.rates.memory_bytes_per_s,
            link_bytes_per_s: c.rates.link_bytes_per_s,
            transfer_ns: c.rates.transfer_ns,
            transfers_per_block: c.rates.transfers_per_block,
            step_ns: c.rates.step_ns,
            row_ns: c.rates.row_ns,
        }
    }

    fn model(self) -> CostModel {
        CostModel {
            work: Work {
                weight_bytes: self.weight_bytes,
                token_flops: self.token_flops,
                head_flops: self.head_flops,
                attention: self
                    .attention
                    .into_iter()
                    .map(|(reach, token_bytes, pair_flops)| AttentionWork {
                        reach,
                        token_bytes,
                        pair_flops,
                    })
                    .collect(),
            },
            rates: Rates {
                flops_per_s: self.flops_per_s,
                memory_bytes_per_s: self.memory_bytes_per_s,
                link_bytes_per_s: self.link_bytes_per_s,
                transfer_ns: self.transfer_ns,
                transfers_per_block: self.transfers_per_block,
                step_ns: self.step_ns,
                row_ns: self.row_ns,
            },
        }
    }
}

impl Header {
    fn new(s: &SchedulerConfig, kv: &KvConfig, cost: &CostModel) -> Self {
        let group = |g: &GroupLayout| {
            let (kind, reach) = match g.kind {
                GroupKind::Full => ("full", None),
                GroupKind::Latent => ("latent", None),
                GroupKind::State => ("state", None),
                GroupKind::Window(n) => ("window", Some(n)),
                GroupKind::Chunk(n) => ("chunk", Some(n)),
            };
            GroupWire {
                kind: kind.to_owned(),
                reach,
                slots: g.slots,
                state_pages: g.state_pages,
                row_bytes: g.row.get(),
            }
        };
        Self {
            plimsoll_log: VERSION,
            scheduler: SchedulerWire {
                max_batched_tokens: s.max_batched_tokens,
                max_seqs: s.max_seqs,
                max_model_len: s.limits.max_model_len,
                vocab: s.limits.vocab,
                max_width: s.limits.max_width,
                tenants: s.tenants.iter().map(|t| (t.floor, t.cap)).collect(),
                max_queued: s.max_queued as u64,
                admission: match s.admission {
                    Admission::Optimistic => "optimistic",
                    Admission::Guaranteed => "guaranteed",
                }
                .to_owned(),
                preempt: crate::paged::preempt_name(s.preempt).to_owned(),
                max_preemptions: s.max_preemptions,
                headroom_tokens: s.headroom_tokens,
                class_ns: s.class.0,
            },
            kv: KvWire {
                page_bytes: kv.layout.page.get(),
                groups: kv.layout.groups.iter().map(group).collect(),
                unit: kv.layout.unit,
                snapshot: kv.layout.snapshot,
                pages: kv.pages,
                swap_pages: kv.swap_pages,
                prefix_cache: kv.prefix_cache,
                key: kv.key,
                fingerprint: kv.fingerprint.clone(),
            },
            cost: CostWire::new(cost),
        }
    }

    fn scheduler(self) -> Result<(Scheduler, Limits), String> {
        if self.kv.pages > PAGES_MAX {
            return Err(format!("a pool of {} pages", self.kv.pages));
        }
        if self.kv.unit == 0 || self.kv.snapshot == 0 || self.kv.groups.is_empty() {
            return Err("the pool has no blocks".to_owned());
        }
        let groups = self
            .kv
            .groups
            .iter()
            .map(|g| {
                let kind = match (g.kind.as_str(), g.reach) {
                    ("full", None) => GroupKind::Full,
                    ("latent", None) => GroupKind::Latent,
                    ("state", None) => GroupKind::State,
                    ("window", Some(n)) => GroupKind::Window(n),
                    ("chunk", Some(n)) => GroupKind::Chunk(n),
                    (other, _) => return Err(format!("`{other}` is no kind of group")),
                };
                if kind != GroupKind::State && g.slots == 0 {
                    return Err("a block of no tokens".to_owned());
                }
                Ok(GroupLayout {
                    kind,
                    slots: g.slots,
                    state_pages: g.state_pages,
                    row: Bytes::new(g.row_bytes),
                })
            })
            .collect::<Result<_, String>>()?;
        let tenants: Vec<Tenant> = self
            .scheduler
            .tenants
            .iter()
            .map(|&(floor, cap)| Tenant { floor, cap })
            .collect();
        let limits = Limits {
            max_model_len: self.scheduler.max_model_len,
            vocab: self.scheduler.vocab,
            max_width: self.scheduler.max_width,
            tenants: u16::try_from(tenants.len()).map_err(|_| "too many tenants")?,
        };
        let config = SchedulerConfig {
            max_batched_tokens: self.scheduler.max_batched_tokens,
            max_seqs: self.scheduler.max_seqs,
            limits,
            max_queued: usize::try_from(self.scheduler.max_queued).unwrap_or(usize::MAX),
            admission: match self.scheduler.admission.as_str() {
                "optimistic" => Admission::Optimistic,
                "guaranteed" => Admission::Guaranteed,
                other => return Err(format!("`{other}` is no admission")),
            },
            preempt: match self.scheduler.preempt.as_str() {
                "auto" => Preempt::Auto,
                "swap" => Preempt::Swap,
                "recompute" => Preempt::Recompute,
                other => return Err(format!("`{other}` is no way to preempt")),
            },
            max_preemptions: self.scheduler.max_preemptions,
            headroom_tokens: self.scheduler.headroom_tokens,
            class: Nanos(self.scheduler.class_ns),
            tenants,
        };
        let kv = KvCache::new(KvConfig {
            layout: Layout {
                page: Bytes::new(self.kv.page_bytes),
                groups,
                unit: self.kv.unit,
                snapshot: self.kv.snapshot,
            },
            pages: self.kv.pages,
            swap_pages: self.kv.swap_pages,
            prefix_cache: self.kv.prefix_cache,
            events: false,
            tenants: limits.tenants,
            key: self.kv.key,
            fingerprint: self.kv.fingerprint,
        });
        Ok((Scheduler::new(config, kv, self.cost.model()), limits))
    }
}

/// FNV-1a of the lines, their ends included: it tells accidents, not forgeries.
#[derive(Clone, Copy, Debug)]
struct Digest(u64);

impl Digest {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn line(&mut self, line: &[u8]) {
        for byte in line.iter().chain(b"\n") {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Writes a log as a run goes on. The first failure to write is kept and ends the writing; the run goes on.
#[derive(Debug)]
pub struct LogWriter<W> {
    out: W,
    digest: Digest,
    error: Option<std::io::Error>,
}

impl<W: Write> LogWriter<W> {
    /// Begins a log of a scheduler that was told this.
    pub fn new(out: W, scheduler: &SchedulerConfig, kv: &KvConfig, cost: &CostModel) -> Self {
        let mut writer = Self {
            out,
            digest: Digest::EMPTY,
            error: None,
        };
        writer.line(&Header::new(scheduler, kv, cost));
        writer
    }

    fn line(&mut self, line: &impl Serialize) {
        if self.error.is_some() {
            return;
        }
        let written = serde_json::to_string(line)
            .map_err(std::io::Error::from)
            .and_then(|text| {
                self.digest.line(text.as_bytes());
                writeln!(self.out, "{text}")
            });
        self.error = written.err();
    }

    /// Ends the log; with the digest of the block tables by which an executor computed, if one did.
    ///
    /// # Errors
    /// The first failure to write.
    pub fn end(mut self, decision_hash: u64, tables: Option<u64>) -> std::io::Result<()> {
        self.line(&Line::End {
            decision_hash: format!("{decision_hash:016x}"),
            tables: tables.map(|t| format!("{t:016x}")),
            digest: self.digest.text(),
        });
        match self.error {
            Some(e) => Err(e),
            None => self.out.flush(),
        }
    }
}

impl<W: Write> Log for LogWriter<W> {
    fn input(&mut self, input: &Input) {
        let line = match input {
            Input::Arrive { at, request } => {
                let blank = request.prompt().iter().all(|t| *t == 0);
                Line::Arrive {
                    at: at.0,
                    id: request.id().0,
                    prompt: if blank {
                        Prompt::Blank(request.prompt().len() as u64)
                    } else {
                        Prompt::Tokens(request.prompt().to_vec())
                    },
                    max_tokens: request.max_tokens(),
                    fan: match request.fan() {
                        Fan::Sample { n, best_of } => FanWire::Sample { n, best_of },
                        Fan::Beam(b) => FanWire::Beam {
                            width: b.width,
                            length_penalty_bits: b.length_penalty.to_bits(),
                            early_stopping: b.early_stopping,
                        },
                    },
                    tenant: request.scope().tenant.0,
                    salt: request.scope().salt.clone(),
                    adapter: request.scope().adapter,
                    media: request.scope().media.clone(),
                    priority: request.priority(),
                    uncached: !request.reads_cache(),
                }
            }
            Input::Cancel { at, id } => Line::Cancel { at: at.0, id: id.0 },
            Input::Schedule { at } => Line::Schedule(at.0),
            Input::Output { at, output } => Line::Output {
                at: at.0,
                elapsed: output.elapsed.0,
                failed: output.failed_transfers.clone(),
                rows: output
                    .rows
                    .iter()
                    .map(|r| {
                        let draws = r.draws().iter();
                        draws
                            .map(|d| (d.token, d.logprob.to_bits(), d.ends))
                            .collect()
                    })
                    .collect(),
                broken: (output.rows.iter().enumerate())
                    .filter(|(_, r)| **r == RowOutput::Failed)
                    .map(|(i, _)| i)
                    .collect(),
            },
            Input::Failed { at } => Line::Failed(at.0),
            Input::Believe { cost } => Line::Believe(CostWire::new(cost)),
            Input::Drain => Line::Drain,
            Input::Restart => Line::Restart,
        };
        self.line(&line);
    }
}

/// Reads a log once to see that it is whole and as it was written: inputs that no run gave must not reach
/// the scheduler, whose own checks take them for faults of ours. Whether it has a digest of block tables.
fn verify(log: impl BufRead) -> Result<bool, LogError> {
    let mut digest = Digest::EMPTY;
    for (number, text) in (1..).zip(log.lines()) {
        let text = text?;
        if number == 1 {
            let bad = |e: serde_json::Error| LogError::Line {
                line: 1,
                why: e.to_string(),
            };
            let Version { plimsoll_log } = serde_json::from_str(&text).map_err(bad)?;
            if plimsoll_log != VERSION {
                return Err(LogError::Version(plimsoll_log));
            }
        } else if text.starts_with("{\"end\"") {
            return match serde_json::from_str(&text) {
                Ok(Line::End {
                    digest: d, tables, ..
                }) if d == digest.text() => Ok(tables.is_some()),
                _ => Err(LogError::Changed),
            };
        }
        digest.line(text.as_bytes());
    }
    Err(LogError::CutOff)
}

/// Makes every decision of a recorded run again. Reads the log twice: first to see that it is whole.
///
/// # Errors
/// [`LogError`] where the log cannot be read to its end, or is not what was written.
pub fn replay_log(mut log: impl BufRead + Seek) -> Result<Replay, LogError> {
    let has_tables = verify(&mut log)?;
    log.rewind()?;
    let mut lines = log.lines();
    let bad = |line: u64, why: String| LogError::Line { line, why };
    let first = lines.next().ok_or(LogError::CutOff)??;
    let header: Header = serde_json::from_str(&first).map_err(|e| bad(1, e.to_string()))?;
    let (mut scheduler, limits) = header.scheduler().map_err(|why| bad(1, why))?;
    let mut tables = Tables::new(scheduler.kv().layout().groups.len());
    let mut sharing = Sharing::default();
    let mut notices = Vec::new();
    for (number, text) in (2..).zip(lines) {
        let line: Line = serde_json::from_str(&text?).map_err(|e| bad(number, e.to_string()))?;
        if let Line::End {
            decision_hash,
            tables: noted,
            ..
        } = line
        {
            let hash =
                |text: &str| u64::from_str_radix(text, 16).map_err(|e| bad(number, e.to_string()));
            let noted = noted.as_deref().map(hash).transpose()?;
            return Ok(Replay {
                recorded: hash(&decision_hash)?,
                tables: noted.map(|n| (n, tables.digest())),
                replayed: scheduler.decision_hash(),
                sharing,
                inputs: number - 2,
                steps: scheduler.stats().steps,
            });
        }
        let input = line.input(&limits).map_err(|why| bad(number, why))?;
        match input {
            Input::Schedule { at } => {
                if let Some(step) = scheduler.schedule(at) {
                    if has_tables {
                        tables.apply(step, |_| {});
                        tables.note(step);
                    }
                    sharing.note(&scheduler);
                }
            }
            other => {
                if other == Input::Restart {
                    tables.clear();
                }
                replay(&mut scheduler, [other]);
            }
        }
        // Nobody reads them; they must not pile up.
        scheduler.take_notices(&mut notices);
    }
    Err(LogError::CutOff)
}

impl Line {
    fn input(self, limits: &Limits) -> Result<Input, String> {
        Ok(match self {
            Self::Arrive {
                at,
                id,
                prompt,
                max_tokens,
                fan,
                tenant,
                salt,
                adapter,
                media,
                priority,
                uncached,
            } => {
                let prompt: Vec<u32> = match prompt {
                    Prompt::Blank(n) if n > u64::from(limits.max_model_len) => {
                        return Err(format!("a prompt of {n} tokens"));
                    }
                    Prompt::Blank(n) => vec![0; usize::try_from(n).unwrap_or(usize::MAX)],
                    Prompt::Tokens(t) => t,
                };
                let fan = match fan {
                    FanWire::Sample { n, best_of } => Fan::Sample { n, best_of },
                    FanWire::Beam {
                        width,
                        length_penalty_bits,
                        early_stopping,
                    } => Fan::Beam(Beam {
                        width,
                        length_penalty: f64::from_bits(length_penalty_bits),
                        early_stopping,
                    }),
                };
                let scope = Scope {
                    tenant: TenantId(tenant),
                    salt,
                    adapter,
                    media,
                };
                let mut request =
                    Request::new(RequestId(id), prompt.into(), max_tokens, fan, scope, limits)
                        .map_err(|e| e.to_string())?;
                if uncached {
                    request = request.without_cached_prefix();
                }
                Input::Arrive {
                    at: Nanos(at),
                    request: request.with_priority(priority),
                }
            }
            Self::Cancel { at, id } => Input::Cancel {
                at: Nanos(at),
                id: RequestId(id),
            },
            Self::Schedule(at) => Input::Schedule { at: Nanos(at) },
            Self::Output {
                at,
                elapsed,
                failed,
                rows,
                broken,
            } => {
                let draw = |(token, bits, ends): (u32, u32, bool)| Draw {
                    token,
                    logprob: f32::from_bits(bits),
                    ends,
                };
                let mut rows: Vec<RowOutput> = rows
                    .into_iter()
                    .map(|mut r| match r.len() {
                        0 => RowOutput::None,
                        1 => RowOutput::One(draw(r.remove(0))),
                        _ => RowOutput::Many(r.into_iter().map(draw).collect()),
                    })
                    .collect();
                for i in broken {
                    *rows.get_mut(i).ok_or("a broken row that is not there")? = RowOutput::Failed;
                }
                Input::Output {
                    at: Nanos(at),
                    output: StepOutput {
                        rows,
                        failed_transfers: failed,
                        elapsed: Nanos(elapsed),
                    },
                }
            }
            Self::Failed(at) => Input::Failed { at: Nanos(at) },
            Self::Believe(cost) => Input::Believe {
                cost: Box::new(cost.model()),
            },
            Self::Drain => Input::Drain,
            Self::Restart => Input::Restart,
            Self::End { .. } => return Err("the end lies in the middle".to_owned()),
        })
    }
}
