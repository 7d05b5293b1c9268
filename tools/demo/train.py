#!/usr/bin/env python3
"""Trains the demo model that `plimsoll generate` runs when it is given none, from the text of corpus.py.

    train.py OUT [--deb FILE] [--steps N] [--cpu-minutes N] [--state FILE]

Writes into the folder OUT a checkpoint as transformers reads and writes it (config.json, generation_config.json,
tokenizer.json, model.safetensors in bf16) and metrics.json: how it was made, and its bits per byte on chapters
that it has never seen. The model is a LLaMA of 3.5 million parameters over a byte-level BPE of 2,048 tokens.

The text: every 20th chapter of the six novels is held out for metrics.json and used for nothing else, every 40th
(others) is for choosing settings and for the log, and the rest is trained on. The score: the bf16 weights, in f32
arithmetic, over each held-out chapter from its beginning, in windows of 1,024 tokens that advance by 512, so that
each token is predicted once, from at least 512 tokens before it where the chapter has them. The sum of -log2 p over
all tokens and the end-of-text token of each chapter, divided by the chapters' bytes in UTF-8.

The run is bounded by the processor time of all its threads (--cpu-minutes; 120 is one hour on 2 cores), so that a
busy machine does not change the result, and with the same versions on the same processor it gives the same weights.
With --state it keeps its state in a file and goes on from there when it is started again. The learning rate is flat
until the last part of the run, so going on with other --steps gives what a whole run of as many steps gives, as long
as that part has not begun.

Needs Python 3.9, dpkg-deb, and the packages torch, transformers, tokenizers and safetensors.
"""
import argparse
import concurrent.futures
import hashlib
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, __version__ as transformers_version

import corpus

END = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 1024
STEP_WINDOWS = 4
# Windows of a step that are worked on at the same time, by one thread each: threads that meet once a step lose less
# to a busy machine than threads that meet in every operation. Two gradients also add up to the same in any order.
WORKERS = 2
WARMUP_STEPS = 40
DECAY_SHARE = 0.4
SCORE_STRIDE = 512
LOG_STEPS = 10
SAVE_STEPS = 50
SCORE_STEPS = 200
LIMIT_BYTES = 8_000_000
# A model this small loops when it always takes the likeliest token, so its own configuration asks for sampling.
GENERATION = {"bos_token_id": 0, "eos_token_id": 0, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
FILES = ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]


def split(novels):
    """The chapters to train on, to choose settings by, and to score."""
    parts = {"train": [], "choose": [], "score": []}
    for i, chapter in enumerate(c for chapters in novels.values() for c in chapters):
        parts["score" if i % 20 == 10 else "choose" if i % 40 == 0 else "train"].append(chapter)
    return parts


