"""Tokens per second of a pre-training step: dense, this project's sparse layer, Hugging Face's experts; and what Lightning adds.

    python benchmarks/train_step.py [--profile cpu] [--rounds 15] [--threads 2] [--precisions fp32 bf16]
    python benchmarks/train_step.py --model decoder [--rounds 15] [--threads 2] [--precisions fp32 bf16] [--sizes small large]

Every model has the same trunk, the same router and the same random ids, and the learning rate is 0, so that all sparse ones route alike for
the whole run. Models take turns, step by step, so that a busy machine slows all of them alike; the figure is the median. Decoders are
compared as wholes, with transformers' Mixtral of the same weights, also at generating.

B sequences, S positions, T tokens, K experts of a token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moebench.config import project_root
from moebench.experiment import experiments
from moebench.models import shapes
from moebench.models.decoder import Decoder, generate
from moebench.models.encoder import Encoder
from moebench.models.flops import macs_per_token
from moebench.models.matching import widened
from moebench.moe.contract import RouterInputs
from moebench.moe.experts import FactorisedExperts, FeedForwardExperts, ResidualExperts, SwiGLUExperts
from moebench.moe.layer import Aux, MoELayer, SparseLayer
from moebench.moe.layers.aoe import AoE
from moebench.moe.layers.dense import Dense
from moebench.moe.registry import build_router
from moebench.protocols.transfer.config import Setting
from moebench.protocols.transfer.pretraining import PretrainingModule
from moebench.training.batches import Batch
from moebench.training.trainer import bf16_is_fast, fit, keep_freed_memory, make_trainer

WARM_UP = 3
RUNS = 5
EXPERTS, CHOSEN = 8, 2
DECODERS = {
    "small": (shapes.Decoder(layers=4, width=96, heads=4, inner=256, context=128), 1024),
    "large": (shapes.Decoder(layers=6, width=256, heads=4, inner=512, context=128), 8192),
}
"""Shape and vocabulary."""


class HuggingFaceLayer(MoELayer):
    """This project's router before Hugging Face's experts and their dispatch."""

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Give the experts what their own router would: K experts and weights of each token."""
        with torch.autocast(tokens_TD.device.type, enabled=False):
            routing = self.router(inputs)
        expert_TK, weight_TK = routing.expert.view(len(tokens_TD), -1), routing.weight.view(len(tokens_TD), -1)
        return self.experts(tokens_TD, expert_TK, weight_TK), Aux(routing.losses, routing.load, routing.scores.softmax(-1).detach())


