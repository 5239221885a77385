#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets to corpus/{safetensors,index,json,tokenizer}
beside this file."""
import json
import pathlib
import struct


def image(header, data=b"", length=None):
    """A safetensors file; a dict as header is written as JSON."""
    if isinstance(header, dict):
        header = json.dumps(header, separators=(",", ":"))
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DTYPES = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}


def every_dtype():
    header, at = {}, 0
    for dtype, bits in DTYPES.items():
        header[dtype] = tensor(dtype, [2, 2], at, at + bits // 2)
        at += bits // 2
    return image(header, bytes(at))


def experts():
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for e in range(4):
        prefix = f"model.layers.0.mlp.experts.{e}."
        for name, dtype, shape, size in (
            ("blocks", "U8", [2, 1, 16], 32),
            ("scales", "F8_E8M0", [2, 1], 2),
            ("bias", "BF16", [2], 4),
        ):
            header[prefix + name] = tensor(dtype, shape, at, at + size)
            at += size
    return image(header, bytes(range(at)))


ONE = {"a": tensor("F32", [2, 3], 0, 24)}
TWO = {"a": tensor("U8", [4], 4, 8), "b": tensor("U8", [4], 0, 4)}

SAFETENSORS = {
    "empty": image("{}"),
    "one": image(ONE, bytes(24)),
    "padded": image(json.dumps(ONE) + "   ", bytes(24)),
    "unsorted": image(TWO, bytes(8)),
    "dtypes": every_dtype(),
    "experts": experts(),
    "zero-size": image({"a": tensor("F32", [0, 5], 0, 0), "s": tensor("F32", [], 0, 4)}, bytes(4)),
    "rank-six": image({"a": tensor("U8", [1, 2, 1, 2, 1, 2], 0, 8)}, bytes(8)),
    "sub-byte": image({"a": tensor("F4", [3, 3], 0, 5)}, bytes(5)),
    "hole": image({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 8, 12)}, bytes(12)),
    "overlap": image({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, bytes(6)),
    "overflow": image({"a": tensor("F64", [2**62, 2**62], 0, 8)}, bytes(8)),
    "duplicate": image(
        '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        '"\\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "escapes": image(
        '{"\\ud83d\\ude00\\n\\"\\\\\\/\u00e9":{"\\u0064type":"U8","shape":[1],'
        '"data_offsets":[0,1]},"__metadata__":{"k":"\\u20ac","\\u00e9":""}}',
        bytes(1),
    ),
    "long-header": image("{}", length=100_000_001),
    "truncated": image(ONE, bytes(7)),
    "nul": image('{"a":{"dtype":"U8","shape":[0\0],"data_offsets":[0,0]}\0 }'),
    "short": b"\x02\0\0\0",
}


def index(weight_map, **more):
    return json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map, **more}).encode()


GOOD = {"a": "s1", "b": "s1", "c": "s2"}

INDEX = {
    "good": index(GOOD),
    "no-metadata": json.dumps({"weight_map": GOOD}).encode(),
    "more-keys": index(GOOD, format="pt", other=[1, {"x": None}]),
    "escaped": b'{"weight_map":{"\\u0061":"\\u00731","b":"s1","c":"s2"}}',
    "duplicate": b'{"weight_map":{"a":"s1","\\u0061":"s1","b":"s1","c":"s2"}}',
    "wrong-shard": index({**GOOD, "a": "s2"}),
    "missing-shard": index({**GOOD, "a": "s3"}),
    "missing-tensor": index({"a": "s1", "c": "s2"}),
    "other-tensor": index({**GOOD, "d": "s2"}),
    "parent": index({**GOOD, "a": "../s1"}),
    "absolute": index({**GOOD, "a": "/dev/null"}),
    "dots": index({**GOOD, "a": ".."}),
    "empty-name": index({**GOOD, "a": ""}),
    "not-a-name": index({**GOOD, "a": 1}),
    "empty-map": index({}),
    "array-map": b'{"weight_map":["a","s1"]}',
    "not-json": b'{"weight_map":',
}

CONFIG = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "hidden_size": 2880,
    "num_local_experts": 32, "num_experts_per_tok": 4, "swiglu_limit": 7.0, "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False, "pad_token_id": None,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False},
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}

# The first byte holds the flags.
JSON = {
    "config": b"0" + json.dumps(CONFIG, indent=2).encode(),
    "config-python": b"1" + json.dumps({**CONFIG, "limit": [0.0, float("inf")]}).encode(),
    "constants": b'1{"a":NaN,"b":-Infinity,"c":"NaN","d":[Infinity,-1]}',
    "constants-strict": b'0{"a":NaN}',
    "types": b'0{"s":"x","i":-7,"d":2.5,"e":1e3,"t":true,"f":false,"n":null,"o":{},"a":[]}',
    "empty": b"0{}",
    "array": b"0[]",
    "duplicate": b'0{"a":{"b":1,"\\u0062":2}}',
    "escapes": b'0{"\\ud83d\\ude00":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0001"}',
    "surrogate": b'0{"a":"\\ud800"}',
    "utf8": b'0{"a":"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"}',
    "not-utf8": b'0{"a":"\xc0\x80"}',
    "nul": b'0{"a":"\\u0000"}',
    "nul-after-number": b'0{"a":1\0}',
    "large-integer": b'0{"a":9223372036854775807,"b":-9223372036854775808}',
    "overflow": b'0{"a":9223372036854775808,"b":1e999}',
    "deep": b'0{"a":' + b"[" * 63 + b"]" * 63 + b"}",
    "too-deep": b'0{"a":' + b'{"a":' * 64 + b"1" + b"}" * 65,
    "trailing": b"0{}x",
}

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*splits, **byte_level):
    return {"type": "Sequence", "pretokenizers": [*splits, {**BYTE_LEVEL, **byte_level}]}


def added(number, content, **flags):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


def tokenizer(text, pre, tokens=(), vocab=None, merges=None, more=None, **root):
    """A tokenizer.json, a NUL, and a text for it."""
    vocab = vocab or {"a": 0, "b": 1, "\u0120": 2, "'": 3, "s": 4, "1": 5, "\u010a": 6, "ab": 7, "\u0120a": 8, "\u0120ab": 9,
                      "\u00c3": 10, "\u00a9": 11}
    merges = [["a", "b"], ["\u0120", "a"], ["\u0120", "ab"]] if merges is None else merges
    model = {"type": "BPE", "vocab": vocab, "merges": merges, **(more or {})}
    document = {"added_tokens": list(tokens), "pre_tokenizer": pre, "model": model, **root}
    return json.dumps(document, separators=(",", ":")).encode() + b"\0" + text.encode()


WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DOUBLING = {"a" * 2**i: i for i in range(6)}

TOKENIZER = {
    "gpt2": tokenizer("ab ab's 11\n  a", {**BYTE_LEVEL, "use_regex": True}),
    "gpt2-prefix": tokenizer("ab ab", {**BYTE_LEVEL, "use_regex": True, "add_prefix_space": True}),
    "words": tokenizer("ab ab's 1111\n\n a'S", sequence(split(WORDS)), more={"ignore_merges": True}),
    "merges": tokenizer("ab abab  a\u00e9b", sequence()),
    "doubling": tokenizer("a" * 61, sequence(), vocab=DOUBLING, merges=[["a" * 2**i] * 2 for i in range(5)]),
    "strings": tokenizer("ab ab", sequence(), merges=["a b", "\u0120 a"]),
    "added": tokenizer("a<x>b <x> <y><xx>", sequence(), [added(20, "<x>"), added(21, "<xx"), added(22, "<y>", normalized=True)]),
    "strip": tokenizer("a  <x>  <x> b", sequence(), [added(20, "<x>", lstrip=True, rstrip=True), added(21, "  b", special=False)]),
    "removed": tokenizer("a b ab", sequence(split(r"\s", "Removed"))),
    "previous": tokenizer("a b  ab", sequence(split(r"\s", "MergedWithPrevious", True))),
    "next": tokenizer("a b  ab", sequence(split(" ", "MergedWithNext", kind="String"))),
    "contiguous": tokenizer("a b  ab", sequence(split(r"[ab]", "Contiguous"), split(r"b"), use_regex=True)),
    "quadratic": tokenizer("a" * 200 + "1b", sequence(split("(a+)+b"))),
    "no-byte": tokenizer("axb", sequence()),
    "not-utf8": tokenizer("a", sequence()) + b"\xff",
    "normalizer": tokenizer("a", sequence(), normalizer={"type": "NFC"}),
    "class-in-class": tokenizer("a", sequence(split("[a[b]]"))),
    "unicode-class": tokenizer("a", sequence(split(r"[\x{4e00}-\x{9fa5}]+|(?<=a)b{1,3}"))),
    "unknown-merge": tokenizer("a", sequence(), merges=[["a", "x"]]),
}


def main():
    base = pathlib.Path(__file__).parent / "corpus"
    for target, seeds in (("safetensors", SAFETENSORS), ("index", INDEX), ("json", JSON),
                          ("tokenizer", TOKENIZER)):
        folder = base / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            assert len(seed) < 2048, (target, name, len(seed))
            (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
