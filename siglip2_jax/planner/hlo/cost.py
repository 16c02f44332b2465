"""Cost of one HLO instruction: matrix FLOPs, HBM bytes, and bytes sent to other chips.

The meaning of the instructions is in the XLA documentation (openxla.org/xla/operation_semantics).
What TPU programs add is read off compiled programs: batched matrix products are convolutions whose
windows meet one element each, an asynchronous collective is spread over several fusions, and copies
between HBM and VMEM are instructions.
"""

from __future__ import annotations

import math
import re

import numpy as np

from siglip2_jax.planner.hlo.parse import Computation, Instruction, Module, Shape

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? *\{([^}]*)\}")
_RENAMING = ("bitcast", "reshape", "transpose", "get-tuple-element", "opt-barrier")
_SLICING = ("slice", "dynamic-slice", "gather")


def matrix_flops(x: Instruction, where: Computation, module: Module) -> int:
    """FLOPs of the dots and convolutions of an instruction and of what it fuses.

    A multiply-add is 2; products with padding or with the holes of a dilated input are not counted.
    """
    if x.opcode == "fusion":
        fused = module.computations[x.calls()[0]]
        return sum(matrix_flops(y, fused, module) for y in fused.instructions.values())
    if x.opcode == "dot":
        lhs = operand(x, 0, where)
        contracted = x.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        depth = math.prod(lhs.dims[int(dim)] for dim in contracted.split(",") if dim)
        return 2 * x.shapes[0].size * depth
    if x.opcode == "convolution":
        return _convolution_flops(x, operand(x, 0, where), operand(x, 1, where))
    return 0


def operand(x: Instruction, index: int, where: Computation) -> Shape:
    """Shape of an operand; the first array of a tuple."""
    return where.instructions[x.operands[index]].shapes[0]


def _convolution_flops(x: Instruction, image: Shape, kernel: Shape) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    assert labels is not None  # every convolution has them
    image_labels, kernel_labels, out_labels = labels.groups()
    out = dict(zip(out_labels, x.shapes[0].dims, strict=True))
    inputs = dict(zip(image_labels, image.dims, strict=True))
    kernels = dict(zip(kernel_labels, kernel.dims, strict=True))
    spatial = sorted(label for label in out if label.isdigit())
    window = x.attribute(r"window=\{([^}]*)\}") or ""

    def field(name: str, default: str) -> list[str]:
        match = re.search(rf"\b{name}=(\S+)", window)
        return match[1].split("x") if match else [default] * len(spatial)

    flops = 2 * out["b"] * out["f"] * kernels["i"]
    fields = zip(
        spatial,
        field("stride", "1"),
        field("pad", "0_0"),
        field("lhs_dilate", "1"),
        field("rhs_dilate", "1"),
        strict=True,
    )
    for label, stride, pad, dilate, kernel_dilate in fields:
        at = np.arange(out[label])[:, None] * int(stride) - int(pad.split("_")[0])
        at = at + np.arange(kernels[label]) * int(kernel_dilate)
        inside = (at >= 0) & (at <= (inputs[label] - 1) * int(dilate)) & (at % int(dilate) == 0)
        flops *= int(inside.sum())
    return flops


def hbm_bytes(x: Instruction, where: Computation, module: Module) -> int:
    """Bytes an instruction reads from and writes to HBM, padding of tiled layouts included.

    A fusion costs its operands and results, not what is inside; of buffers that are only sliced,
    gathered from or updated in place, the part is counted; what is merely handed on is free. A
    copy that is started and finished counts where it starts.
    """
    read = sum(
        _read(x, i, where, module)
        for i in range(len(x.operands))
        if not operand(x, i, where).memory
    )
    written = zip(_written(x, where, module), x.shapes, strict=True)
    return read + sum(size for size, shape in written if not shape.memory)


def _read(x: Instruction, index: int, where: Computation, module: Module) -> int:
    """Bytes an instruction reads of one operand."""
    shape = operand(x, index, where)
    opcode = x.opcode.removesuffix("-start")
    if opcode == "fusion":
        fused = module.computations[x.calls()[0]]
        return _read_anywhere(fused.parameter(index), fused, module)
    if index == 0 and opcode in _SLICING:
        result = x.shapes[-2] if x.opcode.endswith("-start") else x.shapes[0]
        return min(shape.padded_bytes, result.padded_bytes)
    if index == 0 and opcode == "dynamic-update-slice":
        return 0
    if index == 0 and opcode == "scatter":
        return min(shape.padded_bytes, operand(x, 2, where).padded_bytes)
    if opcode == "tuple" or _is_step(x, where):
        return 0
    return shape.padded_bytes


