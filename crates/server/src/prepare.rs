//! From a body to jobs for the engine: everything is checked here, once, off the threads that talk to clients.

use std::sync::Arc;
use std::time::SystemTime;

use plimsoll_runtime::guide::{Grammar, GrammarError, Guide};
use plimsoll_runtime::sample::{Sampling, SamplingParams};
use plimsoll_runtime::text::{Answer, Stops};
use plimsoll_schedule::{Beam, Fan, Request, RequestError};
use serde_json::{Value, json};

use crate::code::Code;
use crate::engine::Job;
use crate::error::ApiError;
use crate::state::State;
use crate::tenants::Caller;
use crate::tools::{Calls, tools};
use crate::wire::{
    Asked, AskedLogprobs, Call, FormatKind, Json, MAX_SALT, MAX_SEQUENCES, Message, Object, Prompt,
    Role, Whole,
};

/// Tokens of a completion unless told, as OpenAI and vLLM have it.
const COMPLETION_TOKENS: u32 = 16;

/// Which route asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Completion,
    Chat,
}

/// What is told of a prompt's answers, beside the job in the engine.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) ids: Arc<[u32]>,
    /// The prompt's text, where it is told again.
    pub(crate) echo: Option<String>,
    pub(crate) params: SamplingParams,
    /// What each of its answers begins from.
    pub(crate) answer: Answer,
    /// Where calls of tools are looked for in each.
    pub(crate) calls: Option<Calls>,
}

/// A body that was found to make sense.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) route: Route,
    pub(crate) jobs: Vec<Job>,
    pub(crate) told: Vec<Told>,
    /// Answers to each prompt.
    pub(crate) n: u32,
    /// Whether the answers are the best of more.
    pub(crate) ranked: bool,
    pub(crate) streams: bool,
    pub(crate) include_usage: bool,
}

/// Whether `model` is the one that is served.
pub(crate) fn check_model(state: &State, model: Option<&str>) -> Result<(), ApiError> {
    let served = &state.options.name;
    match model {
        None => Ok(()),
        Some(model) if model == served => Ok(()),
        Some(model) => {
            let model: String = model.chars().take(64).collect();
            let message = format!("there is no model {model:?} here: this is {served:?}");
            let e = ApiError::invalid(Code::ModelNotFound, message);
            Err(e.param("model"))
        }
    }
}

/// The tokens of a chat; with `special`, those that the tokenizer puts around any text, too.
pub(crate) fn chat(
    state: &State,
    messages: &[Object<Message>],
    tools: &[Value],
    add_generation_prompt: bool,
    special: bool,
) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &state.model.template else {
        return Err(ApiError::invalid(
            Code::NoChatTemplate,
            "this model has no chat template: ask /v1/completions, or serve a model trained for chats",
        ));
    };
    if messages.is_empty() {
        return Err(ApiError::value(
            "messages",
            "there are no messages: send at least one",
        ));
    }
    let mut all: Vec<Value> = Vec::with_capacity(messages.len());
    for (i, Object(m)) in messages.iter().enumerate() {
        let place = |field: &str| format!("messages[{i}].{field}");
        let calls = calls(i, m)?;
        if m.role == Role::Tool && m.tool_call_id.as_ref().is_none_or(String::is_empty) {
            let message = "a tool's message answers a call: send its tool_call_id";
            return Err(ApiError::value(place("tool_call_id"), message));
        }
        if m.role != Role::Tool && m.tool_call_id.is_some() {
            let message = "only a tool's message has a tool_call_id";
            return Err(ApiError::value(place("tool_call_id"), message));
        }
        if m.content.is_none() && calls.is_empty() {
            let message = "a message has no content: send a text";
            return Err(ApiError::value(place("content"), message));
        }
        let content = m.content.as_ref().map_or("", |c| &*c.0);
        let mut one = json!({ "role": m.role.name(), "content": content });
        if !calls.is_empty() {
            one["tool_calls"] = calls.into();
        }
        if let Some(id) = &m.tool_call_id {
            one["tool_call_id"] = id.as_str().into();
        }
        if let Some(name) = &m.name {
            one["name"] = name.as_str().into();
        }
        all.push(one);
    }
    // Whoever writes a message cannot end it and speak as another.
    let mut tools = tools.to_vec();
    let given = all.iter_mut().chain(&mut tools);
    let disarmed = state.model.tokenizer.disarm(given);
    let prompt = template.render_with(&all, &tools, add_generation_prompt, SystemTime::now())?;
    let ids = state.encode_chat(&prompt, &disarmed, special);
    ids.map_err(|e| e.param("messages"))
}

