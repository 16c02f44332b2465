"""The model as a module with the parameters of a checkpoint."""

from __future__ import annotations

from os import PathLike

from siglip2_jax import checkpoints
from siglip2_jax.inference.weights import Weights, shrink
from siglip2_jax.models import siglip2
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.siglip2 import Params, unflatten


class SigLIP2(siglip2.SigLIP2):
    """SigLIP 2 as a Flax NNX module: fresh by `SigLIP2(config, rngs=…)`, or `from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str], *, compute: Compute | None = None
    ) -> SigLIP2:
        """The module with the parameters of a checkpoint.

        Args:
          source: a checkpoint of any format, as for `siglip2_jax.load`.
          compute: how the model runs; None is float32.

        Raises:
          OSError: there is no such source, or it cannot be reached.
          ValueError: the source is no checkpoint of this model; one sentence says what to do.
        """
        checkpoint = checkpoints.read(source)
        return cls.from_params(checkpoint.config, read_params(checkpoint.params), compute=compute)


def read_params(tensors: dict[str, checkpoints.Lazy], weights: Weights = "float32") -> Params:
    """Parameters on the device, read one tensor at a time: the model is never held twice."""
    shapes = {path: x.shape for path, x in tensors.items()}
    return unflatten({path: shrink(path, x.read(), shapes, weights) for path, x in tensors.items()})
