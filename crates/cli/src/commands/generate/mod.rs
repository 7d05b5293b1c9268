//! `plimsoll generate`: prompts through the engine on this machine.

mod answer;
mod prompts;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use plimsoll_kv::Scope;
use plimsoll_report::thousands;
use plimsoll_runtime::sample::{Sampling, SamplingError, SamplingParams};
use plimsoll_runtime::text::Stops;
use plimsoll_schedule::{Fan, Notice, Request, RequestError, RequestId};
use serde_json::{Value, json};

use self::answer::Answer;
use self::prompts::{Prompt, read};
use crate::args::generate::GenerateArgs;
use crate::commands::engine::{Start, Started, cannot_write, start};
use crate::error::{Exit, Failure};
use crate::output::Output;

/// One prompt on its way.
struct Running {
    text: String,
    prompt_tokens: usize,
    /// The first answer, which is shown as it comes; where there are several, what each begins from.
    answer: Answer,
    began: Instant,
    first: Option<Instant>,
}

pub(crate) fn run(args: &GenerateArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let prompts = read(args)?;
    let mut server = start(&Start {
        model: &args.model,
        engine: &args.engine,
        sequences: args.sequences(),
        context: None,
        log: args.log.as_deref(),
    })?;
    if let Some(note) = &server.note {
        output.talk(note);
    }
    if args.chat && server.template.is_none() {
        return Err(
            Failure::new(Exit::Usage, "E-GEN-004", "this model has no chat template")
                .hint("leave `--chat` out, or use a model trained for chats"),
        );
    }
    let single = args.prompts.is_none() && args.samples == 1;
    let mut running = BTreeMap::new();
    for (i, prompt) in prompts.into_iter().enumerate() {
        let text = match server.template.as_ref().filter(|_| args.chat) {
            Some(t) => t
                .render(
                    &[json!({ "role": "user", "content": prompt.text })],
                    true,
                    std::time::SystemTime::now(),
                )
                .map_err(|e| corrupt(&e))?,
            None => prompt.text.clone(),
        };
        let one = submit(args, &mut server, i as u64, &prompt, &text, !args.chat)?;
        running.insert(RequestId(i as u64), one);
    }
    if single {
        output.text(running.values().next().map_or("", |r| &r.text))?;
    }
    let began = Instant::now();
    let mut totals = Totals::default();
    loop {
        let mut notices = Vec::new();
        let stepped = server.engine.step(|n| notices.push(n));
        for notice in notices {
            tell(
                args,
                &mut server,
                &mut running,
                &mut totals,
                notice,
                single,
                output,
            )?;
        }
        let stepped = stepped.map_err(|e| {
            Failure::new(Exit::Failure, "E-GEN-005", e.to_string())
                .hint("please report this with the command that led to it")
        })?;
        if let Some((_, e)) = server
            .engine
            .executor_mut()
            .chooser_mut()
            .take_failed()
            .pop()
        {
            return Err(Failure::new(Exit::Corrupt, "E-GEN-006", e.to_string()));
        }
        if !stepped {
            break;
        }
    }
    totals.seconds = began.elapsed().as_secs_f64();
    output.talk(&summary(&server, &totals));
    if let Some(path) = &args.memory_map {
        server.memory().write(path)?;
    }
    let hash = server.engine.scheduler().decision_hash();
    if let (Some(path), Some(log)) = (&args.log, server.engine.into_log()) {
        log.end(hash).map_err(|e| cannot_write(path, &e))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn corrupt(e: &impl ToString) -> Failure {
    Failure::new(Exit::Corrupt, "E-GEN-002", e.to_string()).hint("fetch the model's files again")
}

/// Whether `token` is one that ends the model's texts and is no part of them.
fn ends(args: &GenerateArgs, server: &Started, token: u32) -> bool {
    !args.ignore_eos && server.generation.eos.binary_search(&token).is_ok()
}

/// How tokens are chosen: what was asked for, else what the model's own configuration says.
fn params(
    args: &GenerateArgs,
    server: &Started,
    max_tokens: u32,
) -> Result<SamplingParams, SamplingError> {
    let own = &server.generation;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "rounds; ranges are checked after"
    )]
    let of = |given: Option<f32>, own: Option<f64>, other: f32| {
        given.or(own.map(|x| x as f32)).unwrap_or(other)
    };
    let asked = Sampling {
        temperature: of(args.temperature, own.temperature, 1.0),
        top_k: args.top_k.or(own.top_k).unwrap_or(0),
        top_p: of(args.top_p, own.top_p, 1.0),
        min_p: of(args.min_p, own.min_p, 0.0),
        repetition_penalty: of(args.repetition_penalty, own.repetition_penalty, 1.0),
        seed: args.seed,
        ignore_eos: args.ignore_eos,
        ..Sampling::default()
    };
    SamplingParams::new(asked, server.vocab, &own.eos, max_tokens)
}

