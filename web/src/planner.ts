// The planner's form. It computes nothing: what is shown is what `POST /api/plan` and `POST /api/plan/grid` say.

import { Refused, ask } from "./api.js";
import { el, known, rows, say, svg, table } from "./elements.js";
import { bytes, thousands, tokens, words } from "./format.js";
import { type Asked, type Place, write } from "./hash.js";

interface Term {
  region: string;
  name: string;
  bytes: number;
  kind: string;
  inside: boolean;
  formula: string;
}

interface Rank {
  stage: number;
  copies: number;
  layers: [number, number];
  budget_bytes: number | null;
  budget_formula: string;
  total_bytes: number;
  terms: Term[];
}

/** `plimsoll.plan/1`, as far as it is shown. */
interface Plan {
  model: { name: string; architecture: string; parameters: number; stored_bytes: number };
  engine: { name: string; version: string | null };
  load: { users: number | null; context: number };
  device: { name: string; usable_bytes: number } | null;
  answer: { verdict: string; devices: number; max_users: number; max_context: number; text: string };
  ranks: Rank[];
  kv: { pool_bytes: number; tokens: number; need: { pool_bytes: number } };
  changes: { flag: string; cost: string; users: number; verdict: string }[];
  flags: { engine: string; command: string }[];
  notes: string[];
}

interface Cell {
  users: number;
  context: number;
  verdict: string;
  text: string;
  /** Of a cell whose verdict is not "none". */
  devices?: number;
  kv_need_bytes?: number;
  kv_pool_bytes?: number;
}

interface Grid {
  device: string | null;
  users: number[];
  contexts: number[];
  cells: Cell[];
}

interface Choices {
  models: string[];
  gpus: { name: string; usable_bytes: number }[];
  engines: string[];
  weights: string[];
  quantizations: string[];
  kv_cache_dtypes: string[];
}

/** What is asked where nobody said anything. */
const FIRST: Asked = { model: "llama-3.1-8b", gpu: "h100-80g-sxm", users: "16", context: "8k" };
const VERDICTS: Record<string, string> = { yes: "Fits", tight: "Tight", no: "Does not fit" };

type Name = keyof Asked;

export class Planner {
  readonly #fields = new Map<Name, HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement>();
  readonly #errors = new Map<Name, HTMLElement>();
  readonly #form = el("form", { id: "form", novalidate: true, "aria-label": "What to plan" });
  readonly #error = el("p", { class: "error", id: "plan-error", role: "alert" });
  readonly #notice = el("p", { class: "notice", role: "status", hidden: true });
  readonly #verdict = el("div", { class: "verdict", id: "verdict", "aria-live": "polite" });
  readonly #result = el("div", { id: "result" });
  readonly #grid = el("div", { id: "grid" });
  #choices: Promise<void> | null = null;
  #asked = "";
  #latest = new AbortController();

  constructor() {
    this.#build();
  }

