// How figures are written: as the command line writes them.

const KIB = 1024;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Whole numbers with commas. */
export function thousands(n: number): string {
  return Math.round(n).toString().replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** Bytes in the largest unit that leaves one or more. */
export function bytes(n: number): string {
  let value = n;
  let unit = 0;
  while (value >= KIB && unit < UNITS.length - 1) {
    value /= KIB;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit] ?? ""}`;
}

/** Tokens: powers of two as people say them. */
export function tokens(n: number): string {
  return n >= KIB && n % KIB === 0 ? `${thousands(n / KIB)}k` : thousands(n);
}

/** A share of 1. */
export function percent(share: number): string {
  const p = share * 100;
  return `${p > 0 && p < 10 ? p.toFixed(1) : p.toFixed(0)} %`;
}

/** A time span. */
export function span(ms: number): string {
  const s = ms / 1000;
  if (s < 1) return `${Math.round(ms)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** A rate. */
export function rate(n: number): string {
  return n < 10 ? n.toFixed(1) : thousands(n);
}

/** A word of the wire in a reader's words. */
export function words(name: string): string {
  return name === "kv_cache" ? "KV cache" : name.replaceAll("_", " ");
}
