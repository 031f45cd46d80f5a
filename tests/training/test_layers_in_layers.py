"""A sparse layer inside another: its hook is called once a step, and rows count per token, whatever tokens are split into."""

import torch

from moebench.config import Optimisation
from moebench.moe import MoELayer, ResidualExperts, build_router
from moebench.moe.multi_head import MultiHead
from moebench.training.module import Training


class Layers(Training):
    def __init__(self):
        super().__init__(Optimisation(steps=4, batch=2, rate=0.01), {}, 0.0, 0)
        torch.manual_seed(0)
        router = build_router("stablemoe", 4, 3, {}, vocabulary=9)
        self.split = MultiHead(8, MoELayer(router, ResidualExperts(3, 4, 6, 1)), heads=2)
        self.whole = MoELayer(build_router("topk", 8, 3, {"k": 3}), ResidualExperts(3, 8, 6, 1))


def test_only_the_outer_layer_is_asked_after_a_step():
    module = Layers()
    module.configure_optimizers()
    assert module.sparse_layers == [module.split, module.whole]
    for layer in module.sparse_layers:
        layer.after_optimizer_step()
    assert module.split.router.steps == 1


def test_rows_are_counted_per_token():
    module, x, ids = Layers(), torch.randn(2, 5, 8), torch.arange(10).view(2, 5) % 9
    mask = torch.arange(5)[None] < torch.tensor([[5], [2]])
    reports = [layer(x, mask, ids)[1] for layer in (module.split, module.whole)]
    module.loss = 0.0
    module.record(0.0, {"mask": mask}, [reports])
    assert module.usage.tolist() == [14, 2 * 7 - reports[0].dropped + 3 * 7, reports[0].dropped]
