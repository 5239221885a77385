#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""MoE layers as PyTorch and transformers have them, measured as `moe bench` measures: sets of inputs that
route elsewhere, one after the other in one CUDA graph, median over replays / sets; docs/bench.md.

    python3 bench/peers_torch.py --glue build/libglue.so --out FILE [--shapes NAME|H,I,E,k ...]
        [--tokens 1,8,...] [--formats bf16,fp8] [--peers glue,native,transformers] [--seconds N]

Peers, each from router logits to output:
  grouped_mm+glue   torch._grouped_mm (bf16) or torch._scaled_grouped_mm (fp8, a scale per row) between
                    the kernels of bench/glue.cu
  grouped_mm        the same in PyTorch's own operations: what its user writes (bf16)
  transformers NAME an implementation of transformers' experts (bf16); routing is not counted
The file is written anew, whole, after every shape."""
import argparse
import ctypes
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
ERROR_TOKENS = 32  # rows up to here are compared with a float32 layer
REPLAY_MS = 90.0   # of measuring a row
DEVICE = "cuda"
BF16 = dict(device=DEVICE, dtype=torch.bfloat16)
FP8 = dict(device=DEVICE, dtype=torch.float8_e4m3fn)
F32 = dict(device=DEVICE, dtype=torch.float32)
I32 = dict(device=DEVICE, dtype=torch.int32)


class Shape:
    """H, I, E, k of a row of bench/shapes.def, or of numbers."""
    table = {}

    def __init__(self, text):
        if not Shape.table:
            with open(os.path.join(ROOT, "bench", "shapes.def")) as f:
                for name, sizes in re.findall(r'^MOE_SHAPE\("([^"]+)",((?: *\d+,){4})', f.read(), re.M):
                    Shape.table[name] = [int(n) for n in re.findall(r"\d+", sizes)]
        sizes = Shape.table.get(text) or [int(n) for n in text.split(",")]
        self.name = text
        self.hidden, self.inter, self.experts, self.top_k = sizes


def num_sets(tokens):
    return 8 if tokens <= 512 else 4 if tokens <= 2048 else 2


# ---- the kernels around the GEMMs ---------------------------------------------------------------------

class Glue:
    def __init__(self, path):
        self.lib = ctypes.CDLL(os.path.abspath(path))

    def call(self, name, *args):
        """Tensors go as pointers, None as NULL, numbers as int; the current stream comes last."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else
                  ctypes.c_void_p(0) if a is None else a if isinstance(a, ctypes.c_int64) else
                  ctypes.c_int(a) for a in args]
        error = getattr(self.lib, "glue_" + name)(*values, stream)
        if error != 0:
            raise RuntimeError(f"glue_{name}: CUDA error {error}")


# ---- data ---------------------------------------------------------------------------------------------

def make_inputs(shape, tokens, seed):
    g = torch.Generator(device=DEVICE)
    g.manual_seed(seed + tokens)
    return [(torch.randn(tokens, shape.hidden, device=DEVICE, generator=g).bfloat16(),
             torch.randn(tokens, shape.experts, device=DEVICE, generator=g)) for _ in range(num_sets(tokens))]


def route(logits, k):
    weights, ids = torch.topk(torch.softmax(logits, -1), k)
    return weights / weights.sum(-1, keepdim=True), ids.int()


def quantize_rows(w):
    scale = (w.float().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-12)
    return (w.float() / scale).to(torch.float8_e4m3fn), scale.squeeze(-1)


class Weights:
    """w1 [E, 2I, H] and w2 [E, H, I], normal with deviation K^-1/2; fp8 with a scale per row."""

    def __init__(self, shape, fp8, seed):
        h, i, e = shape.hidden, shape.inter, shape.experts
        kind = FP8 if fp8 else BF16
        self.w = [torch.empty(e, 2 * i, h, **kind), torch.empty(e, h, i, **kind)]
        self.s = [torch.empty(e, 2 * i, **F32), torch.empty(e, h, **F32)] if fp8 else None
        g = torch.Generator(device=DEVICE)
        g.manual_seed(seed)
        for expert in range(e):
            for m, w in enumerate(self.w):
                n, k = w.shape[1:]
                values = (torch.randn(n, k, device=DEVICE, generator=g) * k ** -0.5).bfloat16()
                if fp8:
                    w[expert], self.s[m][expert] = quantize_rows(values)
                else:
                    w[expert] = values
        # What a grouped GEMM takes: [E, K, N].
        self.t = [w.transpose(-2, -1) for w in self.w]
        self.bytes_per_expert = sum(t[0].numel() * t.element_size() for t in self.w + (self.s or []))

    def dense(self, m, expert):
        w = self.w[m][expert].float()
        return w * self.s[m][expert][:, None] if self.s else w


