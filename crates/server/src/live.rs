//! What is in the engine, request by request and page by page: taken down while somebody looks, and told as
//! [`Memory`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use plimsoll_kv::{PageState, PageView};
use plimsoll_schedule::{Place, RequestId, View};

use crate::error::ApiError;
use crate::memory::{
    Counters, Entry, Memory, Owner, PageMap, Pages, Phase, Preempted, REMEMBERED, Requests, SCHEMA,
    Swap, Waste,
};
use crate::state::{State, now_ms};

/// How often a watcher is told.
const TOLD_APART: Duration = Duration::from_secs(1);
/// How soon a stream ends when the server goes down.
const GLANCE: Duration = Duration::from_millis(50);
/// Names of states, by [`state`].
const STATES: [&str; 6] = ["free", "cached", "held", "shared", "beam", "in_transit"];

const fn state(page: PageState) -> i64 {
    match page {
        PageState::Free => 0,
        PageState::Cached => 1,
        PageState::Held => 2,
        PageState::Shared => 3,
        PageState::Beam => 4,
        PageState::InTransit => 5,
    }
}

/// The last preemptions.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<Preempted>);

impl Recent {
    pub(crate) fn add(&mut self, preempted: Preempted) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(preempted);
    }
}

/// What the engine's thread takes down.
#[derive(Debug)]
pub(crate) struct Live {
    /// When.
    pub(crate) taken: Instant,
    entries: Vec<Entry>,
    left_out: u64,
    shared: u64,
    beam: u64,
    prefix: u64,
    map: PageMap,
    preemptions: Vec<Preempted>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            taken: Instant::now(),
            entries: Vec::new(),
            left_out: 0,
            shared: 0,
            beam: 0,
            prefix: 0,
            map: PageMap::default(),
            preemptions: Vec::new(),
        }
    }
}

impl Live {
    /// `flight` tells the id of a request's answer, and since when it is there.
    pub(crate) fn of<'a>(
        view: &View,
        tenants: &[String],
        recent: &Recent,
        flight: impl Fn(RequestId) -> Option<(&'a Arc<str>, Instant)>,
    ) -> Self {
        let entries = view.requests.iter().enumerate().map(|(place, r)| {
            let flight = flight(r.id);
            let holding = view.pages.holdings.get(place).copied().unwrap_or_default();
            Entry {
                id: flight.map_or("", |f| f.0).to_owned(),
                tenant: name(tenants, usize::from(r.tenant.0)),
                state: match r.place {
                    Place::Waiting => Phase::Waiting,
                    Place::Prefill => Phase::Prefill,
                    Place::Decode => Phase::Decode,
                    Place::Swapped => Phase::Swapped,
                    Place::Dropped => Phase::Dropped,
                },
                prompt_tokens: r.prompt_tokens.into(),
                generated_tokens: r.generated_tokens,
                cached_tokens: r.cached_tokens.into(),
                sequences: r.sequences.into(),
                beam: r.beam,
                pages: holding.pages.into(),
                shared_pages: holding.shared.into(),
                swapped_pages: holding.swapped.into(),
                preemptions: r.preemptions.into(),
                age_ms: flight.map_or(0, |f| ms(f.1.elapsed())),
            }
        });
        Self {
            taken: Instant::now(),
            entries: entries.collect(),
            left_out: view.left_out as u64,
            shared: view.pages.shared.into(),
            beam: view.pages.beam.into(),
            prefix: view.pages.prefix.into(),
            map: PageMap {
                states: STATES.map(str::to_owned).to_vec(),
                runs: runs(&view.pages.pages, view.requests.len()),
            },
            preemptions: recent.0.iter().cloned().collect(),
        }
    }
}

/// Pages as runs of equal ones; owners from `entries` on are not told.
fn runs(pages: &[PageView], entries: usize) -> Vec<i64> {
    let cell = |p: &PageView| {
        let owner = p.owner.filter(|o| (*o as usize) < entries);
        (state(p.state), owner.map_or(-1, i64::from))
    };
    let same = pages.chunk_by(|a, b| cell(a) == cell(b));
    let run = |run: &[PageView]| {
        let (state, owner) = run.first().map(cell).unwrap_or_default();
        [state, owner, i64::try_from(run.len()).unwrap_or(i64::MAX)]
    };
    same.flat_map(run).collect()
}