/// The calls of a message, with their arguments as objects: so templates read them.
fn calls(at: usize, m: &Message) -> Result<Vec<Value>, ApiError> {
    let given = m.tool_calls.as_ref().map_or(&[][..], |c| &c.0);
    if m.role != Role::Assistant && !given.is_empty() {
        let param = format!("messages[{at}].tool_calls");
        let message = "only the assistant calls tools";
        return Err(ApiError::value(param, message));
    }
    let one = |(i, Object(call)): (usize, &Object<Call>)| {
        let f = &call.function.0;
        let arguments = serde_json::from_str::<Json>(&f.arguments).ok();
        let arguments = arguments.filter(|a| a.0.is_object()).ok_or_else(|| {
            let param = format!("messages[{at}].tool_calls[{i}].function.arguments");
            ApiError::value(param, "arguments are the text of a JSON object")
        })?;
        Ok(json!({
            "id": call.id,
            "type": "function",
            "function": { "name": f.name, "arguments": arguments.0 },
        }))
    };
    given.iter().enumerate().map(one).collect()
}

/// What answers are kept to, and which field asks for it.
fn grammar(
    asked: &Asked,
    tools: Option<Grammar>,
) -> Result<Option<(Grammar, &'static str)>, ApiError> {
    let mut all: Vec<(Grammar, &'static str)> = Vec::new();
    let object = || json!({ "type": "object" });
    if let Some(Object(format)) = &asked.response_format {
        let param = "response_format";
        match (format.kind, &format.json_schema) {
            (FormatKind::Text, None) => {}
            (FormatKind::JsonObject, None) => all.push((Grammar::JsonSchema(object()), param)),
            (FormatKind::JsonSchema, Some(Object(named))) => {
                let schema = named.schema.as_ref().map_or_else(object, |s| s.0.clone());
                all.push((Grammar::JsonSchema(schema), param));
            }
            (FormatKind::JsonSchema, None) => {
                let message = "a response_format of type json_schema has a json_schema";
                return Err(ApiError::value("response_format.json_schema", message));
            }
            (_, Some(_)) => {
                let message = "json_schema is for a response_format of that type";
                return Err(ApiError::value("response_format.json_schema", message));
            }
        }
    }
    if let Some(Object(s)) = &asked.structured_outputs {
        let param = "structured_outputs";
        let before = all.len();
        all.extend(
            s.json
                .as_ref()
                .map(|j| (Grammar::JsonSchema(j.0.clone()), param)),
        );
        if s.json_object == Some(true) {
            all.push((Grammar::JsonSchema(object()), param));
        }
        all.extend(s.regex.clone().map(|r| (Grammar::Regex(r), param)));
        all.extend(
            s.choice
                .as_ref()
                .map(|c| (Grammar::Choice(c.0.clone()), param)),
        );
        all.extend(s.grammar.clone().map(|g| (Grammar::Lark(g), param)));
        if all.len() == before {
            let message =
                "structured_outputs asks for nothing: give json, regex, choice or grammar";
            return Err(ApiError::value(param, message));
        }
    }
    let json = asked.guided_json.as_ref();
    all.extend(json.map(|j| (Grammar::JsonSchema(j.0.clone()), "guided_json")));
    let regex = asked.guided_regex.clone();
    all.extend(regex.map(|r| (Grammar::Regex(r), "guided_regex")));
    let choice = asked.guided_choice.as_ref();
    all.extend(choice.map(|c| (Grammar::Choice(c.0.clone()), "guided_choice")));
    let lark = asked.guided_grammar.clone();
    all.extend(lark.map(|g| (Grammar::Lark(g), "guided_grammar")));
    all.extend(tools.map(|g| (g, "tools")));
    let Some((_, param)) = all.first() else {
        return Ok(None);
    };
    if let Some((_, second)) = all.get(1) {
        let message = format!("{param} and {second} both say what the answer is: send one");
        return Err(ApiError::value(*second, message));
    }
    for (name, given) in [
        ("use_beam_search", asked.use_beam_search == Some(true)),
        ("ignore_eos", asked.ignore_eos == Some(true)),
    ] {
        if given {
            let message = format!("{name} does not go with {param}: leave one out");
            return Err(ApiError::value(name, message));
        }
    }
    Ok(all.pop())
}

fn whole<T: TryFrom<i128>>(name: &str, given: Option<Whole>) -> Result<Option<T>, ApiError> {
    given
        .map(|w| {
            T::try_from(w.0)
                .map_err(|_| ApiError::value(name, format!("{name} is {}: out of range", w.0)))
        })
        .transpose()
}

/// What is asked of the draws, apart from what differs from prompt to prompt.
fn sampling(state: &State, asked: &Asked, route: Route) -> Result<Sampling, ApiError> {
    let own = match asked.use_beam_search {
        Some(true) => Sampling::default(),
        _ => state.model.generation.sampling(),
    };
    #[allow(
        clippy::cast_possible_truncation,
        reason = "rounds, beyond its range to infinity; ranges are checked after"
    )]
    let of = |given: Option<f64>, own: f32| given.map_or(own, |x| x as f32);
    // vLLM's −1 is no limit.
    let top_k = match asked.top_k {
        Some(Whole(-1)) => Some(0),
        given => whole("top_k", given)?,
    };
    let (logprobs, prompt_logprobs) = logprobs(asked, route)?;
    let mut stop_token_ids = Vec::new();
    for id in asked.stop_token_ids.iter().flat_map(|l| &l.0) {
        stop_token_ids.extend(whole::<u32>("stop_token_ids", Some(*id))?);
    }
    let biases = asked.logit_bias.iter().flat_map(|b| &b.0);
    Ok(Sampling {
        temperature: of(asked.temperature, own.temperature),
        top_k: top_k.unwrap_or(own.top_k),
        top_p: of(asked.top_p, own.top_p),
        min_p: of(asked.min_p, own.min_p),
        repetition_penalty: of(asked.repetition_penalty, own.repetition_penalty),
        presence_penalty: of(asked.presence_penalty, 0.0),
        frequency_penalty: of(asked.frequency_penalty, 0.0),
        logit_bias: biases.map(|(id, x)| (*id, of(Some(*x), 0.0))).collect(),
        // Seeds of all 64 bits, signed or not.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked"
        )]
        seed: match asked.seed {
            None => state.draw(),
            Some(Whole(s)) if s >= i64::MIN.into() && s <= u64::MAX.into() => s as u64,
            Some(Whole(s)) => {
                return Err(ApiError::value("seed", format!("seed is {s}: use 64 bits")));
            }
        },
        logprobs,
        prompt_logprobs,
        min_tokens: whole("min_tokens", asked.min_tokens)?.unwrap_or(0),
        stop_token_ids,
        ignore_eos: asked.ignore_eos.unwrap_or(false),
    })
}