def reference(weights, x, routing):
    """The layer in float32 on the dequantised weights."""
    w, ids = routing[0], routing[1].long()
    out = torch.zeros(x.shape, **F32)
    for e in ids.unique().tolist():
        t, j = (ids == e).nonzero(as_tuple=True)
        gate, up = (x[t].float() @ weights.dense(0, e).T).chunk(2, -1)
        out.index_add_(0, t, (F.silu(gate) * up @ weights.dense(1, e).T) * w[t, j, None])
    return out


# ---- time ---------------------------------------------------------------------------------------------

def count_nodes(graph):
    n = ctypes.c_size_t(0)
    cuda = ctypes.CDLL("libcuda.so.1")
    return n.value if cuda.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(n)) == 0 else None


def graph_times(calls, budget_ms=REPLAY_MS, least=5, most=100):
    """Milliseconds of each replay / len(calls), and the graph's nodes / len(calls)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
    except TypeError:  # older PyTorch keeps none to be looked at
        graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    nodes = None
    if hasattr(graph, "raw_cuda_graph"):
        nodes = count_nodes(graph.raw_cuda_graph())
        graph.instantiate()

    def replay():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        return begin, end

    replay()
    torch.cuda.synchronize()
    begin, end = replay()
    torch.cuda.synchronize()
    repeats = int(min(most, max(least, budget_ms / max(begin.elapsed_time(end), 1e-3))))
    events = [replay() for _ in range(repeats)]
    torch.cuda.synchronize()
    return [b.elapsed_time(e) / len(calls) for b, e in events], nodes and nodes / len(calls)


def quartiles(ms):
    return statistics.quantiles(ms, n=4, method="inclusive")


# ---- ceilings and the machine -------------------------------------------------------------------------

def measure_ceilings(glue):
    """Bytes per second of a long read; operations per second of the best GEMM of PyTorch."""
    size = 8 << 30
    blocks = 4 * torch.cuda.get_device_properties(0).multi_processor_count
    memory, sink = torch.empty(size, dtype=torch.uint8, device=DEVICE), torch.zeros(4, **I32)
    ms, _ = graph_times([lambda: glue.call("read", memory, ctypes.c_int64(size), blocks, sink)])
    read = size / min(ms) * 1e3
    del memory
    n = 8192
    a, b = torch.randn(n, n, **F32).bfloat16(), torch.randn(n, n, **F32).bfloat16()
    ms, _ = graph_times([lambda: torch.mm(a, b.T)])
    bf16 = 2e3 * n ** 3 / min(ms)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    one = torch.ones((), device=DEVICE)
    ms, _ = graph_times([lambda: torch._scaled_mm(a8, b8.T, one, one, out_dtype=torch.bfloat16,
                                                  use_fast_accum=True)])
    return {"read": read, "bf16": bf16, "fp8": 2e3 * n ** 3 / min(ms)}


def machine_card():
    p = torch.cuda.get_device_properties(0)
    card = {"device": p.name, "sms": p.multi_processor_count, "memory": p.total_memory,
            "torch": torch.__version__, "cuda": torch.version.cuda}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
             "--format=csv,noheader", "-i", "0"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        card.update(zip(("driver", "max_sm_clock", "max_memory_clock", "power_limit"), line.split(", ")))
    except (OSError, subprocess.CalledProcessError) as error:
        card["nvidia_smi"] = str(error)
    return card


# ---- peers --------------------------------------------------------------------------------------------

def with_glue(glue, shape, weights, tokens):
    """x, logits -> output, through buffers that all sets share."""
    h, i, e, k = shape.hidden, shape.inter, shape.experts, shape.top_k
    rows = tokens * k
    fp8 = weights.s is not None
    w, ids = torch.empty(tokens, k, **F32), torch.empty(tokens, k, **I32)
    ends, cursor, row_of = torch.empty(e, **I32), torch.empty(e, **I32), torch.empty(rows, **I32)
    xs, mid = torch.empty(rows, h, **(FP8 if fp8 else BF16)), torch.empty(rows, i, **(FP8 if fp8 else BF16))
    scales = [torch.empty(rows, **F32), torch.empty(rows, **F32)]
    out = torch.empty(tokens, h, **BF16)

    def product(m, x):
        if fp8:
            return torch._scaled_grouped_mm(x, weights.t[m], scales[m], weights.s[m], offs=ends,
                                            out_dtype=torch.bfloat16, use_fast_accum=True)
        return torch._grouped_mm(x, weights.t[m], offs=ends)

    def layer(x, logits):
        glue.call("topk", logits, tokens, e, k, w, ids)
        glue.call("sort", ids, rows, e, ends, cursor, row_of)
        if fp8:
            glue.call("quantize", x, row_of, rows, k, h, 0, xs, scales[0])
            glue.call("quantize", product(0, xs), None, rows, 1, i, 1, mid, scales[1])
        else:
            glue.call("gather", x, row_of, rows, k, h, xs)
            glue.call("glu", product(0, xs), rows, i, mid)
        glue.call("combine", product(1, mid), row_of, w, tokens, k, h, out)
        return out

    return layer


def native(shape, weights, tokens):
    k, e = shape.top_k, shape.experts

    def layer(x, logits):
        w, ids = route(logits, k)
        flat = ids.view(-1)
        order = torch.argsort(flat, stable=True)
        token = order // k
        ends = torch.histc(flat.float(), bins=e, min=0, max=e - 1).cumsum(0).to(torch.int32)
        gate, up = torch._grouped_mm(x[token], weights.t[0], offs=ends).chunk(2, -1)
        y = torch._grouped_mm(F.silu(gate) * up, weights.t[1], offs=ends)
        y = y * w.view(-1)[order].unsqueeze(-1).to(y.dtype)
        return torch.zeros(tokens, shape.hidden, **BF16).index_add_(0, token, y)

    return layer


def transformers_experts(shape):
    """transformers' experts of a named shape with random weights, or None."""
    if shape.name == "qwen3-30b-a3b":
        from transformers import Qwen3MoeConfig as Config
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts as Experts
        sizes = dict(moe_intermediate_size=shape.inter, num_experts=shape.experts)
    elif shape.name == "mixtral-8x7b":
        from transformers import MixtralConfig as Config
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts as Experts
        sizes = dict(intermediate_size=shape.inter, num_local_experts=shape.experts)
    elif shape.name == "gpt-oss-20b":
        from transformers import GptOssConfig as Config
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts as Experts
        sizes = dict(intermediate_size=shape.inter, num_local_experts=shape.experts)
    else:
        return None
    config = Config(hidden_size=shape.hidden, num_experts_per_tok=shape.top_k, **sizes)
    with torch.device(DEVICE):
        experts = Experts(config).to(torch.bfloat16).eval()
    for p in experts.parameters():
        p.normal_(0, shape.hidden ** -0.5)
    return config, experts


