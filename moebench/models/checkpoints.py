"""Pretrained encoders in Hugging Face layout: from ``config.json`` and safetensors files to the parameters of `Encoder`.

Read as plain data; the transformers library is not needed. The network that comes out is the library's ``BertModel``, ``RobertaModel``,
``CamembertModel``, ``XLMRobertaModel`` or ``XLMRobertaXLModel`` without pooler, in evaluation and with padding on the right. In training
two things differ: attention probabilities have no dropout here, and the feed-forward layers of XLM-RoBERTa-XL have it here.

D width, F inner width, L layers, V vocabulary, P positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moebench.data.checkpoint_files import CONFIG, TOKENIZER, WEIGHTS, missing, parts
from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError, nearest
from moebench.files import read_json, sha256
from moebench.models import shapes
from moebench.models.encoder import Encoder


@dataclass(frozen=True)
class _Family:
    """What ``model_type`` implies.

    Attributes:
        norm: before or after the residual branch.
        offset: RoBERTa counts positions from the padding id + 1, so the rows up to the padding id's are never used.
        defaults: what transformers assumes for a key that ``config.json`` leaves out.
    """

    norm: Literal["pre", "post"]
    offset: bool
    defaults: dict[str, Any]


_DEFAULTS: dict[str, Any] = {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
_ROBERTA = _Family("post", True, _DEFAULTS | {"pad_token_id": 1})
FAMILIES = {
    "bert": _Family("post", False, _DEFAULTS),
    "camembert": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _Family("pre", True, _DEFAULTS | {"pad_token_id": 1, "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
}
"""``model_type`` → what it implies. MiniLM and e5 say ``bert``, also with XLM-R's vocabulary, and count positions from 0."""

ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Key → the one value that `Encoder` can compute (``gelu`` is the exact one)."""
KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
"""Our name → theirs."""
PREFIXES = ("", "bert.", "roberta.")
BUFFERS = {"embeddings.position_ids", "embeddings.token_type_ids"}
"""Constants that older versions of transformers stored beside the weights."""


def shape_of(folder: Path) -> shapes.Encoder:
    """Return the shape of the encoder in ``folder``.

    ``max_positions`` is the number of tokens a sequence may have: of RoBERTa's 514 rows, 512.

    Raises:
        MoebenchError: ``config.json`` is missing or damaged, or describes a network that `Encoder` cannot compute.
    """
    family, values, offset = _configuration(folder)
    shape = {ours: values[theirs] for ours, theirs in KEYS.items()}
    shape["max_positions"] -= offset
    try:
        return shapes.Encoder(norm=family.norm, positions="learned", **shape)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [KEYS.get(str(part), str(part)) for part in first["loc"]]
        where = f"key {keys[0]!r} has the value {values.get(keys[0])!r}: " if keys else ""
        raise MoebenchError(f"{folder / CONFIG}: {where}{first['msg'].removeprefix('Value error, ')}") from error


def rows_of(folder: Path) -> int:
    """Return V, the rows of the embedding; a vocabulary may have fewer pieces.

    Raises:
        MoebenchError: as `shape_of`.
    """
    return int(_configuration(folder)[1]["vocab_size"])


def weights_of(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the encoder's parameters in fp32 under the names of `Encoder`, one at a time; heads and pooler are left out.

    The three projections of a block are one matrix here, and RoBERTa's unused first rows of positions are gone.

    Raises:
        MoebenchError: as `shape_of`; a file is missing or damaged; a tensor is missing, has another shape than ``config.json`` implies, is
            no float, or would go unused although it belongs to the encoder.
    """
    shape, offset = shape_of(folder), _configuration(folder)[2]
    with contextlib.ExitStack() as stack:
        places = _open(folder, stack)
        plan = list(_plan(shape, rows_of(folder), offset))
        used = {name for _, names, _ in plan for name in names}
        if absent := sorted(used - set(places)):
            raise MoebenchError(f"{folder}: the weights lack {len(absent)} of {len(used)} tensors, the first is {absent[0]!r}")
        unused = (name for name in places if name.startswith(("embeddings.", "encoder.")) and name not in used | BUFFERS)
        if (extra := next(unused, None)) is not None:
            raise MoebenchError(f"{folder}: the weights hold {extra!r}, which the encoder that {CONFIG} describes has no place for")
        for ours, theirs, size in plan:
            tensors = []
            for name in theirs:
                file, handle, stored = places[name]
                tensor = handle.get_tensor(stored)
                if tuple(tensor.shape) != size or not tensor.is_floating_point():
                    kind = str(tensor.dtype).removeprefix("torch.")
                    raise MoebenchError(f"{file}: {stored!r} is {kind} {tuple(tensor.shape)}; by {CONFIG} it should be float {size}")
                tensors.append(tensor.float())
            whole = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            yield ours, whole[offset:] if ours == "positions.weight" else whole


