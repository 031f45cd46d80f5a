"""Checkpoints in Hugging Face layout: our encoder against outputs of transformers, the names of checkpoints, and every refusal."""

import hashlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moebench.data import checkpoint_files
from moebench.data.checkpoint_files import resolve
from moebench.errors import MoebenchError
from moebench.models import shapes
from moebench.models.build import build_encoder
from moebench.models.checkpoints import check_vocabulary, load_checkpoint, rows_of, shape_of, weights_of

CASES = ["bert", "xlm-roberta", "xlm-roberta-xl"]
REVISION = "0123456789abcdef0123456789abcdef01234567"
XMOE = {"layer": "moe", "router": "xmoe", "options": {"gate": "softmax", "temperature": 0.3}}
IDENTITY = shapes.Sparse(experts=4, sublayers=3, inner=16, identity=True)


def loaded(folder, sparse=None, method=None):
    encoder = build_encoder(shape_of(folder), sparse, method or {"layer": "none"}, rows_of(folder)).eval()
    load_checkpoint(encoder, folder)
    return encoder


@pytest.fixture
def checkpoint(golden, tmp_path):
    """Write a checkpoint of the reference file and return its folder, ids, mask and states."""

    def write(case, folder=tmp_path / "checkpoint"):
        with np.load(golden / "hf_tiny.npz") as arrays:
            mine = {name.removeprefix(f"{case}/"): arrays[name] for name in arrays.files if name.startswith(f"{case}/")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(str(mine["config"]))
        weights = {name.removeprefix("weights/"): torch.from_numpy(value) for name, value in mine.items() if name.startswith("weights/")}
        save_file(weights, folder / "model.safetensors")
        return folder, *(torch.from_numpy(mine[name]) for name in ("ids", "mask", "states"))

    return write


def edit_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


# ---------------------------------------------------------------------------------------------------- the same network


@pytest.mark.parametrize("case", CASES)
def test_our_encoder_reproduces_the_recorded_outputs_and_identity_experts_change_nothing(checkpoint, case):
    folder, ids, mask, states = checkpoint(case)
    ours = loaded(folder)(ids, mask)[0]
    torch.testing.assert_close(ours[mask], states[mask], atol=1e-5, rtol=0)
    assert states[mask].std() > 0.3
    assert torch.equal(loaded(folder, IDENTITY, XMOE)(ids, mask)[0][mask], ours[mask])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "6KB"])
def test_our_encoder_equals_a_random_one_of_transformers(tmp_path, case, head, shard):
    transformers = pytest.importorskip("transformers")
    name = {"bert": "Bert", "xlm-roberta": "XLMRoberta", "xlm-roberta-xl": "XLMRobertaXL"}[case]
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    configuration = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=11)
    torch.manual_seed(5)
    model = getattr(transformers, name + ("ForMaskedLM" if head else "Model"))(configuration).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "6KB")
    length = 11 if case == "bert" else 9
    ids = torch.randint(4, 50, (3, length))
    mask = torch.arange(length) < torch.tensor([length, 5, 1])[:, None]
    ids[~mask] = configuration.pad_token_id
    with torch.no_grad():
        states = model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(loaded(tmp_path)(ids, mask)[0][mask], states[mask], atol=1e-5, rtol=0)


def test_shapes(checkpoint):
    sizes = {
        "layers": 2,
        "width": 16,
        "heads": 4,
        "inner": 24,
        "positions": "learned",
        "max_positions": 12,
        "dropout": 0.1,
        "initial_std": 0.02,
    }
    expected = {
        "bert": {"norm": "post", "token_types": 2, "epsilon": 1e-12},
        "xlm-roberta": {"norm": "post", "token_types": 1, "epsilon": 1e-5},
        "xlm-roberta-xl": {"norm": "pre", "token_types": 1, "epsilon": 1e-5},
    }
    for case, rest in expected.items():
        folder = checkpoint(case)[0]
        assert shape_of(folder).model_dump() == sizes | rest
        assert rows_of(folder) == 40


@pytest.mark.parametrize("case", CASES)
def test_keys_that_config_json_leaves_out_are_those_of_transformers(checkpoint, case):
    folder, *_ = checkpoint(case)
    transformers = pytest.importorskip("transformers")
    edit_config(folder, layer_norm_eps=..., type_vocab_size=..., hidden_dropout_prob=..., pad_token_id=..., hidden_act=...)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    ours = shape_of(folder)
    assert (ours.epsilon, ours.token_types, ours.dropout) == (theirs.layer_norm_eps, theirs.type_vocab_size, theirs.hidden_dropout_prob)
    assert (ours.max_positions, theirs.hidden_act) == (14 - theirs.pad_token_id - 1 if case != "bert" else 12, "gelu")


