//! [`ApiError`]: what went wrong, as OpenAI's clients read it.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use plimsoll_runtime::guide::GrammarError;
use plimsoll_runtime::sample::SamplingError;
use plimsoll_runtime::text::TextError;
use plimsoll_schedule::{Reason, Refusal, RequestError};
use serde::Serialize;

use crate::code::Code;
use crate::engine::{NotSent, retry_after};
use crate::log::Outcome;
use crate::reply::{Context, Failure, Fault};

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    kind: &'static str,
    pub(crate) code: Code,
    param: Option<String>,
    message: String,
    pub(crate) retry_after: Option<Duration>,
    /// Pages that were needed and that there are, where that was the reason.
    pub(crate) pages: Option<Box<(u64, u64)>>,
    context: Option<Box<Context>>,
}

impl ApiError {
    fn new(kind: &'static str, code: Code, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            param: None,
            message: message.into(),
            retry_after: None,
            pages: None,
            context: None,
        }
    }

    /// A mistake of the client.
    pub(crate) fn invalid(code: Code, message: impl Into<String>) -> Self {
        Self::new("invalid_request_error", code, message)
    }

    /// A value that a field cannot have.
    pub(crate) fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(Code::InvalidValue, message).param(param)
    }

    /// A field that exists elsewhere.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::invalid(Code::UnsupportedParameter, message).param(param)
    }

    pub(crate) fn no_key() -> Self {
        Self::new(
            "authentication_error",
            Code::InvalidApiKey,
            "no valid API key: send the header `Authorization: Bearer KEY`",
        )
    }

    pub(crate) fn draining() -> Self {
        let mut e = Self::new(
            "server_error",
            Code::ShuttingDown,
            "the server is shutting down and takes no new requests",
        );
        // By then another one answers here, or none.
        e.retry_after = Some(Duration::from_secs(5));
        e
    }

    /// It has had all the time that a request gets. Another try would take as long.
    pub(crate) fn too_long(limit: Duration) -> Self {
        let message = format!(
            "the request took more than {} s: ask for fewer tokens, or start the server with a longer `--request-timeout`",
            limit.as_secs_f64()
        );
        Self::new("server_error", Code::RequestTimeout, message)
    }

    /// It waited for its first step for too long.
    pub(crate) fn expired(limit: Duration) -> Self {
        let message = format!("the request waited for more than {} s", limit.as_secs_f64());
        let mut e = Self::new("server_error", Code::QueueTimeout, message);
        e.retry_after = Some(Duration::from_secs(10));
        e
    }

    /// The client reads far more slowly than it is answered.
    pub(crate) fn slow() -> Self {
        let message = "the answer was not read as fast as it was written";
        Self::invalid(Code::SlowClient, message)
    }

    /// Bodies of others take all the memory that there is for them.
    pub(crate) fn crowded() -> Self {
        let message = "too many large bodies come at once";
        let mut e = Self::new("server_error", Code::BodiesFull, message);
        e.retry_after = Some(Duration::from_secs(1));
        e
    }

    pub(crate) fn busy(message: impl Into<String>, after: Duration) -> Self {
        let mut e = Self::new("rate_limit_error", Code::QueueFull, message);
        e.retry_after = Some(after);
        e
    }

    pub(crate) fn watchers() -> Self {
        let message = "others watch the memory already, as many as may at once";
        Self::busy(message, Duration::from_secs(5)).code(Code::TooManyWatchers)
    }

    pub(crate) fn not_admin() -> Self {
        Self::new(
            "permission_error",
            Code::NotAllowed,
            "this key may not see what others do: use one of a tenant with `admin = true`",
        )
    }

    /// A fault of ours.
    pub(crate) fn server(code: Code, message: impl Into<String>) -> Self {
        Self::new("server_error", code, message)
    }

    /// Steps failed.
    pub(crate) fn failed(why: &str) -> Self {
        Self::server(
            Code::EngineFailed,
            format!("the engine cannot go on with this: {why}"),
        )
    }

    /// The mailbox closed without an end: the engine has gone down, or fell before it had taken the request in.
    pub(crate) fn cut(is_draining: bool) -> Self {
        if is_draining {
            Self::draining()
        } else {
            Self::failed("it made a mistake")
        }
    }

    /// How long the prompt is that is too long.
    pub(crate) fn context(mut self, prompt: u64, limit: u32) -> Self {
        self.context = Some(Box::new(Context {
            n_prompt_tokens: prompt,
            n_ctx: limit.into(),
        }));
        self
    }

    pub(crate) fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.code.status()
    }

    pub(crate) fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub(crate) fn reply(&self) -> Failure<'_> {
        Failure {
            error: Fault {
                message: &self.message,
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
                context: self.context.as_deref().copied(),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status(), &self.reply());
        let headers = response.headers_mut();
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            // Whole seconds, at least one; OpenAI's clients read the milliseconds first.
            let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
            headers.insert(header::RETRY_AFTER, ms.div_ceil(1000).into());
            headers.insert("retry-after-ms", ms.into());
        }
        response.extensions_mut().insert(Outcome::of(self.code));
        let headers = response.headers_mut();
        if self.status() == StatusCode::GATEWAY_TIMEOUT {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.code == Code::ShuttingDown {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A response of one JSON text.
pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let Ok(text) = serde_json::to_string(value) else {
        // Keys are texts and nothing here fails: no answer of ours gets here.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

impl From<NotSent> for ApiError {
    fn from(e: NotSent) -> Self {
        match e {
            NotSent::Full => Self::busy("too many requests come at once", Duration::from_secs(1)),
            NotSent::Closed => Self::draining(),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal.reason {
            Reason::Draining => Self::draining(),
            Reason::QueueFull { .. } => {
                let after = retry_after(&refusal).unwrap_or(Duration::from_secs(1));
                Self::busy(refusal.to_string(), after)
            }
            Reason::NeverFits { pages, available }
            | Reason::OverTenantCap {
                pages,
                cap: available,
            } => {
                let e = Self::invalid(Code::ExceedsKvCache, refusal.to_string());
                let mut e = e.param("max_tokens");
                e.pages = Some(Box::new((pages, available)));
                e
            }
            Reason::TooWide { .. } => Self::value("n", refusal.to_string()),
            Reason::Duplicate => Self::server(Code::InternalError, refusal.to_string()),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(e: RequestError) -> Self {
        let message = e.to_string();
        match e {
            RequestError::EmptyPrompt => Self::value("prompt", message),
            RequestError::NothingAsked => Self::value("max_tokens", message),
            RequestError::TooLong { prompt, limit, .. } => {
                let e = Self::invalid(Code::ContextLengthExceeded, message).param("max_tokens");
                e.context(prompt, limit)
            }
            RequestError::NoSuchToken { .. } => Self::value("prompt", message),
            RequestError::Width { .. } => Self::value("n", message),
            RequestError::BestOf { .. } => Self::value("best_of", message),
            RequestError::LengthPenalty(_) => Self::value("length_penalty", message),
            RequestError::Tenant { .. } => Self::server(Code::InternalError, message),
        }
    }
}

impl From<SamplingError> for ApiError {
    fn from(e: SamplingError) -> Self {
        let param = match &e {
            SamplingError::Range { name, .. }
            | SamplingError::TooMany { name, .. }
            | SamplingError::NoSuchToken { name, .. } => name,
            SamplingError::TwoBiases(_) => "logit_bias",
            SamplingError::MinTokens { .. } => "min_tokens",
        };
        Self::value(param, e.to_string())
    }
}

impl ApiError {
    /// Of a grammar that `param` asks for.
    pub(crate) fn grammar(e: &GrammarError, param: &str) -> Self {
        match e {
            GrammarError::TooMany(_) => Self::value("n", e.to_string()),
            GrammarError::Busy => Self::busy(e.to_string(), Duration::from_secs(1)),
            GrammarError::Tokenizer | GrammarError::Endless => {
                Self::unsupported(param, e.to_string())
            }
            GrammarError::Thread => Self::server(Code::InternalError, e.to_string()),
            GrammarError::Grammar(what) => {
                Self::value(param, format!("{param} cannot be kept to: {what}"))
            }
        }
    }
}

impl From<TextError> for ApiError {
    fn from(e: TextError) -> Self {
        match e {
            TextError::Chat(_) => Self::value("messages", e.to_string()),
            TextError::Encode(_) => Self::value("prompt", e.to_string()),
            TextError::Decode(_) => Self::value("tokens", e.to_string()),
            TextError::File(_) | TextError::Corrupt { .. } => {
                Self::server(Code::InternalError, e.to_string())
            }
        }
    }
}
