#!/usr/bin/env python3
"""Writes chat templates with the prompts that Jinja makes of some chats, set up as transformers does it.

    chat_templates.py LLAMA_CPP/models/templates > FILE
    TEMPLATES=FILE cargo test -p plimsoll-runtime published_templates -- --ignored

Needs Python 3.9, and the package jinja2 (3.1 or later). A prompt is null where the template refuses the chat.
"""
import datetime, glob, json, os, sys

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1709210096
CHATS = [
    [{"role": "user", "content": "Hi there"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"},
     {"role": "assistant", "content": "2 <think>"}, {"role": "user", "content": " And 2+2?\n"}],
]


class Generation(Extension):
    """transformers' `{% generation %}`: its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def refuse(message):
    raise ValueError(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    now = datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)
    env.globals.update(raise_exception=refuse, strftime_now=now.strftime)
    return env


def prompt(source, chat, generation):
    try:
        return environment().from_string(source).render(
            messages=chat, add_generation_prompt=generation, bos_token="<s>", eos_token="</s>")
    except Exception:
        return None


templates = {}
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.jinja"))):
    source = open(path, encoding="utf-8").read()
    results = [prompt(source, chat, generation) for chat in CHATS for generation in (True, False)]
    templates[os.path.basename(path)] = {"source": source, "results": results}
json.dump({"now": NOW, "chats": CHATS, "templates": templates}, sys.stdout)
