"""Which runs there are."""

from moebench.experiment import Run
from moebench.protocol import Plan

PRETRAINED_ON = "noisy"


def runs(experiment):
    return [Run("pretrain", name, seed, part="points") for name in experiment.methods for seed in experiment.setting.seeds]


def plan(experiment, run):
    method = experiment.method(run.method)
    what = experiment.setting.model_dump(mode="json", exclude={"seeds", "methods", "notes", "baseline", "options"})
    what["method"] = method.model_dump(mode="json", include={"router", "options", "losses"})
    return Plan(what, ["moebench.protocols.toy.training", f"moebench.moe.routers.{method.router}"])
