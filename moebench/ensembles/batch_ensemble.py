"""BatchEnsemble (Wen et al., arXiv 2002.06715): members that share every matrix but for two vectors and a bias of their own.

B examples, M members, N = B·M rows, I inputs, O outputs. Image by image, as in `moebench.models.vit`: row b·M + m is member m of example b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.models.encoder import Encoder
from moebench.models.vit import FeedForward, ViT

Fast = float | Literal["signs"]
"""How fast weights start: N(1, value²), where 0 makes all members the dense layer; or ±1 with equal chances, as in the paper. The public
code's ``random_sign_init`` is minus our value, or 0.5 for the signs; its vision transformers try -0.5 and 0.5."""


class BatchEnsembleLinear(nn.Module):
    """y_m = ((x ∘ r_m) Wᵀ) ∘ s_m + b_m, which is member m's own layer with W_m = W ∘ s_m r_mᵀ.

    The slow weights W are shared; the fast weights r (``fast_input``) and s (``fast_output``) are the members', and so is b, as in the
    public code (edward2's ``DenseBatchEnsemble``). Where a row is many tokens, all of them are multiplied by the same r_m and s_m.

    With one member and fast weights of 1 this is the dense layer, to rounding: torch adds the dense bias inside the product.
    """

    def __init__(self, linear: nn.Linear, members: int, fast: Fast = 0.5):
        """Take over a dense layer; draw the fast weights from torch's global generator.

        Args:
            linear: its matrix becomes W, the same parameter; every member starts with its bias.
            members: M.
            fast: how r and s start.
        """
        super().__init__()
        self.members = members
        self.weight = linear.weight
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().repeat(members, 1))
        self.fast_input = nn.Parameter(_fast(linear.weight.new_empty(members, linear.in_features), fast))
        self.fast_output = nn.Parameter(_fast(linear.weight.new_empty(members, linear.out_features), fast))

    def forward(self, x: Tensor) -> Tensor:
        """Run every row through its member's layer.

        Args:
            x: (N, ..., I).

        Returns:
            (N, ..., O).

        Raises:
            ValueError: N is not a multiple of M: the batch was not tiled.
        """
        if len(x) % self.members:
            raise ValueError(f"{len(x)} rows are not {self.members} copies of each example; tile the batch first")

        def own(parameter: Tensor) -> Tensor:
            return parameter.view(self.members, *[1] * (x.ndim - 2), -1)

        x_BM = x.unflatten(0, (len(x) // self.members, self.members))
        y_BM = functional.linear(x_BM * own(self.fast_input), self.weight) * own(self.fast_output)
        return (y_BM if self.bias is None else y_BM + own(self.bias)).flatten(0, 1)


def _fast(empty: Tensor, fast: Fast) -> Tensor:
    if fast == "signs":
        return torch.randint(0, 2, empty.shape, device=empty.device).to(empty.dtype) * 2 - 1
    return empty.normal_(1, fast)


def convert(model: nn.Module, names: Sequence[str], members: int, fast: Fast = 0.5) -> None:
    """Replace dense layers by BatchEnsemble layers that keep their matrices, so that a pre-trained dense model fine-tunes as BatchEnsemble.

    Load the dense weights first: afterwards the names and shapes are BatchEnsemble's.

    Args:
        model: changed in place; must be given tiled batches from then on.
        names: of the layers, as in ``named_modules``.
        members: M.
        fast: how the fast weights start.

    Raises:
        ValueError: a named module is not an ``nn.Linear``.
    """
    linears = {}
    for name in names:
        if not isinstance(module := model.get_submodule(name), nn.Linear):
            raise ValueError(f"{name} is of type {type(module).__name__}: should be a Linear")
        linears[name] = module
    for name, linear in linears.items():
        model.set_submodule(name, BatchEnsembleLinear(linear, members, fast))


def batch_ensemble_vit(model: ViT, members: int, blocks: Sequence[int], fast: Fast = 0.5) -> None:
    """Make a vision transformer a BatchEnsemble in the feed-forward layers of some blocks and in the head; its output becomes (B, M, C).

    Copies of an image are made before the first of the blocks. As in the public code, whose blocks, from 0, and M are: S/32 5-7, 2; B/32
    9-11, 3; B/16 9 and 11, 3; L/32 22-23, 3; H/14 27-31, 3. There the copies go member by member, and the head's matrix starts at 0.

    Args:
        model: changed in place, pre-trained or not; several heads or copies it must not have.
        members: M.
        blocks: whose feed-forward layers are converted.
        fast: how the fast weights start.

    Raises:
        ValueError: the model is an ensemble already; or there is no block, or one of them has no feed-forward layer.
    """
    if model.copies * model.heads > 1:
        raise ValueError(f"the model has {model.copies * model.heads} members already")
    dense = [index for index, block in enumerate(model.blocks) if isinstance(block.layer, FeedForward)]
    if not blocks or not set(blocks) <= set(dense):
        raise ValueError(f"blocks {list(blocks)}: should be one or more of {dense}, which have feed-forward layers")
    convert(model, [*(f"blocks.{index}.layer.{part}" for index in blocks for part in ("inner", "outer")), "head"], members, fast)
    model.copies, model.tile_before = members, min(blocks)


def batch_ensemble_encoder(encoder: Encoder, members: int, blocks: Sequence[int], fast: Fast = 0.5) -> None:
    """Make a text encoder a BatchEnsemble in the feed-forward layers of some blocks; heads stay shared. Give it batches from `tile`.

    All blocks run on M copies, also those before the first converted one, which a vision transformer runs once.

    Args:
        encoder: changed in place.
        members: M.
        blocks: from 0, whose feed-forward layers are converted.
        fast: how the fast weights start.

    Raises:
        ValueError: there is no block, or one of them does not exist.
    """
    if not blocks or not set(blocks) <= set(range(len(encoder.blocks))):
        raise ValueError(f"blocks {list(blocks)}: should be one or more of 0 to {len(encoder.blocks) - 1}")
    convert(encoder, [f"blocks.{index}.{part}" for index in blocks for part in ("inner", "outer")], members, fast)


def tile(batch: Mapping[str, Tensor], members: int) -> dict[str, Tensor]:
    """M copies of each example, side by side: (B, ...) to (B·M, ...) for everything in the batch, labels too.

    A mean over the tiled batch's targets is then the mean over members of each member's own cross-entropy, and ``unflatten(0, (-1, M))``
    gives outputs of (B, M, ...).
    """
    return {name: values.repeat_interleave(members, 0) for name, values in batch.items()}


def fast_weights(model: nn.Module) -> list[str]:
    """Names of all r and s, as in ``named_parameters``: for a learning rate of their own, and for no weight decay, which pulls to 0, not 1.

    The public code multiplies their gradients instead, after clipping (0.5, 1 or 2): the same with SGD, of no effect with Adam.
    """
    return [
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, BatchEnsembleLinear)
        for part in ("fast_input", "fast_output")
    ]
