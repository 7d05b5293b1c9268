// The state of the form in the address: `#plan/1?...`. Whoever makes a link may write anything there, so what is read
// has a known name, a length, and letters that a flag may have; a pasted config is bounded before and after it is
// unpacked. Nothing of it is shown but in fields and as text.

/** Version of this form. */
const VERSION = "1";
/** The longest address that is read. */
const HASH_CHARS = 8192;
/** The longest config that is read out of one, unpacked. */
const CONFIG_BYTES = 64 << 10;
const CONFIG = "c";

/** Short names in the address, and what they stand for. */
const NAMES: Record<string, keyof Asked> = {
  m: "model",
  g: "gpu",
  n: "gpus",
  u: "users",
  x: "context",
  e: "engine",
  w: "weights",
  q: "quantization",
  k: "kv_cache_dtype",
};
const VALUE = /^[A-Za-z0-9._/@:-]{1,100}$/;

/** What the form asks, by the names of flags. */
export type Asked = Partial<
  Record<
    | "model"
    | "config"
    | "gpu"
    | "gpus"
    | "users"
    | "context"
    | "engine"
    | "weights"
    | "quantization"
    | "kv_cache_dtype",
    string
  >
>;

/** What an address asks for: a view, and what its form holds. */
export interface Place {
  view: "live" | "plan";
  asked: Asked | null;
  /** What of it was not understood. */
  ignored: boolean;
}

/** Reads an address. */
export async function read(hash: string): Promise<Place> {
  const live: Place = { view: "live", asked: null, ignored: false };
  if (hash === "" || hash === "#" || hash === "#live" || hash === "#main") return live;
  if (hash === "#plan") return { view: "plan", asked: null, ignored: false };
  const at = hash.indexOf("?");
  const start = at < 0 ? hash : hash.slice(0, at);
  if (!start.startsWith("#plan/")) return { ...live, ignored: true };
  const place: Place = { view: "plan", asked: null, ignored: true };
  if (start !== `#plan/${VERSION}` || at < 0 || hash.length > HASH_CHARS) return place;
  const asked: Asked = {};
  place.ignored = false;
  for (const [short, value] of new URLSearchParams(hash.slice(at + 1))) {
    const name = Object.hasOwn(NAMES, short) ? NAMES[short] : undefined;
    if (name !== undefined && asked[name] === undefined && VALUE.test(value)) {
      asked[name] = value;
    } else if (short === CONFIG && asked.config === undefined) {
      const config = await unpack(value);
      if (config === null) place.ignored = true;
      else asked.config = config;
    } else {
      place.ignored = true;
    }
  }
  if (asked.config !== undefined) delete asked.model;
  place.asked = asked;
  return place;
}

/** Writes an address; where a config makes it too long, without that. */
export async function write(asked: Asked): Promise<{ hash: string; whole: boolean }> {
  const all = new URLSearchParams();
  for (const [short, name] of Object.entries(NAMES)) {
    const value = asked[name];
    if (value !== undefined && VALUE.test(value)) all.set(short, value);
  }
  let whole = true;
  if (asked.config !== undefined) {
    const packed = await pack(asked.config);
    if (packed.length + all.toString().length > HASH_CHARS - 32) whole = false;
    else all.set(CONFIG, packed);
  }
  // As people write them.
  const text = all.toString().replaceAll("%2F", "/").replaceAll("%3A", ":").replaceAll("%40", "@");
  return { hash: `#plan/${VERSION}?${text}`, whole };
}

async function pack(text: string): Promise<string> {
  const packed = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const all = new Uint8Array(await new Response(packed).arrayBuffer());
  let letters = "";
  for (const byte of all) letters += String.fromCharCode(byte);
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function unpack(packed: string): Promise<string | null> {
  try {
    if (!/^[A-Za-z0-9_-]+$/.test(packed)) return null;
    const letters = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
    const all = Uint8Array.from(letters, (c) => c.charCodeAt(0));
    const reader = new Blob([all]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
    const text = new TextDecoder("utf-8", { fatal: true });
    let out = "";
    let size = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return out + text.decode();
      size += value.length;
      // A few bytes can unpack to any number.
      if (size > CONFIG_BYTES) {
        await reader.cancel();
        return null;
      }
      out += text.decode(value, { stream: true });
    }
  } catch {
    return null;
  }
}
