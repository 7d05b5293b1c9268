//! `plimsoll generate`: prompts through the engine on this machine.

mod asked;
mod preemptions;
mod prompts;
mod result;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use plimsoll_kv::Scope;
use plimsoll_report::thousands;
use plimsoll_runtime::text::Answer;
use plimsoll_runtime::{ChoiceError, Moved};
use plimsoll_schedule::{End, Ended, Notice, Request, RequestError, RequestId, Stats};
use serde_json::json;

use self::preemptions::Preemptions;
use self::prompts::{Prompt, read};
use self::result::{Answered, Choice};
use crate::args::generate::GenerateArgs;
use crate::commands::engine::{Start, Started, end_log, start};
use crate::demo;
use crate::error::{Exit, Failure};
use crate::output::Output;

/// One prompt on its way.
struct Running {
    text: String,
    ids: Vec<u32>,
    /// The first answer, which is shown as it comes; where there are several, what each begins from.
    answer: Answer,
    /// Whether the model's end token is a token as others.
    ignore_eos: bool,
    /// Whether its own log probabilities are told.
    told: bool,
    seed: Option<u64>,
    began: Instant,
    first: Option<Instant>,
}

/// All prompts of a run.
struct Batch<'a> {
    args: &'a GenerateArgs,
    server: Started,
    running: BTreeMap<RequestId, Running>,
    totals: Totals,
    /// Whether the one answer is shown as it comes.
    streams: bool,
    /// Requests that ended by an error, and the first one's.
    failed: u64,
    error: Option<String>,
}

