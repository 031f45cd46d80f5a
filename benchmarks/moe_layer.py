"""Time a sparse layer against the dense limit: the same rows through one network, with the experts' width.

    python benchmarks/moe_layer.py [--quick] [--sizes 512x8 256x32 256x128] [--types float32 bfloat16] [--k 1] > table.md

Dense limit and contender take turns in one process; a ratio is between two runs one right after the other. All contenders get the same
tokens, weights and routing (torchscale has a gate of its own), and their outputs are compared before they are timed. A pass ends with the
gradients of tokens, gate weights and experts. Memory is the peak of what torch allocates in one forward and backward pass.
"""

from __future__ import annotations

import os

# for all contenders, read when torch is loaded: huge pages for large tensors; threads that wait do not keep a core busy meanwhile
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe import Routing, dispatch
from moebench.moe.experts import FeedForwardExperts
from moebench.training.trainer import bf16_is_fast, keep_freed_memory

LOADS = ("balanced", "skewed", "collapsed")


@dataclass
class Case:
    """One setting: what contenders compute with. T tokens, D width, F inner width, E experts, K experts a token."""

    x_TD: Tensor
    gate_TK: Tensor
    expert_TK: Tensor
    fc1_EFD: nn.Parameter
    fc2_EDF: nn.Parameter

    @property
    def leaves(self) -> list[Tensor]:
        """What gets gradients."""
        return [self.x_TD, self.gate_TK, self.fc1_EFD, self.fc2_EDF]


def make_case(tokens: int, width: int, experts: int, k: int, load: str, dtype: torch.dtype) -> Case:
    """Draw K distinct experts a token: each expert alike, expert e as 1 / (e + 1), or always the first K."""
    generator = torch.Generator().manual_seed(0)
    log_share_E = {"balanced": torch.zeros(experts), "skewed": -torch.arange(1.0, experts + 1).log()}.get(
        load, -1000 * torch.arange(experts)
    )
    gumbel_TE = -torch.empty(tokens, experts).exponential_(generator=generator).log()
    return Case(
        x_TD=torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_(),
        gate_TK=torch.rand(tokens, k, generator=generator).requires_grad_(),
        expert_TK=(log_share_E + gumbel_TE).topk(k).indices,
        fc1_EFD=nn.Parameter((0.02 * torch.randn(experts, 4 * width, width, generator=generator)).to(dtype)),
        fc2_EDF=nn.Parameter((0.02 * torch.randn(experts, width, 4 * width, generator=generator)).to(dtype)),
    )


Layer = Callable[[], Tensor]


def dense(case: Case) -> Layer:
    """Return gelu(x W1) W2 on as many rows as there are assignments."""
    rows_AD = case.x_TD.detach().repeat(case.gate_TK.shape[1], 1).requires_grad_()
    w1_DF = nn.Parameter(case.fc1_EFD[0].detach().T.contiguous())
    w2_FD = nn.Parameter(case.fc2_EDF[0].detach().T.contiguous())

    def run() -> Tensor:
        rows_AD.grad = w1_DF.grad = w2_FD.grad = None
        return F.gelu(rows_AD @ w1_DF) @ w2_FD

    return run


def moebench(backend: str) -> Callable[[Case], Layer]:
    """Return the layer of this package without its router."""

    def build(case: Case) -> Layer:
        count, inner, width = case.fc1_EFD.shape
        with torch.device("meta"):
            experts = FeedForwardExperts(count, width, inner, bias=False)
        experts.fc1_weight, experts.fc2_weight, experts.backend = case.fc1_EFD, case.fc2_EDF, backend
        scores_TE = torch.zeros(len(case.x_TD), count)
        return lambda: dispatch(case.x_TD, Routing.topk(case.expert_TK, case.gate_TK, scores=scores_TE, losses={}), experts)

    return build


