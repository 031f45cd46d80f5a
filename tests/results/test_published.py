"""The published numbers of X-MoE: consistent with themselves, and checked on loading."""

import pytest
import yaml

from moebench import published
from moebench.errors import MoebenchError

COLUMNS = ("POS", "NER", "XQuAD", "MLQA", "TyDiQA", "XNLI", "PAWS-X")


@pytest.fixture(scope="module")
def xmoe(project):
    return published.load(project / "experiments/xmoe/published.yaml")


def test_the_published_average_follows_from_the_published_cells(xmoe):
    table = xmoe.tables["1"]
    assert len(table.rows) == 5
    for cells in table.rows.values():
        average = sum(sum(cells[column]) / len(cells[column]) for column in COLUMNS) / 7
        assert round(average, 1) == cells["Avg"][0]


def test_tables_agree_where_they_report_the_same_model(xmoe):
    one, three, five = (xmoe.tables[number] for number in ("1", "3", "5"))
    for column in ("XNLI", "MLQA"):
        whole = three.cell("dimension reduction, L2 normalisation, frozen routing", column)
        assert whole == one.cell("X-MoE sigmoid", column) == five.cell("N/2 = 16", column)
        assert three.cell("none", column) == one.cell("SMoE sigmoid", column)


def test_cells_are_shown_as_printed(xmoe):
    assert xmoe.tables["1"].cell("Dense", "XQuAD") == "67.3/51.1"
    assert xmoe.tables["1"].cell("Dense", "POS") == "70.0"
    assert xmoe.tables["2"].cell("X-MoE softmax", "Perplexity") == "18.72"


def test_what_is_not_published_stays_empty(xmoe):
    assert xmoe.tables["1"].cell(None, "XNLI") == ""
    assert xmoe.tables["1"].cell("Dense", "Tatoeba") == ""
    assert "4" not in xmoe.tables


def test_every_published_row_that_a_method_names_is_there(xmoe, project):
    for path in sorted((project / "experiments/xmoe/methods").glob("*.yaml")):
        row = yaml.safe_load(path.read_text()).get("published")
        assert row is None or (row in xmoe.tables["1"].rows and row in xmoe.tables["2"].rows), path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("XQuAD: [67.3, 51.1]", "XQuAD: [67.3]", "row 'Dense', column 'XQuAD': 1 values for the metrics f1, em"),
        ("POS: [70.0], NER", "PoS: [70.0], NER", "row 'Dense' has the unknown column 'PoS'"),
        ("decimals: 2", "decimal: 2", "decimal"),
        ("XNLI: [70.1]", "XNLI: [about 70]", "about 70"),
    ],
)
def test_mistakes_are_named(tmp_path, project, old, new, message):
    text = (project / "experiments/xmoe/published.yaml").read_text()
    assert old in text
    (tmp_path / "published.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(MoebenchError, match=message):
        published.load(tmp_path / "published.yaml")
