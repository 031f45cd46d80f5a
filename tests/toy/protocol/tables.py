"""One table: the accuracy of each method."""

from moebench.results.rendering import Block
from moebench.results.statistics import deviation, mean
from moebench.results.tables import Document, frame, measured_cell, title

FILES, NOTES = "| `accuracy.csv` `.md` `.tex` | accuracy |\n", "Accuracy is in percent.\n"


def tables(expected, measured):
    found = {name: measured.records.query("method == @name")["value"].tolist() for name in expected.compared}
    rows = [{"method": name, "n_seeds": len(v), "value": mean(v) if v else None, "sd": deviation(v)} for name, v in found.items()]
    block = Block("", (), ("method", "accuracy"), tuple((row["method"], measured_cell(row, 1)) for row in rows))
    return [Document("accuracy", title(expected, "a noisy function"), [block], frame(rows, list(rows[0])))]
