// The page in a browser, against a real server: `node test/page.mjs`, after `npm ci` and `cargo build`.
//
// The binary is that of PLIMSOLL, or target/debug/plimsoll; the browser that of CHROMIUM, or the system's. Ends with 0
// where all holds, also where there is no browser and none was named, and says so; with 1 where something does not.

import { execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const BROWSER = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const BINARY = process.env.PLIMSOLL ?? fileURLToPath(new URL("../../target/debug/plimsoll", import.meta.url));

const playwright = await import("playwright-core").catch(() => null);
if (BROWSER === undefined || playwright === null) {
  console.log(`skipped: there is no ${playwright === null ? "playwright-core (npm ci)" : "chromium"} here`);
  process.exit(process.env.CHROMIUM === undefined ? 0 : 1);
}

let failed = 0;
function holds(what, is, more = "") {
  console.log(`${is ? "ok    " : "FAILED"}  ${what}${is || more === "" ? "" : `: ${more}`}`);
  if (!is) failed += 1;
}

/** A server, where it listens, and how it is ended. */
async function serve(...flags) {
  const { PLIMSOLL_API_KEY, ...env } = process.env;
  const child = spawn(BINARY, ["serve", "demo", "--port", "0", "--no-access-log", ...flags], { env, stdio: ["ignore", "ignore", "pipe"] });
  for await (const line of createInterface({ input: child.stderr })) {
    const url = /curl (http:\/\/[^/]+)\//.exec(line);
    if (url !== null) {
      child.stderr.resume();
      return { url: url[1], child, end: () => new Promise((done) => child.once("exit", done) && child.kill("SIGKILL")) };
    }
  }
  throw new Error("the server ended before it was ready");
}

/** A tab, and everything that it must not have done. */
async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const tab = await context.newPage();
  const bad = { console: [], hosts: [], policy: [] };
  tab.on("console", (m) => m.type() === "error" && bad.console.push(m.text()));
  tab.on("pageerror", (e) => bad.console.push(String(e)));
  tab.on("dialog", (d) => {
    bad.console.push(`a dialog: ${d.message()}`);
    void d.dismiss();
  });
  context.on("request", (r) => {
    const url = new URL(r.url());
    if (!["127.0.0.1", ""].includes(url.hostname)) bad.hosts.push(r.url());
  });
  await context.exposeFunction("policyViolated", (text) => bad.policy.push(text));
  await tab.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (e) => window.policyViolated(`${e.violatedDirective} ${e.blockedURI}`));
    window.shifted = 0;
    new PerformanceObserver((all) => {
      for (const e of all.getEntries()) if (!e.hadRecentInput) window.shifted += e.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  return { tab, bad, context };
}

const clean = (where, { bad }) => {
  holds(`${where}: no violation of the policy`, bad.policy.length === 0, bad.policy.join("; "));
  holds(`${where}: no error in the console`, bad.console.length === 0, bad.console.join("; "));
  holds(`${where}: no request leaves the host`, bad.hosts.length === 0, bad.hosts.join("; "));
};

/** What the command line plans. */
function plan(flags) {
  const env = { ...process.env };
  delete env.PLIMSOLL_GPU;
  let out;
  try {
    out = execFileSync(BINARY, ["plan", ...flags, "--json"], { env, maxBuffer: 1 << 26 });
  } catch (e) {
    out = e.stdout;
  }
  return JSON.parse(out);
}

const planned = async (tab) => {
  await tab.waitForFunction(() => document.querySelector("#sentence") !== null && document.querySelector("#result.old") === null);
  await tab.locator(".heat td button").first().waitFor();
};

/** Text streams, one after the other in three lanes, which keep pages held until they are stopped, however fast the engine is. */
function generate(url, tokens) {
  const body = JSON.stringify({ prompt: "She had not been an hour in the house before", max_tokens: tokens, ignore_eos: true, stream: true, n: 4 });
  const stop = new AbortController();
  const headers = { "Content-Type": "application/json" };
  const lane = async () => {
    while (!stop.signal.aborted) {
      const answer = await fetch(`${url}/v1/completions`, { method: "POST", headers, body, signal: stop.signal });
      await answer.text();
    }
  };
  const lanes = [1, 2, 3].map(() => lane().catch(() => ""));
  return { stop: () => stop.abort(), done: Promise.all(lanes) };
}

async function live(browser, url) {
  const page = await open(browser);
  const { tab } = page;
  await tab.goto(url);
  await tab.locator("#live-title", { hasText: "demo" }).waitFor();
  const running = generate(url, 900);
  const held = tab.locator(".card", { hasText: "KV cache held" }).locator("b");
  await tab.waitForFunction(() => !/^(–|0 %)$/.test([...document.querySelectorAll(".card")].find((c) => c.textContent.startsWith("KV cache held")).querySelector("b").textContent));
  holds("live: pages are held while a stream runs", true, await held.textContent());
  const count = async (word) => Number((await tab.locator(".legend li", { hasText: word }).first().locator("b").textContent()).replaceAll(",", ""));
  const counts = { held: await count("held"), shared: await count("shared"), free: await count("free") };
  holds(`live: the legend counts pages (${JSON.stringify(counts)})`, counts.held + counts.shared > 0);
  const drawn = await tab.locator(".map canvas").evaluate((c) => {
    const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
    const colours = new Set();
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) colours.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
    return colours.size;
  });
  holds(`live: the map has pages of ${drawn} colours`, drawn >= 2);
  await tab.locator(".map canvas").focus();
  let owned = "";
  for (let i = 0; i < 400 && !owned.includes("cmpl-"); i += 1) {
    await tab.keyboard.press("ArrowRight");
    owned = await tab.locator("#page-said").textContent();
  }
  holds("live: arrow keys reach a page and its owner is told", /^Page.*cmpl-.*decode|^Page.*cmpl-.*prefill/.test(owned), owned);
  holds("live: it says that it is live", (await tab.locator(".pill").textContent()) === "Live", await tab.locator(".pill").textContent());
  holds("live: regions are told", (await tab.locator(".regions-table tbody tr").count()) >= 4);
  running.stop();
  await running.done;
  await tab.locator(".pill", { hasText: "Live, idle" }).waitFor();
  const shifted = await tab.evaluate(() => window.shifted);
  holds(`live: the layout does not shift (${shifted.toFixed(4)})`, shifted < 0.02);
  clean("live", page);
  await page.context.close();
}

