"""MIMO (Havasi et al., arXiv 2010.06610): one vision transformer that sees M images at once and classifies each of them.

B images, M members, R repetitions of a batch, C classes.

There is no form of it for text here: two texts have no common positions to be added at, as two images have patches, for their lengths
differ; the paper has none either. The loss is the mean over members of each member's cross-entropy on its own labels; the paper and the
public code for CIFAR have the sum, M times as much, the public vision transformer the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moebench.models.vit import ViT


def mimo_vit(model: ViT, members: int, apart: float = 0.5) -> None:
    """Give a vision transformer M images in the place of one, side by side in the channels, and M heads; its output becomes (B, M, C).

    Called with M times the same image it starts as it was: member m's patch kernel is (K + δ_m) / M, where K is the dense kernel and
    Σ_m δ_m = 0, and all heads are the dense head. Without δ no head could tell which image is its own but by chance. This start is ours:
    the paper and the public code train from scratch (head's matrix 0, one convolution over M times the channels). ``flops_per_image``
    counts the wider first and last layers.

    Args:
        model: changed in place, pre-trained or not; several heads or copies it must not have. Its ``shape.channels`` are multiplied by M.
        members: M.
        apart: standard deviation of δ_m, were M large, over the root mean square of K.

    Raises:
        ValueError: the model is an ensemble already.
    """
    if model.copies * model.heads > 1:
        raise ValueError(f"the model has {model.copies * model.heads} members already")
    kernel, head = model.patches.weight.detach(), model.head
    drawn = torch.randn(members, *kernel.shape).to(kernel)
    kernels = kernel + apart * kernel.square().mean().sqrt() * (drawn - drawn.mean(0))
    model.patches.weight = nn.Parameter((kernels / members).transpose(0, 1).flatten(1, 2))
    head.weight = nn.Parameter(head.weight.detach().repeat(members, 1))
    head.bias = nn.Parameter(head.bias.detach().repeat(members))
    model.patches.in_channels = model.shape.channels * members
    head.out_features = model.classes * members
    model.shape = model.shape.model_copy(update={"channels": model.shape.channels * members})
    model.heads = members


def training_batch(images: Tensor, labels_B: Tensor, members: int, repetition: float = 0.0, repeats: int = 1) -> tuple[Tensor, Tensor]:
    """M images an input, each member's from its own shuffle of the batch.

    The batch is repeated R times and shuffled; a share of its places holds the same image for all members, in the others each member has
    a shuffle of its own. In the paper each input repeats with that probability; a fixed share is the public code's. Its
    vision transformers have M = 2, R = 2 and a share of 0.9; swept were M = 4, R of 1, 2 and 4, and no share.

    Args:
        images: (B, channels, side, side).
        labels_B: labels.
        members: M.
        repetition: share of the places with the same image for all members, rounded to places.
        repeats: R.

    Returns:
        (B·R, M·channels, side, side) images and (B·R, M) labels, drawn from torch's global generator.

    Raises:
        ValueError: the share is outside 0 to 1, or there is no member or repetition.
    """
    if not (0 <= repetition <= 1 and members >= 1 and repeats >= 1):
        raise ValueError(f"members {members}, repetition {repetition}, repeats {repeats}: should be at least 1, 0 to 1, at least 1")
    places = torch.randperm(len(images) * repeats, device=images.device) % len(images)
    own = len(places) - round(repetition * len(places))
    index_NM = torch.stack([torch.cat([places[torch.randperm(own, device=images.device)], places[own:]]) for _ in range(members)], 1)
    return images[index_NM].flatten(1, 2), labels_B[index_NM]


def tile(images: Tensor, members: int) -> Tensor:
    """The input of a test: the same image M times, (B, channels, side, side) to (B, M·channels, side, side)."""
    return images.repeat(1, members, 1, 1)
