"""Markdown and LaTeX of small documents: shape, escaping, balance."""

import re
import shutil
import subprocess

import pytest

from moebench.results.rendering import Block, escape, latex, markdown

NASTY = "50 % of a_b & {c} $5 #1 x^2 ~ \\ [0.1, 2] ± 3 | `run_it --now`"
BLOCKS = [
    Block("Values & more", ("**Bold** words.", NASTY), ("method", "a_b", "c"), (("x|y", "1.0 ± 0.1 (3)", "—"), ("[z]", "2", "3"))),
    Block("Holes", items=("one: `dvc repro x:y@z`", "two")),
]


def test_markdown_table_has_as_many_cells_in_every_line():
    text = markdown("Title", BLOCKS)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert lines[2] == r"| x\|y | 1.0 ± 0.1 (3) | — |"
    assert text.startswith("# Title\n\n## Values & more\n")
    assert text.endswith("- two\n")


def test_latex_escapes_what_is_special():
    assert escape("50 % of a_b & {c} #1") == r"50 \% of a\_b \& \{c\} \#1"
    assert escape("x < 1 ± 2") == r"x $<$ 1 $\pm$ 2"
    assert escape("run `a_b`") == r"run \texttt{a\_b}"
    assert escape("\\") == r"\textbackslash{}"


def test_latex_is_balanced_and_rows_are_whole():
    text = latex(f"Title of {NASTY}", "tab:x", BLOCKS)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count("$") % 2 == text.count(r"\$") % 2
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular", "itemize"]
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "itemize", "table"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
    assert all(not row.startswith("[") for row in rows)  # \\ followed by [ would read a length
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path):
    body = latex(f"Title of {NASTY}", "tab:x", BLOCKS)
    text = "\\documentclass{article}\\usepackage{booktabs}\\usepackage{graphicx}\\begin{document}\n" + body + "\\end{document}\n"
    (tmp_path / "a.tex").write_text(text)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
