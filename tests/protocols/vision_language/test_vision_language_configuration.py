"""Configuration and plan of papers on images and words: what is refused, with which message, and which stages there are."""

import subprocess
import sys

import pytest
import yaml

from moebench.data import scenes
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, papers, profiles
from moebench.pipeline.plan import planned
from moebench.pipeline.select import listed
from moebench.protocols.vision_language import config
from moebench.protocols.vision_language.config import shape_of

FILES = {"coco": "coco", "vqa": "vqa", "nlvr": "nlvr", "captions": "coco.json"}
REFUSED = [
    (("data", "source", "scene"), r"data/smoke\.yaml: key 'source' has the value 'scene'"),
    (("data", "source", "files"), "the section 'files' belongs to, and is required by, source 'files' alone"),
    (("data", "files", FILES), "the section 'files' belongs to, and is required by, source 'files' alone"),
    (("data", "vqa", {"train": 4, "test": 4}), r"vqa\.validation is missing: scenes are drawn"),
    (("data", "nlvr", "train", 0), r"data/smoke\.yaml: key 'nlvr\.train' has the value 0"),
    (("data", "masked", "pairs", None), r"key 'masked\.pairs' is missing"),
    (("data", "codebook", 1), r"key 'codebook' has the value 1"),
    (("data", "vocabulary", 5), r"key 'vocabulary' has the value 5"),
    (("data", "seeds", 1), r"unknown key 'seeds' \(did you mean 'seed'\?\)"),
    (("setting", "model", "image", 32), r"smoke\.yaml: key 'model\.image' has the value 32; scenes have 24"),
    (("setting", "model", "channels", 3), r"smoke\.yaml: key 'model\.channels' has the value 3; scenes have 1"),
    (("setting", "model", "patch", 5), "image 24 is not a multiple of patch 5"),
    (("setting", "model", "heads", 5), "width 24 is not a multiple of heads 5"),
    (("setting", "model", "words", 3), r"key 'model\.words' has the value 3"),
    (("setting", "pretrain", "batch", 9), "batch 9: should be 8, the sum of rows"),
    (("setting", "pretrain", "mask_image", 0), r"key 'pretrain\.mask_image' has the value 0"),
    (("setting", "pretrain", "floor", 1.5), r"key 'pretrain\.floor' has the value 1.5"),
    (("setting", "pretrain", "rows", "texts", 0), r"key 'pretrain\.rows\.texts' has the value 0"),
    (("setting", "caption", "mask", 2), "key 'caption.mask' has the value 2"),
    (("setting", "vqa", "mask", 0.5), r"unknown key 'vqa\.mask'"),
    (("setting", "nlvr", None), "key 'nlvr' is missing"),
    (("setting", "experts_of", {"moo": 3}), r"key 'experts_of' names 'moo' \(did you mean 'moe'\?\)"),
    (("setting", "sparse_every", 9), r"smoke\.yaml: key 'sparse_every' has the value 9; there are 2 blocks"),
    (("methods", "heads", "multi_head", {"heads": 5, "parity": "parameters"}), "heads 5: should be at least 1 and divide the width, 24"),
    (("methods", "dense", "layer", "none"), "layer 'none': a transformer's block has a feed-forward layer"),
    (("methods", "dense", "layer", "dens"), r"dense\.yaml: key 'layer' has the value 'dens' \(did you mean 'dense'\?\)"),
    (("methods", "moe", "router", "topkk"), r"moe\.yaml: key 'router' has the value 'topkk' \(did you mean 'topk'\?\)"),
    (("methods", "moe", "router", "damoe"), "'damoe', which looks at attention probabilities"),
    (("methods", "moe", "losses", {}), r"moe\.yaml: key 'losses\.balance' is missing"),
    (("methods", "moe", "options", {"k": 9}), r"moe\.yaml: key 'options\.k' has the value 9: .*here are 4 experts"),
    (("methods", "moe", "pretrain_as", "dense"), "pretrain_as 'dense': every method is pre-trained by itself here"),
    (("methods", "moe", "published", "XMoE"), r"key 'published' has the value 'XMoE' \(did you mean 'X-MoE'\?\)"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[" ".join(map(str, change)) for change, _ in REFUSED])
def test_what_cannot_be_is_refused(write, change, message):
    with pytest.raises(MoebenchError, match=message):
        write(change).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coco": "/coco"}, r"key 'files\.coco' has the value '/coco': '/coco' leaves the folder; give a path below it"),
        ({"texts": "a/../../b"}, "leaves the folder"),
        ({"pairs": [{"captions": "x.json"}]}, r"key 'files\.pairs\.0\.pictures' is missing"),
    ],
)
def test_paths_stay_below_the_folder_of_original_files(write, change, message):
    paper = write(("data", "source", "files"), ("data", "files", FILES | change))
    with pytest.raises(MoebenchError, match=message):
        paper.check()


def test_layer_aoe_has_no_factorised_experts_here(write):
    aoe = {"label": "AoE", "layer": "aoe", "losses": {"balance": 0, "entropy": 0}}
    with pytest.raises(MoebenchError, match=r"aoe\.yaml: key 'options\.node' has the value 'reduced', which takes factorised experts"):
        write(("methods", "aoe", aoe)).check()
    write(("methods", "aoe", aoe | {"options": {"node": "gate"}})).check()


