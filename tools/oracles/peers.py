#!/usr/bin/env python3
"""Other programs' answers beside ours, on the same files: hf-mem and gguf's reader, and llama.cpp's own accounting.

Checkpoints of twelve families are made with random weights by make_model.py; those of large published models are written here
with a true safetensors header and a hole for data (names and shapes from this repository's inventory, so what is compared is the
reading, the transport and the arithmetic; the inventory itself is held against transformers by transformers_shapes.py). All of
them are served on 127.0.0.1 by the few addresses of the model hub, with ranges, and both programs are asked for the same ids.
Every difference is explained by a cause that, applied to our figure, gives the peer's to the byte; where none does, this fails.

Usage (in an environment with hf-mem 0.5.6, gguf, torch and transformers)
    peers.py --plimsoll BIN --inventory BIN --make-model make_model.py --probe PROBE [--made DIR]
writes tools/oracles/golden/peers.jsonl and docs/peers.md. PROBE is what `llamacpp_memory.py build` makes. The live hub is never
asked. hf-mem has its address built in and reads no HF_ENDPOINT (asserted below), so its requests are turned to the local server
by replacing `get` of its HTTP client.
"""
import argparse, asyncio, contextlib, glob, http.server, io, itertools, json, math, os, re, socket, struct, subprocess, sys, tempfile, threading, warnings

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import llamacpp_memory as lcpp

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "opt", "gpt2", "mixtral", "qwen3_moe", "deepseek_v3", "phi3"]
PUBLISHED = ["llama-3.1-8b", "qwen3-8b", "gemma-3-12b", "deepseek-v3", "gpt-oss-20b", "mixtral-8x7b", "phi-4", "opt-13b"]
SHARD = 5 * 10**9
TRAFFIC = 5 * 10**6
WIDTH = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PEER_HUB = "https://huggingface.co"


# ---- checkpoints --------------------------------------------------------------------------------------------------------

def write_safetensors(path, tensors):
    """A true header and a hole as long as the data would be."""
    head, at = {}, 0
    for t in tensors:
        size = math.prod(t["shape"]) * WIDTH[t["dtype"]]
        head[t["name"]] = {"dtype": t["dtype"], "shape": t["shape"], "data_offsets": [at, at + size]}
        at += size
    blob = json.dumps(head, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(blob)) + blob)
        f.truncate(8 + len(blob) + at)