# ---- rows ---------------------------------------------------------------------------------------------

class Results:
    def __init__(self, path, ceilings):
        self.path, self.rows, self.deadline = path, [], math.inf
        self.shared = {"ceilings": {"read_gb_per_s": ceilings["read"] / 1e9, "bf16_tflops": ceilings["bf16"] / 1e12,
                                    "fp8_tflops": ceilings["fp8"] / 1e12},
                       "device": "cuda", "machine": machine_card(), "command": " ".join(sys.argv)}
        self.ceilings = ceilings

    def add(self, peer, shape, form, weights_bytes, tokens, inputs, calls, error=None, **more):
        """Measures the calls, one per set; a peer that fails is a row that says why."""
        row = {"peer": peer, "shape": shape.name, "hidden": shape.hidden, "inter": shape.inter,
               "experts": shape.experts, "top_k": shape.top_k, "routing": "uniform", "format": [form] * 2,
               "tokens": tokens, "sets": len(calls)}
        try:
            ms, nodes = graph_times(calls)
        except RuntimeError as problem:
            torch.cuda.synchronize()
            self.rows.append({**row, "failure": str(problem)[:300]})
            return
        hit = statistics.mean(int(route(l, shape.top_k)[1].unique().numel()) for _, l in inputs)
        size = hit * weights_bytes + 4.0 * tokens * shape.hidden
        flops = 6.0 * tokens * shape.top_k * shape.hidden * shape.inter
        floors = {"mem": 1e3 * size / self.ceilings["read"],
                  "mma": 1e3 * flops / self.ceilings["fp8" if form == "fp8" else "bf16"]}
        kind = max(floors, key=floors.get)
        q1, median, q3 = quartiles(ms)
        row.update(repeats=len(ms), ms=median, ms_q1=q1, ms_q3=q3, floor_ms=floors[kind], floor_kind=kind,
                   percent_of_floor=100 * floors[kind] / median, experts_hit=hit, bytes=size, flops=flops,
                   error=error, graph_nodes=nodes, **more)
        self.rows.append(row)
        print(f"{peer:24} {shape.name:16} {form:5} {tokens:5} {median:10.4g} ms  {row['percent_of_floor']:5.1f} % "
              f"of {floors[kind]:.4g} ms ({kind})" + ("" if error is None else f"  error {error:.2e}"), flush=True)

    def write(self):
        beside = f"{self.path}.{os.getpid()}.tmp"
        with open(beside, "w") as f:
            head = json.dumps(self.shared)[:-1]  # once: the machine and its ceilings
            f.write(head + ', "rows": [\n' + ",\n".join(json.dumps(r) for r in self.rows) + "\n]}\n")
        os.replace(beside, self.path)

    def late(self):
        return time.monotonic() > self.deadline