fn submit(
    args: &GenerateArgs,
    server: &mut Started,
    id: u64,
    prompt: &Prompt,
    text: &str,
    special: bool,
) -> Result<Running, Failure> {
    let ids = server
        .tokenizer
        .encode(text, special)
        .map_err(|e| corrupt(&e))?;
    let bad = |e: String| Failure::new(Exit::Usage, "E-GEN-003", format!("prompt {}: {e}", id + 1));
    let longest = u64::from(server.limits.max_model_len);
    let room = longest.saturating_sub(ids.len() as u64);
    if room == 0 {
        let has = thousands(ids.len() as u64);
        let longest = thousands(longest);
        return Err(bad(format!(
            "its {has} tokens leave no room for an answer: sequences have at most {longest}"
        ))
        .hint("shorten the prompt, or raise `--max-model-len`"));
    }
    let most = prompt.max_tokens.unwrap_or(args.max_tokens);
    let max_tokens = u32::try_from(room.min(u64::from(most))).unwrap_or(most);
    let params = params(args, server, max_tokens).map_err(|e| bad(e.to_string()))?;
    let stops = Stops::new(args.stop.clone(), false).map_err(|e| bad(e.to_string()))?;
    let fan = Fan::Sample {
        n: args.samples,
        best_of: args.samples,
    };
    let running = Running {
        text: text.to_owned(),
        prompt_tokens: ids.len(),
        answer: Answer::new(&ids, stops.clone()),
        began: Instant::now(),
        first: None,
    };
    let chooser = server.engine.executor_mut().chooser_mut();
    chooser.expect(RequestId(id), &ids, params, stops);
    let request = Request::new(
        RequestId(id),
        ids.into(),
        max_tokens,
        fan,
        Scope::default(),
        &server.limits,
    )
    .map_err(|e| {
        let hint = match e {
            RequestError::EmptyPrompt => "give the model something to go on from",
            RequestError::Width { .. } => "raise `--max-num-seqs`, or ask for fewer `--samples`",
            _ => "shorten the prompt, or raise `--max-model-len`",
        };
        bad(e.to_string()).hint(hint)
    })?;
    server
        .engine
        .submit(request)
        .map_err(|e| bad(e.to_string()).hint("raise `--kv-memory`, or ask for fewer tokens"))?;
    Ok(running)
}

/// Sums over all requests.
#[derive(Default)]
struct Totals {
    requests: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    /// Seconds to first tokens.
    first_s: f64,
    /// Seconds from first tokens to last, and tokens in them.
    decode_s: f64,
    decoded: u64,
    seconds: f64,
}

fn tell(
    args: &GenerateArgs,
    server: &mut Started,
    running: &mut BTreeMap<RequestId, Running>,
    totals: &mut Totals,
    notice: Notice,
    single: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    match notice {
        Notice::Token {
            request,
            index,
            draw,
        } => {
            let Some(r) = running.get_mut(&request) else {
                return Ok(());
            };
            r.first.get_or_insert_with(Instant::now);
            if single && index == 0 {
                let ends = ends(args, server, draw.token);
                let text = r.answer.push(&server.tokenizer, draw.token, ends);
                output.text(&text.map_err(|e| corrupt(&e))?)?;
            }
        }
        Notice::Finished(ended) => {
            let Some(mut r) = running.remove(&ended.request) else {
                return Ok(());
            };
            server
                .engine
                .executor_mut()
                .chooser_mut()
                .forget(ended.request);
            let tokens: u64 = ended
                .completions
                .iter()
                .map(|c| c.tokens.len() as u64)
                .sum();
            let longest = ended
                .completions
                .iter()
                .map(|c| c.tokens.len() as u64)
                .max();
            totals.requests += 1;
            totals.prompt_tokens += r.prompt_tokens as u64;
            totals.output_tokens += tokens;
            let first = r.first.unwrap_or(r.began);
            totals.first_s += first.duration_since(r.began).as_secs_f64();
            totals.decode_s += first.elapsed().as_secs_f64();
            totals.decoded += longest.unwrap_or(0).saturating_sub(1);
            if single {
                let rest = r.answer.finish(&server.tokenizer);
                output.text(&format!("{}\n", rest.map_err(|e| corrupt(&e))?))?;
                return Ok(());
            }
            let mut answers = Vec::new();
            for c in &ended.completions {
                let mut answer = r.answer.clone();
                let mut text = String::new();
                for &token in &c.tokens {
                    let ends = ends(args, server, token);
                    let more = answer.push(&server.tokenizer, token, ends);
                    text.push_str(&more.map_err(|e| corrupt(&e))?);
                }
                let rest = answer.finish(&server.tokenizer);
                text.push_str(&rest.map_err(|e| corrupt(&e))?);
                answers.push(text);
            }
            if args.prompts.is_none() {
                for a in answers {
                    output.line(&format!("{}{a}\n---", r.text))?;
                }
                return Ok(());
            }
            let line: Value = json!({
                "index": ended.request.0,
                "texts": answers,
                "prompt_tokens": r.prompt_tokens,
                "output_tokens": tokens,
                "cached_tokens": ended.cached_tokens,
                "preemptions": ended.swaps + ended.recomputes,
            });
            output.line(&line.to_string())?;
        }
        Notice::Preempted { .. } | Notice::Cancelled { .. } => {}
    }
    Ok(())
}

fn summary(server: &Started, t: &Totals) -> String {
    let per_s = |n: u64, s: f64| if s > 0.0 { n as f64 / s } else { 0.0 };
    let stats = server.engine.scheduler().stats();
    let mut text = format!(
        "\n{} of prompt, {} generated; first token after {:.0} ms, then {:.1} tokens/s each, {:.1} together\n",
        thousands(t.prompt_tokens),
        thousands(t.output_tokens),
        1e3 * t.first_s / (t.requests.max(1) as f64),
        per_s(t.decoded, t.decode_s),
        per_s(t.output_tokens, t.seconds),
    );
    text.push_str(&server.memory().text());
    if stats.swaps + stats.recomputes > 0 || stats.cached_tokens > 0 {
        text.push_str(&format!(
            "\npreempted {} times by swap, {} by recompute; {} prompt tokens from the prefix cache",
            stats.swaps,
            stats.recomputes,
            thousands(stats.cached_tokens)
        ));
    }
    text
}
