#!/usr/bin/env python3
"""Writes a small SentencePiece BPE, as a GGUF file has it, with the tokens that SentencePiece itself gives texts.

    sentencepiece_tokens.py > crates/runtime/src/text/golden/sentencepiece.json

Needs Python 3.9, and the package sentencepiece (0.2 or later).
"""
import io, json, sys

import sentencepiece as spm

LINES = [
    "The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs.",
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
    "She sells sea shells by the sea shore; the shells she sells are surely seashells.",
    "Peter Piper picked a peck of pickled peppers, and 12 more in 1984.",
    "A page is free, held, cached or in transit; a block is one of its uses.", "def f(x):\n    return x + 1",
]
TEXTS = LINES + [
    "", " ", "  two  spaces ", "unknown: é ü 日本語 😀", "woodchucks", "1234567890", "\n\n\ttabs\t", "the the the", "a",
    "ends with a space ", "Shells-by-the-shore!?", "x" * 40, "▁▁ itself",
]

out = io.BytesIO()
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES * 20), model_writer=out, model_type="bpe", vocab_size=460, byte_fallback=True,
    character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
    user_defined_symbols=["<tool>"], minloglevel=2)
p = spm.SentencePieceProcessor(model_proto=out.getvalue())
n = p.get_piece_size()
# Types by their number in sentencepiece_model.proto, which GGUF takes over.
kind = lambda i: 2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else 4 if p.id_to_piece(i) == "<tool>" else 1
json.dump({
    "tokens": [p.id_to_piece(i) for i in range(n)], "scores": [p.get_score(i) for i in range(n)],
    "types": [kind(i) for i in range(n)],
    "texts": [{"text": t, "ids": p.encode(t), "decoded": p.decode(p.encode(t))} for t in TEXTS],
}, sys.stdout, ensure_ascii=False, separators=(",", ":"))
print()