def inventory(a, config):
    """What a config says that its checkpoint stores, multi-token-prediction layers too."""
    rows = subprocess.run([a.inventory, config, "--all"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [dict(t, dtype=t["dtype"].upper()) for t in map(json.loads, rows)]


def write_published(a, name, folder):
    os.makedirs(folder)
    config = os.path.join(folder, "config.json")
    with open(config, "wb") as f:
        f.write(subprocess.run([a.plimsoll, "models", "show", name, "--config"], check=True, capture_output=True).stdout)
    shards, used = [[]], 0
    for t in inventory(a, config):
        size = math.prod(t["shape"]) * WIDTH[t["dtype"]]
        if shards[-1] and used + size > SHARD:
            shards.append([])
            used = 0
        shards[-1].append(t)
        used += size
    if len(shards) == 1:
        write_safetensors(os.path.join(folder, "model.safetensors"), shards[0])
        return
    where, total = {}, 0
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_safetensors(os.path.join(folder, file), shard)
        where.update({t["name"]: file for t in shard})
        total += sum(math.prod(t["shape"]) * WIDTH[t["dtype"]] for t in shard)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": where}, f)


# ---- the hub on this machine ----------------------------------------------------------------------------------------------

class Hub(http.server.ThreadingHTTPServer):
    """resolve/REVISION/FILE with ranges, and the two lists of files. Counts what it sends, by program."""
    daemon_threads = True

    def __init__(self, folders):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders, self.sent, self.lock = folders, {}, threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self):
        with self.lock:
            sent, self.sent = self.sent, {}
        return sent


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, **headers):
        lines = [f"HTTP/1.1 {status}"] + [f"{k.replace('_', '-')}: {v}" for k, v in dict(content_length=len(body), **headers).items()]
        out = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
        who = self.headers.get("user-agent", "").split("/")[0]
        self.count(who, 1, 0)
        # Piece by piece through a small buffer, so that only what the other end lets through is sent, and counted.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        try:
            for at in range(0, len(out), 1 << 14):
                piece = out[at:at + (1 << 14)]
                self.count(who, 0, len(piece))
                self.wfile.write(piece)
        except OSError:
            self.close_connection = True

    def count(self, who, requests, size):
        with self.server.lock:
            n, had = self.server.sent.get(who, (0, 0))
            self.server.sent[who] = (n + requests, had + size)

    def missing(self):
        self.reply("404 Not Found", b"", x_error_code="EntryNotFound")

    def do_GET(self):
        path = self.path.split("?")[0].strip("/").split("/")
        listing = path[:2] == ["api", "models"]
        repo = "/".join(path[2:4] if listing else path[:2])
        folder = self.server.folders.get(repo)
        if folder is None:
            return self.reply("404 Not Found", b"", x_error_code="RepoNotFound")
        if listing:
            files = sorted(os.listdir(folder))
            tree = len(path) > 4 and path[4] == "tree"
            body = [{"type": "file", "path": f, "size": os.path.getsize(os.path.join(folder, f))} for f in files] if tree else \
                {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            return self.reply("200 OK", json.dumps(body).encode(), content_type="application/json")
        if len(path) != 5 or path[2] != "resolve" or path[4] not in os.listdir(folder):
            return self.missing()
        file = os.path.join(folder, path[4])
        size, common = os.path.getsize(file), dict(x_repo_commit=COMMIT, etag=f'"{path[4]}"', accept_ranges="bytes")
        with open(file, "rb") as f:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
            if not asked:
                assert size < 1 << 28, f"{file} was asked for as a whole"
                return self.reply("200 OK", f.read(), **common)
            first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            if first >= size:
                return self.reply("416 Range Not Satisfiable", b"", content_range=f"bytes */{size}")
            assert last - first < 1 << 28, f"{self.headers['range']} of {file}"
            f.seek(first)
            self.reply("206 Partial Content", f.read(last - first + 1), content_range=f"bytes {first}-{last}/{size}", **common)


# ---- asking ----------------------------------------------------------------------------------------------------------------

def hf_mem(hub, repo, context, **more):
    """(weight bytes, KV bytes or None, element type of KV, why there is none). The live hub is out of reach: every request is turned."""
    import httpx2
    from hf_mem.run import arun
    asked, plain = set(), httpx2.AsyncClient.get

    async def get(self, url, **kw):
        asked.add(str(url)[:len(PEER_HUB)])
        return await plain(self, str(url).replace(PEER_HUB, hub.address, 1), **kw)

    async def ask(**kw):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            r = await arun(repo, max_model_len=context, **more, **kw)
            return r, [str(w.message) for w in said]

    httpx2.AsyncClient.get = get
    try:
        why = None
        plainly, _ = asyncio.run(ask())
        try:
            r, said = asyncio.run(ask(experimental=True))
            if r.kv_cache is None:
                why = next((s for s in said if "required keys" in s), said[-1] if said else "no reason given")
        except RuntimeError as err:
            why, r = str(err), plainly
        assert asked == {PEER_HUB}, "hf-mem honours HF_ENDPOINT now: ask it plainly"
    finally:
        httpx2.AsyncClient.get = plain
    kind = r.kv_cache_metadata.cache_dtype if r.kv_cache_metadata else None
    return plainly.memory, r.kv_cache, kind, why


def plimsoll(a, what, *more, hub=None, home=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env.update({"HF_ENDPOINT": hub.address, "HF_HOME": home} if hub else {"HF_HUB_OFFLINE": "1"})
    r = subprocess.run([a.plimsoll, "plan", what, "--json", *map(str, more)], env=env, capture_output=True, text=True)
    if r.returncode not in (0, 3):
        raise SystemExit(f"plan {what} {more}: {r.returncode}\n{r.stdout[-500:]}{r.stderr[-2000:]}")
    return json.loads(r.stdout)


def weights(plan):
    return sum(t["bytes"] * r["copies"] for r in plan["ranks"] for t in r["terms"] if t["region"] == "weights")


# ---- why they differ ---------------------------------------------------------------------------------------------------------

WINDOW = "sliding windows charged over the whole context"
LATENT = "latent attention (MLA) counted as plain heads"
WEIGHT_TYPE = "the weights' fp8 taken for the cache's type"
CAUSES = {
    WINDOW: "It reserves every layer over the whole context, as an upper bound; ours holds a window's tokens, which is what the `ideal` engine means.",
    LATENT: "It knows no latent cache: `2 x num_key_value_heads x head_dim`, where one vector of `kv_lora_rank + qk_rope_head_dim` per token and layer is kept.",
    WEIGHT_TYPE: "`quantization_config` speaks of weights; engines keep the cache in 16 bits unless told otherwise.",
}


def kv_with(plan, config, context, causes):
    """Our KV bytes of one request of `context` tokens, with a peer's departures."""
    text = config.get("text_config", config)
    total = 0
    for g in plan["kv"]["groups"]:
        page, tokens = g["page_bytes"] // g["block_size"], context
        if g["kind"] == "window" and WINDOW not in causes:
            tokens = min(context, g["span"])
        if g["kind"] == "latent" and LATENT in causes:
            heads = text["num_attention_heads"]
            page = 2 * 2 * text.get("num_key_value_heads", heads) * text.get("head_dim", text["hidden_size"] // heads)
        total += g["layers"] * page * tokens
    return total // 2 if WEIGHT_TYPE in causes else total


def explain_kv(plan, config, context, peer):
    assert kv_with(plan, config, context, ()) == plan["kv"]["need"]["token_states_bytes"]
    for n in range(len(CAUSES) + 1):
        for causes in itertools.combinations(CAUSES, n):
            if kv_with(plan, config, context, causes) == peer:
                return list(causes)
    raise SystemExit(f"{plan['model']['name']}: the peer's {peer} bytes of KV are unexplained")


def refusal(why):
    """The peer's own words, cut to the reason."""
    if "required keys" in why:
        return "no KV figure: reads hidden_size, num_hidden_layers and num_attention_heads only, by these names"
    if "it's neither `...ForCausalLM` nor" in why:
        return "no KV figure: only architectures named ...ForCausalLM or ...ForConditionalGeneration"
    method = re.search(r"i\.e\., `(\w+)`, which is not supported", why)
    if method:
        return f"no KV figure: refuses quant_method {method[1]}"
    if "could not be resolved" in why:
        return "no KV figure: the config states no dtype"
    raise SystemExit(f"an unknown refusal: {why}")


def beyond(name, layers):
    """Whether a tensor is of a layer behind the last one."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return bool(layer) and int(layer[1]) >= layers


def extra_bytes(folder, layers):
    """Bytes of the layers behind the last one: multi-token prediction."""
    total = 0
    for file in glob.glob(os.path.join(folder, "*.safetensors")):
        with open(file, "rb") as f:
            head = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        total += sum(t["data_offsets"][1] - t["data_offsets"][0] for name, t in head.items() if beyond(name, layers))
    return total


def safetensors_rows(a, tmp):
    folders = {}
    for f in FAMILIES:
        folder = os.path.join(a.made or tmp, f + "-tiny")
        if not os.path.exists(os.path.join(folder, "model.safetensors")):
            subprocess.run([sys.executable, a.make_model, f, "tiny", folder], check=True, stdout=sys.stderr)
        folders[f"made/{f}-tiny"] = folder
    for name in PUBLISHED:
        folder = os.path.join(tmp, name)
        write_published(a, name, folder)
        folders[f"published/{name}"] = folder
    hub = Hub(folders)
    for repo, folder in folders.items():
        with open(os.path.join(folder, "config.json")) as f:
            config = json.load(f)
        here = plimsoll(a, folder)["model"]
        context = min(8192, here["max_context"] or 8192)
        how = ("--engine", "ideal", "--users", 1, "--context", context)
        alone = plimsoll(a, os.path.join(folder, "config.json"))["model"]
        with tempfile.TemporaryDirectory() as home:
            hub.take()
            plan = plimsoll(a, repo, *how, hub=hub, home=home)
            requests, traffic = hub.take()["plimsoll"]
        peer, peer_kv, kv_type, why = hf_mem(hub, repo, context)
        sent = {k: v for k, v in hub.take().items() if k != "plimsoll"}
        assert len(sent) == 1, sent
        stored, loaded = plan["model"]["stored_bytes"], weights(plan)
        assert traffic < TRAFFIC, f"{repo}: {traffic} bytes of traffic"
        assert stored == here["stored_bytes"], (repo, stored, here)
        assert peer == stored, f"{repo}: hf-mem counts {peer}, we {stored}"
        causes = []
        if alone["stored_bytes"] != stored:  # transformers writes the field and not the layer
            declared = sum(math.prod(t["shape"]) * WIDTH[t["dtype"]] for t in inventory(a, os.path.join(folder, "config.json"))
                           if beyond(t["name"], here["layers"]))
            assert not extra_bytes(folder, here["layers"]) and alone["stored_bytes"] == stored + declared, (repo, stored, alone)
            causes.append("the config declares a multi-token-prediction layer that the files do not hold: `config.json` alone counts it")
        if loaded != peer:
            assert loaded + extra_bytes(folder, here["layers"]) == peer, f"{repo}: {loaded} of {peer} loaded is unexplained"
            causes.append("multi-token prediction is stored, and counted by hf-mem, but not loaded")
        ours = plan["kv"]["need"]["pool_bytes"]
        causes += [refusal(why)] if peer_kv is None else explain_kv(plan, config, context, peer_kv)
        fell_back = any("of traffic" in n for n in plan["notes"])
        if fell_back:  # what a server pushes before we hang up is a matter of buffers: a bound instead of a figure
            traffic = -(-traffic // 2**20) * 2**20
        yield {"kind": "safetensors", "model": repo, "stored_bytes": {"hub": stored, "folder": here["stored_bytes"], "config": alone["stored_bytes"],
               "hf_mem": peer}, "loaded_bytes": loaded, "context": context, "kv_bytes": {"plimsoll": ours, "hf_mem": peer_kv}, "hf_mem_kv_type": kv_type,
               "read_headers": not fell_back, "requests": requests, "traffic_bytes": traffic, "causes": causes}


# ---- GGUF ----------------------------------------------------------------------------------------------------------------------

GGUF_CASES = [  # model, users, context, flags of ours
    ("llama-3.1-8b", 1, 4096, {}), ("llama-3.1-8b-q4k", 1, 16384, {"kv": "q8_0"}), ("qwen2.5-0.5b", 4, 2048, {"unified": True}),
    ("qwen3-30b-a3b", 1, 8192, {"ubatch": 1024}), ("gemma-3-27b", 1, 32768, {}), ("gemma-3-27b", 4, 8192, {"unified": True, "swa_full": True}),
    ("gpt-oss-20b", 4, 8192, {"unified": True}), ("deepseek-v3", 1, 8192, {}), ("mixtral-8x7b", 1, 8192, {"flash": False}),
    ("qwen3-next-80b", 2, 8192, {}), ("phi-3-mini", 1, 4096, {"ubatch": 256}), ("gpt2-xl", 1, 1024, {}),
]
# Looked up by row, so llama.cpp leaves them in host memory.
TABLES = ("token_embd.weight", "position_embd.weight", "token_types.weight")


def gguf_rows(a, tmp):
    from gguf import GGUFReader
    folders = {}
    for model in dict.fromkeys(m for m, *_ in GGUF_CASES):
        folder = os.path.join(tmp, "gguf-" + model)
        os.makedirs(folder)
        lcpp.write_gguf(os.path.join(folder, "m.gguf"), *lcpp.MODELS[model]())
        folders[f"gguf/{model}"] = folder
    hub = Hub(folders)
    for model, users, context, o in GGUF_CASES:
        path = os.path.join(folders[f"gguf/{model}"], "m.gguf")
        read = GGUFReader(path).tensors
        stored, elements = sum(int(t.n_bytes) for t in read), sum(int(t.n_elements) for t in read)
        names = {t.name for t in read}
        placed = len(names - set(TABLES)) + ("output.weight" not in names)  # a tied table is loaded a second time, as the head
        more = ["--engine", "llama.cpp", "--gpu", "h100", "--gpus", 1, "--users", users, "--context", context]
        more += ["--kv-unified"] * o.get("unified", False) + ["--swa-full"] * o.get("swa_full", False)
        if "kv" in o:
            more += ["--kv-cache-dtype", o["kv"], "--cache-type-v", o["kv"]]
        if "ubatch" in o:
            more += ["--ubatch-size", o["ubatch"]]
        if "flash" in o:
            more += ["--flash-attn", "false"]
        plan = plimsoll(a, path, *more)
        with tempfile.TemporaryDirectory() as home:
            hub.take()
            remote = plimsoll(a, f"gguf/{model}:m.gguf", *more, hub=hub, home=home)
            requests, traffic = hub.take()["plimsoll"]
        assert traffic < TRAFFIC, (model, traffic)
        assert remote["ranks"] == plan["ranks"], f"{model}: the plan from the hub differs"
        peer, *_ = hf_mem(hub, f"gguf/{model}", context, gguf_file="m.gguf")
        terms = plan["ranks"][0]["terms"]
        ours = {r: sum(t["bytes"] for t in terms if t["region"] == r) for r in ("weights", "kv_cache", "activations")}
        count = sum(int(dict(t["inputs"])["tensors"]) for t in terms if t["region"] == "weights")
        kv = o.get("kv", "f16")
        got = subprocess.run([str(x) for x in (a.probe, path, "--gpus", 1, "--ctx", users * context, "--batch", 2048, "--ubatch", o.get("ubatch", 512),
                             "--parallel", users, "--unified", int(o.get("unified", False)), "--swa-full", int(o.get("swa_full", False)), "--type-k", kv,
                             "--type-v", kv, "--fa", int(o.get("flash", True)), "--outputs", users, "--ngl", -1, "--fa-f16-copy", int(kv != "f16"))],
                             capture_output=True, text=True)
        if got.returncode:
            raise SystemExit(f"{model}: probe failed\n{got.stderr[-2000:]}")
        said = json.loads(got.stdout.splitlines()[0])
        theirs = {"weights": said["model"]["GPU0"], "kv_cache": said["context"]["GPU0"], "activations": said["compute"]["GPU0"]}
        row = {"kind": "gguf", "model": model, "users": users, "context": context, "options": o,
               "tensors": {"plimsoll_placed": count, "gguf": len(read), "gguf_placed": placed},
               "stored_bytes": {"plimsoll": plan["model"]["stored_bytes"], "gguf": stored, "hf_mem": peer},
               "elements": {"plimsoll": plan["model"]["parameters"], "gguf": elements}, "device_bytes": {"plimsoll": ours, "llama.cpp": theirs},
               "requests": requests, "traffic_bytes": traffic}
        bad = [k for k, ok in (("stored", plan["model"]["stored_bytes"] == stored), ("hf-mem", peer == stored), ("elements", plan["model"]["parameters"] == elements),
               ("tensors", count == placed), ("weights", ours["weights"] == theirs["weights"]), ("KV", ours["kv_cache"] == theirs["kv_cache"]),
               ("compute", abs(ours["activations"] - theirs["activations"]) <= theirs["activations"] * 0.05)) if not ok]
        if bad:
            a.failed.append(f"{model}: {', '.join(bad)} differ: {json.dumps(row)}")
        yield row


# ---- the page --------------------------------------------------------------------------------------------------------------------

def page(rows, versions):
    n = lambda x: "none" if x is None else f"{x:,}"
    st, gg = [r for r in rows if r["kind"] == "safetensors"], [r for r in rows if r["kind"] == "gguf"]
    both = [r for r in st if r["kv_bytes"]["hf_mem"] is not None]
    equal = sum(r["kv_bytes"]["hf_mem"] == r["kv_bytes"]["plimsoll"] for r in both)
    exact = sum(r["device_bytes"]["plimsoll"]["activations"] == r["device_bytes"]["llama.cpp"]["activations"] for r in gg)
    off = max(abs(r["device_bytes"]["plimsoll"]["activations"] / r["device_bytes"]["llama.cpp"]["activations"] - 1) for r in gg)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print(f"""# Peers beside ours

Written, with the figures in `tools/oracles/golden/peers.jsonl`, by

    python tools/oracles/peers.py --plimsoll target/release/plimsoll --inventory target/release/examples/inventory \\
        --make-model make_model.py --probe PROBE

whose head says what it needs. Sizes are bytes. Every checkpoint is served by a hub on 127.0.0.1, and each program is asked for the same id. `made/` holds random weights of
transformers' own model classes; `published/` holds the true header of a published shape and a hole for data, with names and shapes
from our own inventory, so there the reading is compared, not the inventory (`tools/oracles/transformers_shapes.py` does that).

## hf-mem {versions['hf-mem']}

Its hub address is built in and `HF_ENDPOINT` is not read, so the script turns its requests to the local server.

- Stored bytes: {len(st)} of {len(st)} models agree to the byte. Our figure is the same from the hub and from the folder in all, and
  from `config.json` alone in {sum(r['stored_bytes']['config'] == r['stored_bytes']['hub'] for r in st)}; the table names the cause elsewhere.
- KV bytes of one request (`--experimental`, against `--engine ideal`): {equal} of {len(both)} agree; each other one is reproduced to the
  byte by applying the named causes to our figure; {len(st) - len(both)} have no figure, for the reason named.
- Our traffic per model is at most {n(max(r['traffic_bytes'] for r in st if r['read_headers']))} bytes, heads of answers included. Where headers
  alone would exceed the limit of 5 MB, the plan says so and takes the weights that the config implies (marked *: the connection is
  closed at the index's length, and what was under way by then is bounded, not counted); the folder's plan still reads all headers.

| model | stored | loaded | context | KV, ours | KV, hf-mem | requests | traffic | why they differ |
|---|---:|---:|---:|---:|---:|---:|---:|---|""")
        for r in st:
            print(f"| {r['model']} | {n(r['stored_bytes']['hf_mem'])} | {n(r['loaded_bytes'])} | {n(r['context'])} | {n(r['kv_bytes']['plimsoll'])} | "
                  f"{n(r['kv_bytes']['hf_mem'])} | {r['requests']} | {n(r['traffic_bytes']) if r['read_headers'] else 'below ' + n(r['traffic_bytes']) + ' *'} | {'; '.join(r['causes'])} |")
        print()
        for c in CAUSES:
            if any(c in r["causes"] for r in st):
                print(f"- **{c}**. {CAUSES[c]}")
        print(f"""
## GGUF: gguf {versions['gguf']}, hf-mem and llama.cpp

The files have a true header and a hole for data (`tools/oracles/llamacpp_memory.py`; real widths, few layers). Tensor bytes, elements
and tensors are those of the `gguf` package's reader, and hf-mem's bytes are equal, in {len(gg)} of {len(gg)} rows; a plan from the
hub equals the plan from the file. `device` is what llama.cpp's own breakdown (`llamacpp_probe.cpp`, one device, all layers on it)
says against `plimsoll plan FILE --engine llama.cpp --json`: weights and KV agree to the byte, the compute buffer to the byte in
{exact} of {len(gg)} rows and within {100 * off:.2f} % in all.

| model | users x context, options | tensors | stored | device: weights | KV | compute, ours | compute, llama.cpp | traffic |
|---|---|---:|---:|---:|---:|---:|---:|---:|""")
        for r in gg:
            us, them = r["device_bytes"]["plimsoll"], r["device_bytes"]["llama.cpp"]
            options = "".join(f", {k} {str(v).lower()}" for k, v in r["options"].items())
            print(f"| {r['model']} | {r['users']} x {n(r['context'])}{options} | {r['tensors']['gguf']} | {n(r['stored_bytes']['gguf'])} | {n(us['weights'])} | "
                  f"{n(us['kv_cache'])} | {n(us['activations'])} | {n(them['activations'])} | {n(r['traffic_bytes'])} |")
        print("""
gguf-parser-go is not among them: it is a Go program that PyPI, npm, crates.io and Debian do not ship (PyPI's `gguf-parser` is
another project), and the Go module proxy was out of reach where this ran.""")
    return out.getvalue()


def main():
    from importlib.metadata import version
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for o in ("plimsoll", "inventory", "make-model", "probe"):
        p.add_argument("--" + o, required=True)
    p.add_argument("--made", help="where the random checkpoints are kept; made there if missing")
    a = p.parse_args()
    a.failed = []
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # shows that hf-mem does not read it
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for row in itertools.chain(safetensors_rows(a, tmp), gguf_rows(a, tmp)):
            rows.append(row)
            print(row["model"], *row.get("causes", ()), file=sys.stderr)
    if a.failed:
        raise SystemExit("\n".join(a.failed))
    with open(os.path.join(HERE, "golden", "peers.jsonl"), "w") as f:
        f.writelines(json.dumps(r, separators=(",", ":")) + "\n" for r in rows)
    with open(os.path.join(ROOT, "docs", "peers.md"), "w") as f:
        f.write(page(rows, {k: version(k) for k in ("hf-mem", "gguf")}))


if __name__ == "__main__":
    main()