  #field(name: Name, label: string, field: HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement): HTMLElement {
    const id = `f-${name}`;
    field.id = id;
    field.name = name;
    const error = el("p", { class: "error", id: `${id}-error`, hidden: true });
    field.setAttribute("aria-describedby", error.id);
    this.#fields.set(name, field);
    this.#errors.set(name, error);
    return el("div", { class: "field" }, el("label", { for: id }, label), field, error);
  }

  #text(name: Name, label: string, hint: string, list: string | null = null): HTMLElement {
    const field = el("input", {
      type: "text",
      placeholder: hint,
      list,
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      maxlength: 100,
    });
    return this.#field(name, label, field);
  }

  #choice(name: Name, label: string, none: string): HTMLElement {
    return this.#field(name, label, el("select", {}, el("option", { value: "" }, none)));
  }

  #build(): void {
    const config = el("textarea", { spellcheck: "false", maxlength: 64 << 10, placeholder: '{ "architectures": [ … ] }' });
    const pair = (...inside: HTMLElement[]): HTMLElement => el("div", { class: "pair" }, ...inside);
    this.#form.append(
      this.#text("model", "Model", "name from the catalogue", "models"),
      el("datalist", { id: "models" }),
      el("details", { id: "paste" }, el("summary", {}, "or paste a config.json"), this.#field("config", "Text of config.json", config)),
      this.#choice("gpu", "GPU", "none: only what is needed"),
      pair(this.#text("gpus", "How many GPUs", "the fewest"), this.#text("users", "Users at once", "the most")),
      pair(this.#text("context", "Tokens each", "as trained"), this.#choice("engine", "Engine", "default")),
      pair(this.#choice("kv_cache_dtype", "KV cache type", "default"), this.#choice("quantization", "Quantise to", "as stored")),
      this.#choice("weights", "Matrices (Plimsoll's engine)", "default"),
      this.#error,
      el("div", { class: "buttons" }, el("button", { type: "submit", class: "main", id: "go" }, "Plan")),
    );
    this.#form.addEventListener("submit", (e) => {
      e.preventDefault();
      void this.#ask(true);
    });
    this.#form.addEventListener("change", () => void this.#ask(true));
    this.#empty();
    known("view-plan").append(
      el("div", { class: "title" }, el("h1", { id: "plan-title" }, "Planner"), el("span", { class: "quiet small" }, "the same plan as ", el("code", {}, "plimsoll plan"), " prints, made by this server")),
      this.#notice,
      el("div", { class: "plan" }, this.#form, el("div", {}, this.#verdict, this.#result, this.#grid)),
    );
  }

  #empty(): void {
    this.#verdict.className = "verdict";
    this.#verdict.replaceChildren(el("b", {}, "Plan"), el("p", {}, "Name a model, and what it is to serve."));
    this.#result.replaceChildren(el("div", { class: "panel empty" }, "Memory on each device"));
    this.#grid.replaceChildren(el("div", { class: "panel empty" }, "What fits"));
  }

  /** Shows what an address asks for. */
  async show(place: Place): Promise<void> {
    this.#choices ??= this.#load();
    await this.#choices;
    this.#notice.hidden = !place.ignored;
    say(this.#notice, place.ignored ? "Parts of this address were not understood, and are left out." : "");
    const asked = place.asked ?? (this.#asked === "" ? FIRST : null);
    if (asked === null) return;
    for (const [name, field] of this.#fields) {
      const value = asked[name] ?? "";
      // Other names of a GPU, or an engine's version: the server says whether it knows them.
      if (field instanceof HTMLSelectElement && ![...field.options].some((o) => o.value === value)) {
        field.append(el("option", { value }, value));
      }
      field.value = value;
    }
    known<HTMLDetailsElement>("paste").open = asked.config !== undefined;
    await this.#ask(false);
  }

  async #load(): Promise<void> {
    try {
      const response = await ask("/api/choices");
      const all = (await response.json()) as Choices;
      const option = (value: string, text = value): HTMLElement => el("option", { value }, text);
      known("models").replaceChildren(...all.models.map((m) => option(m)));
      const add = (name: Name, options: HTMLElement[]): void => this.#fields.get(name)?.append(...options);
      add("gpu", [
        option("any", "any: the smallest that does"),
        ...all.gpus.map((g) => option(g.name, `${g.name} (${bytes(g.usable_bytes)})`)),
      ]);
      add("engine", all.engines.map((e) => option(e)));
      add("weights", all.weights.map((w) => option(w)));
      add("quantization", all.quantizations.map((q) => option(q)));
      add("kv_cache_dtype", all.kv_cache_dtypes.map((k) => option(k)));
    } catch (e) {
      this.#choices = null;
      this.#fail(e);
    }
  }

  #read(): Asked {
    const asked: Asked = {};
    for (const [name, field] of this.#fields) {
      const value = field.value.trim();
      if (value !== "") asked[name] = value;
    }
    if (asked.config !== undefined) delete asked.model;
    return asked;
  }

  async #ask(by_hand: boolean): Promise<void> {
    const asked = this.#read();
    const body = JSON.stringify(asked);
    if (by_hand) {
      const { hash, whole } = await write(asked);
      // No step in the history for every change.
      history.replaceState(null, "", hash);
      this.#notice.hidden = whole;
      say(this.#notice, whole ? "" : "This config is too long for an address: a link would not have it.");
    }
    if (body === this.#asked) return;
    this.#asked = body;
    // Whoever asked before does not wait any more.
    this.#latest.abort();
    const turn = new AbortController();
    this.#latest = turn;
    const { signal } = turn;
    this.#clear();
    if (asked.model === undefined && asked.config === undefined) return this.#empty();
    try {
      const plan = (await (await ask("/api/plan", { method: "POST", body, signal })).json()) as Plan;
      if (signal.aborted) return;
      this.#show(plan);
      const grid = (await (await ask("/api/plan/grid", { method: "POST", body, signal })).json()) as Grid;
      if (!signal.aborted) this.#map(grid, plan);
    } catch (e) {
      if (signal.aborted) return;
      this.#asked = "";
      this.#fail(e);
    }
  }

  #clear(): void {
    say(this.#error, "");
    for (const [name, error] of this.#errors) {
      error.hidden = true;
      this.#fields.get(name)?.removeAttribute("aria-invalid");
    }
  }

  #fail(e: unknown): void {
    this.#verdict.className = "verdict";
    const why = e instanceof Refused ? e.message : "the server does not answer";
    this.#verdict.replaceChildren(el("b", {}, "No plan"), el("p", {}, why));
    this.#result.classList.add("old");
    this.#grid.classList.add("old");
    const field = e instanceof Refused ? e.field : null;
    const error = this.#errors.get(field as Name);
    if (error === undefined) return say(this.#error, why);
    say(error, why);
    error.hidden = false;
    this.#fields.get(field as Name)?.setAttribute("aria-invalid", "true");
  }

  #show(plan: Plan): void {
    this.#result.classList.remove("old");
    this.#grid.classList.remove("old");
    const { answer, device } = plan;
    const verdict = Object.hasOwn(VERDICTS, answer.verdict) ? answer.verdict : "";
    this.#verdict.className = `verdict ${device === null ? "" : verdict}`;
    const engine = plan.engine.version === null ? plan.engine.name : `${plan.engine.name} ${plan.engine.version}`;
    const room =
      device === null
        ? `by the rules of ${engine}`
        : `at most ${thousands(answer.max_users)} users of ${tokens(plan.load.context)} tokens, ` +
          `or ${tokens(answer.max_context)} tokens each; by the rules of ${engine}`;
    this.#verdict.replaceChildren(
      el("b", {}, device === null ? "Needs" : (VERDICTS[verdict] ?? answer.verdict)),
      el("p", { id: "sentence" }, answer.text),
      el("span", { class: "quiet small" }, sentence(room)),
    );
    const panel = (heading: string, under: string, ...inside: Node[]): HTMLElement =>
      el("section", { class: "panel", "aria-label": heading }, el("header", {}, el("h2", {}, heading), el("span", { class: "quiet small" }, under)), ...inside);
    const inside: Node[] = [
      panel("Memory on each device", device === null ? "" : `${device.name}, ${bytes(device.usable_bytes)} usable`, ...plan.ranks.map((r) => stack(r, plan)), terms(plan)),
      panel("Commands", "paste into a shell", ...plan.flags.map((f) => command(f.engine, f.command))),
    ];
    if (plan.changes.length > 0) {
      const changes = table("Changes that would help", ["change", "users", "verdict", "what it costs"], "words");
      rows(changes.body, plan.changes.map((c) => [el("code", {}, c.flag), thousands(c.users), VERDICTS[c.verdict] ?? c.verdict, c.cost]), "");
      inside.splice(1, 0, panel("Changes that would make it fit", "gentlest first", changes.box));
    }
    if (plan.notes.length > 0) {
      inside.push(panel("Notes", "", el("ul", {}, ...plan.notes.map((n) => el("li", {}, n)))));
    }
    this.#result.replaceChildren(...inside);
  }

  #map(grid: Grid, plan: Plan): void {
    const fixed = this.#read().gpus !== undefined;
    const head = el("tr", {}, el("th", { scope: "col" }, "tokens"), ...grid.users.map((u) => el("th", { scope: "col" }, thousands(u))));
    const body = [...grid.contexts].reverse().map((context) => {
      const cells = grid.users.map((users) => {
        const cell = grid.cells.find((c) => c.users === users && c.context === context);
        if (cell === undefined) return el("td", {});
        const verdict = Object.hasOwn(VERDICTS, cell.verdict) ? cell.verdict : "none";
        const asked = users === plan.load.users && context === plan.load.context;
        const need = cell.kv_need_bytes ?? 0;
        const share = Math.round((100 * need) / Math.max(1, cell.kv_pool_bytes ?? 0));
        const fits = verdict === "yes" || verdict === "tight";
        const figure =
          verdict === "none" ? "–" : plan.device === null ? bytes(need) : !fits ? "no" : fixed ? `${share}%` : thousands(cell.devices ?? 0);
        const button = el("button", { type: "button", class: `${plan.device === null ? "" : verdict}${asked ? " asked" : ""}`, title: cell.text, "aria-label": `${thousands(users)} users of ${thousands(context)} tokens: ${VERDICTS[verdict] ?? ""}. ${cell.text}` }, figure);
        button.addEventListener("click", () => this.#choose(users, context));
        return el("td", {}, button);
      });
      return el("tr", {}, el("th", { scope: "row" }, tokens(context)), ...cells);
    });
    const what = plan.device === null ? "KV cache that is needed" : fixed ? "share of the KV cache that is needed" : `how many ${grid.device ?? "GPUs"} are needed`;
    this.#grid.replaceChildren(
      el(
        "section",
        { class: "panel", "aria-label": "What fits" },
        el("header", {}, el("h2", {}, "What fits"), el("span", { class: "quiet small" }, `users across, tokens each up; ${what}; choose a cell to plan it`)),
        el("div", { class: "scroll" }, el("table", { class: "heat" }, el("caption", { class: "unseen" }, `Users by tokens each: ${what}`), el("thead", {}, head), el("tbody", {}, ...body))),
      ),
    );
  }

  #choose(users: number, context: number): void {
    const set = (name: Name, value: string): void => {
      const field = this.#fields.get(name);
      if (field !== undefined) field.value = value;
    };
    set("users", String(users));
    set("context", context % 1024 === 0 ? `${context / 1024}k` : String(context));
    void this.#ask(true);
  }
}