async function gone(browser) {
  const server = await serve();
  const page = await open(browser);
  await page.tab.goto(server.url);
  await page.tab.locator("#live-title", { hasText: "demo" }).waitFor();
  await server.end();
  await page.tab.locator(".pill", { hasText: "Server gone" }).waitFor();
  holds("gone: the page says so", await page.tab.locator(".notice.bad").first().isVisible());
  await page.context.close();
}

const SETTINGS = [
  { m: "llama-3.1-8b", g: "h100-80g-sxm", u: "16", x: "8k" },
  { m: "llama-3.1-70b", g: "a100-80g-sxm", n: "4", u: "32", x: "4096", k: "fp8" },
  { m: "deepseek-v3", g: "h200-141g-sxm", x: "32k" },
  { m: "gpt2", e: "plimsoll", u: "8", w: "int8" },
  { m: "llama-3.1-405b", g: "l4-24g", n: "2", u: "1", x: "2k" },
  { m: "llama-2-13b", g: "rtx-4090-24g", q: "int4", u: "4", x: "4k", e: "vllm" },
];
const FLAGS = { g: "--gpu", n: "--gpus", u: "--users", x: "--context", e: "--engine", w: "--weights", q: "--quantization", k: "--kv-cache-dtype" };
const hash = (s) => `#plan/1?${Object.entries(s).map(([k, v]) => `${k}=${v}`).join("&")}`;

async function numbers(browser, url) {
  for (const s of SETTINGS) {
    const page = await open(browser);
    const { tab } = page;
    const answer = tab.waitForResponse((r) => r.url().endsWith("/api/plan"));
    await tab.goto(`${url}/${hash(s)}`);
    const got = await (await answer).json();
    await planned(tab);
    const want = plan([s.m, ...Object.entries(s).filter(([k]) => k !== "m").flatMap(([k, v]) => [FLAGS[k], v])]);
    const name = hash(s);
    holds(`plan ${name}: the answer is that of \`plan --json\``, JSON.stringify(got) === JSON.stringify(want));
    holds(`plan ${name}: the sentence is shown`, (await tab.locator("#sentence").textContent()) === want.answer.text);
    const commands = await tab.locator(".command code").allTextContents();
    holds(`plan ${name}: the commands are shown`, JSON.stringify(commands) === JSON.stringify(want.flags.map((f) => f.command)));
    const strips = await tab.locator(".stack .strip").count();
    holds(`plan ${name}: memory of each stage is shown`, strips === want.ranks.length);
    holds(`plan ${name}: the address stays`, new URL(tab.url()).hash === name, new URL(tab.url()).hash);
    clean(`plan ${name}`, page);
    await page.context.close();
  }
}