def hugging_face_experts(experts: int, width: int, inner: int, implementation: str) -> nn.Module:
    """Experts fc2(GELU(fc1(x))) of transformers.

    Raises:
        ImportError: transformers is absent, or a version without these experts.
    """
    from transformers import NemotronHConfig
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    options = NemotronHConfig(
        hidden_size=width, n_routed_experts=experts, moe_intermediate_size=inner, mlp_hidden_act="gelu", moe_latent_size=None
    )
    options._experts_implementation = implementation
    module: nn.Module = NemotronHExperts(options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module


def models(setting: Setting, vocabulary: int) -> Iterator[tuple[str, Callable[[], PretrainingModule]]]:
    """Yield the name of a row and what builds its model."""
    shape, sparse = setting.encoder, setting.sparse
    sizes = (sparse.experts, shape.width, sparse.inner)

    def build(layer: type[MoELayer], experts: Callable[[], nn.Module] | None) -> PretrainingModule:
        torch.manual_seed(0)
        encoder = Encoder(shape, vocabulary)
        if experts is not None:
            encoder.sparse = layer(build_router("xmoe", shape.width, sparse.experts, {}, vocabulary), experts())
        return PretrainingModule(encoder, setting.pretrain, {"balance": 0.01} if experts else {}, 0.0, 0)

    yield "dense", partial(build, MoELayer, None)
    yield f"MoE, {sparse.sublayers} x residual", partial(build, MoELayer, partial(ResidualExperts, *sizes, sparse.sublayers))
    yield "MoE, feed-forward", partial(build, MoELayer, partial(FeedForwardExperts, *sizes, activation="gelu", bias=False))
    for kind in ("eager", "grouped_mm"):
        yield f"Hugging Face {kind}", partial(build, HuggingFaceLayer, partial(hugging_face_experts, *sizes, kind))


def random_batch(size: tuple[int, int], vocabulary: int, share: float) -> Batch:
    """Return random ids without padding, a share of them to be predicted."""
    ids_BS = torch.randint(5, vocabulary, size, generator=torch.Generator().manual_seed(0))
    chosen_BS = torch.rand(size, generator=torch.Generator().manual_seed(1)) < share
    mask_BS = torch.ones(size, dtype=torch.bool)
    return {"ids": ids_BS, "mask": mask_BS, "chosen": chosen_BS, "targets": ids_BS[chosen_BS], "weight": torch.ones(1)}


def stepper(module: PretrainingModule, precision: str, rate: float | None = 0.0) -> Callable[[Batch], None]:
    """Return a bare training step; ``rate`` replaces the learning rate, none keeps it."""
    configured = module.configure_optimizers()
    optimiser, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    if rate is not None:
        schedule.base_lrs = [rate] * len(schedule.base_lrs)
        for group in optimiser.param_groups:
            group["lr"] = rate

    def step(batch: Batch) -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = module.training_step(batch, 0)
        loss.backward()
        module.configure_gradient_clipping(optimiser)
        optimiser.step()
        if module.encoder.sparse is not None:
            module.encoder.sparse.after_optimizer_step()
        schedule.step()

    return step


def compare(title: str, setting: Setting, vocabulary: int, positions: int, precision: str, rounds: int) -> None:
    """Print a line per model."""
    batch = random_batch((setting.pretrain.batch, positions), vocabulary, setting.pretrain.mask)
    steps: dict[str, Callable[[Batch], None]] = {}
    shares: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    size = f"batch {setting.pretrain.batch} x {positions}, E {setting.sparse.experts}"
    print(f"\n{title}, {precision}, {size}, threads {torch.get_num_threads()}")
    for name, build in models(setting, vocabulary):
        try:
            module = build()
        except ImportError as error:
            print(f"{name:24s} skipped ({error}): pip install 'transformers>=5.23'")
            continue
        steps[name], seconds[name] = stepper(module, precision), []
        with torch.no_grad():
            reports = module.outputs(batch)[2]
        shares[name] = "".join(f", busiest expert {aux.load.max() / aux.load.sum():.0%}" for aux in reports)
    for _ in range(WARM_UP + rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(taken[WARM_UP:]) for name, taken in seconds.items()}
    for name, median in medians.items():
        relative = median / medians["dense"]
        print(f"{name:24s} {1000 * median:8.1f} ms {batch['ids'].numel() / median:9.0f} tokens/s {relative:6.2f} x dense{shares[name]}")


def lightning_overhead(setting: Setting, vocabulary: int, positions: int, rounds: int, target: float = 0.1) -> None:
    """Print what the project's trainer adds to a dense step of about ``target`` seconds, over a bare loop.

    The trainer asks for a batch between two of its steps; there a twin of its model takes a bare step. So both take turns step by step,
    and the time between two requests is the trainer's whole step. No checkpoint is written. Where in memory a model comes to lie makes it
    a per cent faster or slower than its twin, so there are ``RUNS`` runs with new models; the figure is the median over all pairs.
    """
    build = next(iter(models(setting, vocabulary)))[1]
    step = stepper(build(), "fp32")
    rows = setting.pretrain.batch
    batch = random_batch((rows, positions), vocabulary, setting.pretrain.mask)
    taken = []
    for _ in range(WARM_UP + 5):
        begin = time.perf_counter()
        step(batch)
        taken.append(time.perf_counter() - begin)
    rows = max(1, round(rows * target / statistics.median(taken[WARM_UP:])))
    batch = random_batch((rows, positions), vocabulary, setting.pretrain.mask)
    runs = [trainer_and_twin(build, batch, WARM_UP + rounds)[WARM_UP:] for _ in range(RUNS)]
    pairs = [pair for run in runs for pair in run]
    bare = statistics.median(second for _, second in pairs)
    added = statistics.median(first - second for first, second in pairs)
    medians = sorted(statistics.median(first - second for first, second in run) for run in runs)
    print(f"\nLightning, dense, fp32, batch {rows} x {positions}, {len(pairs)} pairs of steps in {RUNS} runs")
    print(f"bare step {1000 * bare:.1f} ms, the trainer adds {1000 * added:+.2f} ms, {added / bare:+.1%}", end="")
    print(f" (medians of the runs {1000 * medians[0]:+.2f} to {1000 * medians[-1]:+.2f} ms)")


def trainer_and_twin(build: Callable[[], PretrainingModule], batch: Batch, total: int) -> list[tuple[float, float]]:
    """Return the seconds of ``total`` steps of the trainer, each with those of the bare step that follows."""
    module, step = build(), stepper(build(), "fp32", rate=None)
    pairs: list[tuple[float, float]] = []
    ended: list[float] = []

    def make(number: int) -> Batch:
        asked = time.perf_counter()
        step(batch)
        now = time.perf_counter()
        if ended:
            pairs.append((asked - ended[-1], now - asked))
        ended.append(now)
        return batch

    # two batches are asked for before the first step
    module.optimisation = module.optimisation.model_copy(update={"steps": total + 2, "checkpoint_every": 10**9})
    with tempfile.TemporaryDirectory() as name:
        scale: dict[str, Any] = {"precision": "fp32", "devices": 1, "nodes": 1, "threads": torch.get_num_threads()}
        trainer, _ = make_trainer(Path(name), module.optimisation, scale)
        fit(trainer, module, lambda part, parts: make, Path(name))
    return pairs


def mixtral(decoder: Decoder, implementation: str) -> nn.Module:
    """Return transformers' Mixtral with the weights of a decoder whose feed-forward layers are top-k mixtures.

    Raises:
        ImportError: transformers is absent.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = decoder.shape
    options = {"vocab_size": decoder.embedding.num_embeddings, "hidden_size": shape.width, "intermediate_size": shape.inner}
    options |= {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads}
    options |= {"max_position_embeddings": shape.context, "rms_norm_eps": shape.epsilon, "rope_theta": shape.base}
    options |= {"num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "tie_word_embeddings": True, "pad_token_id": None}
    model: nn.Module = MixtralForCausalLM(MixtralConfig(**options, experts_implementation=implementation))
    embedding = decoder.embedding.weight
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding, "model.norm.weight": decoder.norm.weight}
    for index, block in enumerate(decoder.blocks):
        experts = block.layer.experts
        theirs = {f"self_attn.{name}_proj.weight": weight for name, weight in zip("qkv", block.qkv.weight.chunk(3), strict=True)}
        theirs |= {"self_attn.o_proj.weight": block.out.weight, "mlp.gate.weight": block.layer.router.embedding}
        theirs |= {"input_layernorm.weight": block.attention_norm.weight, "post_attention_layernorm.weight": block.layer_norm.weight}
        theirs |= {"mlp.experts.gate_up_proj": torch.cat([experts.gate_weight, experts.up_weight], 1)}
        theirs |= {"mlp.experts.down_proj": experts.down_weight}
        weights |= {f"model.layers.{index}.{name}": weight for name, weight in theirs.items()}
    model.load_state_dict(weights)
    return model


def decoders(shape: shapes.Decoder, vocabulary: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield decoders of the same trunk: as many multiplications a token, but for what the choice of experts costs."""
    width, inner = shape.width, shape.inner

    def build(layer: Callable[[int], SparseLayer]) -> Decoder:
        torch.manual_seed(0)
        return Decoder(shape, vocabulary, layer)

    yield "dense", build(lambda index: Dense(width, SwiGLUExperts(1, width, CHOSEN * inner)))
    mixture = build(lambda index: MoELayer(build_router("topk", width, EXPERTS, {"k": CHOSEN}), SwiGLUExperts(EXPERTS, width, inner)))
    yield f"MoE, top {CHOSEN}", mixture
    low = width // 4
    yield (
        f"AoE, {low} wide norms",
        build(lambda index: AoE(width, FactorisedExperts(EXPERTS, width, low, widened(width, inner, low)), k=CHOSEN)),
    )
    for kind in ("eager", "grouped_mm"):
        try:
            yield f"Mixtral {kind}", mixtral(mixture, kind)
        except ImportError as error:
            print(f"{f'Mixtral {kind}':24s} skipped ({error}): pip install 'transformers>=5.24'")


def next_token_loss(model: nn.Module, ids_BS: Tensor) -> Tensor:
    """Cross-entropy of a decoder of either library."""
    if isinstance(model, Decoder):
        return model.loss(model(ids_BS[:, :-1])[0], ids_BS[:, 1:])
    logits_BSV = model(ids_BS[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())


def decoder_step(model: nn.Module, precision: str, ids_BS: Tensor) -> Callable[[], Tensor]:
    """Return a training step on the next token: forward, backward, AdamW at learning rate 0; it returns the loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step() -> Tensor:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = next_token_loss(model, ids_BS)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def continuation(model: nn.Module, ids_BS: Tensor, most: int) -> Tensor:
    """(B, most) new ids, greedily, with a cache."""
    if isinstance(model, Decoder):
        return generate(model, ids_BS, None, most, [])
    mask_BS = torch.ones_like(ids_BS)
    return model.generate(ids_BS, attention_mask=mask_BS, max_new_tokens=most, do_sample=False, eos_token_id=None)[:, ids_BS.shape[1] :]


def turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, all taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(WARM_UP + rounds):
        for name, run in work.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken[WARM_UP:]) for name, taken in seconds.items()}


def compare_decoders(size: str, precision: str, rounds: int, batch: int = 16, prompts: int = 8) -> None:
    """Print a line per decoder: a training step, then the continuation of prompts by half the context.

    Raises:
        RuntimeError: transformers computes other losses or tokens with the same weights.
    """
    shape, vocabulary = DECODERS[size]
    built = dict(decoders(shape, vocabulary))
    ids_BS = torch.randint(vocabulary, (batch, shape.context + 1), generator=torch.Generator().manual_seed(0))
    steps = {name: decoder_step(model, precision, ids_BS) for name, model in built.items()}
    ours, dense = f"MoE, top {CHOSEN}", macs_per_token(built["dense"], 1, shape.context)
    theirs = [name for name in built if name.startswith("Mixtral")]
    losses = {name: steps[name]().item() for name in (ours, *theirs)}
    if max(losses.values()) - min(losses.values()) > (0.02 if precision == "bf16" else 1e-4):
        raise RuntimeError(f"losses differ: {losses}")
    taken = turns(steps, rounds)
    print(f"\ndecoder {size}, {precision}, batch {batch} x {shape.context}, E {EXPERTS}, threads {torch.get_num_threads()}: training")
    for name, median in taken.items():
        model = built[name]
        macs = (
            f", multiplications {macs_per_token(model, CHOSEN, shape.context) / dense:5.3f} x dense"
            if name.startswith(("AoE", "MoE"))
            else ""
        )
        print(f"{name:24s} {1000 * median:8.1f} ms {batch * shape.context / median:9.0f} tokens/s {median / taken[ours]:6.2f} x ours{macs}")
    half = shape.context // 2
    written = {name: partial(continuation, model.eval(), ids_BS[:prompts, :half], half) for name, model in built.items()}
    if precision == "fp32" and any(not torch.equal(written[name](), written[ours]()) for name in theirs):
        raise RuntimeError("transformers continues the prompts with other tokens")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        taken = turns(written, max(rounds // 3, 3))
    print(f"generation, {prompts} prompts of {half} tokens, {half} new ones each")
    for name, median in taken.items():
        print(f"{name:24s} {1000 * median:8.1f} ms {prompts * half / median:9.0f} tokens/s {median / taken[ours]:6.2f} x ours")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="encoder", choices=["encoder", "decoder"])
    parser.add_argument("--profile", default="cpu", help="profile of the first table")
    parser.add_argument("--paper", default="xmoe")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the larger size; 0: torch's default")
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="of the larger size")
    parser.add_argument("--sizes", nargs="*", default=[*DECODERS], choices=[*DECODERS], help="of the decoder")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    if arguments.model == "decoder":
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        keep_freed_memory()  # as the project's trainer does
        for size in arguments.sizes:
            for precision in arguments.precisions:
                if precision == "bf16" and not bf16_is_fast():
                    print("bf16 is left out: this processor has no instructions for it")
                    continue
                compare_decoders(size, precision, arguments.rounds)
        return
    (experiment,) = experiments(project_root(), arguments.profile, arguments.paper)
    setting, data = experiment.setting, experiment.data
    vocabulary = data.tokens.vocabulary or 250002  # the bundled tokenizer's
    positions = data.corpus.sequence_length if data.corpus else 64
    default = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    compare(f"profile {arguments.profile}", setting, vocabulary, positions, setting.precision, arguments.rounds)
    lightning_overhead(setting, vocabulary, positions, arguments.rounds)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(arguments.threads or default)
    larger = setting.model_copy(
        update={
            "encoder": shapes.Encoder(layers=6, width=256, heads=4, inner=1024),
            "sparse": shapes.Sparse(experts=32, sublayers=1, inner=1024),
            "pretrain": setting.pretrain.model_copy(update={"batch": 32, "mask": 0.15}),
        }
    )
    for precision in arguments.precisions:
        if precision == "bf16" and not bf16_is_fast():
            print("bf16 is left out: this processor has no instructions for it")
            continue
        compare("6 layers, d 256", larger, 8192, 128, precision, arguments.rounds)


if __name__ == "__main__":
    main()
