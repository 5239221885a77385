#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets to corpus/ beside this file."""
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
    "empty-token": tokenizer("aa", sequence(), vocab={"": 0, "a": 1}, merges=[["", "a"]]),
    "no-byte": tokenizer("axb", sequence()),
    "not-utf8": tokenizer("a", sequence()) + b"\xff",
    "normalizer": tokenizer("a", sequence(), normalizer={"type": "NFC"}),
    "class-in-class": tokenizer("a", sequence(split("[a[b]]"))),
    "unicode-class": tokenizer("a", sequence(split(r"[\x{4e00}-\x{9fa5}]+|(?<=a)b{1,3}"))),
    "unknown-merge": tokenizer("a", sequence(), merges=[["a", "x"]]),
}


DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "hidden_act": "silu", "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "n_shared_experts": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
OSS = {**CONFIG, "intermediate_size": 2880, "hidden_act": "silu"}
QWEN = {
    "model_type": "qwen3_5_moe",
    "text_config": {
        "model_type": "qwen3_5_moe_text", "hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 4,
        "num_experts_per_tok": 2, "hidden_act": "silu", "shared_expert_intermediate_size": 48,
    },
    "quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*mlp.gate$", "re:.*self_attn\\.(q|k|v)_proj", "re:.*shared_expert.*"],
        "config_groups": {"group_0": {"targets": ["Linear", "re:.*experts\\.\\d+\\.[a-z]*_proj"],
                                      "weights": {"num_bits": 4, "group_size": 32}}},
    },
}
STEP = {
    "model_type": "step3p5", "hidden_size": 64, "moe_intermediate_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
    "hidden_act": "silu", "moe_router_scaling_factor": 3.0, "share_expert_dim": 32, "swiglu_limits": [0, 7.0],
    "swiglu_limits_shared": [0, 7.0],
}
SEMANTICS = {
    "H": 64, "I": 32, "E": 8, "k": 2,
    "semantics": {
        "scoring": "sigmoid", "scoring_over": "all", "select_on": "scores", "correction_bias": True,
        "groups": {"n": 4, "top": 2, "score": "top2sum", "masked_value": 0.0}, "renormalise": True, "renorm_eps": 1e-20,
        "scale": 2.5, "weights_from": "scores", "weight_on": "output", "act": "silu_glu", "layout": "out_in",
        "gate_up": "split", "shared": "plain", "shared_act": "silu_glu",
        "tensors": {"router": "gate.weight", "gate_up": "w13", "down": "w2", "shared_gate_up": "s13", "shared_down": "s2"},
    },
}


def text(value):
    return json.dumps(value).encode()