def test_held_out_questions_of_original_files_have_to_be_counted(write):
    with pytest.raises(MoebenchError, match=r"vqa\.validation is missing: it is held out from the training questions"):
        write(("data", "source", "files"), ("data", "files", FILES), ("data", "vqa", {})).check()


def test_original_pictures_have_three_channels(write):
    with pytest.raises(MoebenchError, match=r"smoke\.yaml: key 'model\.channels' has the value 1; pictures have 3"):
        write(("data", "source", "files"), ("data", "files", FILES)).check()


def test_scenes_are_as_large_as_the_configuration_says():
    assert scenes.scenes("test", 1).images.shape[1:] == (config.SIDE, config.SIDE, config.CHANNELS)


def test_every_shipped_profile_is_valid_and_is_checked_without_torch(project):
    code = (
        "import sys; from pathlib import Path; from moebench.experiment import Experiment, profiles; root = Path('.').resolve()\n"
        "for profile in profiles(root, 'mhmoe_vision_language'):\n"
        "    paper = Experiment(root, 'mhmoe_vision_language', profile); paper.check(); paper.runs\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)
    assert "mhmoe_vision_language" in papers(project)
    assert {"smoke", "cpu", "real", "paper"} <= set(profiles(project, "mhmoe_vision_language"))


def test_the_published_configuration_has_the_published_sizes(project):
    paper = Experiment(project, "mhmoe_vision_language", "paper")
    sizes = {name: shape_of(paper.setting, method, name) for name, method in paper.methods.items()}
    assert sizes["xmoe"] == {"experts": 8, "inner": 2048}
    assert sizes["dense"] == {"experts": 1, "inner": 2048}
    assert sizes["mh_4_parameters"]["experts"] == 8
    setting = paper.setting
    assert (setting.model.layers, setting.model.width, setting.model.heads, setting.pretrain.batch) == (12, 768, 12, 512)
    assert setting.pretrain.warmup * setting.pretrain.steps == 10000
    assert {method.published for method in paper.methods.values()} - {None} == set(paper.published.rows)


def test_methods_are_those_of_mh_moe_on_texts(project):
    for path in (project / "experiments/mhmoe_vision_language/methods").glob("*.yaml"):
        mine, theirs = (yaml.safe_load((project / "experiments" / paper / "methods" / path.name).read_text()) for paper in PAPERS)
        assert {key: value for key, value in mine.items() if key != "published"} == {
            key: value for key, value in theirs.items() if key != "published"
        }


PAPERS = ("mhmoe_vision_language", "mhmoe")


def test_every_method_is_pretrained_and_fine_tuned_on_every_task(write):
    paper = write(("setting", "seeds", [3, 5]))
    names = yaml.safe_load(listed(paper))
    assert set(names["pretrain"]) == {f"{name}-{seed}" for name in ("dense", "moe", "heads") for seed in (3, 5)}
    assert names["pretrain"]["moe-5"] == {"method": "moe", "seed": 5, "part": "pretrain"}
    assert len(names["finetune"]) == 3 * 3 * 2
    assert names["finetune"]["heads-nlvr-3"] == {"method": "heads", "set": "nlvr", "seed": 3, "start": "heads-3", "part": "nlvr"}


def test_a_change_reaches_only_the_runs_that_depend_on_it(write):
    before = planned(write())

    def changed(*change):
        after = planned(write(change))
        return sorted(name for name in before if before[name] != after[name])

    of_moe = ["finetune/moe-caption", "finetune/moe-nlvr", "finetune/moe-vqa", "pretrain/moe"]
    assert changed("methods", "moe", "losses", {"balance": 0.05}) == ["evaluate", *of_moe, "tabulate"]
    assert changed("methods", "moe", "label", "other") == ["tabulate"]
    tasks = [f"finetune/{name}-caption" for name in ("dense", "heads", "moe")]
    assert changed("setting", "caption", "mask", 0.5) == ["baselines", "evaluate", *tasks, "tabulate"]
    assert changed("data", "nlvr", "test", 8) == ["baselines", "evaluate", "prepare", "tabulate"]
    assert "prepare" in changed("setting", "model", "patch", 4)
    assert "prepare" not in changed("setting", "model", "layers", 4)
    assert changed("setting", "notes", {"model": "x"}) == ["tabulate"]


def test_what_a_method_does_not_have_is_not_in_its_plan(write):
    paper = write()

    def plan(method, stage):
        run = next(run for run in paper.runs if (run.stage, run.method) == (stage, method))
        return paper.protocol.runs.plan(paper, run)

    assert not {"multi_head", "shared", "split", "wide"} & plan("moe", "pretrain").config["method"].keys()
    assert plan("heads", "pretrain").config["method"]["multi_head"]["heads"] == 2
    assert plan("heads", "pretrain").config["sizes"]["inner"] == shape_of(paper.setting, paper.method("heads"), "heads")["inner"]
    assert "moebench.moe.routers.mhmoe_topk" in plan("moe", "finetune").modules
    assert "moebench.moe.layers.dense" in plan("dense", "pretrain").modules
