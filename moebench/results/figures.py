"""Figures as SVG that is the same byte for byte when drawn again from the same points."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure


@contextlib.contextmanager
def stable(font_size: float) -> Iterator[None]:
    """Draw without the reader's own settings of matplotlib."""
    settings: dict[Any, Any] = {"svg.hashsalt": "moebench", "svg.fonttype": "none", "font.size": font_size}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def svg(figure: Figure) -> str:
    """The text of a figure, without date and version; to be called where it is drawn, in `stable`."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
