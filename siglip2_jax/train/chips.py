"""Peak rates of accelerators: the denominators of MFU and of roofline estimates.

Sources: TPUs from the "System architecture" pages of the Cloud TPU documentation
(docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e) and, for the links, "How to Scale Your Model"
(jax-ml.github.io/scaling-book), whose usable one-way rates are 45 GB/s a link on v4 and v5e and
90 GB/s on v5p and v6e; v4 and v5p have six links, v5e and v6e four. GPUs from NVIDIA's A100, H100
and H200 data sheets, without sparsity. TPU clocks are peak FLOP/s over what the matrix units do in
a cycle (four units of 128 x 128 multiply-adds on v5e; v4 and v5p have eight); Google states none
for v6e, and v5p's is assumed. The memory of v5e, v5p and v6e is what libtpu's errors say
that programs have: it keeps a quarter of a GiB of v5e's 16 GiB for itself.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one chip.

    Attributes:
      name: short name.
      flops: bfloat16 matrix products, FLOP/s, dense.
      hbm_bytes: memory that programs and their data may have, bytes.
      hbm_bandwidth: of that memory, bytes/s.
      ici_bandwidth: what a chip can send to others of its slice (TPU) or host (GPU) over all its
        links together, bytes/s one way.
      clock_hz: cycles per second, which turn a compiler's cycles into time.
      device_kinds: how JAX names the chip in `device.device_kind`.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    clock_hz: float
    device_kinds: tuple[str, ...]


V5E = Chip("v5e", 197e12, 63 * GIB // 4, 819e9, 180e9, 1.5e9, ("TPU v5 lite", "TPU v5e"))

CHIPS: tuple[Chip, ...] = (
    Chip("v4", 275e12, 32 * GIB, 1228e9, 270e9, 1.05e9, ("TPU v4",)),
    V5E,
    Chip("v5p", 459e12, 9574 * GIB // 100, 2765e9, 540e9, 1.75e9, ("TPU v5", "TPU v5p")),
    Chip("v6e", 918e12, 125 * GIB // 4, 1640e9, 360e9, 1.75e9, ("TPU v6 lite", "TPU v6e")),
    Chip(
        "A100 40GB",
        312e12,
        40 * 10**9,
        1555e9,
        300e9,
        1.41e9,
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
    ),
    Chip(
        "A100 80GB",
        312e12,
        80 * 10**9,
        2039e9,
        300e9,
        1.41e9,
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    ),
    Chip("H100", 989e12, 80 * 10**9, 3350e9, 450e9, 1.83e9, ("NVIDIA H100 80GB HBM3",)),
    Chip("H200", 989e12, 141 * 10**9, 4800e9, 450e9, 1.83e9, ("NVIDIA H200",)),
)
"""All chips whose peaks are known."""


def find_chip(device_kind: str) -> Chip | None:
    """The chip JAX names so in `jax.devices()[0].device_kind`; None if its peaks are not known."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)
