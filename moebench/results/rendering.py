"""A document of small text tables as Markdown and as LaTeX. Knows nothing of what the numbers mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
}
"""Character → what prints it. Square brackets are hidden in braces, since ``\\`` and ``\\midrule`` would take them for an option."""


@dataclass(frozen=True)
class Block:
    """One part of a document: a heading, sentences, a table, a list; any of them may be empty.

    `` `code` `` and ``**bold**`` are marked as in Markdown.
    """

    heading: str
    text: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    items: tuple[str, ...] = ()


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Render a document as Markdown; the first column of a table is left-aligned, the others right-aligned."""
    parts = [f"# {title}"]
    for block in blocks:
        if block.heading:
            parts.append(f"## {block.heading}")
        parts += block.text
        if block.header:
            rule = ("---",) + ("---:",) * (len(block.header) - 1)
            parts.append(
                "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (block.header, rule, *block.rows))
            )
        if block.items:
            parts.append("\n".join(f"- {item}" for item in block.items))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Escape text for LaTeX; `` `code` `` is set in typewriter, ``**text**`` in bold."""
    plain = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", re.sub(r"`([^`]*)`", r"\\texttt{\1}", plain))


def latex(title: str, label: str, blocks: Sequence[Block]) -> str:
    """Render a document as one LaTeX ``table`` environment; each block's table is a ``tabular``, shrunk where wider than the text."""
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        r"\begin{table}[p]",
        r"\centering\footnotesize",
        rf"\caption{{{escape(title)}}}",
        rf"\label{{{label}}}",
    ]
    for block in blocks:
        if block.heading:
            lines.append(rf"\par\medskip\textbf{{{escape(block.heading)}}}\par")
        lines += [rf"{escape(sentence)}\par" for sentence in block.text]
        if block.header:
            lines.append(r"\smallskip\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")
            lines.append(rf"\begin{{tabular}}{{l{'r' * (len(block.header) - 1)}}}")
            lines += [r"\toprule", _row(block.header), r"\midrule", *(_row(row) for row in block.rows), r"\bottomrule"]
            lines.append(r"\end{tabular}}\par")
        if block.items:
            lines += [r"\begin{itemize}", *(rf"\item {escape(item)}" for item in block.items), r"\end{itemize}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"
