// The live view: what memory is planned, committed and held now, and by whom.
import { Refused, askForKey, stream } from "./api.js";
import { Chart } from "./chart.js";
import { el, known, rows, say, table } from "./elements.js";
import { bytes, percent, rate, span, thousands, words } from "./format.js";
import { PageMap } from "./pages.js";
const PATH = "/v1/memory/stream";
const SCHEMA = "plimsoll.memory/1";
/** No news for so long is old news, and for longer is nobody there. */
const OLD_MS = 4_000;
const SILENCE_MS = 20_000;
/** What the charts show, and how many samples are kept for that. */
const HISTORY_MS = 5 * 60_000;
const SAMPLES = 1_200;
/** Waits before it asks again. */
const RETRY_MS = [500, 1_000, 2_000, 5_000, 10_000];
const SHOWN = 50;
/** Rates are over this long. */
const RATE_MS = 3_000;
export class Live {
    #map = new PageMap();
    #model = el("h1", { id: "live-title" }, "Live memory");
    #pill = el("span", { class: "pill", role: "status" }, "Connecting");
    #notice = el("p", { class: "notice bad", role: "alert", hidden: true });
    #body = el("div", {});
    #cards = new Map();
    #legend = new Map();
    #regions = table("Regions of memory", ["region", "planned", "committed", "high water", "of what was planned"], "regions-table");
    #requests = table("Requests", ["request", "tenant", "state", "tokens", "cached", "sequences", "pages", "in swap", "gave way", "age"], "requests");
    #owners = table("Tenants", ["tenant", "pages", "bytes"], "");
    #refusals = table("Last refusals", ["when", "tenant", "why"], "words");
    #preemptions = table("Last preemptions", ["when", "how", "what and why"], "words");
    #waste;
    #rates;
    #load;
    #swap = el("p", { class: "quiet small" }, "–");
    #samples = [];
    #memory = null;
    #received_ms = 0;
    #stop = null;
    #why = null;
    #asks = false;
    constructor() {
        this.#waste = new Chart("Bytes of held pages by class", [
            { kind: "token", name: "token states", of: (s) => s.token },
            { kind: "reserved", name: "reserved", of: (s) => s.reserved },
            { kind: "internal", name: "internal", of: (s) => s.internal },
            { kind: "external", name: "external", of: (s) => s.external },
        ], true, HISTORY_MS, bytes, 1024);
        this.#rates = new Chart("Tokens per second", [
            { kind: "generated", name: "generated / s", of: (s) => s.generated },
            { kind: "prompt", name: "prompt / s", of: (s) => s.prompt },
        ], false, HISTORY_MS, rate, 10);
        this.#load = new Chart("Requests", [
            { kind: "running", name: "running", of: (s) => s.running },
            { kind: "waiting", name: "waiting", of: (s) => s.waiting },
            { kind: "preempted", name: "preempted", of: (s) => s.preempted },
        ], false, HISTORY_MS, thousands, 4);
        this.#build();
        setInterval(() => this.#judge(), 500);
        document.addEventListener("visibilitychange", () => this.#follow());
    }
    #card(name) {
        const value = el("b", {}, "–");
        const under = el("span", {}, "\u00a0");
        this.#cards.set(name, { value, under });
        return el("div", { class: "card" }, el("span", {}, name), value, under);
    }
    #panel(heading, words, ...inside) {
        const head = el("header", {}, el("h2", {}, heading), el("span", { class: "quiet small" }, words));
        return el("section", { class: "panel", "aria-label": heading }, head, ...inside);
    }
    #build() {
        const legend = el("ul", { class: "legend" });
        for (const state of ["held", "shared", "beam", "cached", "in_transit", "free"]) {
            const count = el("b", {}, "–");
            this.#legend.set(state, count);
            legend.append(el("li", {}, el("i", { class: `swatch ${state}` }), words(state), count));
        }
        const map = el("section", { class: "panel", "aria-label": "KV pages" });
        map.append(el("header", {}, el("h2", {}, "KV pages"), legend), this.#map.box);
        const tall = (t) => {
            t.box.classList.add("tall");
            return t.box;
        };
        this.#regions.box.classList.add("regions");
        const cards = ["running", "waiting", "preempted", "generated / s", "KV cache held", "prefix cache"];
        this.#body.append(el("div", { class: "cards" }, ...cards.map((c) => this.#card(c))), map, this.#panel("Regions", "planned before anything was read, committed at the start, used at most since", this.#regions.box), el("div", { class: "two" }, this.#panel("What held pages hold", "waste by class", this.#waste.box), this.#panel("Tokens", "", this.#rates.box), this.#panel("Load", "", this.#load.box), this.#panel("Tenants and swap", "", this.#swap, tall(this.#owners))), this.#panel("Requests", "those that run first", tall(this.#requests)), el("div", { class: "two" }, this.#panel("Last preemptions", "newest first", tall(this.#preemptions)), this.#panel("Last refusals", "newest first", tall(this.#refusals))));
        this.#owners.box.classList.add("short");
        const key = el("button", { type: "button", class: "plain", hidden: true, id: "give-key" }, "Give a key");
        key.addEventListener("click", () => {
            void askForKey().then((given) => {
                if (given) {
                    this.#why = null;
                    this.hide();
                    this.show();
                }
            });
        });
        known("view-live").append(el("div", { class: "title" }, this.#model, el("span", {}, key, this.#pill)), this.#notice, this.#body);
    }
    show() {
        this.#asks = true;
        this.#follow();
    }
    hide() {
        this.#asks = false;
        this.#follow();
    }
    recolour() {
        this.#map.recolour();
    }
    /** Asks while somebody looks. */
    #follow() {
        const wanted = this.#asks && !document.hidden;
        if (wanted && this.#stop === null) {
            this.#stop = new AbortController();
            void this.#listen(this.#stop.signal);
        }
        else if (!wanted && this.#stop !== null) {
            this.#stop.abort();
            this.#stop = null;
        }
    }
    async #listen(stop) {
        for (let tries = 0; !stop.aborted; tries += 1) {
            try {
                await stream(PATH, SILENCE_MS, (data) => {
                    tries = 0;
                    this.#take(data);
                }, stop);
                this.#why = "the server ended the stream";
            }
            catch (e) {
                if (stop.aborted)
                    return;
                this.#why = e instanceof Refused ? e.message : "the server does not answer";
                if (e instanceof Refused) {
                    known("give-key").hidden = e.status !== 401 && e.status !== 403;
                    // Asking again changes nothing.
                    if (e.status === 401 || e.status === 403) {
                        this.#judge();
                        return;
                    }
                }
            }
            if (!stop.aborted)
                this.#judge();
            const wait = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)] ?? 0;
            await new Promise((done) => setTimeout(done, wait));
        }
    }
    #take(data) {
        const memory = JSON.parse(data);
        if (memory.schema !== SCHEMA) {
            this.#why = `the server tells ${String(memory.schema)}, and this page reads ${SCHEMA}: load it again`;
            this.#judge();
            return;
        }
        this.#why = null;
        known("give-key").hidden = true;
        if (this.#memory !== null && memory.engine_steps < this.#memory.engine_steps)
            this.#samples = [];
        this.#memory = memory;
        this.#received_ms = Date.now();
        this.#keep(memory);
        this.#draw(memory);
        this.#judge();
    }
    #keep(memory) {
        const { waste, requests, counters } = memory;
        const now = { generated: counters.generated_tokens, prompt: counters.prompt_tokens };
        let before;
        for (let i = this.#samples.length - 1; i >= 0; i -= 1) {
            before = this.#samples[i];
            if (before !== undefined && memory.at_ms - before.at_ms >= RATE_MS)
                break;
        }
        const s = before === undefined ? 0 : (memory.at_ms - before.at_ms) / 1000;
        const per = (n, then) => s > 0.2 && then !== undefined ? Math.max(0, (n - then) / s) : 0;
        this.#samples.push({
            at_ms: memory.at_ms,
            ...requests,
            generated: per(now.generated, before?.counters.generated),
            prompt: per(now.prompt, before?.counters.prompt),
            token: waste.token_states_bytes,
            reserved: waste.reserved_bytes,
            internal: waste.internal_bytes,
            external: waste.external_bytes,
            counters: now,
        });
        const oldest = memory.at_ms - HISTORY_MS - RATE_MS;
        this.#samples = this.#samples.filter((x) => x.at_ms >= oldest).slice(-SAMPLES);
    }
    /** Whether what is shown is so now, in words. */
    #health() {
        if (this.#memory === null) {
            const word = this.#why === null ? "Connecting" : "No data";
            const notice = this.#why === null ? "" : `There is nothing to show: ${this.#why}.`;
            return { kind: this.#why === null ? "" : "bad", word, notice };
        }
        const since = Date.now() - this.#received_ms;
        const age = span(since);
        if (this.#why !== null) {
            const notice = `${sentence(this.#why)}. What is shown is ${age} old; it is asked again until somebody answers.`;
            return { kind: "bad", word: "Server gone", notice };
        }
        if (since > OLD_MS) {
            return { kind: "warn", word: `Data ${age} old`, notice: `Nothing was heard for ${age}. What is shown may be over.` };
        }
        const { age_ms, step_ms, requests } = this.#memory;
        const busy = requests.running + requests.waiting + requests.preempted > 0;
        if (busy && age_ms > OLD_MS) {
            const notice = `The engine told nothing for ${span(age_ms)}: ${step_ms === null ? "it hangs" : `a step has taken ${span(step_ms)} so far`}.`;
            return { kind: "warn", word: "Engine slow", notice };
        }
        return { kind: "good", word: busy ? "Live" : "Live, idle", notice: "" };
    }
    #judge() {
        const { kind, word, notice } = this.#health();
        const pill = `pill ${kind}`;
        if (this.#pill.className !== pill)
            this.#pill.className = pill;
        say(this.#pill, word);
        this.#notice.hidden = notice === "";
        say(this.#notice, notice);
        this.#body.classList.toggle("old", kind === "bad" || word.startsWith("Data"));
    }
    #set(name, value, under) {
        const card = this.#cards.get(name);
        if (card === undefined)
            return;
        say(card.value, value);
        say(card.under, under);
    }
    #draw(memory) {
        const { requests, kv_pages: pages, counters, waste, swap } = memory;
        say(this.#model, memory.model);
        const last = this.#samples[this.#samples.length - 1];
        this.#set("running", thousands(requests.running), `of ${thousands(counters.requests)} so far`);
        this.#set("waiting", thousands(requests.waiting), `${thousands(counters.refused)} refused`);
        this.#set("preempted", thousands(requests.preempted), `${thousands(counters.swaps)} swaps, ${thousands(counters.recomputes)} recomputes`);
        this.#set("generated / s", rate(last?.generated ?? 0), `${thousands(counters.generated_tokens)} tokens in all`);
        const held = pages.total === 0 ? 0 : pages.held / pages.total;
        this.#set("KV cache held", percent(held), `${thousands(pages.held)} of ${thousands(pages.total)} pages`);
        const found = counters.prefix_queried_tokens === 0 ? 0 : counters.prefix_found_tokens / counters.prefix_queried_tokens;
        this.#set("prefix cache", percent(found), "of prompt tokens");
        this.#map.show(memory);
        const states = new Map();
        for (let i = 0; i + 2 < memory.page_map.runs.length; i += 3) {
            const state = memory.page_map.states[memory.page_map.runs[i] ?? 0] ?? "";
            states.set(state, (states.get(state) ?? 0) + (memory.page_map.runs[i + 2] ?? 0));
        }
        for (const [state, element] of this.#legend)
            say(element, thousands(states.get(state) ?? 0));
        for (const chart of [this.#waste, this.#rates, this.#load])
            chart.draw(this.#samples, memory.at_ms);
        rows(this.#regions.body, memory.regions.map(region), "No region is told.");
        const size = swap.total_pages * pages.page_bytes;
        say(this.#swap, swap.total_pages === 0
            ? "Swap space: none; whoever gives way is computed again."
            : `Swap space: ${thousands(swap.used_pages)} of ${thousands(swap.total_pages)} pages (${bytes(size)}); ` +
                `${thousands(swap.out_pages)} went out, ${thousands(swap.in_pages)} came back.`);
        const total = waste.token_states_bytes + waste.reserved_bytes + waste.internal_bytes + waste.external_bytes;
        rows(this.#owners.body, memory.owners.map((o) => [o.tenant, thousands(o.held_pages), bytes(o.held_bytes)]), total > 0 ? "Nobody is told apart." : "Nobody holds a page.");
        rows(this.#requests.body, memory.entries.slice(0, SHOWN).map((e) => [
            el("code", {}, short(e.id)),
            e.tenant,
            e.beam ? `${words(e.state)}, beams` : words(e.state),
            `${thousands(e.prompt_tokens)} + ${thousands(e.generated_tokens)}`,
            thousands(e.cached_tokens),
            thousands(e.sequences),
            e.shared_pages > 0 ? `${thousands(e.pages)} (${thousands(e.shared_pages)} shared)` : thousands(e.pages),
            thousands(e.swapped_pages),
            e.preemptions === 0 ? "–" : `${thousands(e.preemptions)} times`,
            span(e.age_ms),
        ]), "Nobody asks for anything.");
        rows(this.#preemptions.body, [...memory.preemptions].reverse().map((p) => [
            ago(memory.at_ms - p.at_ms),
            p.kind,
            `${short(p.id)} of ${p.tenant} ${p.id === p.by ? "lacked pages itself" : `gave way to ${short(p.by)}`}: ` +
                `${thousands(p.pages_needed)} needed, ${thousands(p.pages_available)} there; ` +
                (p.kind === "swap" ? `${thousands(p.swapped_pages)} pages swapped out` : `${thousands(p.forgotten_tokens)} tokens dropped`),
        ]), "None since the start.");
        rows(this.#refusals.body, [...memory.refusals].reverse().map((r) => [ago(memory.at_ms - r.at_ms), r.tenant, `${r.code}: ${r.reason}`]), "None since the start.");
    }
}
function sentence(text) {
    return text.charAt(0).toUpperCase() + text.slice(1);
}
/** Ids are long; their ends tell them apart. */
function short(id) {
    return id.length > 20 ? `${id.slice(0, 9)}…${id.slice(-6)}` : id;
}
function ago(ms) {
    return `${span(Math.max(0, ms))} ago`;
}
function region(r) {
    const kind = /^[a-z_]+$/.test(r.region) ? `c-${r.region}` : "c-spare";
    const share = (n) => `${Math.min(100, (100 * (n ?? 0)) / Math.max(1, r.planned_bytes)).toFixed(2)}%`;
    const committed = el("i", { class: `committed ${kind}` });
    const high = el("i", { class: kind });
    committed.style.width = share(r.committed_bytes);
    high.style.width = share(r.high_water_bytes);
    const used = r.high_water_bytes === null ? "not known" : percent(r.high_water_bytes / Math.max(1, r.planned_bytes));
    const meter = el("span", { class: "meter", role: "img", "aria-label": `high water ${used} of what was planned` }, committed, high);
    return [
        el("span", { class: "name" }, el("i", { class: `swatch ${kind}` }), words(r.region)),
        bytes(r.planned_bytes),
        r.committed_bytes === null ? "no arena" : bytes(r.committed_bytes),
        r.high_water_bytes === null ? "–" : bytes(r.high_water_bytes),
        meter,
    ];
}
