"""Every router and every layer works as the feed-forward layer of a decoder, and causal ones keep it causal; the others say why not."""

import pytest
import torch

from moebench import config
from moebench.models.feed_forward import looks_at_attention
from moebench.moe.registry import build_router, layer_names, router_names
from moebench.protocols.language_model.build import build

SHAPE = {"layers": 2, "width": 16, "heads": 2, "inner": 8, "context": 24}
EXPERTS, VOCABULARY = 4, 50
NEEDED = {"norm": {"low": 4}, "partitioned": {"members": 1}}
"""Options without a default."""


def options_of(kind, name):
    fields = config.part(kind, name).options.model_fields
    return NEEDED.get(name, {}) | {"k": 2} if "k" in fields else NEEDED.get(name, {})


def plan_of(kind, name):
    method = {"layer": "moe" if kind == "router" else name, "router": name if kind == "router" else None}
    method["options"] = options_of(kind, name)
    sizes = {"experts": 1 if name == "dense" else EXPERTS, "inner": 8, "low": 5 if name == "aoe" else 0}
    return {"decoder": SHAPE, "method": method, "sizes": sizes}


KINDS = [*(("router", name) for name in router_names()), *(("layer", name) for name in layer_names())]


@pytest.mark.parametrize(("kind", "name"), KINDS, ids=[name for _, name in KINDS])
def test_a_decoder_learns_with_it_and_stays_causal_if_it_is(kind, name):
    torch.manual_seed(0)
    looks = kind == "router" and build_router(name, 16, EXPERTS, options_of(kind, name), VOCABULARY).needs_attention
    assert looks == (kind == "router" and looks_at_attention(name))
    if looks:
        with pytest.raises(ValueError, match="its router looks at attention probabilities"):
            build(plan_of(kind, name), VOCABULARY)
        return
    decoder = build(plan_of(kind, name), VOCABULARY)
    ids = torch.randint(5, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    for layer in decoder.layers:
        if hasattr(layer, "router"):
            layer.router.before_training(torch.bincount(ids.flatten(), minlength=VOCABULARY))
    states, reports = decoder(ids)
    loss = torch.nn.functional.cross_entropy(decoder.logits(states[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    (loss + sum(sum(aux.losses.values(), torch.zeros(())) for aux in reports)).backward()
    assert all(parameter.grad is not None for block in decoder.blocks for parameter in block.layer.experts.parameters())
    decoder.eval()
    if all(layer.causal for layer in decoder.layers):
        changed = ids.clone()
        changed[:, 12:] = torch.randint(5, VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            before, after = decoder(ids)[0], decoder(changed)[0]
        torch.testing.assert_close(before[:, :12], after[:, :12], rtol=1e-5, atol=1e-6)