# The first byte: bit 0 an oracle's case, bit 1 all layers at once, the rest the layer.
CONFIGS = {
    "deepseek": b"\0" + text(DEEPSEEK),
    "gpt-oss": b"\0" + text(OSS),
    "qwen": b"\x02" + text(QWEN),
    "step-layer": b"\x04" + text(STEP),
    "step-any": b"\x02" + text(STEP),
    "modelopt": b"\0" + text({**OSS, "quantization_config": {"quant_algo": "NVFP4", "ignore": ["*.gate", "model.?"]}}),
    "quark": b"\0" + text({**OSS, "quantization_config": {
        "quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}, "exclude": ["re:[m-ole]+", "re:a{2}"]}}),
    "semantics": b"\x01" + text(SEMANTICS),
    "unknown-class": b"\0" + b'{"model_type":"nobody"}',
    "negative": b"\0" + text({**OSS, "hidden_size": -1}),
    "huge": b"\0" + text({**OSS, "hidden_size": 2**62, "num_local_experts": 2**31}),
    "python": b"\0" + text({**OSS, "swiglu_limit": float("nan")}),
}


def checkpoint(tensors):
    """A safetensors file of {name: (dtype, shape, bytes)}."""
    header, data = {}, b""
    for name, (dtype, shape, size) in tensors.items():
        header[name] = tensor(dtype, shape, len(data), len(data) + size)
        data += bytes(56 + i % 8 for i in range(size))
    return image(header, data)


def experts_of(count, hidden, inter, parts, prefix="model.layers.0.mlp.", projections=("gate", "up", "down")):
    """One tensor per expert, projection and part: parts(n, k) gives {suffix: (dtype, shape, bytes)}."""
    out = {prefix + "gate.weight": ("BF16", [count, hidden], 2 * count * hidden)}
    for e in range(count):
        for p in projections:
            n, k = (hidden, inter) if p == "down" else (inter, hidden)
            for suffix, of in parts(n, k).items():
                out[f"{prefix}experts.{e}.{p}_proj.{suffix}"] = of
    return out


def floats(n, k):
    return {"weight": ("BF16", [n, k], 2 * n * k)}


def nvfp4(n, k):
    return {"weight_packed": ("U8", [n, k // 2], n * k // 2), "weight_scale": ("F8_E4M3", [n, k // 16], n * k // 16),
            "weight_global_scale": ("F32", [1], 4)}


def int4(n, k):
    return {"weight_packed": ("I32", [n, k // 8], n * k // 2), "weight_scale": ("BF16", [n, 1], 2 * n),
            "weight_zero_point": ("I32", [n // 8, 1], n // 2)}


def fp8(n, k):
    return {"weight": ("F8_E4M3", [n, k], n * k), "weight_scale_inv": ("F32", [1, 1], 4)}


SHARED = {f"model.layers.0.mlp.shared_expert.{p}_proj.weight": ("BF16", [4, 2] if p == "down" else [2, 4], 16)
          for p in ("gate", "up", "down")}
BLOCKS = {
    "model.layers.0.mlp.router.weight": ("BF16", [1, 32], 64),
    "model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", [1, 64, 1, 16], 1024),
    "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", [1, 64, 1], 64),
    "model.layers.0.mlp.experts.gate_up_proj_bias": ("BF16", [1, 64], 128),
    "model.layers.0.mlp.experts.down_proj_blocks": ("U8", [1, 32, 1, 16], 512),
    "model.layers.0.mlp.experts.down_proj_scales": ("U8", [1, 32, 1], 32),
    "model.layers.0.mlp.experts.down_proj_bias": ("BF16", [1, 32], 64),
}

# The first byte chooses the configuration (fuzz_dialects.c).
DIALECTS = {
    "float": b"\0" + checkpoint(experts_of(2, 4, 2, floats)),
    "nvfp4": b"\x01" + checkpoint(experts_of(1, 32, 32, nvfp4)),
    "int4": b"\x01" + checkpoint(experts_of(1, 32, 32, int4)),
    "fp8": b"\x01" + checkpoint(experts_of(1, 32, 32, fp8)),
    "gpt-oss": b"\x02" + checkpoint(BLOCKS),
    "shared": b"\x03" + checkpoint({**experts_of(1, 4, 2, floats), **SHARED,
                                    "model.layers.0.mlp.shared_expert_gate.weight": ("BF16", [1, 4], 8)}),
    "two-dialects": b"\x01" + checkpoint({**experts_of(1, 32, 32, fp8), **experts_of(1, 32, 32, int4, projections=("up",))}),
    "missing": b"\0" + checkpoint(experts_of(1, 4, 2, floats)),
    "no-experts": b"\0" + checkpoint({"model.layers.0.mlp.gate.weight": ("BF16", [2, 4], 16)}),
}


DECODER = {
    "model_type": "gpt_oss", "hidden_size": 288, "vocab_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "sliding_window": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0, "eos_token_id": 0, "layer_types": ["sliding_attention", "full_attention"] * 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0}

DECODERS = {
    "plain": text(DECODER),
    "yarn": text({**DECODER, "rope_scaling": {**YARN, "truncate": False}}),
    "five": text({**DECODER, "rope_parameters": {**YARN, "rope_theta": 1e6, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "no-factor": text({**DECODER, "rope_scaling": {"rope_type": "yarn", "beta_fast": 1e-300, "beta_slow": 0}}),
    "eos-list": text({**DECODER, "eos_token_id": [1, 2, 2, 4095], "tie_word_embeddings": True}),
    "eos-large": text({**DECODER, "eos_token_id": 4096}),
    "no-window": text({k: v for k, v in DECODER.items() if k != "sliding_window"}),
    "linear": text({**DECODER, "rope_scaling": {"type": "linear", "factor": 2}}),
    "heads": text({**DECODER, "num_attention_heads": 7}),
    "huge": text({**DECODER, "hidden_size": 2**62}),
    "layers": text({**DECODER, "num_hidden_layers": 1025}),
    "class": text({**DECODER, "model_type": "qwen3_moe"}),
    "array": b"[]",
}

COMMANDS = {
    "numbers": b"0\0-5\0 7\0+7\x00001000\x001001\0\x0099999999999999999999\x001e3\x000x10",
    "reals": b"0.5\0.5\0-0\0nan\0inf\x001e400\x002.0x\x001e-400",
    "shapes": b"64,32,8,2\0gpt-oss-20b\x0064,32,8\x001,2,3,4,5\0,,,\x00-1,2,3,4\x002147483648,1,1,1",
    "places": b"models/tiny:3\0a:b:4\0:\0x:-1\0/\0cpu\0cuda\0tpu",
    "options": b"--value\x003\0--flag\0a\0--\0--b",
    "lacking": b"--value",
    "unknown": b"--what\0--",
    "many": b"a\0b\0c\0d\0e",
}


def packed(sources=(("", 100, 1),), parts=((0, 4096, "version=1"), (7, 100, "version=1 bytes=100")), magic=b"moe-pack",
           order=0x01020304, version=1, size=None, head=4096):
    """The head of a packed file; its checksums are wrong (fuzz_packed.c puts the head's right)."""
    at = 64 + 24 * len(sources) + 40 * len(parts)
    texts, records, data = b"", b"", head
    for name, count, identity in sources:
        records += struct.pack("<QQII", count, identity, at + len(texts), len(name))
        texts += name.encode() + b"\0"
    for layer, count, layout in parts:
        records += struct.pack("<QQQiIII", data, count, 0, layer, 0, at + len(texts), len(layout))
        texts += layout.encode() + b"\0"
        data = (data + (count + 4095) // 4096 * 4096) % 2**64
    header = struct.pack("<8sIIQQQIIQQ", magic, order, version, data if size is None else size, head, 0, len(sources),
                         len(parts), 0, 0)
    return header + records + texts


PACKED = {
    "two": packed(),
    "shards": packed([("model-00001-of-00002.safetensors", 10, 2), ("model-00002-of-00002.safetensors", 11, 3)]),
    "one": packed(parts=[(3, 8192, "version=1")]),
    "none": packed(parts=[], size=12288),
    "order": packed(order=0x04030201),
    "version": packed(version=2),
    "magic": packed(magic=b"moe-mock"),
    "size": packed(size=1 << 40),
    "head": packed(head=1 << 63),
    "layers": packed(parts=[(1, 4096, ""), (1, 4096, "")]),
    "overlap": packed(parts=[(1, 2**64 - 4096, "a"), (2, 4096, "b")], size=12288),
    "header": packed()[:64],
    "short": packed()[:40],
}


def main():
    base = pathlib.Path(__file__).parent / "corpus"
    for target, seeds in (("safetensors", SAFETENSORS), ("index", INDEX), ("json", JSON), ("config", CONFIGS),
                          ("dialects", DIALECTS), ("tokenizer", TOKENIZER),
                          ("model_config", DECODERS), ("cli", COMMANDS), ("packed", PACKED)):
        folder = base / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            assert len(seed) < 8192, (target, name, len(seed))
            (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
