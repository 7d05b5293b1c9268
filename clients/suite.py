"""The official OpenAI client for Python against a server: one check after another.

    suite.py BASE_URL KEY

Prints a JSON object: what each check found wrong, or null.
"""

import json
import sys
import threading
import time
import traceback

import openai
from pydantic import BaseModel, Field

CHECKS = {}


def check(name):
    def of(function):
        CHECKS[name] = function
        return function

    return of


def must(holds, saw=None):
    if not holds:
        raise AssertionError(repr(saw))


def refused(error, call, code=None, **with_):
    try:
        call(**with_)
    except error as e:
        must(code is None or e.code == code, e.body)
        return e
    raise AssertionError(f"no {error.__name__}")


CHAT = [{"role": "system", "content": "You are a novelist."}, {"role": "user", "content": "Go on."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Bath", "Hunsford"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["town", "days"],
            "additionalProperties": False,
        },
    },
}


class Guest(BaseModel):
    name: str = Field(max_length=8)
    dances: bool


@check("models")
def _(c, model):
    must(model in [m.id for m in c.models.list()])
    must(c.models.retrieve(model).id == model)


@check("chat")
def _(c, model):
    r = c.chat.completions.create(model=model, messages=CHAT, max_completion_tokens=8)
    must(r.choices[0].message.role == "assistant" and r.choices[0].message.content is not None, r)
    must(r.choices[0].finish_reason in ("stop", "length"), r)
    r = c.chat.completions.create(model=model, messages=[{"role": "user", "content": [{"type": "text", "text": "Go on."}]}], max_tokens=4)
    must(r.choices[0].message.content is not None, r)


@check("completions")
def _(c, model):
    r = c.completions.create(model=model, prompt="She had not", max_tokens=8, temperature=0)
    must(r.object == "text_completion" and r.choices[0].text, r)
    many = c.completions.create(model=model, prompt=["She had", "He had"], max_tokens=4, temperature=0)
    must([x.index for x in many.choices] == [0, 1], many)
    echo = c.completions.create(model=model, prompt="She had not", max_tokens=2, echo=True)
    must(echo.choices[0].text.startswith("She had not"), echo)


@check("stream")
def _(c, model):
    whole = c.chat.completions.create(model=model, messages=CHAT, max_tokens=16, temperature=0)
    parts = list(c.chat.completions.create(model=model, messages=CHAT, max_tokens=16, temperature=0, stream=True))
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    must(text == whole.choices[0].message.content, (text, whole))
    must(parts[0].choices[0].delta.role == "assistant" and parts[-1].choices[0].finish_reason is not None, parts)
    whole = c.completions.create(model=model, prompt="She had", max_tokens=16, temperature=0)
    text = "".join(p.choices[0].text for p in c.completions.create(model=model, prompt="She had", max_tokens=16, temperature=0, stream=True))
    must(text == whole.choices[0].text, (text, whole))
    with c.chat.completions.stream(model=model, messages=CHAT, max_tokens=16, temperature=0) as events:
        last = list(events)[-1]
    must(last.type == "chunk" or last.type.endswith(".done"), last)


@check("usage")
def _(c, model):
    r = c.completions.create(model=model, prompt="She had not", max_tokens=8, temperature=0)
    u = r.usage
    must(u.completion_tokens <= 8 and u.prompt_tokens > 0 and u.total_tokens == u.prompt_tokens + u.completion_tokens, u)
    parts = list(
        c.completions.create(model=model, prompt="She had not", max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True})
    )
    must(parts[-1].usage.total_tokens == u.total_tokens and parts[-1].choices == [], parts[-1])


@check("n")
def _(c, model):
    r = c.chat.completions.create(model=model, messages=CHAT, max_tokens=8, n=3, seed=5, temperature=1)
    must([x.index for x in r.choices] == [0, 1, 2], r)
    best = c.completions.create(model=model, prompt="She had", max_tokens=8, n=1, best_of=3, seed=5)
    must(len(best.choices) == 1, best)
    got = {}
    for p in c.completions.create(model=model, prompt="She had", max_tokens=8, n=2, seed=5, stream=True):
        for x in p.choices:
            got[x.index] = got.get(x.index, "") + x.text
    must(sorted(got) == [0, 1], got)