def relative_error(out, want):
    return float((out.float() - want).norm() / want.norm())


def run_torch(results, glue, shape, form, tokens, peers, seed):
    weights = Weights(shape, form == "fp8", seed)
    for t in tokens:
        if results.late():
            return
        inputs = make_inputs(shape, t, seed)
        layers = []
        if "glue" in peers:
            layers.append(("grouped_mm+glue", with_glue(glue, shape, weights, t)))
        if "native" in peers and form == "bf16":
            layers.append(("grouped_mm", native(shape, weights, t)))
        for name, layer in layers:
            error = None
            if t <= ERROR_TOKENS:
                x, logits = inputs[0]
                error = relative_error(layer(x, logits), reference(weights, x, route(logits, shape.top_k)))
            results.add(name, shape, form, weights.bytes_per_expert, t, inputs,
                        [lambda a=a, f=layer: f(*a) for a in inputs], error)


def run_transformers(results, shape, tokens, seed):
    made = transformers_experts(shape)
    if made is None:
        return
    config, experts = made
    size = sum(p.numel() * p.element_size() for p in experts.parameters()) / shape.experts
    for name in ("grouped_mm", "batched_mm"):
        config._experts_implementation = name
        experts.config._experts_implementation = name
        for t in tokens:
            # batched_mm copies the weights of every slot
            if results.late() or (name == "batched_mm" and t * shape.top_k * 4 * shape.inter * shape.hidden > 8e9):
                break
            inputs = make_inputs(shape, t, seed)
            arguments = []
            for x, logits in inputs:
                w, ids = route(logits, shape.top_k)
                arguments.append((x, ids.long(), w.bfloat16()))
            results.add("transformers " + name, shape, "bf16", size, t, inputs,
                        [lambda a=a: experts(*a) for a in arguments], stage="experts")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shapes", nargs="+", default=["gpt-oss-20b", "qwen3-30b-a3b", "mixtral-8x7b"])
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--formats", default="bf16,fp8")
    parser.add_argument("--peers", default="glue,native,transformers")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=7)
    a = parser.parse_args()
    begin = time.monotonic()
    tokens, peers = [int(t) for t in a.tokens.split(",")], a.peers.split(",")
    torch.backends.cuda.matmul.allow_tf32 = False
    glue = Glue(a.glue)
    with torch.no_grad():
        results = Results(a.out, measure_ceilings(glue))
        results.deadline = begin + a.seconds
        for shape in map(Shape, a.shapes):
            for form in a.formats.split(","):
                if not results.late():
                    run_torch(results, glue, shape, form, tokens, peers, a.seed)
                    torch.cuda.empty_cache()
            if "transformers" in peers and not results.late():
                try:
                    run_transformers(results, shape, tokens, a.seed)
                except (ImportError, AttributeError, TypeError) as problem:  # another version of transformers
                    print(f"transformers: {problem}", flush=True)
                torch.cuda.empty_cache()
            results.write()
    print(f"{len(results.rows)} rows in {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
