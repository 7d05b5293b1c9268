// The KV cache as a picture: one cell for each page, or for a few where there are more than a screen shows.
import { el, say } from "./elements.js";
import { span, thousands, words } from "./format.js";
const GAP = 1;
const LARGEST = 16;
const SMALLEST = 5;
/** What a reader may say of a state. */
const MEANING = {
    free: "free: nobody holds it and nothing is in it",
    cached: "cached: a prefix that nobody holds now and the same text finds again",
    held: "held by one request",
    shared: "shared by several sequences",
    beam: "held by a beam search",
    in_transit: "in transit: being copied to or from swap space",
};
export class PageMap {
    box;
    #canvas = el("canvas", {
        tabindex: 0,
        role: "application",
        "aria-roledescription": "map of pages",
        "aria-label": "KV pages. Arrow keys move from page to page; what each one is, is read below.",
        "aria-describedby": "page-said",
    });
    #said = el("output", { id: "page-said", "aria-live": "polite" });
    #probes = el("div", { class: "probes", "aria-hidden": "true" });
    #cells = [];
    #columns = 1;
    #size = LARGEST;
    #at = null;
    #memory = null;
    #colours = new Map();
    constructor() {
        this.box = el("div", { class: "map" }, this.#canvas, this.#said, this.#probes);
        this.#canvas.addEventListener("pointermove", (e) => {
            const row = Math.floor(e.offsetY / this.#size);
            const column = Math.floor(e.offsetX / this.#size);
            this.#point(column < this.#columns ? row * this.#columns + column : null);
        });
        this.#canvas.addEventListener("pointerleave", () => this.#point(null));
        this.#canvas.addEventListener("blur", () => this.#point(null));
        this.#canvas.addEventListener("focus", () => this.#point(this.#at ?? 0));
        this.#canvas.addEventListener("keydown", (e) => this.#key(e));
        new ResizeObserver(() => this.draw()).observe(this.#canvas);
    }
    show(memory) {
        this.#memory = memory;
        this.draw();
    }
    /** Colours are the style sheet's. */
    recolour() {
        this.#colours.clear();
        this.draw();
    }
    #colour(name) {
        const known = this.#colours.get(name);
        if (known !== undefined)
            return known;
        const probe = el("i", { class: /^[a-z_]+$/.test(name) ? name : "free" });
        this.#probes.append(probe);
        const colour = getComputedStyle(probe).backgroundColor;
        probe.remove();
        this.#colours.set(name, colour);
        return colour;
    }
    #key(e) {
        const by = {
            ArrowLeft: -1,
            ArrowRight: 1,
            ArrowUp: -this.#columns,
            ArrowDown: this.#columns,
            Home: -this.#cells.length,
            End: this.#cells.length,
        };
        const move = by[e.key];
        if (move === undefined || this.#cells.length === 0)
            return;
        e.preventDefault();
        const to = (this.#at ?? 0) + move;
        const last = this.#cells.length - 1;
        this.#point(Math.abs(move) === this.#columns && (to < 0 || to > last) ? this.#at : Math.min(Math.max(to, 0), last));
    }
    #point(at) {
        const to = at !== null && at < this.#cells.length ? at : null;
        if (to === this.#at)
            return;
        this.#at = to;
        this.draw();
    }
    /** What is told of the cell that is pointed at. */
    #tell() {
        const cell = this.#at === null ? undefined : this.#cells[this.#at];
        const memory = this.#memory;
        if (memory === null)
            return say(this.#said, "");
        if (cell === undefined) {
            const each = this.#cells[0];
            const many = each === undefined ? 1 : each.last - each.first + 1;
            const scale = many > 1 ? `One cell is ${many} pages, in the colour of what most of them are.` : "One cell is one page.";
            return say(this.#said, `${scale} Point at one, or focus the map and use the arrow keys, to see whose it is.`);
        }
        const which = cell.first === cell.last ? `Page ${thousands(cell.first)}` : `Pages ${thousands(cell.first)} to ${thousands(cell.last)}`;
        const entry = memory.entries[cell.owner];
        const whose = entry === undefined ? "" : `: ${describe(entry)}`;
        say(this.#said, `${which}, ${MEANING[cell.state] ?? words(cell.state)}${whose}`);
    }
    draw() {
        const memory = this.#memory;
        const width = this.#canvas.clientWidth;
        const height = this.#canvas.clientHeight;
        if (memory === null || width === 0)
            return;
        this.#layout(memory, width, height);
        const scale = window.devicePixelRatio || 1;
        const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
        if (this.#canvas.width !== w || this.#canvas.height !== h) {
            this.#canvas.width = w;
            this.#canvas.height = h;
        }
        const paint = this.#canvas.getContext("2d");
        if (paint === null)
            return;
        paint.setTransform(scale, 0, 0, scale, 0, 0);
        paint.clearRect(0, 0, width, height);
        const pointed = this.#at === null ? undefined : this.#cells[this.#at];
        const owner = pointed?.owner ?? -1;
        const ink = getComputedStyle(this.#canvas).color;
        this.#cells.forEach((cell, i) => {
            const x = (i % this.#columns) * this.#size;
            const y = Math.floor(i / this.#columns) * this.#size;
            const side = this.#size - GAP;
            // Whose page is pointed at stands out from the others.
            paint.globalAlpha = owner >= 0 && cell.owner !== owner ? 0.3 : 1;
            paint.fillStyle = this.#colour(cell.state);
            paint.fillRect(x, y, side, side);
            if (cell === pointed) {
                paint.globalAlpha = 1;
                paint.strokeStyle = ink;
                paint.lineWidth = 2;
                paint.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
            }
        });
        paint.globalAlpha = 1;
        this.#tell();
    }
    /** The largest cells with which all pages have a place. */
    #layout(memory, width, height) {
        const total = memory.kv_pages.total;
        let size = LARGEST;
        const room = (s) => Math.floor((width + GAP) / s) * Math.floor((height + GAP) / s);
        while (size > SMALLEST && room(size) < total)
            size -= 1;
        const each = Math.max(1, Math.ceil(total / Math.max(1, room(size))));
        this.#size = size;
        this.#columns = Math.max(1, Math.floor((width + GAP) / size));
        this.#cells = cells(memory, each);
    }
}
/** A request in a few words. */
export function describe(entry) {
    const length = entry.prompt_tokens + entry.generated_tokens;
    return (`${entry.id} of ${entry.tenant}, ${words(entry.state)}, ${thousands(length)} tokens in ` +
        `${thousands(entry.pages)} pages, came ${span(entry.age_ms)} ago`);
}
/** The cells, each of `each` pages; of several, the state and owner of most. */
function cells(memory, each) {
    const { states, runs } = memory.page_map;
    const out = [];
    let page = 1;
    let count = new Map();
    let filled = 0;
    const close = () => {
        let most = null;
        for (const c of count.values())
            if (most === null || c.pages > most.pages)
                most = c;
        if (most !== null)
            out.push({ state: most.state, owner: most.owner, first: page - filled, last: page - 1 });
        count = new Map();
        filled = 0;
    };
    for (let i = 0; i + 2 < runs.length; i += 3) {
        const state = states[runs[i] ?? 0] ?? "free";
        const owner = runs[i + 1] ?? -1;
        let left = Math.min(runs[i + 2] ?? 0, memory.kv_pages.total - page + 1);
        while (left > 0) {
            const take = Math.min(left, each - filled);
            const name = `${state} ${owner}`;
            const c = count.get(name) ?? { state, owner, pages: 0 };
            c.pages += take;
            count.set(name, c);
            filled += take;
            page += take;
            left -= take;
            if (filled === each)
                close();
        }
    }
    if (filled > 0)
        close();
    return out;
}