pub(crate) fn run(args: &GenerateArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let tells = args.json || args.prompts.is_some();
    if !tells && (args.logprobs.is_some() || args.prompt_logprobs.is_some()) {
        let what = "log probabilities have no place in text";
        return Err(Failure::new(Exit::Usage, "E-GEN-003", what).hint("add `--json`"));
    }
    let prompts = read(args)?;
    let widest = prompts.iter().map(|p| p.asked.width()).max().unwrap_or(1);
    let told = |p: &Prompt| p.asked.logprobs.max(p.asked.prompt_logprobs);
    if demo::is_meant(&args.model) {
        output.talk(demo::NOTE);
    }
    let server = start(&Start {
        model: &args.model,
        engine: &args.engine,
        sequences: args.sequences(widest),
        queued: None,
        context: None,
        log: args.log.as_deref(),
        logprobs: prompts.iter().filter_map(told).max(),
        http: None,
        tenants: None,
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
    let mut batch = Batch {
        args,
        server,
        running: BTreeMap::new(),
        totals: Totals::default(),
        streams: args.prompts.is_none() && !args.json && widest == 1,
        failed: 0,
        error: None,
    };
    let drawn = drawn_seed();
    let mut told = false;
    for (i, prompt) in prompts.into_iter().enumerate() {
        // Prompts that are alike get answers that are not.
        let one = batch.submit(i as u64, &prompt, drawn.wrapping_add(i as u64))?;
        if one.seed.is_some() && prompt.asked.lacks_seed() && !told {
            told = true;
            let more = match args.prompts {
                Some(_) => ", one more for each prompt after the first",
                None => "",
            };
            output.talk(&format!(
                "seed {}{more}: `--seed` draws again",
                drawn.wrapping_add(i as u64)
            ));
        }
        batch.running.insert(RequestId(i as u64), one);
    }
    if batch.streams {
        output.text(batch.running.values().next().map_or("", |r| &r.text))?;
    }
    let began = Instant::now();
    let mut notices = Vec::new();
    loop {
        let (before, moved) = counters(&batch.server);
        let step_began = Instant::now();
        let stepped = batch.server.engine.step(|n| notices.push(n));
        let took = step_began.elapsed();
        let (after, now_moved) = counters(&batch.server);
        let [before_ns, now_ns] = [moved, now_moved].map(|m| m.time.unwrap_or_default().0);
        let moving = Duration::from_nanos(now_ns.saturating_sub(before_ns));
        let computing = took.saturating_sub(moving);
        batch.totals.preemptions.step(&before, &after, computing);
        let chooser = batch.server.engine.executor_mut().chooser_mut();
        let errors = chooser.take_failed();
        for notice in notices.drain(..) {
            batch.tell(notice, &errors, output)?;
        }
        let stepped = stepped.map_err(|e| {
            Failure::new(Exit::Failure, "E-GEN-005", e.to_string())
                .hint("please report this with the command that led to it")
        })?;
        if !stepped {
            break;
        }
    }
    batch.totals.seconds = began.elapsed().as_secs_f64();
    batch.finish(output)
}

/// What was counted so far.
fn counters(server: &Started) -> (Stats, Moved) {
    let engine = &server.engine;
    (*engine.scheduler().stats(), engine.executor().moved())
}

/// A seed that differs from run to run, and that every reader of JSON can hold.
fn drawn_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}

fn corrupt(e: &impl ToString) -> Failure {
    Failure::new(Exit::Corrupt, "E-GEN-002", e.to_string()).hint("fetch the model's files again")
}

impl Batch<'_> {
    fn submit(&mut self, id: u64, prompt: &Prompt, drawn: u64) -> Result<Running, Failure> {
        let server = &mut self.server;
        let tokenizer = &server.tokenizer;
        let encoded = match server.template.as_ref().filter(|_| self.args.chat) {
            Some(template) => {
                let mut messages = [json!({ "role": "user", "content": prompt.text })];
                let disarmed = tokenizer.disarm(&mut messages);
                let text = template.render(&messages, true, std::time::SystemTime::now());
                text.and_then(|text| {
                    let ids = tokenizer.encode_chat(&text, &disarmed, false)?;
                    Ok((text, ids))
                })
            }
            None => {
                let ids = tokenizer.encode(&prompt.text, true);
                ids.map(|ids| (prompt.text.clone(), ids))
            }
        };
        let (text, ids) = encoded.map_err(|e| corrupt(&e))?;
        let bad =
            |e: String| Failure::new(Exit::Usage, "E-GEN-003", format!("{}: {e}", prompt.place));
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
        let most = prompt.asked.max_tokens.unwrap_or(self.args.max_tokens);
        let max_tokens = u32::try_from(room.min(u64::from(most))).unwrap_or(most);
        let ask = prompt.asked.ask(server, max_tokens, drawn).map_err(bad)?;
        let asked = ask.params.asked();
        let running = Running {
            text,
            answer: Answer::new(&ids, ask.stops.clone()),
            ids: ids.clone(),
            ignore_eos: asked.ignore_eos,
            told: asked.prompt_logprobs.is_some(),
            seed: ask.seed,
            began: Instant::now(),
            first: None,
        };
        let mut request = Request::new(
            RequestId(id),
            ids.as_slice().into(),
            max_tokens,
            ask.fan,
            Scope::default(),
            &server.limits,
        )
        .map_err(|e| {
            let hint = match e {
                RequestError::EmptyPrompt => "give the model something to go on from",
                RequestError::Width { .. } => {
                    "raise `--max-num-seqs`, or ask for fewer answers or beams"
                }
                RequestError::BestOf { .. } | RequestError::LengthPenalty(_) => "change that",
                _ => "shorten the prompt, or raise `--max-model-len`",
            };
            bad(e.to_string()).hint(hint)
        })?;
        if running.told {
            request = request.without_cached_prefix();
        }
        let chooser = server.engine.executor_mut().chooser_mut();
        chooser.expect(RequestId(id), &ids, ask.params, ask.stops);
        server
            .engine
            .submit(request)
            .map_err(|e| bad(e.to_string()).hint("raise `--kv-memory`, or ask for fewer tokens"))?;
        Ok(running)
    }

    fn tell(
        &mut self,
        notice: Notice,
        errors: &[(RequestId, ChoiceError)],
        output: &mut Output,
    ) -> Result<(), Failure> {
        match notice {
            Notice::Token {
                request,
                index,
                draw,
            } => {
                let Some(r) = self.running.get_mut(&request) else {
                    return Ok(());
                };
                r.first.get_or_insert_with(Instant::now);
                if self.streams && index == 0 {
                    let ends = ends(r, &self.server, draw.token);
                    let text = r.answer.push(&self.server.tokenizer, draw.token, ends);
                    output.text(&text.map_err(|e| corrupt(&e))?)?;
                }
                Ok(())
            }
            Notice::Finished(ended) => {
                let error = errors.iter().find(|e| e.0 == ended.request);
                self.ended(&ended, error.map(|e| e.1.to_string()), output)
            }
            Notice::Preempted {
                swapped_pages,
                cost,
                ..
            } => {
                self.totals.preemptions.preempted(swapped_pages, cost);
                Ok(())
            }
            Notice::Cancelled { .. } => Ok(()),
        }
    }

    /// A prompt has all its answers: they are shown.
    fn ended(
        &mut self,
        ended: &Ended,
        error: Option<String>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let Some(mut r) = self.running.remove(&ended.request) else {
            return Ok(());
        };
        let chooser = self.server.engine.executor_mut().chooser_mut();
        let logprobs = chooser.take_logprobs(ended.request);
        chooser.forget(ended.request);
        self.totals.add(&r, ended);
        if ended.completions.iter().any(|c| c.end == End::Error) {
            self.failed += 1;
            self.error = self.error.take().or_else(|| error.clone());
        }
        let tokenizer = &self.server.tokenizer;
        if self.streams {
            let rest = r.answer.finish(tokenizer).map_err(|e| corrupt(&e))?;
            return output.text(&format!("{rest}\n"));
        }
        let mut choices = Vec::new();
        for c in &ended.completions {
            let mut answer = r.answer.clone();
            let mut text = String::new();
            for &token in &c.tokens {
                let ends = ends(&r, &self.server, token);
                let more = answer.push(tokenizer, token, ends);
                text.push_str(&more.map_err(|e| corrupt(&e))?);
            }
            let rest = answer.finish(tokenizer);
            text.push_str(&rest.map_err(|e| corrupt(&e))?);
            choices.push(Choice {
                text,
                completion: c,
            });
        }
        if self.args.prompts.is_none() && !self.args.json {
            for c in choices {
                output.line(&format!("{}{}\n---", r.text, c.text))?;
            }
            return Ok(());
        }
        let result = Answered {
            tokenizer,
            ended,
            choices,
            prompt: &r.ids,
            logprobs: &logprobs,
            told: r.told,
            seed: r.seed,
            error,
        };
        output.json(&result)?.map_err(|e| corrupt(&e))
    }

    fn finish(self, output: &mut Output) -> Result<ExitCode, Failure> {
        let args = self.args;
        output.talk(&summary(&self.server, &self.totals));
        if let Some(path) = &args.memory_map {
            self.server.memory().write(path)?;
        }
        if let Some(path) = &args.log {
            end_log(path, self.server.engine)?;
        }
        if self.failed == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let what = format!(
            "{} of {} prompts ended with an error",
            thousands(self.failed),
            thousands(self.totals.requests)
        );
        let why = self.error.unwrap_or_default();
        Err(Failure::new(Exit::Corrupt, "E-GEN-006", what)
            .why(why)
            .hint("run with `--check-weights`"))
    }
}