def _read_anywhere(name: str, where: Computation, module: Module) -> int:
    """Bytes read of a value inside a fusion, by all its users."""
    size = where.instructions[name].shapes[0].padded_bytes
    total = 0
    for user in where.users(name):
        if user.opcode in _RENAMING and user.name != where.root:
            total += _read_anywhere(user.name, where, module)
        else:
            indices = [i for i, operand_name in enumerate(user.operands) if operand_name == name]
            total += sum(_read(user, i, where, module) for i in indices)
    return min(size, total)


def _written(x: Instruction, where: Computation, module: Module) -> list[int]:
    """Bytes an instruction writes to each array of its result, wherever it lies."""
    full = [shape.padded_bytes for shape in x.shapes]
    parts = [where.instructions[name] for name in x.operands]
    if x.opcode == "fusion":
        fused = module.computations[x.calls()[0]]
        return _written(fused.instructions[fused.root], fused, module)
    if x.opcode == "tuple":
        return [size for part in parts for size in _written(part, where, module)]
    if x.opcode == "bitcast":
        return _written(parts[0], where, module)
    if x.opcode == "dynamic-update-slice":
        return [min(full[0], parts[1].shapes[0].padded_bytes)]
    if x.opcode == "scatter" and len(full) == 1:
        return [min(full[0], parts[2].shapes[0].padded_bytes)]
    if x.opcode in ("parameter", "send") or _is_step(x, where):
        return [0] * len(full)
    if x.opcode == "copy-start":  # (destination, source, flag)
        return [full[0], 0, 0]
    if x.opcode in ("all-reduce-start", "recv"):
        return full
    if x.opcode.endswith("-start") or is_call(x, "AsyncCollectiveStart"):
        handed_on = sum(len(part.shapes) for part in parts)  # (operands, results, flags)
        return [0] * handed_on + full[handed_on:]
    return full


def is_call(x: Instruction, target: str) -> bool:
    """True for a custom call of this target."""
    return x.opcode == "custom-call" and f'custom_call_target="{target}"' in x.attributes


def runs_beside(x: Instruction, module: Module) -> bool:
    """True for the start of something that runs beside the instructions after it."""
    if x.opcode == "fusion":
        fused = module.computations[x.calls()[0]]
        return any(is_call(y, "AsyncCollectiveStart") for y in fused.instructions.values())
    return x.opcode.endswith("-start") or x.opcode in ("send", "recv")


def _is_step(x: Instruction, where: Computation) -> bool:
    """True where this only continues or ends a collective that another fusion started."""
    if is_call(x, "AsyncCollectiveDone"):
        return True
    return "chain_id=" in x.attributes and not any(
        is_call(user, "AsyncCollectiveStart") for user in where.users(x.name)
    )


def collectives(x: Instruction, where: Computation, module: Module) -> dict[str, int]:
    """Bytes a chip sends to other chips, by kind of collective.

    Counted as by a ring of n chips: all-gather (n - 1) times the shard, reduce-scatter and
    all-to-all (n - 1) / n of the operand, all-reduce twice that, and a permutation its operand.
    "dcn" counts the bytes that go to the host for other slices.
    """
    if x.opcode != "fusion":
        return _sent(x, where, module)
    fused = module.computations[x.calls()[0]]
    total: dict[str, int] = {}
    for y in fused.instructions.values():
        for kind, size in _sent(y, fused, module).items():
            if kind == "all-reduce" and _scatters(y, fused):
                kind, size = "reduce-scatter", size // 2
            total[kind] = total.get(kind, 0) + size
    return total


def _scatters(x: Instruction, where: Computation) -> bool:
    """True for an all-reduce, of one array or more, of which each chip keeps only its part."""
    users = list(where.users(x.name))
    parts = [user for user in users if user.opcode == "get-tuple-element"]
    readers = [reader for part in parts for reader in where.users(part.name)] or users
    return any(reader.opcode == "dynamic-slice" for reader in readers)


def _sent(x: Instruction, where: Computation, module: Module) -> dict[str, int]:
    kind = x.opcode.removesuffix("-start")
    size = sum(shape.bytes for name in x.operands for shape in where.instructions[name].shapes)
    if x.opcode == "send" and "xla_megascale" in x.attributes:
        return {"dcn": size}
    if kind not in COLLECTIVES or _is_step(x, where):
        return {}
    n = _group_size(x, module)
    if kind == "all-gather":
        return {kind: size * (n - 1)}
    if kind in ("collective-permute", "collective-broadcast"):
        return {kind: size}
    return {kind: size * (n - 1) // n * (2 if kind == "all-reduce" else 1)}


def _group_size(x: Instruction, module: Module) -> int:
    """Number of chips in one group of a collective."""
    if groups := x.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return groups.count(",") + 1
    if size := x.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(size)
    if mesh := _MESH.search(x.attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # An axis may be split: 'axis':(2)4 is 4 of it, after 2 others.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return module.devices
