"""First words: of docstrings and of the command line's help, which must make sense read alone."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import siglip2_jax
from siglip2_jax.cli import parser

ROOT = Path(siglip2_jax.__file__).parent
# A sentence that begins so names no thing and no act: it leans on the identifier beside it.
LEANING = re.compile(
    r"(what|how|whether|which|where|when|why|who|of|from|as|in|at|default:)(?!\w)", re.IGNORECASE
)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def leaning_docstrings(source: str) -> list[str]:
    """First lines of docstrings, for those that do not begin with a noun or a verb."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED))
    lines = ((ast.get_docstring(node) or "").partition("\n")[0] for node in nodes)
    return [line for line in lines if LEANING.match(line)]


def help_texts(command: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each argument and subcommand with its help, "" without one, of a command and all below it."""
    for action in command._actions:
        name = " ".join((command.prog, *action.option_strings)) + f" {action.metavar or ''}"
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield f"{command.prog} {choice.dest}", choice.help or ""
            for subcommand in action.choices.values():
                yield from help_texts(subcommand)
        else:
            yield name.strip(), action.help or ""
    for group in command._action_groups:
        if group.description:
            yield f"{command.prog}, {group.title}", group.description


def test_docstrings_begin_with_a_noun_or_a_verb():
    offenders = [
        f"{path}: {line}"
        for folder in (ROOT, Path(__file__).parent)
        for path in sorted(folder.rglob("*.py"))
        for line in leaning_docstrings(path.read_text())
    ]
    assert offenders == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""How boxes overlap."""', 1),
        ('def f():\n    """Whether it fits."""', 1),
        ('class A:\n    """Of one call."""\n    def b(self):\n        """What is read."""', 2),
        ('"""Howitzers, offers and whatnot."""', 0),
        ('"""Asks, whereabouts, informs."""', 0),
        ('"""Trip count of a loop."""\nx = "What else"', 0),
    ],
)
def test_leaning_docstrings_are_listed(source, count):
    assert len(leaning_docstrings(source)) == count


def test_help_reads_alone():
    texts = dict(help_texts(parser()))
    assert {"siglip2 plan", "siglip2 plan --slices", "siglip2 data pack --out"} <= set(texts)
    assert [f"{name}: {text}" for name, text in texts.items() if LEANING.match(text or "of")] == []