@pytest.mark.parametrize("case", ["bert", "xlm-roberta"])
def test_old_names_prefixes_half_precision_and_buffers_make_no_difference(checkpoint, case):
    folder, *_ = checkpoint(case)
    prefix = "bert." if case == "bert" else ""
    edit_weights(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    want = dict(weights_of(folder))
    assert {value.dtype for value in want.values()} == {torch.float32}

    def older(weights):
        result = {}
        for name, value in weights.items():
            if "LayerNorm" in name:
                name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            result["roberta." + name if case == "xlm-roberta" else name.removeprefix("bert.")] = value
        place = "" if prefix else "roberta."
        return result | {f"{place}embeddings.position_ids": torch.arange(14)[None], "lm_head.dense.weight": torch.zeros(1)}

    edit_weights(folder, older)
    got = dict(weights_of(folder))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_unused_first_rows_of_positions_are_gone(checkpoint):
    folder, *_ = checkpoint("xlm-roberta")
    rows = load_file(folder / "model.safetensors")["embeddings.position_embeddings.weight"]
    assert torch.equal(dict(weights_of(folder))["positions.weight"], rows[2:])


def test_only_the_trunk_is_loaded(checkpoint):
    folder, *_ = checkpoint("bert")
    encoder = build_encoder(shape_of(folder), IDENTITY, XMOE, 40)
    before = {name: value.clone() for name, value in encoder.sparse.named_parameters()}
    load_checkpoint(encoder, folder)
    assert all(torch.equal(before[name], value) for name, value in encoder.sparse.named_parameters())
    assert dict(weights_of(folder)).keys() == {name for name, _ in encoder.named_parameters() if not name.startswith("sparse.")}


# ------------------------------------------------------------------------------------------------------------ refusals


def test_an_encoder_that_does_not_fit_is_refused_value_by_value(checkpoint):
    folder, *_ = checkpoint("bert")
    shape = shape_of(folder).model_copy(update={"heads": 2, "norm": "pre", "epsilon": 1e-5, "dropout": 0.0, "initial_std": 0.1})
    with pytest.raises(MoebenchError) as caught:
        load_checkpoint(build_encoder(shape, None, {"layer": "none"}, 50), folder)
    assert str(caught.value).endswith(
        "encoder.heads is 2, should be 4; encoder.norm is 'pre', should be 'post'; encoder.epsilon is 1e-05, should be 1e-12;"
        " the embedding has 50 rows, should have 40"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "robert"},
            r"'model_type' has the value 'robert' \(did you mean 'roberta'\?\); what can be read is: bert, camembert",
        ),
        ({"model_type": ...}, "'model_type' has the value None"),
        ({"hidden_act": "gelu_new"}, "'hidden_act' has the value 'gelu_new'; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "'position_embedding_type' has the value 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "'is_decoder' has the value True; only False"),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"hidden_size": "16"}, "'hidden_size' has the value '16'; should be a number"),
        ({"num_hidden_layers": 1}, "'num_hidden_layers' has the value 1: Input should be greater than or equal to 2"),
        ({"num_attention_heads": 3}, "width 16 is not a multiple of heads 3"),
    ],
)
def test_a_configuration_that_cannot_be_computed_is_refused(checkpoint, changes, message):
    folder, *_ = checkpoint("bert")
    edit_config(folder, **changes)
    with pytest.raises(MoebenchError, match=message) as caught:
        shape_of(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.layer.1.output.dense.bias", None, r"lack 1 of 37 tensors, the first is 'encoder\.layer\.1\.output\.dense\.bias'"),
        ("embeddings.word_embeddings.weight", None, r"no tensor '\[bert"),
        ("encoder.layer.2.output.dense.bias", torch.zeros(16), r"hold 'encoder\.layer\.2\.output\.dense\.bias'"),
        ("embeddings.LayerNorm.bias", torch.zeros(15), r"LayerNorm\.bias' is float32 \(15,\); .* float \(16,\)"),
        ("embeddings.LayerNorm.bias", torch.zeros(16, dtype=torch.int8), r"LayerNorm\.bias' is int8 \(16,\)"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(checkpoint, name, value, message):
    folder, *_ = checkpoint("bert")
    edit_weights(folder, lambda weights: {key: each for key, each in (weights | {f"bert.{name}": value}).items() if each is not None})
    with pytest.raises(MoebenchError, match=message):
        list(weights_of(folder))


def test_another_vocabulary_than_the_checkpoints_is_refused(checkpoint):
    folder, *_ = checkpoint("bert")
    (folder / "tokenizer.json").write_text("{}")
    right = hashlib.sha256(b"{}").hexdigest()
    check_vocabulary(folder, SimpleNamespace(kind="hub", sha256=right, size=40))
    with pytest.raises(MoebenchError, match=r"with a trained tokenizer \(SHA-256 123\), not with .*set tokens.source to 'hub'"):
        check_vocabulary(folder, SimpleNamespace(kind="trained", sha256="123", size=40))
    with pytest.raises(MoebenchError, match="ids up to 40, the embedding 40 rows"):
        check_vocabulary(folder, SimpleNamespace(kind="hub", sha256=right, size=41))


def test_damaged_files_are_named(checkpoint):
    folder, *_ = checkpoint("bert")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(MoebenchError, match=r"model\.safetensors: not readable safetensors"):
        list(weights_of(folder))
    path.unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
    with pytest.raises(MoebenchError, match=r"lacks model-00001-of-00001\.safetensors"):
        list(weights_of(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(MoebenchError, match="weight_map"):
        list(weights_of(folder))


# --------------------------------------------------------------------------------------------------------------- names


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Put a module in place of huggingface_hub that records its downloads; `stub.first` and `stub.then` are what its functions do."""
    stub = SimpleNamespace(calls=[], first=lambda *_, **__: None, then=lambda **_: None)

    def snapshot_download(repository, **given):
        stub.calls.append(given | {"repository": repository})
        stub.then(**given)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download, model_info=lambda *a, **k: stub.first(*a, **k))
    )
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "shared"))
    return stub


SNAPSHOT = f"models--org--tiny/snapshots/{REVISION}"


def test_a_folder_is_found_absolute_or_below_the_downloads(checkpoint, tmp_path, stub):
    folder = checkpoint("bert", tmp_path / "downloads" / "tiny")[0]
    assert resolve("tiny", tmp_path / "downloads") == folder
    assert resolve(str(folder), tmp_path / "elsewhere") == folder
    (folder / "config.json").unlink()
    with pytest.raises(MoebenchError, match=r"tiny lacks config\.json$"):
        resolve("tiny", tmp_path / "downloads")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MoebenchError, match=r"config\.json, model\.safetensors .*; pytorch_model\.bin is not read"):
        resolve("tiny", tmp_path / "downloads")
    assert not stub.calls


@pytest.mark.parametrize("cache", ["downloads", "shared"])
def test_a_pinned_checkpoint_in_a_cache_needs_no_network(checkpoint, tmp_path, stub, cache):
    folder = checkpoint("bert", tmp_path / cache / SNAPSHOT)[0]
    assert resolve(f"org/tiny@{REVISION}", tmp_path / "downloads") == folder
    assert not stub.calls


def test_the_shared_cache_is_where_the_hub_has_it(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value, expected in (
        (None, None, tmp_path / ".cache/huggingface/hub"),
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "/y", "/y/hub"),
        ("HF_HUB_CACHE", "/z", "/z"),
    ):
        if name:
            monkeypatch.setenv(name, value)
        assert str(checkpoint_files._shared_cache()) == str(expected)


def test_a_missing_checkpoint_is_downloaded_once(checkpoint, tmp_path, stub):
    stub.then = lambda cache_dir, **_: checkpoint("bert", cache_dir / SNAPSHOT)
    for _ in range(2):
        assert resolve(f"org/tiny@{REVISION}", tmp_path / "downloads") == tmp_path / "downloads" / SNAPSHOT
    (call,) = stub.calls
    assert (call["repository"], call["revision"]) == ("org/tiny", REVISION)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(call["allow_patterns"])


def test_a_failed_download_says_which_files_to_put_where(tmp_path, stub, monkeypatch):
    def fail(*_, timeout, **__):
        assert timeout <= 10
        raise OSError("no\nnetwork")

    stub.first = fail
    expected = rf"\(OSError: no network\)(.|\n)*tokenizer\.json(.|\n)*/org/tiny/tree/{REVISION} and put them into .*/downloads/{SNAPSHOT}$"
    with pytest.raises(MoebenchError, match=expected):
        resolve(f"org/tiny@{REVISION}", tmp_path / "downloads")
    assert not stub.calls  # the download would retry for long
    stub.first = lambda *_, **__: None
    with pytest.raises(MoebenchError, match=r"failed \(config\.json, model\.safetensors"):
        resolve(f"org/tiny@{REVISION}", tmp_path / "downloads")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MoebenchError, match="huggingface_hub is not installed"):
        resolve(f"org/tiny@{REVISION}", tmp_path / "downloads")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/tiny@main", "revision 'main' can move"),
        (f"org/tiny@{REVISION[:7]}", "revision '0123456' can move"),
        ("org/tiny", "is no folder, and the name is not owner/name@revision"),
        (f"a/b/c@{REVISION}", "is no folder"),
    ],
)
def test_a_name_that_pins_nothing_is_refused(tmp_path, stub, name, message):
    with pytest.raises(MoebenchError, match=message):
        resolve(name, tmp_path)
    assert not stub.calls