async function form(browser, url) {
  const page = await open(browser, { permissions: ["clipboard-read", "clipboard-write"] });
  const { tab } = page;
  await tab.goto(`${url}/#plan`);
  await planned(tab);
  // By keyboard alone: from the top of the page to the model, and on.
  await tab.keyboard.press("Tab");
  holds("form: the first stop skips to the content", await tab.evaluate(() => document.activeElement.className === "skip"));
  const order = [];
  for (let i = 0; i < 24; i += 1) {
    await tab.keyboard.press("Tab");
    order.push(await tab.evaluate(() => document.activeElement.id || document.activeElement.textContent.slice(0, 20)));
    if (order.at(-1) === "go") break;
  }
  const want = ["to-live", "to-plan", "theme", "f-model", "f-gpu", "f-gpus", "f-users", "f-context", "f-engine", "f-kv_cache_dtype", "f-quantization", "f-weights", "go"];
  holds("form: Tab goes through all fields in order", JSON.stringify(order.filter((o) => want.includes(o))) === JSON.stringify(want), order.join(" "));
  const unnamed = await tab.evaluate(() =>
    [...document.querySelectorAll("#form input, #form select, #form textarea")].filter((f) => f.labels.length !== 1).map((f) => f.id),
  );
  holds("form: every field has a label", unnamed.length === 0, unnamed.join(" "));
  await tab.locator("#f-users").fill("64");
  await tab.locator("#f-gpu").selectOption("h200-141g-sxm");
  await tab.locator("#f-context").fill("16k");
  await tab.keyboard.press("Enter");
  await tab.locator("#sentence", { hasText: "64 users of 16,384 tokens" }).waitFor();
  const link = tab.url();
  holds("form: its state is in the address", link.endsWith("#plan/1?m=llama-3.1-8b&g=h200-141g-sxm&u=64&x=16k"), link);
  const again = await open(browser);
  await again.tab.goto(link);
  await planned(again.tab);
  const state = (t) => t.evaluate(() => [...document.querySelectorAll("#form [name]")].map((f) => [f.name, f.value]));
  holds("form: the address restores it", JSON.stringify(await state(tab)) === JSON.stringify(await state(again.tab)));
  await again.context.close();
  // A cell of the grid is a plan of its own.
  await planned(tab);
  const cell = tab.locator(".heat tbody tr").first().locator("button").first();
  const told = await cell.getAttribute("title");
  await cell.click();
  await tab.waitForFunction((t) => document.querySelector("#sentence")?.textContent === t, told);
  holds("form: a cell of the grid is what its plan says", true);
  await tab.locator(".command button").first().click();
  const copied = await tab.evaluate(() => navigator.clipboard.readText());
  holds("form: a command is copied", copied === (await tab.locator(".command code").first().textContent()), copied);
  // A pasted config is planned as its name is, and travels in the address.
  const config = execFileSync(BINARY, ["models", "show", "llama-3.1-8b", "--config"]).toString();
  await tab.locator("#paste summary").click();
  await tab.locator("#f-config").fill(config);
  await tab.locator("#f-users").fill("3");
  await tab.keyboard.press("Enter");
  await tab.locator("#sentence", { hasText: "config.json for 3 users" }).waitFor();
  const packed = tab.url();
  const other = await open(browser);
  await other.tab.goto(packed);
  await planned(other.tab);
  holds(`form: a pasted config is in the address (${packed.length} characters)`, (await other.tab.locator("#f-config").inputValue()) === config.trim());
  await other.context.close();
  // What is wrong is told beside its field.
  await tab.locator("#f-config").fill("");
  await tab.locator("#f-model").fill("<img src=x onerror=alert(1)>");
  await tab.keyboard.press("Enter");
  await tab.locator("#f-model[aria-invalid=true]").waitFor();
  holds("form: a mistake is told at its field, as text", (await tab.locator("#f-model-error").textContent()).includes("<img src=x"), await tab.locator("#f-model-error").innerHTML());
  holds("form: nothing of it is an element", (await tab.locator("img[src=x]").count()) === 0);
  // The browser logs each status of 400 by itself.
  page.bad.console = page.bad.console.filter((t) => !t.includes("status of 400"));
  clean("form", page);
  await page.context.close();
}