def train_tokenizer(chapters):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(chapters, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def new_model():
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        initializer_range=0.02, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa"))


def batches(stream, generator):
    """Endless steps' worth of windows, CONTEXT + 1 tokens each: every pass over the stream has a new offset and order."""
    while True:
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        windows = stream[offset:].unfold(0, CONTEXT + 1, CONTEXT)
        order = torch.randperm(len(windows), generator=generator)
        for picked in order.split(STEP_WINDOWS)[: len(order) // STEP_WINDOWS]:
            yield windows[picked]


def rate_share(step, steps):
    """The share of the peak learning rate: a linear rise, a flat part, a linear fall."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps), 1.0)


def backward(model, windows):
    """Adds the gradient of the windows' share of a step's mean loss, and returns that share."""
    torch.set_num_threads(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten()) / WORKERS
    loss.backward()
    return loss.item()


@torch.no_grad()
def score(model, tokenizer, chapters):
    """Bits per byte, as the head of this file says."""
    was_training = model.training
    model.eval()
    bits = tokens = 0
    for chapter in chapters:
        ids = torch.tensor([0] + tokenizer.encode(chapter).ids + [0])
        scored = 1
        while scored < len(ids):
            begin = max(0, scored - SCORE_STRIDE)
            end = min(begin + CONTEXT + 1, len(ids))
            logits = model(ids[None, begin : end - 1]).logits[0].float()
            losses = torch.nn.functional.cross_entropy(logits, ids[begin + 1 : end], reduction="none")
            bits += losses[scored - begin - 1 :].double().sum().item() / math.log(2)
            tokens += end - scored
            scored = end
    model.train(was_training)
    return bits / sum(len(c.encode()) for c in chapters), tokens


def write(model, tokenizer, out):
    """The checkpoint's four files; the model keeps its f32 weights."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    # Tied: the output matrix is the embedding, kept once.
    weights = {n: w.detach().to(torch.bfloat16).contiguous() for n, w in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict() | {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
    for name, value in [("config.json", config), ("generation_config.json", GENERATION)]:
        (out / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def rounded(out):
    """The model as its files give it: bf16 weights in f32 arithmetic."""
    model = new_model()
    missing = model.load_state_dict({n: w.float() for n, w in load_file(out / "model.safetensors").items()}, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys, missing
    model.tie_weights()
    return model.eval()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", type=Path)
    args.add_argument("--deb", type=Path, help="the text's package, if it is here already")
    args.add_argument("--steps", type=int, default=1400)
    args.add_argument("--cpu-minutes", type=float, default=120, help="stop at this much processor time of all threads")
    args.add_argument("--lr", type=float, default=3e-3)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--state", type=Path, help="where the run's state is kept, to go on from")
    args = args.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    started = time.monotonic()
    parts = split(corpus.load(args.deb))
    tokenizer = train_tokenizer(parts["train"])
    stream = torch.tensor([i for c in parts["train"] for i in [0] + tokenizer.encode(c).ids] + [0])
    print(f"{len(stream)} training tokens, {sum(len(c.encode()) for c in parts['train']) / len(stream):.3f} bytes each", flush=True)

    model = new_model()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    source = batches(stream, torch.Generator().manual_seed(args.seed))
    model.train()
    done = earlier_seconds = 0
    if args.state and args.state.exists():
        state = torch.load(args.state)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        done, earlier_seconds = state["done"], state["cpu_seconds"]
        for _ in range(done):
            next(source)
    recent = []
    workers = concurrent.futures.ThreadPoolExecutor(WORKERS)

    def cpu_seconds():
        return earlier_seconds + time.process_time()

    while done < args.steps:
        if cpu_seconds() > 60 * args.cpu_minutes:
            print("stopped at the limit of processor time", flush=True)
            break
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = args.lr * rate_share(done, args.steps)
        recent.append(sum(workers.map(lambda w: backward(model, w), next(source).chunk(WORKERS))))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done += 1
        if done % LOG_STEPS == 0:
            print(f"step {done}: loss {sum(recent) / len(recent):.4f}, {cpu_seconds() / 60:.1f} CPU minutes, "
                  f"{(time.monotonic() - started) / 60:.1f} minutes", flush=True)
            recent = []
        if done % SAVE_STEPS == 0 and args.state:
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "done": done,
                        "cpu_seconds": cpu_seconds()}, args.state)
        if done % SCORE_STEPS == 0:
            write(model, tokenizer, args.out)
            print(f"step {done}: {score(model, tokenizer, parts['choose'])[0]:.4f} bits per byte on the chapters to choose by", flush=True)

    write(model, tokenizer, args.out)
    final = rounded(args.out)
    bits, tokens = score(final, tokenizer, parts["score"])
    size = sum((args.out / f).stat().st_size for f in FILES)
    metrics = {
        "bits_per_byte": round(bits, 4),
        "bits_per_byte_choosing": round(score(final, tokenizer, parts["choose"])[0], 4),
        "held_out_bytes": sum(len(c.encode()) for c in parts["score"]),
        "held_out_chapters": len(parts["score"]),
        "held_out_tokens": tokens,
        "score_window_tokens": CONTEXT,
        "score_stride_tokens": SCORE_STRIDE,
        "text": f"the six novels of Jane Austen, from the Debian package {corpus.PACKAGE} {corpus.VERSION}",
        "text_licence": corpus.LICENCE,
        "text_sha256": corpus.TEXT_SHA256,
        "training_text_bytes": sum(len(c.encode()) for c in parts["train"]),
        "training_text_tokens": len(stream),
        "steps": done,
        "trained_tokens": done * STEP_WINDOWS * CONTEXT,
        "parameters": sum(p.numel() for p in final.parameters()),
        "learning_rate": args.lr,
        "seed": args.seed,
        "cpu_minutes": round(cpu_seconds() / 60, 1),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "bytes": size,
        "sha256": {f: digest(args.out / f) for f in FILES},
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{bits:.4f} bits per byte held out, {size} bytes", flush=True)
    if size > LIMIT_BYTES:
        raise SystemExit(f"train: the checkpoint has {size} bytes, more than {LIMIT_BYTES}")


if __name__ == "__main__":
    main()