@check("logprobs")
def _(c, model):
    r = c.chat.completions.create(model=model, messages=CHAT, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0)
    tokens = r.choices[0].logprobs.content
    must(tokens and all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in tokens), r)
    must(bytes(b for t in tokens for b in t.bytes).decode(errors="replace").startswith(r.choices[0].message.content[:1]), r)
    r = c.completions.create(model=model, prompt="She had", max_tokens=4, logprobs=2, temperature=0)
    l = r.choices[0].logprobs
    must(len(l.tokens) == len(l.token_logprobs) == len(l.top_logprobs) == len(l.text_offset), l)


@check("stop")
def _(c, model):
    whole = c.completions.create(model=model, prompt="She had", max_tokens=24, temperature=0).choices[0].text
    at = whole[len(whole) // 2]
    r = c.completions.create(model=model, prompt="She had", max_tokens=24, temperature=0, stop=[at])
    must(r.choices[0].text == whole.split(at)[0] and r.choices[0].finish_reason == "stop", (r, whole))


@check("seed")
def _(c, model):
    one, two, other = (
        c.completions.create(model=model, prompt="She had", max_tokens=16, temperature=1, seed=s).choices[0].text for s in (7, 7, 8)
    )
    must(one == two and one != other, (one, two, other))


@check("tools")
def _(c, model):
    # One call: a small model may go on with as many as it is let.
    asked = {"model": model, "messages": CHAT, "tools": [WEATHER], "parallel_tool_calls": False, "max_tokens": 200, "temperature": 0}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        r = c.chat.completions.create(tool_choice=choice, **asked)
        call = r.choices[0].message.tool_calls[0]
        got = json.loads(call.function.arguments)
        must(call.function.name == "weather" and got["town"] in ("Bath", "Hunsford") and 1 <= got["days"] <= 9, r)
        must(r.choices[0].finish_reason in ("tool_calls", "stop"), r)
    parts = list(c.chat.completions.create(tool_choice="required", stream=True, **asked))
    calls = [t for p in parts if p.choices for t in p.choices[0].delta.tool_calls or []]
    must(calls[0].function.name == "weather" and calls[0].id, calls)
    must(json.loads("".join(t.function.arguments or "" for t in calls))["town"] in ("Bath", "Hunsford"), calls)
    answered = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
    ]
    r = c.chat.completions.create(model=model, messages=answered, tools=[WEATHER], tool_choice="none", max_tokens=8)
    must(r.choices[0].message.content is not None and not r.choices[0].message.tool_calls, r)


@check("JSON schema")
def _(c, model):
    r = c.chat.completions.parse(model=model, messages=CHAT, response_format=Guest, max_tokens=200, temperature=0)
    must(isinstance(r.choices[0].message.parsed, Guest), r)


@check("JSON object")
def _(c, model):
    r = c.chat.completions.create(model=model, messages=CHAT, response_format={"type": "json_object"}, max_tokens=200, temperature=0)
    text = r.choices[0].message.content
    must(text.lstrip().startswith("{"), text)
    if r.choices[0].finish_reason == "stop":
        json.loads(text)


@check("error classes")
def _(c, model):
    create = c.chat.completions.create
    e = refused(openai.BadRequestError, create, model=model, messages=CHAT, temperature=3)
    must(e.param == "temperature" and e.type == "invalid_request_error", e.body)
    refused(openai.BadRequestError, create, model=model, messages=[])
    refused(openai.NotFoundError, create, code="model_not_found", model="no such model", messages=CHAT)
    refused(openai.AuthenticationError, c.with_options(api_key="wrong").models.list, code="invalid_api_key")
    refused(openai.BadRequestError, c.completions.create, model=model, prompt="A", max_tokens=10**9)


@check("cancel")
def _(c, model):
    def held():
        return c.get("/memory", cast_to=object)["kv_pages"]["held"]

    stream = c.completions.create(model=model, prompt="She had", max_tokens=60, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 10
    while held() and time.monotonic() < until:
        time.sleep(0.02)
    must(held() == 0, held())


@check("retry")
def _(c, model):
    # The server lets two wait: more are told to come again, and the client does so by itself.
    results = []

    def one():
        try:
            c.with_options(max_retries=30).completions.create(model=model, prompt="She had", max_tokens=60, n=4, extra_body={"ignore_eos": True})
            results.append(True)
        except openai.OpenAIError as e:
            results.append(e)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    must(results == [True] * 12, results)


def main():
    base, key = sys.argv[1:3]
    client = openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    found = {}
    for name, run in CHECKS.items():
        try:
            run(client, model)
            found[name] = None
        except Exception:  # noqa: BLE001: what is wrong is the result
            found[name] = traceback.format_exc(limit=-2)
    print(json.dumps(dict(client=f"openai {openai.__version__} (Python)", checks=found)))


main()
