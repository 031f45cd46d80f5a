"""A corpus to train on."""

import json

import numpy as np
import pytest


@pytest.fixture
def corpus(tmp_path):
    """Rows in which every piece is followed by the next one, so that there is something to learn."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, rows in (("train", 40), ("validation", 10)):
        values = (generator.integers(0, 10, (rows, 1)) + np.arange(16)) % 10 + 5
        values[:, 0] = 0  # bos
        values[rows // 2 :, 12:] = 1  # pad
        np.save(folder / f"{split}.npy", values.astype(np.int32))
        kinds = ["text"] * (rows // 2) + ["translation"] * (rows // 2) if split == "train" else ["text"] * rows
        (folder / f"{split}.json").write_text(json.dumps({"language": ["aa", "bb"] * (rows // 2), "kind": kinds}))
    return folder