function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function kind(region: string): string {
  return /^[a-z_]+$/.test(region) ? `c-${region}` : "c-spare";
}

/** Bytes by region, in the order of the terms. */
function regions(rank: Rank): { region: string; bytes: number }[] {
  const all = new Map<string, number>();
  for (const t of rank.terms) all.set(t.region, (all.get(t.region) ?? 0) + t.bytes);
  return [...all].map(([region, n]) => ({ region, bytes: n }));
}

/** One rank's memory as a strip, on the scale of its device. */
function stack(rank: Rank, plan: Plan): HTMLElement {
  const usable = plan.device?.usable_bytes ?? rank.total_bytes;
  const whole = Math.max(usable, rank.total_bytes, 1);
  const all = regions(rank);
  let x = 0;
  const parts: Node[] = [svg("rect", { class: "c-spare", x: 0, y: 0, width: 1000, height: 34 })];
  for (const r of all) {
    const width = (1000 * r.bytes) / whole;
    parts.push(svg("rect", { class: kind(r.region), x, y: 0, width, height: 34 }, svg("title", {}, `${words(r.region)}: ${bytes(r.bytes)}`)));
    x += width;
  }
  if (rank.budget_bytes !== null) {
    const at = (1000 * rank.budget_bytes) / whole;
    parts.push(svg("line", { class: "budget", x1: at, x2: at, y1: -4, y2: 38 }, svg("title", {}, `budget: ${bytes(rank.budget_bytes)}`)));
  }
  const label = all.map((r) => `${words(r.region)} ${bytes(r.bytes)}`).join(", ");
  const strip = svg("svg", { class: "strip", viewBox: "0 0 1000 34", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...parts);
  const stages = plan.ranks.length > 1 ? `Stage ${rank.stage + 1}, layers ${rank.layers[0]} to ${rank.layers[1] - 1}` : "Each device";
  const copies = rank.copies > 1 ? `, ${thousands(rank.copies)} ranks alike` : "";
  const budget = rank.budget_bytes === null ? "" : `, budget ${bytes(rank.budget_bytes)}`;
  return el("div", { class: "stack" }, el("div", { class: "caption" }, el("span", {}, stages + copies), el("span", { class: "quiet" }, `${bytes(rank.total_bytes)} in all${budget}`)), strip);
}

/** The terms of the first rank, with what they are made of. */
function terms(plan: Plan): HTMLElement {
  const all = table("Terms of the first rank", ["region", "term", "bytes", "how it is known", "formula"], "words");
  const rank = plan.ranks[0];
  rows(
    all.body,
    (rank?.terms ?? []).map((t) => [
      el("span", { class: "name" }, el("i", { class: `swatch ${kind(t.region)}` }), words(t.region)),
      t.inside ? t.name : `${t.name} (beside the budget)`,
      bytes(t.bytes),
      t.kind,
      el("code", {}, t.formula),
    ]),
    "No term.",
  );
  return all.box;
}

function command(engine: string, text: string): HTMLElement {
  const copy = el("button", { type: "button", "aria-label": `Copy the command for ${engine}` }, "Copy");
  const code = el("code", {}, text);
  copy.addEventListener("click", () => {
    const copied = (): void => {
      say(copy, "Copied");
      setTimeout(() => say(copy, "Copy"), 1_500);
    };
    // Only a secure origin may write to the clipboard; elsewhere the text is marked for the reader to copy.
    if (window.isSecureContext) {
      navigator.clipboard.writeText(text).then(copied, () => getSelection()?.selectAllChildren(code));
    } else {
      getSelection()?.selectAllChildren(code);
      if (document.execCommand("copy")) copied();
    }
  });
  return el("div", { class: "command" }, el("span", { class: "quiet small" }, engine), code, copy);
}
