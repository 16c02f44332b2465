"""XLA options under which tests compile several times faster, for the XLA that is installed."""

from importlib.metadata import version

QUICK: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
"""Compiler options. Nothing in the tests runs long enough to need the optimisations."""

# Newer versions have no other emitters, and an option that XLA does not know ends the process.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False

QUICK_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
"""The same options for the environment variable `XLA_FLAGS`."""