/// Alternatives of generated tokens, and of the prompt's.
fn logprobs(asked: &Asked, route: Route) -> Result<(Option<u32>, Option<u32>), ApiError> {
    let top = whole("top_logprobs", asked.top_logprobs)?;
    match (route, asked.logprobs, top) {
        (Route::Completion, _, Some(_)) => Err(ApiError::unsupported(
            "top_logprobs",
            "top_logprobs is for chats: logprobs is the number of tokens here",
        )),
        (Route::Completion, None, None) => Ok((None, None)),
        (Route::Completion, Some(AskedLogprobs::Count(n)), None) => {
            let n = whole("logprobs", Some(n))?;
            Ok((n, n.filter(|_| asked.echo == Some(true))))
        }
        (Route::Completion, Some(AskedLogprobs::Whether(_)), None) => Err(ApiError::value(
            "logprobs",
            "logprobs is a number of tokens here, and true or false in chats",
        )),
        (Route::Chat, Some(AskedLogprobs::Whether(true)), n) => Ok((Some(n.unwrap_or(0)), None)),
        (Route::Chat, None | Some(AskedLogprobs::Whether(false)), None) => Ok((None, None)),
        (Route::Chat, None | Some(AskedLogprobs::Whether(false)), Some(_)) => Err(ApiError::value(
            "top_logprobs",
            "top_logprobs needs logprobs: set it to true",
        )),
        (Route::Chat, Some(AskedLogprobs::Count(_)), _) => Err(ApiError::value(
            "logprobs",
            "logprobs is true or false in chats: top_logprobs is the number of tokens",
        )),
    }
}

