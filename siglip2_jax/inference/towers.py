"""The two towers of a loaded model: parameters, their devices, programs and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from scipy.special import expit

from siglip2_jax.inference.calibration import Calibration
from siglip2_jax.inference.pretrained import SigLIP2
from siglip2_jax.inference.programs import programs, run_batches
from siglip2_jax.inference.weights import find_weights
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, Variant, find_variant
from siglip2_jax.models.siglip2 import Params
from siglip2_jax.sharding import Device, device_put_global, make_mesh


class Towers:
    """A model's towers on their devices; how inputs are prepared is not their concern.

    Attributes:
      config: sizes of the towers.
      params: nested dict of arrays on devices: float32, or what `weights` says.
      weights: numbers that kernels and the token table are kept in: "float32", "bfloat16" or
        "int8".
      dtype: of matrix products.
      variant: the release with exactly these sizes, or None.
      mesh: where the parameters are split and batches are run, all processes together and on the
        same inputs; None runs on one device.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: Mesh | None = None,
    ):
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
        self.config = config
        # On the device once: NumPy arrays would be copied to it with every batch.
        self.params = jax.tree.map(jnp.asarray, params)
        self.weights = find_weights(params)
        self.dtype = dtype
        self.mesh = mesh
        self._programs = programs(config, dtype)

    def replicate_over(self, devices: Sequence[Device]) -> None:
        """Runs batches on several devices of this process from now on, each with all parameters."""
        self.mesh = make_mesh(replica=len(devices), devices=devices)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.params = jax.tree.map(
            lambda x: device_put_global(np.asarray(x), everywhere), self.params
        )

    @property
    def model(self) -> SigLIP2:
        """The towers as a Flax NNX module over `params`; each call gives a new one."""
        return SigLIP2.from_params(self.config, self.params, compute=Compute(dtype=self.dtype))

    @property
    def variant(self) -> Variant | None:
        """The release with exactly these sizes, or None."""
        return find_variant(self.config)

    @property
    def temperature(self) -> float:
        """The temperature `exp(t)`, by which cosines are multiplied."""
        return float(np.exp(np.float32(self.params["t"])))

    @property
    def bias(self) -> float:
        """The bias `b`, which is added to scaled cosines."""
        return float(self.params["b"])

    def logits(
        self, images: Float[np.ndarray, "I E"], texts: Float[np.ndarray, "J E"]
    ) -> Float[np.ndarray, "I J"]:
        """`exp(t) * cosine + b` of every pair."""
        return np.float32(self.temperature) * (images @ texts.T) + np.float32(self.bias)

    def probabilities(
        self,
        images: Float[np.ndarray, "I E"],
        texts: Float[np.ndarray, "J E"],
        *,
        calibration: Calibration | None = None,
    ) -> Float[np.ndarray, "I J"]:
        """Each pair's own probability, so rows do not sum to 1: the sigmoid of `logits`.

        The learned bias assumes one match in tens of thousands, so values are often small even
        for good matches; compare them across texts rather than with 0.5, or give a calibration.

        Args:
          images: embeddings of unit length.
          texts: embeddings of unit length.
          calibration: fitted by `siglip2 calibrate` (`read_calibration`), in place of the model's
            own temperature and bias.
        """
        if calibration is not None:
            return calibration.probabilities(images, texts)
        return expit(self.logits(images, texts))

    def _run(self, program: Callable[..., Any], inputs: Any, batch_size: int) -> Iterator[Any]:
        """Outputs of a program over inputs of any length, batch by batch."""
        return run_batches(program, self.params, inputs, batch_size, self.mesh)
