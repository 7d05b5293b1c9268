// Charts over the last minutes, drawn again with every sample.

import { el, svg } from "./elements.js";

/** A line or a layer: the class of its colour, its name, and its value in a sample. */
export interface Series<S> {
  kind: string;
  name: string;
  of: (sample: S) => number;
}

const WIDTH = 560;
const HEIGHT = 170;
const LEFT = 52;
const BOTTOM = 20;
const TOP = 8;

export class Chart<S extends { at_ms: number }> {
  readonly box: HTMLElement;
  readonly #drawing: SVGSVGElement;
  readonly #said: Map<string, HTMLElement> = new Map();

  /** One of `series` over `span_ms`: stacked, of bytes, or as lines; `write` for figures, `least` for the scale. */
  constructor(
    label: string,
    private readonly series: Series<S>[],
    private readonly stacked: boolean,
    private readonly span_ms: number,
    private readonly write: (value: number) => string,
    private readonly least: number,
  ) {
    this.#drawing = svg("svg", {
      class: "chart",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${label}, over the last minutes; figures of now are above`,
    });
    const legend = el("ul", { class: "legend" });
    for (const s of series) {
      const value = el("b", {}, "–");
      this.#said.set(s.kind, value);
      legend.append(el("li", {}, el("i", { class: `swatch ${s.kind}` }), s.name, value));
    }
    this.box = el("div", {}, legend, this.#drawing);
  }

  draw(samples: S[], now_ms: number): void {
    const last = samples[samples.length - 1];
    for (const s of this.series) {
      const value = this.#said.get(s.kind);
      if (value !== undefined && last !== undefined) value.textContent = this.write(s.of(last));
    }
    const sum = (sample: S): number => this.series.reduce((a, s) => a + s.of(sample), 0);
    const high = (sample: S): number => (this.stacked ? sum(sample) : Math.max(...this.series.map((s) => s.of(sample))));
    const most = Math.max(this.least, ...samples.map(high));
    const top = this.stacked ? 2 ** Math.ceil(Math.log2(most)) : nice(most);
    // The drawing is as wide as its place, and letters are not stretched with it.
    const width = this.#drawing.clientWidth || WIDTH;
    this.#drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const x = (at: number): number => width - ((width - LEFT) * (now_ms - at)) / this.span_ms;
    const y = (value: number): number => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
    const all: Node[] = [];
    for (const share of [0, 0.5, 1]) {
      const at = y(top * share);
      all.push(svg("line", { class: "grid", x1: LEFT, x2: width, y1: at, y2: at }));
      all.push(svg("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, this.write(top * share)));
    }
    const minutes = Math.round(this.span_ms / 60_000);
    for (let m = 0; m <= minutes; m += 1) {
      const anchor = m === 0 ? "end" : m === minutes ? "start" : "middle";
      const text = m === 0 ? "now" : `−${m} min`;
      all.push(svg("text", { x: x(now_ms - m * 60_000), y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    const shown = samples.filter((s) => now_ms - s.at_ms <= this.span_ms);
    if (shown.length > 1) {
      const below = shown.map(() => 0);
      for (const s of this.series) {
        const points = shown.map((sample, i) => {
          const base = this.stacked ? (below[i] ?? 0) : 0;
          const value = Math.min(base + s.of(sample), top);
          return { x: x(sample.at_ms).toFixed(1), y: y(value).toFixed(1), base: y(base).toFixed(1), value };
        });
        const line = points.map((p) => `${p.x} ${p.y}`).join("L");
        if (this.stacked) {
          const back = points.map((p) => `${p.x} ${p.base}`).reverse().join("L");
          all.push(svg("path", { class: s.kind, d: `M${line}L${back}Z` }));
          points.forEach((p, i) => (below[i] = p.value));
        } else {
          all.push(svg("path", { class: `line ${s.kind}`, d: `M${line}` }));
        }
      }
    }
    this.#drawing.replaceChildren(...all);
  }
}

/** The next number with one digit that people like. */
function nice(n: number): number {
  const power = 10 ** Math.floor(Math.log10(n));
  for (const step of [1, 2, 4, 5, 10]) if (n <= step * power) return step * power;
  return n;
}
