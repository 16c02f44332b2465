"""Number of CPU cores with which a host has its chips' images ready in time."""

from __future__ import annotations

from math import ceil, isfinite

CHIPS_PER_HOST = 8
IMAGES_PER_CORE_SECOND = 113.0
"""Records of JPEGs, 1024 x 768 pixels and 264 KB each, decoded in full, to 256 patches at native
resolution, without views (with 1 + 8 of them: 29): the median of `scripts/bench_input.py --size
1024x768` on one core of a shared x86 machine. Cores differ, and so do images: measure your own."""


def host_cores_needed(
    examples_per_second: float,
    images_per_core_second: float = IMAGES_PER_CORE_SECOND,
    chips: int = CHIPS_PER_HOST,
) -> int:
    """Cores of one host that decode and prepare images as fast as its chips train on them.

    The bare minimum: nothing is left for reading, for copies to the chips and for the training
    process itself.

    Args:
      examples_per_second: of one chip (`StepPlan.examples_per_second`), above 0.
      images_per_core_second: what one core prepares, above 0.
      chips: how many a host has, at least 1.

    Returns:
      A whole number of at least 1.

    Raises:
      ValueError: an argument is out of its range.
    """
    rates = {
        "examples_per_second": examples_per_second,
        "images_per_core_second": images_per_core_second,
    }
    for name, rate in rates.items():
        if not (rate > 0 and isfinite(rate)):
            raise ValueError(f"{name} must be a finite rate above 0, got {rate}")
    if chips < 1:
        raise ValueError(f"chips must be at least 1, got {chips}")
    cores = chips * examples_per_second / images_per_core_second
    return max(1, ceil(round(cores, 9)))  # rounding errors must not add a core
