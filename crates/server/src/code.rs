//! [`Code`]: every reason for which a request is refused or given up, by the name that clients, logs and metrics see.

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident = $name:literal, $status:ident;)+) => {
        /// Why it is refused. A name is part of the interface, and is always told with the same status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
        #[schemars(rename = "ErrorCode")]
        pub(crate) enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $name)]
                #[schemars(extend("x-status" = StatusCode::$status.as_u16()))]
                $code,)+
        }

        impl Code {
            /// Every one.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$code),+];

            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)+
                }
            }

            pub(crate) const fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status,)+
                }
            }
        }
    };
}

codes! {
    /// A field has a value that it cannot have; `param` names it.
    InvalidValue = "invalid_value", BAD_REQUEST;
    /// A field that is needed is not there; `param` names it.
    MissingField = "missing_field", BAD_REQUEST;
    /// A field is not known, or asks for what this server does not do; `param` names it.
    UnsupportedParameter = "unsupported_parameter", BAD_REQUEST;
    /// The body is no JSON object.
    InvalidJson = "invalid_json", BAD_REQUEST;
    /// The body did not come whole.
    InvalidBody = "invalid_body", BAD_REQUEST;
    /// The header Host is missing, there twice, or no name.
    InvalidHost = "invalid_host", BAD_REQUEST;
    /// Prompt and answer are longer than the model or the server takes.
    ContextLengthExceeded = "context_length_exceeded", BAD_REQUEST;
    /// It would need more of the KV cache than there is, or than its tenant may have.
    ExceedsKvCache = "exceeds_kv_cache", BAD_REQUEST;
    /// Its answer could take more memory than all requests have.
    AnswerTooLarge = "answer_too_large", BAD_REQUEST;
    /// The model has no chat template.
    NoChatTemplate = "no_chat_template", BAD_REQUEST;
    /// The plan makes no sense; `param` names the field, where it is one.
    CannotPlan = "cannot_plan", BAD_REQUEST;
    /// The answer was not read as fast as it was written.
    SlowClient = "slow_client", BAD_REQUEST;
    /// There is no valid key.
    InvalidApiKey = "invalid_api_key", UNAUTHORIZED;
    /// The key is not one of an admin.
    NotAllowed = "not_allowed", FORBIDDEN;
    /// The server does not answer to this name.
    HostNotAllowed = "host_not_allowed", FORBIDDEN;
    /// There is no such route or file.
    UnknownUrl = "unknown_url", NOT_FOUND;
    /// Another model is served.
    ModelNotFound = "model_not_found", NOT_FOUND;
    /// The route has other methods.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// The body came too slowly.
    BodyTimeout = "body_timeout", REQUEST_TIMEOUT;
    /// The body is too large.
    RequestTooLarge = "request_too_large", PAYLOAD_TOO_LARGE;
    /// The target of the request is too long.
    UriTooLong = "uri_too_long", URI_TOO_LONG;
    /// The body is compressed, or not said to be JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE;
    /// The plan takes too long.
    PlanTooLong = "plan_too_long", UNPROCESSABLE_ENTITY;
    /// Too many requests wait.
    QueueFull = "queue_full", TOO_MANY_REQUESTS;
    /// The tenant has as many requests in flight as it may.
    TooManyRequests = "too_many_requests", TOO_MANY_REQUESTS;
    /// The tenant has used up its rate.
    RateLimitExceeded = "rate_limit_exceeded", TOO_MANY_REQUESTS;
    /// As many watch, look or plan as may at once.
    TooManyWatchers = "too_many_watchers", TOO_MANY_REQUESTS;
    /// The server made a mistake.
    InternalError = "internal_error", INTERNAL_SERVER_ERROR;
    /// Nothing more can be written that keeps to the grammar.
    GrammarFailed = "grammar_failed", INTERNAL_SERVER_ERROR;
    /// Steps of the engine failed.
    EngineFailed = "engine_failed", INTERNAL_SERVER_ERROR;
    /// The model's logits are no numbers.
    NumericalError = "numerical_error", INTERNAL_SERVER_ERROR;
    /// The server is going down.
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE;
    /// It waited for its first step for too long.
    QueueTimeout = "queue_timeout", SERVICE_UNAVAILABLE;
    /// Bodies of others take all the memory that there is for them.
    BodiesFull = "bodies_full", SERVICE_UNAVAILABLE;
    /// It took longer than a request may.
    RequestTimeout = "request_timeout", GATEWAY_TIMEOUT;
}

/// The name and status of every code, for whoever explains them.
#[must_use]
pub fn error_codes() -> Vec<(&'static str, u16)> {
    let told = |c: &Code| (c.name(), c.status().as_u16());
    Code::ALL.iter().map(told).collect()
}
