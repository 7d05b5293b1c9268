//! Questions about plans: whoever starts the server knows what they are and how they are answered; here are their
//! bounds. One is answered at a time, since each takes a thread that tokenises for others.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::Response;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::code::Code;
use crate::error::{ApiError, json_response};
use crate::routes::{Answered, blocking, internal, no_route};
use crate::state::State;
use crate::tenants::Caller;
use crate::{body, room};

/// The longest question.
const QUESTION_BYTES: usize = 128 << 10;
/// How long an answer may take, and how long a question may wait for those before it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It makes no sense.
    Mistake {
        /// The field that is wrong, where it is one.
        field: Option<&'static str>,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Its time was over.
    Late,
}

/// How long whoever asks waits: until then, or until he leaves.
#[derive(Clone, Debug)]
pub struct Patience {
    until: Instant,
    left: Arc<AtomicBool>,
}

impl Patience {
    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.left.load(Ordering::Acquire) || Instant::now() >= self.until
    }
}

/// Goes with the request, however that ends.
struct Asker(Arc<AtomicBool>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Unanswered {
    /// With the field that is wrong.
    #[must_use]
    pub fn at(mut self, name: &'static str) -> Self {
        if let Self::Mistake { field, .. } = &mut self {
            *field = Some(name);
        }
        self
    }
}

type Answer = dyn Fn(&[u8], &Patience) -> Answered + Send + Sync;
type Describe = fn(&mut SchemaGenerator) -> Schema;

/// The schemas of questions and answers.
#[derive(Clone, Copy)]
pub(crate) struct Schemas {
    pub(crate) asked: Describe,
    pub(crate) choices: Describe,
    pub(crate) plan: Describe,
    pub(crate) grid: Describe,
}

/// What answers them.
#[derive(Clone)]
pub struct Planner {
    choices: Arc<dyn Fn() -> Response + Send + Sync>,
    plan: Arc<Answer>,
    grid: Arc<Answer>,
    pub(crate) schemas: Schemas,
    turn: Arc<Semaphore>,
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Planner")
    }
}

impl Planner {
    /// One that offers `choices`, and answers what an `A` asks by `plan`, and by `grid` for many loads at once. Both
    /// may look whether anybody waits still.
    pub fn new<A, C, P, G>(
        choices: C,
        plan: impl Fn(A, &Patience) -> Result<P, Unanswered> + Send + Sync + 'static,
        grid: impl Fn(A, &Patience) -> Result<G, Unanswered> + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + 'static,
        C: Serialize + JsonSchema + Send + Sync + 'static,
        P: Serialize + JsonSchema + 'static,
        G: Serialize + JsonSchema + 'static,
    {
        Self {
            choices: Arc::new(move || json_response(StatusCode::OK, &choices)),
            plan: answer(plan),
            grid: answer(grid),
            schemas: Schemas {
                asked: SchemaGenerator::subschema_for::<A>,
                choices: SchemaGenerator::subschema_for::<C>,
                plan: SchemaGenerator::subschema_for::<P>,
                grid: SchemaGenerator::subschema_for::<G>,
            },
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

fn answer<A: DeserializeOwned + 'static, P: Serialize + 'static>(
    by: impl Fn(A, &Patience) -> Result<P, Unanswered> + Send + Sync + 'static,
) -> Arc<Answer> {
    Arc::new(move |bytes, patience| {
        let answer = by(body::parse(bytes)?, patience).map_err(|e| match e {
            Unanswered::Mistake { field, message } => {
                let e = ApiError::invalid(Code::CannotPlan, message);
                field.into_iter().fold(e, ApiError::param)
            }
            Unanswered::Late => late(),
        })?;
        Ok(json_response(StatusCode::OK, &answer))
    })
}

fn late() -> ApiError {
    let message = format!(
        "the plan takes more than {} s: ask for less, or run `plimsoll plan`",
        ANSWER_TIMEOUT.as_secs()
    );
    ApiError::invalid(Code::PlanTooLong, message)
}

pub(crate) async fn choices(Shared(state): Shared<Arc<State>>, request: Request) -> Response {
    match &state.options.planner {
        Some(planner) => (planner.choices)(),
        None => no_route(request.method().clone(), request.uri().clone()).await,
    }
}

pub(crate) async fn plan(Shared(state): Shared<Arc<State>>, request: Request) -> Answered {
    answered(&state, request, |planner| &planner.plan).await
}

pub(crate) async fn grid(Shared(state): Shared<Arc<State>>, request: Request) -> Answered {
    answered(&state, request, |planner| &planner.grid).await
}

async fn answered(
    state: &Arc<State>,
    request: Request<Body>,
    by: impl Fn(&Planner) -> &Arc<Answer>,
) -> Answered {
    let (head, body) = request.into_parts();
    let Some(planner) = &state.options.planner else {
        return Ok(no_route(head.method, head.uri).await);
    };
    let caller: &Caller = head.extensions.get().ok_or_else(internal)?;
    let size = body::size(state, &head.headers)?;
    let told = head.headers.contains_key(header::CONTENT_LENGTH);
    if told && size > QUESTION_BYTES {
        return Err(body::too_large(QUESTION_BYTES));
    }
    let (bytes, room) = body::read(state, body, size.min(QUESTION_BYTES)).await?;
    // Whether it makes sense is only known from the work that it makes.
    let visit = state.tenants.enter(caller.tenant, 1, 0)?;
    let turn = tokio::time::timeout(ANSWER_TIMEOUT, Arc::clone(&planner.turn).acquire_owned());
    let Ok(Ok(turn)) = turn.await else {
        return Err(ApiError::crowded());
    };
    let place = room::look(state).await?;
    let by = Arc::clone(by(planner));
    let asker = Asker(Arc::default());
    let patience = Patience {
        until: Instant::now() + ANSWER_TIMEOUT,
        left: Arc::clone(&asker.0),
    };
    let work = blocking(move || {
        let answer = by(&bytes, &patience);
        drop((bytes, room, turn, visit));
        answer.map(|mut response| {
            response.extensions_mut().insert(place);
            response
        })
    });
    // It goes on until it looks, and holds its turn until then.
    match tokio::time::timeout(ANSWER_TIMEOUT, work).await {
        Ok(answer) => answer,
        Err(_) => Err(late()),
    }
}
