"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoebenchError(Exception):
    """A mistake in the input or the surroundings, with a message that says what would be right.

    The command line prints the message alone, without a traceback, and exits with a status other than 0.
    """


def shorten(text: str, most: int = 100) -> str:
    """Return a text cut to a line."""
    return text if len(text) <= most else f"{text[:most]}…"


def shown(value: object) -> str:
    """Return a value as messages show it."""
    return shorten(repr(value))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
