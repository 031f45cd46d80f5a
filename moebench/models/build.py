"""From a resolved configuration to an encoder with its weights.

D width, L layers, F inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moebench.data.bundled import Bundle, fetch
from moebench.errors import MoebenchError
from moebench.models import shapes
from moebench.models.encoder import Encoder
from moebench.moe.experts import ResidualExperts
from moebench.moe.layer import MoELayer
from moebench.moe.registry import build_layer, build_router


def build_encoder(shape: shapes.Encoder, sparse: shapes.Sparse | None, method: dict[str, Any], vocabulary: int) -> Encoder:
    """Build an encoder with random weights, drawn from torch's global generator.

    The dense trunk is drawn first, so that methods with the same seed start from the same trunk.

    Args:
        shape: the trunk.
        sparse: the inserted layer (`moebench.protocols.transfer.config.sparse`); none for the layer ``none``.
        method: ``layer``, ``router`` and ``options`` of the method.
        vocabulary: V, rows of the embedding.
    """
    encoder = Encoder(shape, vocabulary)
    if sparse is None:
        return encoder

    def stacks(count: int) -> ResidualExperts:
        return ResidualExperts(count, shape.width, sparse.inner, sparse.sublayers, identity=sparse.identity)

    name = f"sparse layer after block {shape.layers // 2}"
    if method["layer"] == "moe":
        router = build_router(method["router"], shape.width, sparse.experts, method["options"], vocabulary)
        encoder.sparse = MoELayer(router, stacks(sparse.experts), name, stacks(sparse.shared) if sparse.shared else None)
    else:
        encoder.sparse = build_layer(method["layer"], shape.width, stacks(sparse.experts), method["options"], name)
    return encoder


def bundled_weights(bundle: Bundle, rows: list[int], layers: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of the bundled encoder's first blocks under the names of `Encoder`; of the word embedding these rows.

    The three projections of a block are one matrix here; everything else is a renaming.
    """

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(bundle.tensor(name))

    yield "embedding.weight", tensor("emb.word")[rows]
    yield "positions.weight", tensor("emb.pos")
    yield "types.weight", tensor("emb.type")
    yield "norm.weight", tensor("emb.ln.w")
    yield "norm.bias", tensor("emb.ln.b")
    names = {"out": "ao", "attention_norm": "aln", "inner": "fi", "outer": "fo", "feed_forward_norm": "oln"}
    for index in range(layers):
        for ours, theirs in (("weight", "w"), ("bias", "b")):
            yield f"blocks.{index}.qkv.{ours}", torch.cat([tensor(f"l{index}.{part}.{theirs}") for part in "qkv"])
            for module, short in names.items():
                yield f"blocks.{index}.{module}.{ours}", tensor(f"l{index}.{short}.{theirs}")


def load_bundled(encoder: Encoder, rows: list[int] | None, downloads: Path) -> None:
    """Copy the bundled multilingual encoder's weights into the trunk; the sparse layer stays as it is.

    An encoder with fewer blocks gets the lower ones.

    Args:
        encoder: has an embedding of as many pieces as ``rows``.
        rows: per piece its row of the bundled word embedding (`moebench.data.tokenizer.Tokenizer.rows`).
        downloads: folder of the bundled file.

    Raises:
        MoebenchError: the file is absent and cannot be downloaded, is damaged, or has another shape than the encoder; or the tokenizer
            is not the bundled one.
    """
    if rows is None:
        raise MoebenchError("initialisation 'bundled' needs the bundled tokenizer: tokens: {source: bundled} in the profile's data")
    bundle = Bundle(fetch(downloads))
    shape = encoder.shape
    ours = (shape.width, shape.heads, shape.inner, shape.max_positions, shape.token_types, shape.norm, shape.positions)
    theirs = (bundle.hidden, bundle.heads, bundle.inner, bundle.positions, bundle.types, "post", "learned")
    if ours != theirs:
        fields = "width, heads, inner, max_positions, token_types, norm, positions"
        raise MoebenchError(f"initialisation 'bundled' needs the encoder's {fields} to be {theirs}, not {ours}")
    if shape.layers > bundle.layers:
        raise MoebenchError(f"initialisation 'bundled' has {bundle.layers} blocks, too few for the encoder's layers {shape.layers}")
    weights = dict(bundled_weights(bundle, rows, shape.layers))
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("sparse.") for name in missing):
        raise MoebenchError(f"the bundled encoder does not fit: missing {missing}, unexpected {unexpected}")


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a ``model.safetensors`` into a module, ignoring heads that the module does not have.

    Raises:
        MoebenchError: the file is missing or damaged, or lacks a parameter.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MoebenchError(f"{path}: not a readable checkpoint ({error}); delete its folder and run again") from error
    try:
        missing, _ = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise MoebenchError(f"{path}: was written for another method or setting: {error}") from error
    if missing:
        raise MoebenchError(f"{path}: lacks {', '.join(missing[:5])}; it was written for another method or setting")
