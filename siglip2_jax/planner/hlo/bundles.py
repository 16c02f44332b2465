"""Run time of a TPU kernel, counted in the instructions it is compiled to.

A TPU core starts one bundle (a very long instruction) a cycle. libtpu prints a kernel's final
bundles in order; a loop reaches from one that is labelled `LB` to the branch that its exit test
decides, whose delay slots still run, and its bundles count as often as it runs. The loop over a
Pallas grid is a pipeline that runs twice more than there are programs: to fetch the first block,
and to write the last.

Not counted are cycles in which the core stalls, on memory above all, and branches are not known:
both sides of `pl.when` count. The format is not documented; it was read off libtpu 0.0.42 for v5e.
"""

from __future__ import annotations

import re

_BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ +([A-Z ]*): *>* *\{", re.M)
_EXIT = re.compile(r"(%p\w+) = scmp\.ge\.s32\.totalorder (%s\w+), (%?\w+) /\* loop exit test")
_BRANCH = re.compile(r"sbr\.rel \(!(%p\w+)\) target")
_SCALAR = re.compile(r"(%s\w+) = (sadd\.s32|sphi|smov) ([%\w, ]+)")
_STORE = re.compile(r"sst \[smem:\[(#\w+_spill)\]\] (%s\w+)")
_LOAD = re.compile(r"(%s\w+) = sld \[smem:\[(#\w+_spill)\]\]")
_PIPELINE = 2
_DELAY_SLOTS = 4

Scalars = dict[str, tuple[str, list[str]]]


def kernel_cycles(text: str) -> int | None:
    """Cycles of one call of a kernel, on one core.

    Args:
      text: the final bundles as libtpu dumps them.

    Returns:
      Bundles, each as often as it runs; None where a loop's bound is not a constant.

    Raises:
      ValueError: there are no bundles in the text.
    """
    starts = list(_BUNDLE.finditer(text))
    if not starts:
        raise ValueError("the text holds no TPU bundles; pass a dump of a kernel's final bundles")
    ends = [match.start() for match in starts[1:]] + [len(text)]
    bundles = [text[match.start() : end] for match, end in zip(starts, ends, strict=True)]
    scalars = _scalars(text)
    tests = {predicate: (counter, bound) for predicate, counter, bound in _EXIT.findall(text)}
    times = [1] * len(bundles)
    begun: list[int] = []
    for i, (start, bundle) in enumerate(zip(starts, bundles, strict=True)):
        if "LB" in start[1].split():
            begun.append(i)
        branch = next((name for name in _BRANCH.findall(bundle) if name in tests), None)
        if branch is None or not begun:
            continue
        first = begun.pop()
        runs = _runs(*tests[branch], scalars)
        if runs is None:
            return None
        if "iteration index, stage" in bundles[first]:
            runs = max(1, runs - _PIPELINE)
        for at in range(first, min(i + _DELAY_SLOTS + 1, len(bundles))):
            times[at] *= runs
    return None if begun else sum(times)


def _scalars(text: str) -> Scalars:
    """Instruction and arguments of every scalar that may count a loop's runs."""
    # A register that is spilled comes back under another name.
    spilled = dict(_STORE.findall(text))
    original = {name: spilled.get(slot, name) for name, slot in _LOAD.findall(text)}
    scalars = {
        name: (kind, [original.get(part.strip(), part.strip()) for part in args.split(",")])
        for name, kind, args in _SCALAR.findall(text)
    }
    return scalars | {
        name: scalars[source] for name, source in original.items() if source in scalars
    }


def _runs(counter: str, bound: str, scalars: Scalars) -> int | None:
    """Trip count of a loop whose counter starts at a constant and is compared to another."""
    added, (step, *old) = scalars.get(counter, ("", [""]))
    phi, (first, *_) = scalars.get(old[0] if old else "", ("", [""]))
    move, (start, *_) = scalars.get(first, ("", [""]))
    is_constant = step.isdecimal() and int(step) and start.isdecimal() and bound.isdecimal()
    if (added, phi, move) != ("sadd.s32", "sphi", "smov") or not is_constant:
        return None
    return max(0, -(-(int(bound) - int(start)) // int(step)))
