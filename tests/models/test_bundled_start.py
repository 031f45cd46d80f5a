"""The bundled weights in our encoder against BERT's forward pass written out in numpy, and the sparse layer as an exact identity."""

import math

import numpy as np
import pytest
import tiny_bundle
import torch

from moebench.errors import MoebenchError
from moebench.models import build, shapes
from moebench.models.build import build_encoder, load_bundled

SHAPE = shapes.Encoder(layers=2, width=64, heads=4, inner=128, norm="post", max_positions=32, token_types=2, epsilon=1e-12)
XMOE = {"layer": "moe", "router": "xmoe", "options": {"gate": "softmax", "temperature": 0.3}}
IDENTITY = shapes.Sparse(experts=4, sublayers=3, inner=16, identity=True)
ALL = list(range(tiny_bundle.ROWS))


def bert(weights, ids, layers=2):
    """BERT (post-norm, exact GELU) in float64, one sequence of (S,) ids to (S, 64) states."""
    get = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * get[name + ".w"] + get[name + ".b"]

    def linear(x, name):
        return x @ get[name + ".w"].T + get[name + ".b"]

    x = norm(get["emb.word"][ids] + get["emb.pos"][: len(ids)] + get["emb.type"][0], "emb.ln")
    for layer in range(layers):
        query, key, value = (linear(x, f"l{layer}.{part}") for part in "qkv")
        heads = []
        for head in range(4):
            part = slice(16 * head, 16 * head + 16)
            scores = np.exp(query[:, part] @ key[:, part].T / 4)
            heads.append(scores / scores.sum(-1, keepdims=True) @ value[:, part])
        x = norm(x + linear(np.concatenate(heads, -1), f"l{layer}.ao"), f"l{layer}.aln")
        inner = linear(x, f"l{layer}.fi")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"l{layer}.fo"), f"l{layer}.oln")
    return x


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "fetch", lambda folder: folder / "bundle.bin")
    return tiny_bundle.write_bundle(tmp_path / "bundle.bin")


def test_the_loaded_encoder_equals_bert_and_the_sparse_layer_changes_nothing(tmp_path, weights):
    ids = np.array([0, 17, 60, 33, 4, 150, 2])
    mask = torch.ones(1, 7, dtype=torch.bool)
    dense = build_encoder(SHAPE, None, {"layer": "none"}, tiny_bundle.ROWS).eval()
    load_bundled(dense, ALL, tmp_path)
    states = dense(torch.tensor(ids)[None], mask)[0]
    np.testing.assert_allclose(states[0].detach(), bert(weights, ids), atol=1e-5)
    sparse = build_encoder(SHAPE, IDENTITY, XMOE, tiny_bundle.ROWS).eval()
    load_bundled(sparse, ALL, tmp_path)
    assert torch.equal(sparse(torch.tensor(ids)[None], mask)[0], states)


def test_another_shape_is_refused_with_both_shapes(tmp_path, weights):
    encoder = build_encoder(SHAPE.model_copy(update={"heads": 8}), None, {"layer": "none"}, tiny_bundle.ROWS)
    with pytest.raises(MoebenchError, match=r"\(64, 4, 128, 32, 2, 'post', 'learned'\), not \(64, 8"):
        load_bundled(encoder, ALL, tmp_path)


def test_fewer_blocks_and_pieces_are_the_lower_blocks_and_the_rows_of_the_pieces(tmp_path, weights):
    shape = SHAPE.model_copy(update={"layers": 3})
    with pytest.raises(MoebenchError, match="has 2 blocks, too few for the encoder's layers 3"):
        load_bundled(build_encoder(shape, None, {"layer": "none"}, tiny_bundle.ROWS), ALL, tmp_path)
    rows = [0, 1, 2, 3, 17, 33, 60, 150]
    encoder = build_encoder(SHAPE.model_construct(**(SHAPE.model_dump() | {"layers": 1})), None, {"layer": "none"}, len(rows)).eval()
    load_bundled(encoder, rows, tmp_path)
    ids = np.array([0, 4, 6, 5, 2])
    states = encoder(torch.tensor(ids)[None], torch.ones(1, 5, dtype=torch.bool))[0]
    np.testing.assert_allclose(states[0].detach(), bert(weights, np.array(rows)[ids], layers=1), atol=1e-5)
    with pytest.raises(MoebenchError, match="needs the bundled tokenizer"):
        load_bundled(encoder, None, tmp_path)
