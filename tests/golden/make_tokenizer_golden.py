#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tokenizer_forms.json beside this file: one small byte-level BPE under several pre-tokenisers,
texts, and the ids that the tokenizers library gives them. Needs `tokenizers` (0.23.3 was used).

  base   a tokenizer.json, trained on models/tiny-gpt-oss/val.txt, with entries that no merge reaches
         and added tokens of every kind
  texts  what is encoded
  runs   changes to base (pre_tokenizer, ignore_merges) and the ids of the first texts under them
"""
import json
import pathlib
import random
import unicodedata

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
CORPUS = HERE.parents[1] / "models" / "tiny-gpt-oss" / "val.txt"

# Words by case with one mark before them and an English contraction behind, numbers by three, marks,
# line ends, blanks: the rules of the o200k and cl100k vocabularies, put together from their classes.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MARK, CONTRACTION = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANKS = [r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]
O200K = "|".join([MARK + UPPER + "*" + LOWER + "+" + CONTRACTION + "?",
                  MARK + UPPER + "+" + LOWER + "*" + CONTRACTION + "?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", *BLANKS])
CL100K = "|".join([CONTRACTION, MARK + r"\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", *BLANKS])


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def sequence(*parts, prefix=False, use_regex=False):
    return {"type": "Sequence", "pretokenizers": [*parts, byte_level(use_regex, prefix)]}


# name, pre_tokenizer, ignore_merges, number of texts
RUNS = [
    ("o200k", sequence(split(O200K)), True, 1000),
    ("cl100k", sequence(split(CL100K)), True, 60),
    ("merges alone", sequence(split(O200K)), False, 60),
    ("byte level", byte_level(True), False, 60),
    ("byte level with prefix", byte_level(True, True), True, 60),
    ("split with prefix", sequence(split(O200K), prefix=True), True, 40),
    ("split, then pattern", sequence(split(r"[\r\n]"), use_regex=True, prefix=True), False, 40),
    ("no split", sequence(), False, 40),
    ("removed", sequence(split(r"\s+", "Removed")), True, 40),
    ("removed but matches", sequence(split(CL100K, "Removed", True)), True, 40),
    ("contiguous", sequence(split(r"\p{L}", "Contiguous")), False, 40),
    ("with previous", sequence(split(r"\s", "MergedWithPrevious")), False, 40),
    ("with next", sequence(split(r"\s", "MergedWithNext")), False, 40),
    ("with previous, inverted", sequence(split(r"\p{L}+", "MergedWithPrevious", True)), False, 40),
    ("with next, inverted", sequence(split(r"\p{L}+", "MergedWithNext", True)), False, 40),
    ("literal", sequence(split("the", "MergedWithNext", kind="String")), False, 40),
    ("three", sequence(split(r"\p{N}{1,3}"), split(r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+"),
                       split(r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
                             r"\s*[\r\n]+|\s+(?!\S)|\s+")), False, 40),
]

WRITTEN = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "  a  b  ", "Hello, world!", "hello world",
    "It's we're I'VE you'Ll he'd I'm 'S 's'T x'\u017f", "don't can't won't ''tis 'twas", "THE The the tHe",
    "1 12 123 1234 12345 123456", "3.14159, 2,718,281", "\u0661\u0662\u0663\u0664 \u00bd \u2167 \u00b2",
    "a\n\nb", "a \n b", "a\n \nb", "a\r\n\r\nb\r", "x   \n\n   y", "   leading", "trailing   ", "\n\n\n   \n",
    "tab\tand\ttabs\t\t", "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u180eg\u200bh", "http://x.org/a/b?c=d&e=f#g",
    "if (x != y) { return a[i] += 1; }\n", "/// comment //\n/* c */", "...!?--\u2014\u2013", "$100 \u20ac50 \u00a35",
    "caf\u00e9 na\u00efve cafe\u0301 nai\u0308ve", "Stra\u00dfe STRASSE \u1e9e", "\u01c5ungla \u01c8 \u01cb",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002123\u6f22\u5b57", "\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca",
    "\ud55c\uad6d\uc5b4 \uc548\ub155", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645", "\u05e9\u05dc\u05d5\u05dd",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f600\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\u2713\u2717 \u2192\u2190 \u221e\u2211",
    "\x00\x01\x7f\x1b[0m", "\ufeff\ufffd\U0010ffff", "zebra zebras Zebra  zebra", "the quixotic zebra",
    "<|start|>user<|end|>", "a<|start|>b", " <|start|> ", "<|start|><|start|>", "<|end", "<|end|", "<|end|><|en",
    "<|en<|end|>", "<|<|end|>|>", "x [tool] y[tool]z", "[tool][tool]", "[tool", "a <|l|> b", "a  \n<|l|>b", "<|l|>",
    "  <|l|>", "a <|r|>  b", "<|r|>\n\n x", "<|r|>", "<|r|>   ", "<|r|> <|l|>", "x  <|both|>  y", "a\u3000<|both|>\u00a0b",
    "<|both|><|both|>", "<|both|>  <|both|>", "<|r|>  sp", "<|r|>   sp  sp", "word  sp x", "\u00e9<|start|>\u00e9",
    "TOOL [TOOL] tool", "<norm>x<norm>", "<nor", "x <norm> <|start|><norm>", "<|end|>the<|end|>the the",
]


def random_text(rng, blocks):
    parts = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(6)
        if kind == 0:
            parts.append(rng.choice(["<|start|>", "<|end|>", "<|end", "[tool]", "<|l|>", "<|r|>", "<|both|>", "<norm>", "  sp"]))
        elif kind == 1:
            parts.append("".join(rng.choice(" \t\n\r\u00a0\u3000") for _ in range(rng.randrange(1, 5))))
        elif kind == 2:
            parts.append(rng.choice(["the", " The", "and", "'s", "'LL", " of", "zebra", " zebra", "123", "x", "ING"]))
        else:
            block = rng.choice(blocks)
            parts.append("".join(rng.choice(block) for _ in range(rng.randrange(1, 6))))
    return "".join(parts)


def blocks():
    """Assigned characters of Unicode 14 or before, in neighbourhoods."""
    lists = []
    for first, last in ((0x20, 0x7F), (0x30, 0x3A), (0x41, 0x5B), (0x61, 0x7B), (0xA0, 0x180), (0x300, 0x370),
                        (0x370, 0x530), (0x590, 0x700), (0x900, 0xA00), (0x2000, 0x2070), (0x2150, 0x2300),
                        (0x3040, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0x1F300, 0x1F700)):
        lists.append([chr(c) for c in range(first, last) if unicodedata.category(chr(c)) not in ("Cn", "Cs")])
    return lists


def base_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(O200K), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=256 + 420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([CORPUS.read_text()], trainer)
    base = json.loads(tokenizer.to_str())
    base["model"]["ignore_merges"] = True
    vocab = base["model"]["vocab"]
    # Whole pieces that ignore_merges takes and merges do not reach.
    for word in ("zebra", "\u0120zebra", "\u0120quixotic", "123", "\u010a\u010a\u010a\u0120\u0120\u0120\u010a"):
        vocab[word] = len(vocab)
    added, at = [], len(vocab)
    for content, special, lstrip, rstrip, normalized in (
            ("<|start|>", True, False, False, False), ("<|end|>", True, False, False, False),
            ("<|en", False, False, False, False), ("[tool]", False, False, False, False),
            ("<|l|>", True, True, False, False), ("<|r|>", True, False, True, False),
            ("<|both|>", False, True, True, False), ("<norm>", False, False, False, True),
            ("  sp", False, False, False, False), ("<norm><|st", False, False, False, True)):
        added.append({"id": at, "content": content, "single_word": False, "lstrip": lstrip, "rstrip": rstrip,
                      "normalized": normalized, "special": special})
        at += 1
    base["added_tokens"] = added
    return base


def main():
    rng = random.Random(20240229)
    lists = blocks()
    texts = WRITTEN + [random_text(rng, lists) for _ in range(130)]
    base = base_tokenizer()
    runs = []
    for name, pre, ignore, count in RUNS:
        base["pre_tokenizer"], base["model"]["ignore_merges"] = pre, ignore
        tokenizer = Tokenizer.from_str(json.dumps(base))
        rest = len(texts) - count
        some = texts if rest <= 0 else texts[:: max(1, len(texts) // count)][:count]
        ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in some]
        runs.append({"name": name, "pre_tokenizer": pre, "ignore_merges": ignore,
                     "step": 1 if rest <= 0 else max(1, len(texts) // count), "ids": ids})
    del base["pre_tokenizer"]
    out = {"provenance": f"make_tokenizer_golden.py with tokenizers {tokenizers.__version__}, Python's random seeded 20240229",
           "base": base, "texts": texts, "runs": runs}
    rows = json.dumps(out, ensure_ascii=True, separators=(",", ":"))
    (HERE / "tokenizer_forms.json").write_text(rows.replace('{"name"', '\n{"name"').replace('"texts"', '\n"texts"') + "\n")


if __name__ == "__main__":
    main()