def transformers(implementation: str) -> Callable[[Case], Layer]:
    """Return the experts of Nemotron-H, which have no gate."""

    def build(case: Case) -> Layer:
        from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

        count, inner, width = case.fc1_EFD.shape
        sizes = {"n_routed_experts": count, "hidden_size": width, "moe_intermediate_size": inner, "moe_latent_size": None}
        with torch.device("meta"):
            experts = NemotronHExperts(SimpleNamespace(**sizes, mlp_hidden_act="gelu", _experts_implementation=implementation))
        experts.up_proj, experts.down_proj = case.fc1_EFD, case.fc2_EDF
        return lambda: experts(case.x_TD, case.expert_TK, case.gate_TK)

    return build


def naive(case: Case) -> Layer:
    """Return what is often written first: a loop over experts that indexes weights and adds to the output."""

    def run() -> Tensor:
        y_TD = torch.zeros_like(case.x_TD, dtype=torch.float32)
        for e in range(len(case.fc1_EFD)):
            token, choice = (case.expert_TK == e).nonzero(as_tuple=True)
            out = F.gelu(case.x_TD[token] @ case.fc1_EFD[e].T) @ case.fc2_EDF[e].T
            y_TD.index_add_(0, token, case.gate_TK[token, choice][:, None] * out)
        return y_TD.to(case.x_TD.dtype)

    return run


def torchscale(case: Case) -> Layer:
    """Return X-MoE's layer with its own gate: top 1, capacity factor 1, so that it drops tokens; its load is that of the untrained gate."""
    routing = importlib.import_module("torchscale.component.xmoe.routing")
    layer_module = importlib.import_module("torchscale.component.xmoe.moe_layer")

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=importlib.import_module("torch.distributed").HashStore(), rank=0, world_size=1)
        histc = torch.histc
        torch.histc = lambda values, **limits: histc(values.float(), **limits)  # there is none for integers on a CPU
    count, inner, width = case.fc1_EFD.shape
    networks = [nn.Sequential(nn.Linear(width, inner, False), nn.GELU(), nn.Linear(inner, width, False)) for _ in range(count)]
    gate = routing.Top1Gate(width, count, use_fp32=True, moe_eval_capacity_token_fraction=1.0, use_xmoe=True)
    layer = layer_module.MOELayer(gate, nn.ModuleList(networks), SimpleNamespace(moe_expert_count=count, batch_size=1)).to(case.x_TD.dtype)

    def run() -> Tensor:
        layer.zero_grad()
        return layer(case.x_TD[None])[0][0]

    return run


CONTENDERS: dict[str, tuple[str, Callable[[Case], Layer]]] = {
    "moebench segments": ("", moebench("segments")),
    "moebench grouped_mm": ("", moebench("grouped_mm")),
    "moebench loop": ("", moebench("loop")),
    "transformers grouped_mm": ("transformers", transformers("grouped_mm")),
    "transformers eager": ("transformers", transformers("eager")),
    "naive loop": ("", naive),
    "torchscale X-MoE": ("torchscale", torchscale),
}


def seconds(layer: Layer, leaves: list[Tensor], upstream: Tensor | None) -> float:
    """Time a pass: forward and backward, or forward alone where no gradient comes from above."""
    for leaf in leaves:
        leaf.grad = None
    begin = time.perf_counter()
    if upstream is None:
        with torch.no_grad():
            layer()
    else:
        layer().backward(upstream)
    return time.perf_counter() - begin


def peak_megabytes(layer: Layer, leaves: list[Tensor], upstream: Tensor) -> float:
    """Add up torch's allocations and releases of one pass in the order of time; the highest level."""
    from torch._C._profiler import _EventType

    for leaf in leaves:
        leaf.grad = None
    with torch.profiler.profile(profile_memory=True) as profile:
        layer().backward(upstream)
    kept, todo, sizes = profile.profiler.kineto_results.experimental_event_tree(), [], []
    todo.extend(kept)
    while todo:
        event = todo.pop()
        todo.extend(event.children)
        if event.tag == _EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    level = peak = 0
    for _, size in sorted(sizes, key=lambda pair: pair[0]):
        level += size
        peak = max(peak, level)
    return peak / 1e6