/// Tokens of a sequence at most, where any are asked for.
fn max_tokens(asked: &Asked) -> Result<Option<(u32, &'static str)>, ApiError> {
    let old = whole("max_tokens", asked.max_tokens)?.map(|n| (n, "max_tokens"));
    let new = whole("max_completion_tokens", asked.max_completion_tokens)?;
    let new = new.map(|n| (n, "max_completion_tokens"));
    match (old, new) {
        (Some(a), Some(b)) if a.0 != b.0 => Err(ApiError::value(
            "max_tokens",
            format!(
                "max_tokens is {} and max_completion_tokens is {}: send one of them",
                a.0, b.0
            ),
        )),
        (old, new) => {
            let given = new.or(old);
            match given {
                Some((0, name)) => Err(ApiError::value(
                    name,
                    format!("{name} is 0: ask for at least one token"),
                )),
                given => Ok(given),
            }
        }
    }
}

/// Checks all of a body, and makes tokens of its texts.
pub(crate) fn prepare(
    state: &State,
    asked: &Asked,
    route: Route,
    caller: Caller,
) -> Result<Prepared, ApiError> {
    check_model(state, asked.model.as_deref())?;
    if let Some(name) = asked.unsupported() {
        return Err(ApiError::unsupported(
            name,
            format!("{name} is not supported yet: leave it out"),
        ));
    }
    if let Some((name, _)) = asked.elsewhere(route).into_iter().find(|e| e.1) {
        return Err(ApiError::unsupported(
            name,
            format!("{name} is not for this route"),
        ));
    }
    let streams = asked.stream.unwrap_or(false);
    if asked.stream_options.is_some() && !streams {
        return Err(ApiError::value(
            "stream_options",
            "stream_options needs stream: set it to true",
        ));
    }
    let n = whole("n", asked.n)?.unwrap_or(1);
    let best_of = whole("best_of", asked.best_of)?.unwrap_or(n);
    let searches = asked.use_beam_search == Some(true);
    let ranked = searches || best_of != n;
    if searches && streams {
        return Err(ApiError::value(
            "use_beam_search",
            "beams cannot stream: the best are known at the end",
        ));
    }
    if ranked && streams {
        return Err(ApiError::value(
            "best_of",
            "best_of cannot stream: the best are known at the end",
        ));
    }
    let fan = fan(asked, n, best_of)?;
    let priority = whole("priority", asked.priority)?.unwrap_or(0);
    let most = max_tokens(asked)?;
    let sampling = sampling(state, asked, route)?;
    let stops = asked.stop.as_ref().map(|s| s.0.clone()).unwrap_or_default();
    let stops = Stops::new(stops, asked.include_stop_str_in_output.unwrap_or(false))
        .map_err(|e| ApiError::value("stop", e.to_string()))?;
    let tools = tools(asked)?;
    let grammar = grammar(asked, tools.grammar)?;
    let prompts = prompts(state, asked, &tools.described, route)?;
    if prompts.len().saturating_mul(best_of as usize) > MAX_SEQUENCES {
        let message = format!(
            "{} prompts with {best_of} answers each are too many: at most {MAX_SEQUENCES} in all",
            prompts.len()
        );
        return Err(ApiError::value("n", message));
    }
    // All of them wait before any runs: they would be told to come back for ever.
    let queue = state.model.room.queue();
    if prompts.len() > queue {
        let message = format!(
            "there are {} prompts and at most {queue} requests may wait here: send fewer at once, or start the server with a larger `--max-num-queued-reqs`",
            prompts.len()
        );
        return Err(ApiError::value("prompt", message));
    }
    let guide = match &grammar {
        None => None,
        Some((grammar, param)) => {
            let width = prompts.len() * best_of as usize;
            let error = |e: &GrammarError| ApiError::grammar(e, param);
            let grammars = state.model.grammars.as_ref().map_err(error)?;
            Some(grammars.compile(grammar, width).map_err(|e| error(&e))?)
        }
    };
    let salt = cache_salt(asked)?;
    let mut requests = Vec::with_capacity(prompts.len());
    let mut told = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.into_iter().enumerate() {
        let (ids, echo) = tokens(state, asked, prompt)?;
        let limit = state.model.limits.max_model_len;
        let room = u64::from(limit).saturating_sub(ids.len() as u64);
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        if room == 0 {
            let message = format!(
                "the prompt has {} tokens and leaves no room for an answer: prompt and answer have at most {limit}",
                ids.len()
            );
            let param = if route == Route::Chat {
                "messages"
            } else {
                "prompt"
            };
            let e = ApiError::invalid(Code::ContextLengthExceeded, message).param(param);
            return Err(e.context(ids.len() as u64, limit));
        }
        let (max_tokens, name) = match (most, route) {
            (Some(most), _) => most,
            // Nobody said how long: as long as the KV cache can ever hold, too.
            (None, Route::Chat) => {
                let prompt = u32::try_from(ids.len()).unwrap_or(u32::MAX);
                let fits = state
                    .model
                    .room
                    .most_tokens(prompt, fan.width(), caller.tenant);
                (room.min(fits.max(1)), "max_tokens")
            }
            (None, Route::Completion) => (COMPLETION_TOKENS.min(room), "max_tokens"),
        };
        let mut sampling = sampling.clone();
        if asked.seed.is_none() {
            // Prompts that are alike get answers that are not.
            sampling.seed = sampling.seed.wrapping_add(i as u64);
        }
        let model = &state.model;
        let params = SamplingParams::new(
            sampling,
            model.limits.vocab,
            &model.generation.eos,
            max_tokens,
        )?;
        let id = state.engine.id();
        let ids: Arc<[u32]> = ids.into();
        let request = Request::new(
            id,
            Arc::clone(&ids),
            max_tokens,
            fan,
            state.tenants.scope(caller.tenant, salt),
            &model.limits,
        );
        let request = request.map_err(|e| match e {
            RequestError::TooLong { .. } => ApiError::from(e).param(name),
            e => e.into(),
        })?;
        let mut request = request.with_priority(priority);
        if params.asked().prompt_logprobs.is_some() {
            request = request.without_cached_prefix();
        }
        told.push(Told {
            answer: Answer::new(&ids, stops.clone()),
            ids,
            echo,
            params: params.clone(),
            calls: tools.calls.clone(),
        });
        requests.push((request, params));
    }
    // Last: nothing that is refused for a mistake counts.
    let tokens = told.iter().map(|t| t.ids.len() as u64).sum();
    let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
    let visit = state.tenants.enter(caller.tenant, count, tokens)?;
    let job = |(request, params)| Job {
        request,
        params,
        stops: stops.clone(),
        visit: Arc::clone(&visit),
        guide: guide.as_ref().map(Guide::fork),
    };
    let jobs = requests.into_iter().map(job).collect();
    Ok(Prepared {
        route,
        jobs,
        told,
        n,
        ranked,
        streams,
        include_usage: asked
            .stream_options
            .as_ref()
            .and_then(|o| o.0.include_usage)
            .unwrap_or(false),
    })
}

