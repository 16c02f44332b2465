"""Errors in the words of a sentence."""

from __future__ import annotations


def reason_of(error: BaseException) -> str:
    """The message of an error as one line, or the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