def measure(case: Case, names: list[str], rounds: int, patience: float) -> Iterator[str]:
    """Yield a row of the table for each contender."""
    upstream_TD = torch.randn(case.x_TD.shape, generator=torch.Generator().manual_seed(1)).to(case.x_TD.dtype)
    limit = dense(case)
    upstream_AD = upstream_TD.repeat(case.gate_TK.shape[1], 1)
    expected_TD = moebench("loop")(case)().detach().float()
    memory = peak_megabytes(limit, [], upstream_AD)
    times: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    layers, first = {}, {}
    for name in names:
        layers[name] = CONTENDERS[name][1](case)
        if name != "torchscale X-MoE":
            error = ((layers[name]().float() - expected_TD).norm() / expected_TD.norm()).item()
            assert error < (1e-5 if case.x_TD.dtype == torch.float32 else 0.02), f"{name} computes something else: {error}"
        first[name] = seconds(layers[name], case.leaves, upstream_TD)
    for _ in range(rounds):
        for backward in (True, False):
            for name, layer in layers.items():
                if first[name] < patience:
                    pair = (
                        seconds(limit, [], upstream_AD if backward else None),
                        seconds(layer, case.leaves, upstream_TD if backward else None),
                    )
                    times.setdefault((name, backward), []).append(pair)
    lowest = {way: min(pair[0] for (_, backward), pairs in times.items() if backward is way for pair in pairs) for way in (True, False)}
    yield f"| dense limit | 1 | 1 | {1000 * lowest[True]:.0f} | {memory:.0f} |"
    for name in names:
        used = peak_megabytes(layers[name], case.leaves, upstream_TD)
        if (name, True) in times:
            ratios = [
                f"{statistics.median(b / a for a, b in times[name, way]):.2f} [{min(b for _, b in times[name, way]) / lowest[way]:.2f}]"
                for way in (True, False)
            ]
            yield f"| {name} | {ratios[0]} | {ratios[1]} | {1000 * min(b for _, b in times[name, True]):.0f} | {used:.0f} |"
        else:
            yield f"| {name} | once: {first[name] / lowest[True]:.0f} | - | {1000 * first[name]:.0f} | {used:.0f} |"


def main() -> None:
    """Print a table for each setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sizes", nargs="+", default=["512x8", "256x32", "256x128"], help="width x experts")
    parser.add_argument("--types", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=LOADS)
    parser.add_argument("--k", type=int, default=1, help="experts a token")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patience", type=float, default=2.0, help="a contender whose first pass takes more seconds is timed once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="256x32 in bfloat16 only, 5 rounds")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.types, arguments.rounds = ["256x32"], ["bfloat16"], 5
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as in training, for all contenders: else fresh pages for gradients are a part of every pass
    names = []
    for name in arguments.contenders:
        package = CONTENDERS[name][0]
        if package and importlib.util.find_spec(package) is None:
            print(f"{name} is left out: pip install {package}")
        else:
            names.append(name)
    if "bfloat16" in arguments.types and not bf16_is_fast():
        print("bfloat16 is left out: this processor has no instructions for it")
        arguments.types.remove("bfloat16")
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.tokens} tokens, inner width 4 x width, GELU, no biases.")
    print("Ratios to the dense limit: median [minimum / minimum].")
    for size in arguments.sizes:
        width, experts = map(int, size.split("x"))
        for dtype in arguments.types:
            for load in arguments.loads:
                case = make_case(arguments.tokens, width, experts, arguments.k, load, getattr(torch, dtype))
                share = torch.bincount(case.expert_TK.flatten()).max() / case.expert_TK.numel()
                setting = f"width {width}, {experts} experts, k {arguments.k}, {dtype}, {load}"
                print(f"\n{setting}: the fullest expert has {share:.0%} of the rows\n")
                print("| | forward and backward | forward | ms, f + b, minimum | peak MB |\n|---|---|---|---|---|", flush=True)
                chosen = [name for name in names if name != "torchscale X-MoE" or (load == "balanced" and arguments.k == 1)]
                for row in measure(case, chosen, arguments.rounds, arguments.patience):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
