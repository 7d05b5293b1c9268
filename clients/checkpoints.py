"""Small checkpoints to serve: the weights of the test fixtures with a tokenizer that has a token for every byte.

Their text makes no sense, but it can be any text: what a grammar asks for, they can write.
"""

import json
import struct
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "crates/runtime/tests/fixtures"
# Bytes that no UTF-8 text has give their ids to what texts cannot spell.
SPECIAL = {0xF8: "<|bos|>", 0xF9: "<|end|>", 0xFA: "<|im_start|>", 0xFB: "<|im_end|>"}
END = 0xFB
CONTEXT = 1024
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def letters():
    """The letter that stands for each byte in byte-level vocabularies, as GPT-2 has it."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def vocabulary():
    return [SPECIAL.get(b, letter) for b, letter in enumerate(letters())]


def tokenizer(folder):
    tokens = vocabulary()
    added = [
        dict(id=i, content=t, special=True, single_word=False, lstrip=False, rstrip=False, normalized=False)
        for i, t in SPECIAL.items()
    ]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    vocab = {t: i for i, t in enumerate(tokens)}
    value = dict(
        version="1.0",
        added_tokens=added,
        normalizer=None,
        pre_tokenizer=byte_level,
        post_processor=None,
        decoder=byte_level,
        model=dict(type="BPE", vocab=vocab, merges=[]),
    )
    (folder / "tokenizer.json").write_text(json.dumps(value))
    config = dict(chat_template=TEMPLATE, bos_token=SPECIAL[0xF8], eos_token=SPECIAL[END])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(dict(eos_token_id=END)))


def of_fixture(family, folder):
    folder.mkdir(parents=True)
    config = json.loads((FIXTURES / family / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    data = (FIXTURES / family / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, values = {}, b""
    for name, t in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in t["data_offsets"])
        raw, shape = data[begin:end], t["shape"]
        if "embed_positions" in name:
            # Learned positions, again and again until there are enough: OPT has two more than its context.
            row = len(raw) // shape[0]
            shape = [CONTEXT + 2, *shape[1:]]
            raw = (raw * shape[0])[: shape[0] * row]
        header[name] = dict(dtype=t["dtype"], shape=shape, data_offsets=[len(values), len(values) + len(raw)])
        values += raw
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + values)
    tokenizer(folder)
    return folder


def tensors(path):
    """Names, shapes and float32 values of a safetensors file."""
    import numpy

    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    for name, t in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + at for at in t["data_offsets"])
            raw = data[begin:end]
            if t["dtype"] == "BF16":
                values = (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
            else:
                values = numpy.frombuffer(raw, dict(F32="<f4", F16="<f2")[t["dtype"]]).astype("<f4")
            yield name, values.reshape(t["shape"])


def gguf_of_llama(path):
    """The LLaMA fixture as a GGUF file, written by llama.cpp's own package."""
    import gguf

    c = json.loads((FIXTURES / "llama/config.json").read_text())
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("llama")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    head = c.get("head_dim") or c["hidden_size"] // heads
    w.add_rope_dimension_count(head)
    w.add_key_length(head)
    w.add_value_length(head)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base((c.get("rope_parameters") or c).get("rope_theta", 10000.0))
    w.add_vocab_size(c["vocab_size"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(vocabulary())
    w.add_token_types([3 if b in SPECIAL else 1 for b in range(256)])
    w.add_token_merges([])
    w.add_bos_token_id(0xF8)
    w.add_eos_token_id(END)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, value in tensors(FIXTURES / "llama/model.safetensors"):
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            for n, stem_heads in (("q_proj", heads), ("k_proj", kv)):
                if rest.endswith(n):
                    # llama.cpp turns neighbours, transformers halves.
                    halves = value.reshape(stem_heads, 2, head // 2, *value.shape[1:])
                    value = halves.swapaxes(1, 2).reshape(value.shape)
            stem = f"blk.{layer}.{names[rest]}"
        else:
            stem = names[stem]
        w.add_tensor(f"{stem}.{kind}", value.copy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def all_of_them(folder):
    """A name for each model, and what `serve` takes."""
    return {
        "demo": "demo",
        "OPT": str(of_fixture("opt", folder / "opt")),
        "Gemma 3": str(of_fixture("gemma3", folder / "gemma3")),
        "LLaMA (GGUF)": str(gguf_of_llama(folder / "llama.gguf")),
    }