fn name(tenants: &[String], place: usize) -> String {
    tenants.get(place).cloned().unwrap_or_default()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The memory now.
pub(crate) async fn memory(state: &State) -> Memory {
    let live = state.engine.look().await;
    // After it: what is counted is never older than what is told one by one.
    let now = state.engine.snapshot();
    let (s, u) = (now.stats, now.usage);
    let tenants = &state.engine.published.tenants;
    let metrics = &state.engine.metrics;
    let owners = now.charged.iter().enumerate().map(|(place, pages)| Owner {
        tenant: name(tenants, place),
        held_pages: *pages,
        held_bytes: pages.saturating_mul(now.page_bytes),
    });
    let (refusals, refused) = metrics.refusals();
    Memory {
        schema: SCHEMA.to_owned(),
        model: state.options.name.clone(),
        at_ms: now_ms(),
        age_ms: ms(live.taken.elapsed()),
        step_ms: now.stepping.map(|since| ms(since.elapsed())),
        requests: Requests {
            running: now.running as u64,
            waiting: now.waiting as u64,
            preempted: now.preempted as u64,
        },
        kv_pages: Pages {
            total: now.pages.into(),
            held: now.pages_held.into(),
            free: u.free,
            cached: u.cached,
            in_transit: u.in_transit,
            shared: live.shared,
            beam: live.beam,
            prefix: live.prefix,
            copied_on_write: s.pages_copied,
            page_bytes: now.page_bytes,
            block_tokens: now.block_tokens.into(),
        },
        swap: Swap {
            total_pages: now.swap_pages.into(),
            used_pages: u.swapped,
            out_pages: s.pages_out,
            in_pages: s.pages_in,
        },
        regions: state.planned.regions(&now),
        waste: Waste {
            token_states_bytes: u.token_states.get(),
            reserved_bytes: u.reserved.get(),
            internal_bytes: u.internal.get(),
            external_bytes: u.external.get(),
        },
        owners: owners.collect(),
        entries: live.entries.clone(),
        entries_left_out: live.left_out,
        page_map: live.map.clone(),
        refusals,
        preemptions: live.preemptions.clone(),
        counters: Counters {
            prompt_tokens: metrics.prompt_tokens.get(),
            generated_tokens: metrics.generated_tokens.get(),
            prefix_queried_tokens: s.queried_tokens,
            prefix_found_tokens: s.cached_tokens,
            swaps: s.swaps,
            recomputes: s.recomputes,
            recomputed_tokens: s.recomputed_tokens,
            requests: metrics.requests.get(),
            refused,
        },
        engine_steps: s.steps,
        engine_restarts: now.restarts.into(),
    }
}

/// The memory again and again, as server-sent events, until the watcher leaves or the server goes down.
pub(crate) fn watch(state: Arc<State>) -> Result<Response, ApiError> {
    let watcher = Arc::clone(&state.watchers).try_acquire_owned();
    let watcher = watcher.map_err(|_| ApiError::watchers())?;
    let first = Instant::now();
    let events = stream::unfold((state, watcher, first), |(state, watcher, at)| async move {
        while Instant::now() < at {
            if state.is_draining() {
                return None;
            }
            let next = (Instant::now() + GLANCE).min(at);
            tokio::time::sleep_until(next.into()).await;
        }
        let memory = memory(&state).await;
        let text = serde_json::to_string(&memory).unwrap_or_default();
        let event = Bytes::from(format!("data: {text}\n\n"));
        // Whoever reads slowly is told less often, not later and later.
        let next = (at + TOLD_APART).max(Instant::now());
        Some((Ok::<_, Infallible>(event), (state, watcher, next)))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pages_are_one_run() {
        let page = |state, owner| PageView { state, owner };
        let held = page(PageState::Held, Some(0));
        let pages = [
            held,
            held,
            page(PageState::Held, Some(1)),
            page(PageState::Shared, None),
            page(PageState::Free, None),
            page(PageState::Free, None),
            // Left out of the entries.
            page(PageState::Held, Some(2)),
            page(PageState::Held, None),
        ];
        let want = [2, 0, 2, 2, 1, 1, 3, -1, 1, 0, -1, 2, 2, -1, 2];
        assert_eq!(runs(&pages, 2), want);
        assert!(runs(&[], 2).is_empty());
    }
}
