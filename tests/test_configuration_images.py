"""Configuration and plan of the papers on images: what is refused, with which message, and which stages there are."""

import pytest
import yaml

from moebench import config, config_images
from moebench.errors import MoebenchError
from moebench.stages import plan_images
from moebench.stages.select import stages

LOSSES = {"importance": 0.1, "load": 0.1, "balance": 0}
SETTING = {
    "seeds": [3, 5, 8],
    "baseline": "vmoe",
    "vision": {"image": 8, "patch": 4, "channels": 1, "layers": 2, "width": 8, "heads": 2, "inner": 8},
    "experts": 4,
    "pretrain": {"steps": 2, "batch": 4, "rate": 0.001},
    "finetune": {"steps": 2, "batch": 4, "rate": 0.001},
}
METHODS = {
    "vit": {"label": "ViT", "variant": "dense"},
    "vmoe": {"label": "V-MoE", "variant": "vmoe", "losses": LOSSES},
    "e3": {"label": "E3", "variant": "e3", "members": 2, "losses": LOSSES, "pretrain_as": "vmoe"},
    "deep": {"label": "DE", "variant": "deep", "of": {"vit": [0, 1]}},
}


@pytest.fixture
def write(tmp_path):
    def write(methods=METHODS, setting=SETTING):
        folder = tmp_path / "experiments" / "e3"
        (folder / "methods").mkdir(parents=True, exist_ok=True)
        (folder / "profiles").mkdir(exist_ok=True)
        (folder / "profiles" / "smoke.yaml").write_text(yaml.safe_dump(setting))
        for name, method in methods.items():
            (folder / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(method))
        return tmp_path

    return write


def test_stages_are_those_of_methods_with_runs_and_pretraining_is_shared(write):
    root = write()
    plan_images.check(root, "smoke", "e3")
    listed = yaml.safe_load(stages(root, "smoke", "e3"))
    assert set(listed["pretrain"]) == {f"smoke-{name}-{seed}" for name in ("vit", "vmoe") for seed in (3, 5, 8)}
    assert set(listed["finetune"]) == {f"smoke-{name}-downstream-{seed}" for name in ("vit", "vmoe", "e3") for seed in (3, 5, 8)}
    assert listed["finetune"]["smoke-e3-downstream-5"] == {"method": "e3", "set": "downstream", "seed": 5, "start": "vmoe-5"}
    assert listed["profiles"] == ["smoke"]
    assert yaml.safe_load(stages(root, "paper", "e3")) == {"profile": "paper", "profiles": [], "pretrain": {}, "finetune": {}}
    assert (config.papers(root, "smoke"), config.papers(root, "paper"), config.papers(root)) == (["e3"], [], ["e3"])
    assert config_images.of_images(root, "e3")


def test_members_of_a_deep_ensemble_come_from_the_seeds_round_the_end():
    assert [config_images.members_of((3, 5, 8), seed, (0, 1)) for seed in (3, 5, 8)] == [[3, 5], [5, 8], [8, 3]]


def test_a_plan_changes_only_where_its_method_does(write):
    before = plan_images.of_paper(write(), "smoke", "e3")
    changed = METHODS | {"e3": METHODS["e3"] | {"members": 4}}
    after = plan_images.of_paper(write(changed), "smoke", "e3")
    assert {name for name in before if before[name] != after[name]} == {"finetune/e3-downstream", "evaluate", "tabulate"}
    renamed = METHODS | {"vit": METHODS["vit"] | {"label": "another label"}}
    after = plan_images.of_paper(write(METHODS | renamed), "smoke", "e3")
    assert {name for name in before if before[name] != after[name]} == {"tabulate"}


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("e3", {"members": 3}, r"e3\.yaml: members 3 do not divide the 4 experts"),
        ("e3", {"pretrain_as": "vit"}, r"e3\.yaml: key 'pretrain_as' names 'vit', which should be a V-MoE"),
        ("e3", {"losses": {"importance": 1.0}}, r"e3\.yaml: key 'losses\.load' is missing"),
        ("e3", {"losses": LOSSES | {"entropi": 1}}, r"e3\.yaml: unknown key 'losses\.entropi'"),
        ("e3", {"options": {"tiled": False}}, r"e3\.yaml: key 'options\.tiled' follows from variant and members"),
        ("e3", {"options": {"kk": 1}}, r"e3\.yaml: unknown key 'options\.kk'"),
        ("vit", {"members": 2}, r"vit\.yaml.*members belongs to an ensemble within one model"),
        ("vit", {"losses": {"load": 1}}, r"vit\.yaml.*options and losses belong to layers of experts"),
        ("vit", {"shape": {"width": 9}}, r"width 9 is not a multiple of heads 2"),
        ("vit", {"variant": "dens"}, r"vit\.yaml: key 'variant' has the value 'dens'"),
        ("deep", {"of": {"vitt": [0, 1]}}, r"deep\.yaml: key 'of\.vitt'.*did you mean 'vit'"),
        ("deep", {"of": {}}, r"deep\.yaml.*of is required for variant 'deep'"),
    ],
)
def test_mistakes_are_named(write, name, change, complaint):
    root = write(METHODS | {name: METHODS[name] | change})
    with pytest.raises(MoebenchError, match=complaint):
        plan_images.check(root, "smoke", "e3")