def load_checkpoint(encoder: Encoder, folder: Path) -> None:
    """Copy a checkpoint's weights into the trunk; the sparse layer stays as it is.

    Raises:
        MoebenchError: as `weights_of`, or the encoder has another shape (dropout and the initial spread are free); the message names each
            value and what it should be.
    """
    right = shape_of(folder)
    wrong = [
        f"encoder.{name} is {ours!r}, should be {theirs!r}"
        for name, theirs in right.model_dump(exclude={"dropout", "initial_std"}).items()
        if (ours := getattr(encoder.shape, name)) != theirs
    ]
    if encoder.embedding.num_embeddings != rows_of(folder):
        wrong.append(f"the embedding has {encoder.embedding.num_embeddings} rows, should have {rows_of(folder)}")
    if wrong:
        raise MoebenchError(f"the setting's encoder does not fit the checkpoint {folder}: {'; '.join(wrong)}")
    waiting = {name: parameter for name, parameter in encoder.named_parameters() if not name.startswith("sparse.")}
    with torch.no_grad():
        for name, tensor in weights_of(folder):
            waiting.pop(name).copy_(tensor)
    if waiting:
        raise MoebenchError(f"{folder}: gives the encoder no {', '.join(waiting)}")


def check_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Check that the data was prepared with the vocabulary of the checkpoint in ``folder``, whose ids are rows of its embedding.

    Raises:
        MoebenchError: it was not, or ids go beyond the rows.
    """
    found = sha256(folder / TOKENIZER)
    if tokenizer.sha256 != found:
        raise MoebenchError(
            f"the data was prepared with a {tokenizer.kind} tokenizer (SHA-256 {tokenizer.sha256}), not with {folder / TOKENIZER}"
            f" ({found}): in the data profile set tokens.source to 'hub' and tokens.checkpoint to the setting's checkpoint, and prepare"
            " again"
        )
    if tokenizer.size > rows_of(folder):
        raise MoebenchError(f"{folder}: {TOKENIZER} has ids up to {tokenizer.size - 1}, the embedding {rows_of(folder)} rows")


def _configuration(folder: Path) -> tuple[_Family, dict[str, Any], int]:
    """What the model type implies, the keys of ``config.json`` completed, and the number of unused position rows."""
    path = folder / CONFIG
    given = read_json(path)
    if not isinstance(given, dict):
        raise MoebenchError(f"{path}: should be a mapping of keys to values, is {type(given).__name__}")
    kind = given.get("model_type")
    if kind not in FAMILIES:
        raise MoebenchError(
            f"{path}: key 'model_type' has the value {kind!r}{nearest(str(kind), FAMILIES)}; what can be read is: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    values = family.defaults | given
    for key, right in ONLY.items():
        if values.get(key, right) != right:
            raise MoebenchError(f"{path}: key {key!r} has the value {values[key]!r}; only {right!r} can be computed")
    for key in ("vocab_size", *KEYS.values(), *(["pad_token_id"] if family.offset else [])):
        if key not in values:
            raise MoebenchError(f"{path}: key {key!r} is missing")
        if isinstance(values[key], bool) or not isinstance(values[key], int | float):
            raise MoebenchError(f"{path}: key {key!r} has the value {values[key]!r}; should be a number")
    return family, values, int(values["pad_token_id"]) + 1 if family.offset else 0


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Path, Any, str]]:
    """Tensor without prefix, LayerNorms as ``weight`` and ``bias`` → its file, the open file and the name stored there."""
    if lacking := missing(folder):
        raise MoebenchError(f"{folder}: lacks {lacking}")
    stored: dict[str, tuple[Path, Any]] = {}
    for name in [WEIGHTS] if (folder / WEIGHTS).is_file() else parts(folder):
        file = folder / name
        try:
            handle = stack.enter_context(safe_open(file, framework="pt"))
            stored |= {key: (file, handle) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise MoebenchError(f"{file}: not readable safetensors ({error}); download it again") from error
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}embeddings.word_embeddings.weight" in stored), None)
    if prefix is None:
        raise MoebenchError(f"{folder}: the weights hold no tensor '[bert.|roberta.]embeddings.word_embeddings.weight'")
    places = {}
    for key, (file, handle) in stored.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            if "LayerNorm." in name:  # weights converted from BERT's first release keep its names
                name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
            places[name] = (file, handle, key)
    return places


def _plan(shape: shapes.Encoder, rows: int, offset: int) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """Our name, the tensors that it is made of, one below the other, and the size of each of these."""
    D, F = shape.width, shape.inner
    yield "embedding.weight", ["embeddings.word_embeddings.weight"], (rows, D)
    yield "positions.weight", ["embeddings.position_embeddings.weight"], (shape.max_positions + offset, D)
    if shape.token_types:
        yield "types.weight", ["embeddings.token_type_embeddings.weight"], (shape.token_types, D)
    pre = shape.norm == "pre"
    modules = {
        "qkv": (["attention.self.query", "attention.self.key", "attention.self.value"], (D, D)),
        "out": (["attention.output.dense"], (D, D)),
        "inner": (["intermediate.dense"], (F, D)),
        "outer": (["output.dense"], (D, F)),
        "attention_norm": (["attention.self_attn_layer_norm" if pre else "attention.output.LayerNorm"], (D,)),
        "feed_forward_norm": (["LayerNorm" if pre else "output.LayerNorm"], (D,)),
    }
    for part, length in (("weight", 2), ("bias", 1)):
        yield f"norm.{part}", [f"{'encoder' if pre else 'embeddings'}.LayerNorm.{part}"], (D,)
        for index in range(shape.layers):
            for ours, (theirs, size) in modules.items():
                yield f"blocks.{index}.{ours}.{part}", [f"encoder.layer.{index}.{name}.{part}" for name in theirs], size[:length]