/// Whether `token` is one that ends the model's texts and is no part of them.
fn ends(r: &Running, server: &Started, token: u32) -> bool {
    !r.ignore_eos && server.generation.eos.binary_search(&token).is_ok()
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
    preemptions: Preemptions,
}

impl Totals {
    fn add(&mut self, r: &Running, ended: &Ended) {
        let lengths = || ended.completions.iter().map(|c| c.tokens.len() as u64);
        self.requests += 1;
        self.prompt_tokens += r.ids.len() as u64;
        self.output_tokens += lengths().sum::<u64>();
        // A search tells its tokens at its end.
        let first = r.first.unwrap_or(r.began);
        self.first_s += first.duration_since(r.began).as_secs_f64();
        self.decode_s += first.elapsed().as_secs_f64();
        self.decoded += lengths().max().unwrap_or(0).saturating_sub(1);
    }
}

fn summary(server: &Started, t: &Totals) -> String {
    let per_s = |n: u64, s: f64| if s > 0.0 { n as f64 / s } else { 0.0 };
    let (stats, moved) = counters(server);
    let mut text = format!(
        "\n{} of prompt, {} generated; first token after {:.0} ms, then {:.1} tokens/s each, {:.1} together\n",
        thousands(t.prompt_tokens),
        thousands(t.output_tokens),
        1e3 * t.first_s / (t.requests.max(1) as f64),
        per_s(t.decoded, t.decode_s),
        per_s(t.output_tokens, t.seconds),
    );
    text.push_str(&format!("device: {}\n", server.device));
    text.push_str(&server.memory().text());
    text.push_str(&t.preemptions.text(&stats, moved));
    text
}
