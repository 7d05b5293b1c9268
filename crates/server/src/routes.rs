//! Routes, and what stands before them: the key, panics, ids.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, MatchedPath, Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::FutureExt as _;

use crate::answer::{Head, collect, whole};
use crate::code::Code;
use crate::engine::{Asker, Event};
use crate::error::{ApiError, json_response};
use crate::live;
use crate::log::{Entry, Outcome, Watched};
use crate::mailbox::Events;
use crate::metrics::CONTENT_TYPE;
use crate::prepare::{Prepared, Route, chat, check_model, prepare};
use crate::reply::{Detokenized, Health, Model, Models, Tokenized, Version};
use crate::room::Room;
use crate::screen::screen;
use crate::state::State;
use crate::tenants::Caller;
use crate::wire::{Asked, Detokenize, Tokenize};
use crate::{body, page, planning, room, stream};

pub(crate) type Answered = Result<Response, ApiError>;

/// All routes. Health and the page's files are open to everybody; they tell no figures.
pub(crate) fn router(state: &Arc<State>) -> Router {
    let watching = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/memory", get(memory))
        .route("/v1/memory/stream", get(watch))
        .route_layer(from_fn(admins));
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chats))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/version", get(version))
        .route("/api/choices", get(planning::choices))
        .route("/api/plan", post(planning::plan))
        .route("/api/plan/grid", post(planning::grid))
        .merge(watching)
        // After the route is found: one decision, whatever the path looks like.
        .route_layer(from_fn_with_state(Arc::clone(state), guard));
    Router::new()
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .route("/docs", get(docs))
        .route("/openapi.json", get(described))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health", get(ready))
        .merge(guarded)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(state), contain))
        .with_state(Arc::clone(state))
}

/// Gives the answer its request's id and its line in the log, and ends no more than the request that panics.
async fn contain(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers().get("x-request-id"), &state);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let phase = request.extensions().get().cloned();
    let route = request.extensions().get::<MatchedPath>();
    let counted = state.engine.metrics.count(route.map(MatchedPath::as_str));
    let screened = screen(&state, &request);
    let closes = screened.is_err();
    let answered = async {
        screened?;
        Ok(next.run(request).await)
    };
    let answered = AssertUnwindSafe(answered).catch_unwind().await;
    let answered = answered.unwrap_or_else(|_| {
        state.engine.metrics.panics.inc();
        Err(internal())
    });
    let mut response = answered.unwrap_or_else(|e: ApiError| e.into_response());
    response.headers_mut().insert("x-request-id", id.clone());
    if closes {
        // Where the next request begins is not to be guessed.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    let outcome: Outcome = response.extensions().get().cloned().unwrap_or_default();
    if let Some(code) = outcome.code() {
        state.engine.metrics.refuse(code);
    }
    let entry = Entry {
        log: state.options.access_log.clone(),
        method,
        path,
        began,
        id,
        status: response.status().as_u16(),
        outcome,
        counted,
        phase,
        room: response.extensions_mut().remove(),
    };
    response.map(|body| Watched::body(body, entry))
}

pub(crate) fn internal() -> ApiError {
    ApiError::server(
        Code::InternalError,
        "the server made a mistake with this request",
    )
}