const HOSTILE = [
  "#plan/1?m=<img src=x onerror=alert(1)>",
  "#plan/1?m=%3Cscript%3Ealert(1)%3C/script%3E&g=%22%3E%3Csvg%20onload=alert(1)%3E",
  "#plan/1?__proto__=x&constructor=y&m=gpt2",
  "#plan/1?m=gpt2;rm%20-rf%20~&u=$(reboot)",
  "#plan/1?m=--gpu=auto&g=cpu",
  "#plan/1?c=!!!!",
  "#plan/1?c=AAAA",
  "#plan/999?m=gpt2",
  "#plan/1?" + "m=gpt2&".repeat(3000),
  "#plan/1?u=99999999999999999999&m=gpt2",
  "#javascript:alert(1)",
  "#plan/1?m=%E0%A4%A&x=%",
  "#<img src=x onerror=alert(1)>",
];

async function hostile(browser, url) {
  // A few bytes that unpack to 64 MiB.
  const bomb = await new Response(new Blob([new Uint8Array(64 << 20)]).stream().pipeThrough(new CompressionStream("deflate-raw"))).arrayBuffer();
  const all = [...HOSTILE, `#plan/1?c=${Buffer.from(bomb).toString("base64url").slice(0, 8000)}`];
  for (const h of all) {
    const page = await open(browser);
    const { tab } = page;
    await tab.goto(`${url}/${h}`);
    await tab.waitForFunction(() => document.title !== "Plimsoll");
    await tab.waitForTimeout(400);
    const name = `address ${h.slice(0, 50)}`;
    const made = await tab.evaluate(() => document.querySelectorAll("img:not(.brand img), svg[onload], script:not([src^='/assets/'])").length);
    holds(`${name}: inert`, made === 0 && !(await tab.locator(".command code").allTextContents()).some((c) => /rm -rf|reboot/.test(c)));
    page.bad.console = page.bad.console.filter((t) => !t.includes("status of 400"));
    clean(name, page);
    await page.context.close();
  }
}

async function colours(browser, url) {
  const paper = (tab) => tab.evaluate(() => getComputedStyle(document.body).backgroundColor);
  for (const [scheme, want] of [["light", "rgb(255, 255, 255)"], ["dark", "rgb(21, 25, 30)"]]) {
    const page = await open(browser, { colorScheme: scheme });
    await page.tab.goto(url);
    await page.tab.locator("#theme", { hasText: "system" }).waitFor();
    holds(`colours: ${scheme} as the system says`, (await paper(page.tab)) === want, await paper(page.tab));
    const other = scheme === "light" ? "dark" : "light";
    while (!(await page.tab.locator("#theme").textContent()).endsWith(other)) await page.tab.locator("#theme").press("Enter");
    holds(`colours: ${other} as the switch says`, (await paper(page.tab)) !== want);
    await page.tab.reload();
    await page.tab.locator("#theme", { hasText: other }).waitFor();
    holds("colours: the switch is remembered", (await paper(page.tab)) !== want);
    clean(`colours ${scheme}`, page);
    await page.context.close();
  }
}