/// How many sequences a prompt has, and how they come to be.
fn fan(asked: &Asked, n: u32, best_of: u32) -> Result<Fan, ApiError> {
    let beams = [
        ("length_penalty", asked.length_penalty.is_some()),
        ("early_stopping", asked.early_stopping.is_some()),
    ];
    if asked.use_beam_search != Some(true) {
        return match beams.into_iter().find(|b| b.1) {
            Some((name, _)) => Err(ApiError::value(
                name,
                format!("{name} is for beams: set use_beam_search to true"),
            )),
            None => Ok(Fan::Sample { n, best_of }),
        };
    }
    // It ranks by the model's own distribution, and draws nothing.
    let of_draws = [
        ("temperature", asked.temperature.is_some_and(|t| t != 0.0)),
        ("top_k", asked.top_k.is_some()),
        ("top_p", asked.top_p.is_some()),
        ("min_p", asked.min_p.is_some()),
        ("repetition_penalty", asked.repetition_penalty.is_some()),
        ("presence_penalty", asked.presence_penalty.is_some()),
        ("frequency_penalty", asked.frequency_penalty.is_some()),
        ("logit_bias", asked.logit_bias.is_some()),
    ];
    if let Some((name, _)) = of_draws.into_iter().find(|o| o.1) {
        return Err(ApiError::value(
            name,
            format!("{name} and use_beam_search exclude each other: a search draws nothing"),
        ));
    }
    if best_of < n {
        return Err(RequestError::BestOf { n, best_of }.into());
    }
    // As many as are answered, as in vLLM, unless best_of asks for more.
    Ok(Fan::Beam(Beam {
        width: best_of,
        length_penalty: asked.length_penalty.unwrap_or(1.0),
        early_stopping: asked.early_stopping.unwrap_or(false),
    }))
}

