"""The code that the documentation shows runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

from moebench.moe import FeedForwardExperts, MoELayer, layer_names, router_names

DOCS = Path(__file__).parents[2] / "docs"


def python_of(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_a_layer_used_by_itself():
    (code,) = python_of("ROUTERS.md")
    names = {"hidden": torch.randn(2, 5, 512), "mask": torch.ones(2, 5, dtype=torch.bool), "task_loss": torch.zeros(())}
    before = names["hidden"]
    exec(code, names)
    assert names["hidden"].shape == before.shape
    assert not torch.equal(names["hidden"], before)
    assert names["loss"].item() == pytest.approx(0.01 * names["aux"].losses["balance"].item())


def test_the_router_of_the_walk_through():
    (code,) = python_of("ADDING_A_BASELINE.md")
    names = {}
    exec(code, names)
    router = names["Uniform"](8, 4)
    layer, ids = MoELayer(router, FeedForwardExperts(4, 8, 16)), torch.arange(6).reshape(2, 3)
    _, aux = layer(torch.randn(2, 3, 8), None, ids)
    assert set(aux.losses) == set(router.losses)
    layer.eval()(torch.randn(2, 3, 8), None, ids)
    assert layer.eval()(torch.randn(2, 3, 8), None, ids)[1].routing.expert.tolist() == [0, 1, 2, 3, 0, 1]


def test_every_router_and_layer_is_listed():
    text = (DOCS / "ROUTERS.md").read_text(encoding="utf-8")
    assert [name for name in (*router_names(), *layer_names()) if f"`{name}`" not in text] == []