async function docs(browser, url) {
  for (const [colorScheme, width] of [["light", 1280], ["dark", 390]]) {
    const page = await open(browser, { colorScheme, viewport: { width, height: 900 } });
    const { tab } = page;
    const name = `docs ${colorScheme}, ${width} wide`;
    await tab.goto(url);
    await tab.locator("#to-docs").click();
    await tab.locator("h1", { hasText: "HTTP interface" }).waitFor();
    holds(`${name}: it is linked from the page`, new URL(tab.url()).pathname === "/docs");
    const described = await (await fetch(`${url}/openapi.json`)).json();
    const routes = Object.entries(described.paths).flatMap(([path, methods]) => Object.keys(methods).map((m) => `${m.toUpperCase()} ${path}`));
    const shown = await tab.locator(".told article h3:has(.method)").allInnerTexts();
    holds(`${name}: all ${routes.length} routes are there`, JSON.stringify(shown.map((s) => s.replace(/\s+/, " ")).sort()) === JSON.stringify(routes.sort()), shown.join("; "));
    await tab.locator(".contents a", { hasText: "/v1/chat/completions" }).click();
    const article = tab.locator("#post_v1_chat_completions");
    const top = (await article.boundingBox()).y;
    holds(`${name}: its link leads to a route, below the header`, top >= 56 && top < 400, String(top));
    const fields = article.locator("details").first();
    await fields.locator("summary").focus();
    await tab.keyboard.press("Enter");
    holds(`${name}: fields unfold by keyboard`, await fields.locator("code", { hasText: /^messages$/ }).isVisible());
    const wide = await tab.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    holds(`${name}: it is as wide as the window`, wide <= 0, `${wide} wider`);
    // Text stands out from what is behind it: WCAG 2's ratio, at every heading, cell and link.
    const faint = await tab.evaluate(() => {
      const rgb = (c) => c.match(/[\d.]+/g).map(Number);
      const light = (c) => {
        const [r, g, b] = rgb(c).map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const behind = (e) => {
        for (let at = e; at !== null; at = at.parentElement) {
          const colour = getComputedStyle(at).backgroundColor;
          if ((rgb(colour)[3] ?? 1) > 0) return colour;
        }
        return "rgb(255, 255, 255)";
      };
      const ratio = (e) => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
      };
      return [...document.querySelectorAll("h1, h2, h3, p, a, td, th, code, pre, summary, .quiet, .method")].filter((e) => ratio(e) < 4.5).map((e) => e.outerHTML.slice(0, 80));
    });
    holds(`${name}: all text stands out`, faint.length === 0, faint.slice(0, 3).join("; "));
    await tab.locator("#theme").click();
    holds(`${name}: the switch of colours is there`, (await tab.locator("#theme").textContent()) === "Colours: light");
    if (process.env.SHOTS !== undefined) await tab.screenshot({ path: `${process.env.SHOTS}/docs-${colorScheme}.png` });
    clean(name, page);
    await page.context.close();
  }
  const without = await open(browser, { javaScriptEnabled: false });
  await without.tab.goto(`${url}/docs#ErrorCode`);
  holds("docs: it is read without scripts", await without.tab.locator("#ErrorCode code", { hasText: "rate_limit_exceeded" }).isVisible());
  await without.context.close();
}

async function key(browser) {
  const server = await serve("--api-key", "right-key");
  const page = await open(browser);
  const { tab } = page;
  await tab.goto(server.url);
  await tab.locator("#key-field").fill("wrong-key");
  await tab.keyboard.press("Enter");
  await tab.locator("#key-why", { hasText: "not valid" }).waitFor();
  await tab.locator("#key-field").fill("right-key");
  await tab.keyboard.press("Enter");
  await tab.locator("#live-title", { hasText: "demo" }).waitFor();
  holds("key: the page asks for one, and again where it is wrong", true);
  await tab.goto(`${server.url}/#plan`);
  await planned(tab);
  const kept = await tab.evaluate(() => [Object.values({ ...sessionStorage }).join(), Object.values({ ...localStorage }).join(), document.cookie, location.href]);
  holds("key: it is kept in this tab alone", kept[0] === "right-key" && !kept.slice(1).join().includes("right-key"), JSON.stringify(kept));
  page.bad.console = page.bad.console.filter((t) => !t.includes("status of 401"));
  clean("key", page);
  await page.context.close();
  await server.end();
}

const browser = await playwright.chromium.launch({ executablePath: BROWSER, args: ["--no-sandbox"] });
const server = await serve();
const url = server.url;
try {
  for (const [name, run] of Object.entries({ live, gone, numbers, form, hostile, colours, docs, key })) {
    if (process.argv.length > 2 && !process.argv.includes(name)) continue;
    try {
      await run(browser, url);
    } catch (e) {
      holds(name, false, String(e));
    }
  }
} finally {
  await browser.close();
  await server.end();
}
console.log(failed === 0 ? "all holds" : `${failed} FAILED`);
process.exit(failed === 0 ? 0 : 1);
