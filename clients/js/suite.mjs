// The official OpenAI client for JavaScript against a server: one check after another.
//
//     node suite.mjs BASE_URL KEY
//
// Prints a JSON object: what each check found wrong, or null. The checks are those of suite.py.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import OpenAI from 'openai';

const [baseURL, apiKey] = process.argv.slice(2);
const c = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });
const model = (await c.models.list()).data[0].id;

const messages = [
  { role: 'system', content: 'You are a novelist.' },
  { role: 'user', content: 'Go on.' },
];
const towns = ['Bath', 'Hunsford'];
const weather = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'The weather of a town',
    parameters: {
      type: 'object',
      properties: { town: { type: 'string', enum: towns }, days: { type: 'integer', minimum: 1, maximum: 9 } },
      required: ['town', 'days'],
      additionalProperties: false,
    },
  },
};
const guest = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 8 }, dances: { type: 'boolean' } },
  required: ['name', 'dances'],
  additionalProperties: false,
};
const chat = (more) => c.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0, ...more });
const complete = (more) => c.completions.create({ model, prompt: 'She had', max_tokens: 8, temperature: 0, ...more });
const all = async (stream) => {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
};

const checks = {
  models: async () => {
    assert((await c.models.list()).data.some((m) => m.id === model));
    assert.equal((await c.models.retrieve(model)).id, model);
  },
  chat: async () => {
    const r = await chat();
    assert.equal(r.choices[0].message.role, 'assistant');
    assert.equal(typeof r.choices[0].message.content, 'string');
  },
  completions: async () => {
    assert((await complete()).choices[0].text);
    const many = await complete({ prompt: ['She had', 'He had'] });
    assert.deepEqual(many.choices.map((x) => x.index), [0, 1]);
    assert((await complete({ echo: true })).choices[0].text.startsWith('She had'));
  },
  stream: async () => {
    const whole = (await chat({ max_tokens: 16 })).choices[0].message.content;
    const parts = await all(await chat({ max_tokens: 16, stream: true }));
    assert.equal(parts.map((p) => p.choices[0]?.delta.content ?? '').join(''), whole);
    const text = (await complete()).choices[0].text;
    assert.equal((await all(await complete({ stream: true }))).map((p) => p.choices[0].text).join(''), text);
  },
  usage: async () => {
    const { usage } = await complete();
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    const parts = await all(await complete({ stream: true, stream_options: { include_usage: true } }));
    assert.equal(parts.at(-1).usage.total_tokens, usage.total_tokens);
  },
  n: async () => {
    const r = await chat({ n: 3, temperature: 1, seed: 5 });
    assert.deepEqual(r.choices.map((x) => x.index), [0, 1, 2]);
  },
  logprobs: async () => {
    const tokens = (await chat({ logprobs: true, top_logprobs: 3 })).choices[0].logprobs.content;
    assert(tokens.length && tokens.every((t) => t.top_logprobs.length === 3));
    const l = (await complete({ logprobs: 2 })).choices[0].logprobs;
    assert.equal(l.tokens.length, l.token_logprobs.length);
  },
  stop: async () => {
    const whole = (await complete({ max_tokens: 24 })).choices[0].text;
    const at = whole[whole.length >> 1];
    const r = await complete({ max_tokens: 24, stop: [at] });
    assert.equal(r.choices[0].text, whole.split(at)[0]);
    assert.equal(r.choices[0].finish_reason, 'stop');
  },
  seed: async () => {
    const of = async (seed) => (await complete({ seed, temperature: 1, max_tokens: 16 })).choices[0].text;
    assert.equal(await of(7), await of(7));
    assert.notEqual(await of(7), await of(8));
  },
  tools: async () => {
    const asked = { tools: [weather], tool_choice: 'required', parallel_tool_calls: false, max_tokens: 200 };
    const call = (await chat(asked)).choices[0].message.tool_calls[0];
    assert.equal(call.function.name, 'weather');
    assert(towns.includes(JSON.parse(call.function.arguments).town));
    const parts = await all(await chat({ ...asked, stream: true }));
    const calls = parts.flatMap((p) => p.choices[0]?.delta.tool_calls ?? []);
    assert(towns.includes(JSON.parse(calls.map((t) => t.function.arguments ?? '').join('')).town));
    const answered = [
      ...messages,
      { role: 'assistant', content: null, tool_calls: [call] },
      { role: 'tool', tool_call_id: call.id, content: 'Rain.' },
    ];
    const r = await chat({ messages: answered, tools: [weather], tool_choice: 'none' });
    assert.equal(typeof r.choices[0].message.content, 'string');
  },
  'JSON schema': async () => {
    const json_schema = { name: 'guest', strict: true, schema: guest };
    const r = await chat({ response_format: { type: 'json_schema', json_schema }, max_tokens: 200 });
    const got = JSON.parse(r.choices[0].message.content);
    assert(typeof got.name === 'string' && typeof got.dances === 'boolean');
  },
  'JSON object': async () => {
    const r = await chat({ response_format: { type: 'json_object' }, max_tokens: 200 });
    assert(r.choices[0].message.content.trimStart().startsWith('{'));
  },
  'error classes': async () => {
    const is = async (error, call, code) => {
      const e = await call().then(() => null, (e) => e);
      assert(e instanceof error, String(e));
      if (code) assert.equal(e.code, code);
    };
    await is(OpenAI.BadRequestError, () => chat({ temperature: 3 }));
    await is(OpenAI.BadRequestError, () => chat({ messages: [] }));
    await is(OpenAI.NotFoundError, () => chat({ model: 'no such model' }), 'model_not_found');
    const other = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
    await is(OpenAI.AuthenticationError, () => other.models.list(), 'invalid_api_key');
  },
  cancel: async () => {
    const held = async () => (await c.get('/memory')).kv_pages.held;
    const stream = await complete({ max_tokens: 60, stream: true, ignore_eos: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    const until = Date.now() + 10_000;
    while ((await held()) && Date.now() < until) await new Promise((done) => setTimeout(done, 20));
    assert.equal(await held(), 0);
  },
  retry: async () => {
    const patient = new OpenAI({ baseURL, apiKey, maxRetries: 30, timeout: 120_000 });
    const one = () => patient.completions.create({ model, prompt: 'She had', max_tokens: 60, n: 4, ignore_eos: true });
    await Promise.all(Array.from({ length: 12 }, one));
  },
};

const found = {};
for (const [name, run] of Object.entries(checks)) {
  found[name] = await run().then(() => null, (e) => String(e.stack ?? e));
}
const require = createRequire(import.meta.url);
const { version } = JSON.parse(readFileSync(new URL('package.json', `file://${require.resolve('openai')}`)));
console.log(JSON.stringify({ client: `openai ${version} (JavaScript)`, checks: found }));