/// What a client salts its prefixes with: only who sends the same finds them in the cache.
fn cache_salt(asked: &Asked) -> Result<Option<&str>, ApiError> {
    let salt = asked.cache_salt.as_deref();
    let fits =
        |s: &str| (1..=MAX_SALT).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_graphic());
    match salt {
        Some(salt) if !fits(salt) => {
            let message = format!(
                "cache_salt has 1 to {MAX_SALT} printable ASCII characters, without spaces"
            );
            Err(ApiError::value("cache_salt", message))
        }
        salt => Ok(salt),
    }
}

fn prompts(
    state: &State,
    asked: &Asked,
    tools: &[Value],
    route: Route,
) -> Result<Vec<Prompt>, ApiError> {
    let missing = |name: &str| {
        ApiError::invalid(Code::MissingField, format!("{name} is missing")).param(name)
    };
    match route {
        Route::Completion => {
            let prompts = asked.prompt.as_ref().ok_or_else(|| missing("prompt"))?;
            if prompts.0.is_empty() {
                return Err(ApiError::value(
                    "prompt",
                    "there is no prompt: send at least one",
                ));
            }
            Ok(prompts.0.clone())
        }
        Route::Chat => {
            let messages = asked.messages.as_ref().ok_or_else(|| missing("messages"))?;
            let begin = asked.add_generation_prompt.unwrap_or(true);
            let special = asked.add_special_tokens.unwrap_or(false);
            let ids = chat(state, &messages.0, tools, begin, special)?;
            Ok(vec![Prompt::Ids(ids)])
        }
    }
}

/// A prompt's tokens, and its text, where it is told again.
fn tokens(
    state: &State,
    asked: &Asked,
    prompt: Prompt,
) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let echoes = asked.echo == Some(true);
    let tokenizer = &state.model.tokenizer;
    match prompt {
        Prompt::Text(text) => {
            let ids = state.encode(&text, asked.add_special_tokens.unwrap_or(true))?;
            Ok((ids, echoes.then_some(text)))
        }
        Prompt::Ids(ids) => {
            let vocab = state.model.limits.vocab;
            if let Some((at, id)) = ids.iter().enumerate().find(|i| *i.1 >= vocab) {
                let message = format!("token {id} at {at} is out of range: ids are below {vocab}");
                return Err(ApiError::value("prompt", message));
            }
            let text = echoes.then(|| tokenizer.decode(&ids, false)).transpose()?;
            Ok((ids, text))
        }
    }
}
