"""XLA's printed programs (HLO text) as Python objects: shapes, instructions, computations.

Reads what `compiled.as_text()` gives, see "HLO dumps" and "Tiled layout" in the XLA documentation
(openxla.org/xla/hlo_dumps, openxla.org/xla/tiled_layout). Only what is needed to count work is
kept.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" *([a-z][a-z0-9\-]*)\(")
_METADATA = re.compile(r"kernel_metadata=\{\n.*?\n\}", re.S)
_NAME = re.compile(r"%([\w.\-]+)")
_PACKAGE = re.compile(r"(^|/)siglip2_jax/")  # wherever it is installed
_LIBRARY = re.compile(r"/(site-packages|dist-packages|lib/python3[.\d]*)/|^<")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, and where and how it lies.

    Attributes:
      kind: element type, such as "bf16" or "pred".
      bits: size of an element; 0 for tokens.
      dims: sizes, major to minor as the program numbers them.
      minor_to_major: order in memory, fastest first; empty where the text gives no layout.
      tile: the fastest dimensions are padded to multiples of this.
      memory: 0 for HBM, 1 for VMEM, others for scalar memory, flags and host memory.
    """

    kind: str
    bits: int
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    memory: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return -(-self.size * self.bits // 8)

    @property
    def padded_bytes(self) -> int:
        """Bytes of the array in its tiled layout, padding included."""
        sizes = [self.dims[dim] for dim in self.minor_to_major] or list(self.dims[::-1])
        for i, tile in enumerate(self.tile[::-1][: len(sizes)]):
            sizes[i] = -(-sizes[i] // tile) * tile
        return -(-math.prod(sizes) * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in the module.
      opcode: such as "fusion".
      shapes: of the result; the arrays of a tuple, flattened.
      operands: names of instructions of the same computation.
      inside: what stands in the parentheses, where the operands are.
      attributes: everything after them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        """First group of the first match of a regular expression in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    def calls(self) -> tuple[str, ...]:
        """The computations this instruction runs; of a loop only the body."""
        keys = r"calls|body|branch_computations|true_computation|false_computation"
        if self.opcode == "call":
            keys += "|to_apply"  # elsewhere a function of two elements
        matches = re.findall(rf"\b(?:{keys})=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return tuple(_NAME.findall(" ".join(matches)))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program.

    Attributes:
      name: unique in the module.
      instructions: by name, in the order in which they run.
      root: name of the instruction that is the result.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str

    def parameter(self, index: int) -> str:
        """Name of the instruction that is the argument with this number."""
        return next(
            x.name
            for x in self.instructions.values()
            if x.opcode == "parameter" and x.inside == str(index)
        )

    def users(self, name: str) -> Iterator[Instruction]:
        """The instructions that read the named one."""
        return (x for x in self.instructions.values() if name in x.operands)


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program.

    Attributes:
      computations: by name.
      entry: name of the one that is the program.
      devices: how many the program runs on together.
      frames: per stack frame, the innermost line of this package, else of other code that is no
        installed library, as "file:line"; empty where there is none.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int
    frames: dict[int, str]


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays in a printed type, tuples flattened."""
    return tuple(_shape(*match.groups()) for match in _SHAPE.finditer(text))


def parse(text: str) -> Module:
    """Reads a printed program.

    Raises:
      ValueError: the text holds no program.
    """
    # Some kernels print metadata over several lines, within their instruction.
    text = _METADATA.sub("kernel_metadata={}", text)
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] | None = None
    for line in text.split("\n"):
        if instructions is None:
            if match := _COMPUTATION.match(line):
                name, instructions, root = match[2], {}, ""
                entry = name if match[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, instructions, root or list(instructions)[-1])
            instructions = None
        elif match := _INSTRUCTION.match(line):
            instructions[match[2]] = _instruction(match[2], line[match.end() :])
            root = match[2] if match[1] else root
    if not entry:
        raise ValueError("the text holds no HLO program; pass what compiled.as_text() returns")
    header = text[: text.find("\n%")]
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header.partition("\n")[0])
    return Module(computations, entry, math.prod(map(int, counts)), _frames(header))


def _shape(kind: str, dims: str, layout: str | None) -> Shape:
    order, _, tiling = (layout or "").partition(":")
    bits = re.search(r"\d+", kind)
    tile = re.search(r"T\(([\d,]+)\)", tiling)
    memory = re.search(r"S\((\d+)\)", tiling)
    return Shape(
        kind=kind,
        bits=8 if kind == "pred" else int(bits[0]) if bits else 0,
        dims=_integers(dims.replace("<=", "")),
        minor_to_major=_integers(order),
        tile=_integers(tile[1]) if tile else (),
        memory=int(memory[1]) if memory else 0,
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(",") if x)


def _instruction(name: str, text: str) -> Instruction:
    """Reads `type opcode(operands), attributes`."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise ValueError(f"cannot read the HLO instruction {name!r}: no operation in {text[:80]!r}")
    close = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : close - 1]
    operands = tuple(_NAME.findall(inside))
    return Instruction(name, opcode[1], shapes(text[:end]), operands, inside, text[close:])


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses in the HLO text {text[:80]!r}")


def _frames(header: str) -> dict[int, str]:
    """The tables before the first computation, as stack frame -> file:line of our own code."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', header.partition("\nFunctionNames")[0], re.M))
    locations = {
        number: (files.get(file, ""), line)
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", header, re.M
        )
    }
    # A parent is printed as its number plus one.
    frames = {
        int(number): (locations.get(location, ("", "0")), int(parent) - 1)
        for number, location, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", header, re.M
        )
    }

    def own_code(number: int) -> str:
        lines = []
        while number in frames:
            (file, line), number = frames[number]
            lines.append((file, f"{file}:{line}"))
        package_lines = [line for file, line in lines if _PACKAGE.search(file)]
        other_lines = [line for file, line in lines if file and not _LIBRARY.search(file)]
        return next(iter(package_lines + other_lines), "")

    return {number: own_code(number) for number in frames}
