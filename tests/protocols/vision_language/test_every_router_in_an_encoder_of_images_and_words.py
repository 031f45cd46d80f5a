"""Every router and every layer trains as the layer for both modalities, and keeps captions causal if it is; the others say why not."""

import pytest
import torch

from moebench import config
from moebench.models.vision_language import PAD
from moebench.moe.registry import build_router, layer_names, router_names
from moebench.protocols.vision_language.build import build

MODEL = {"image": 6, "patch": 2, "channels": 1, "layers": 2, "width": 16, "heads": 2, "inner": 8, "words": 8}
EXPERTS, VOCABULARY, CODEBOOK, PATCHES = 4, 50, 10, 9
NEEDED = {"norm": {"low": 4}, "partitioned": {"members": 1}}
"""Options without a default."""


def options_of(kind, name):
    fields = config.part(kind, name).options.model_fields
    return NEEDED.get(name, {}) | {"k": 2} if "k" in fields else NEEDED.get(name, {})


def plan_of(kind, name):
    method = {"layer": "moe" if kind == "router" else name, "router": name if kind == "router" else None}
    method["options"] = options_of(kind, name)
    sizes = {"experts": 1 if name == "dense" else EXPERTS, "inner": 8, "low": 5 if name == "aoe" else 0}
    return {"model": MODEL, "method": method, "sizes": sizes, "sparse_every": 2}


KINDS = [*(("router", name) for name in router_names()), *(("layer", name) for name in layer_names())]


@pytest.mark.parametrize(("kind", "name"), KINDS, ids=[name for _, name in KINDS])
def test_an_encoder_learns_with_it_and_captions_stay_causal_if_it_is(kind, name):
    torch.manual_seed(0)
    looks = kind == "router" and build_router(name, 16, EXPERTS, options_of(kind, name), VOCABULARY).needs_attention
    if looks:
        with pytest.raises(ValueError, match="its router looks at attention probabilities"):
            build(plan_of(kind, name), VOCABULARY, CODEBOOK)
        return
    encoder = build(plan_of(kind, name), VOCABULARY, CODEBOOK)
    generator = torch.Generator().manual_seed(1)
    patches, visual = torch.rand(6, PATCHES, 4, generator=generator), torch.randint(CODEBOOK, (6, PATCHES), generator=generator)
    words = torch.randint(5, VOCABULARY, (6, 8), generator=generator)
    words[:2, 5:] = PAD
    given = {"visual_BT": visual, "mask_BS": torch.cat([torch.ones(6, 1 + PATCHES, dtype=torch.bool), words != PAD], 1)}
    (layer,) = encoder.layers.values()
    if hasattr(layer, "router"):
        layer.router.before_training(torch.ones(VOCABULARY + CODEBOOK, dtype=torch.long))
    states, reports = encoder(patches, words, apart_B=torch.arange(6) > 2, hidden_BT=visual == 0, **given)
    assert len(reports) == 1
    (states.square().mean() + sum(reports[0].losses.values(), torch.zeros(()))).backward()
    assert all(parameter.grad is not None for parameter in layer.experts.parameters())
    assert sum(parameter.grad.abs().sum() for parameter in layer.experts.parameters()) > 0
    encoder.eval()
    if layer.causal:
        changed = words.clone()
        changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
        with torch.no_grad():
            before, after = (encoder(patches, each, causal=True, **given)[0] for each in (words, changed))
        torch.testing.assert_close(before[:, : 1 + PATCHES + 4], after[:, : 1 + PATCHES + 4], rtol=1e-5, atol=1e-6)