/// Lets in whoever shows a key, where there are any.
async fn guard(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let mut all = request.headers().get_all(header::AUTHORIZATION).iter();
    let given = all.next().filter(|_| all.next().is_none());
    let given = given.and_then(|v| bearer(v.as_bytes()));
    match state.tenants.caller(given) {
        Some(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        None => ApiError::no_key().into_response(),
    }
}

/// Lets in, of those with a key, whoever may see what others do.
async fn admins(Extension(caller): Extension<Caller>, request: Request, next: Next) -> Response {
    if caller.admin {
        next.run(request).await
    } else {
        ApiError::not_admin().into_response()
    }
}

/// The key in `Bearer KEY`; the scheme in any case, as RFC 9110 has it.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

pub(crate) async fn no_route(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    let message = format!("there is no route {method} {path}");
    ApiError::invalid(Code::UnknownUrl, message).into_response()
}

async fn no_method(method: Method) -> Response {
    let message = format!("{method} is not for this route");
    ApiError::invalid(Code::MethodNotAllowed, message).into_response()
}

async fn described(Shared(state): Shared<Arc<State>>) -> Response {
    let mut response = Response::new(Body::from(state.described().json.clone()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn docs(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    page::docs(&headers, &state.described().html)
}

async fn live() -> Response {
    let live = Health::<_, ()> {
        status: "live",
        reason: None,
    };
    json_response(StatusCode::OK, &live)
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    let (status, reason) = state.health();
    let code = match reason {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_response(code, &Health { status, reason })
}

async fn version() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    json_response(StatusCode::OK, &Version { version })
}

fn served(state: &State) -> Model<'_> {
    Model {
        id: &state.options.name,
        object: "model",
        created: state.started_s,
        owned_by: "plimsoll",
        root: &state.options.name,
        parent: (),
        max_model_len: state.model.limits.max_model_len,
    }
}

async fn models(Shared(state): Shared<Arc<State>>) -> Response {
    let all = Models {
        object: "list",
        data: [served(&state)],
    };
    json_response(StatusCode::OK, &all)
}

async fn model(Shared(state): Shared<Arc<State>>, Path(name): Path<String>) -> Answered {
    check_model(&state, Some(&name))?;
    Ok(json_response(StatusCode::OK, &served(&state)))
}

/// Whose memory is what, now.
async fn memory(Shared(state): Shared<Arc<State>>) -> Answered {
    let room = room::look(&state).await?;
    let mut response = json_response(StatusCode::OK, &live::memory(&state).await);
    response.extensions_mut().insert(room);
    Ok(response)
}

async fn watch(Shared(state): Shared<Arc<State>>) -> Answered {
    live::watch(state)
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Answered {
    let room = room::look(&state).await?;
    let text = state.scrape.text().map_err(|_| internal())?;
    let mut response = Response::new(Body::from(text));
    response.extensions_mut().insert(room);
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn completions(Shared(state): Shared<Arc<State>>, request: Request) -> Answered {
    generate(state, request, Route::Completion).await
}

async fn chats(Shared(state): Shared<Arc<State>>, request: Request) -> Answered {
    generate(state, request, Route::Chat).await
}

async fn generate(state: Arc<State>, request: Request, route: Route) -> Answered {
    let arrived = Instant::now();
    let mut over = Box::pin(Arc::clone(&state).over(arrived));
    let flying = state.fly();
    let caller = request.extensions().get().copied().ok_or_else(internal)?;
    let head = Head::new(&state, route);
    let from = Asker {
        id: head.id().into(),
        arrived,
    };
    let let_in = let_in(&state, request, route, caller, from, &mut over).await;
    let (prepared, room, mut events) = let_in.inspect_err(|why| {
        let tenant = state.tenants.name(caller.tenant);
        state.engine.metrics.remember(why, tenant);
    })?;
    if prepared.streams {
        let mut response = stream::response(state, head, prepared, events, flying, over);
        response.extensions_mut().insert(room);
        return Ok(response);
    }
    let collected = collect(&state, &mut events, prepared.told.len());
    let mut finished = within(&mut over, collected).await?;
    let Prepared {
        told, n, ranked, ..
    } = prepared;
    let shared = Arc::clone(&state);
    let mut response = blocking(move || {
        let value = whole(&shared, &head, &told, &mut finished, n, ranked)?;
        Ok(json_response(StatusCode::OK, &value))
    })
    .await?;
    response.extensions_mut().insert(room);
    Ok(response)
}

/// What is asked for, once the engine has let it in.
async fn let_in(
    state: &Arc<State>,
    request: Request,
    route: Route,
    caller: Caller,
    from: Asker,
    over: &mut (impl Future<Output = ApiError> + Unpin),
) -> Result<(Prepared, Room, Events), ApiError> {
    // After it is counted: whoever drains either sees it in flight or has told it.
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    let worked = worked(state, request, move |state, bytes| {
        let asked: Asked = body::parse(bytes)?;
        prepare(state, &asked, route, caller)
    });
    let mut prepared: Prepared = within(over, worked).await?;
    let room = room::take(state, &prepared)?;
    let jobs = std::mem::take(&mut prepared.jobs);
    let mut events = state.engine.submit(jobs, prepared.streams, from)?;
    // Let in or not: that decides on the status.
    match within(over, async { Ok(events.recv().await) }).await? {
        Some(Event::Accepted) => Ok((prepared, room, events)),
        Some(Event::Refused(refusal)) => Err(refusal.into()),
        _ => Err(ApiError::cut(state.is_draining())),
    }
}

/// Reads a body and works on it, off the threads that talk to clients.
async fn worked<T: Send + 'static>(
    state: &Arc<State>,
    request: Request<Body>,
    work: impl FnOnce(&State, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (head, body) = request.into_parts();
    let size = body::size(state, &head.headers)?;
    let (bytes, room) = body::read(state, body, size).await?;
    let state = Arc::clone(state);
    blocking(move || {
        let worked = work(&state, &bytes);
        drop((bytes, room));
        worked
    })
    .await
}

/// What comes of `work`, unless `over` comes first.
async fn within<T>(
    over: &mut (impl Future<Output = ApiError> + Unpin),
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        biased;
        why = over => Err(why),
        done = work => done,
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| match e.try_into_panic() {
        // As if it were the handler's own: it is told and counted in one place.
        Ok(panic) => resume_unwind(panic),
        Err(_) => Err(internal()),
    })
}

async fn tokenize(Shared(state): Shared<Arc<State>>, request: Request) -> Answered {
    let value = worked(&state, request, |state, bytes| {
        let asked: Tokenize = body::parse(bytes)?;
        check_model(state, asked.model.as_deref())?;
        let tokenizer = &state.model.tokenizer;
        let ids = match (&asked.prompt, &asked.messages) {
            (Some(text), None) => state.encode(text, asked.add_special_tokens.unwrap_or(true))?,
            (None, Some(messages)) => {
                let begin = asked.add_generation_prompt.unwrap_or(true);
                let special = asked.add_special_tokens.unwrap_or(false);
                chat(state, &messages.0, &[], begin, special)?
            }
            _ => return Err(ApiError::value("prompt", "send either prompt or messages")),
        };
        let strings = asked.return_token_strs.unwrap_or(false).then(|| {
            let token = |id: &u32| tokenizer.token(*id).unwrap_or_default();
            ids.iter().map(token).collect()
        });
        Ok(Tokenized {
            count: ids.len(),
            max_model_len: state.model.limits.max_model_len,
            tokens: ids,
            token_strs: strings,
        })
    });
    room::hold(&state, json_response(StatusCode::OK, &value.await?))
}

async fn detokenize(Shared(state): Shared<Arc<State>>, request: Request) -> Answered {
    let value = worked(&state, request, |state, bytes| {
        let asked: Detokenize = body::parse(bytes)?;
        check_model(state, asked.model.as_deref())?;
        let limits = &state.model.limits;
        let (count, most, vocab) = (asked.tokens.0.len(), limits.max_model_len, limits.vocab);
        if count > most as usize {
            let message = format!("there are {count} tokens, and sequences have at most {most}");
            let e = ApiError::invalid(Code::ContextLengthExceeded, message).param("tokens");
            return Err(e.context(count as u64, most));
        }
        if let Some(id) = asked.tokens.0.iter().find(|id| **id >= vocab) {
            let message = format!("token {id} is out of range: ids are below {vocab}");
            return Err(ApiError::value("tokens", message));
        }
        let text = state.model.tokenizer.decode(&asked.tokens.0, true)?;
        Ok(Detokenized { prompt: text })
    });
    room::hold(&state, json_response(StatusCode::OK, &value.await?))
}

/// Echoes an id that a client gave its request, or gives one: for its logs, and no key to anything here.
fn request_id(given: Option<&HeaderValue>, state: &State) -> HeaderValue {
    let fits = |v: &&HeaderValue| {
        let plain = |b: &u8| b.is_ascii_graphic();
        (1..=128).contains(&v.len()) && v.as_bytes().iter().all(plain)
    };
    let own = || HeaderValue::from_str(&format!("{:016x}", state.draw())).ok();
    let id = given.filter(fits).cloned().or_else(own);
    id.unwrap_or_else(|| HeaderValue::from_static("-"))
}
