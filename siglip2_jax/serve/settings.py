"""Settings of a server: what it offers, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from siglip2_jax.inference.calibration import Calibration


@dataclass(frozen=True)
class LabelSet:
    """Labels that requests name instead of listing them.

    Attributes:
      labels: in order.
      templates: prompts of each label, averaged as embeddings.
      calibration: of exactly these labels and templates; None takes the model's own temperature
        and bias.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Settings:
    """Offer of a server, and how much it takes. Items are images and texts of requests.

    Attributes:
      model_name: what answers call the model, and what requests may call it.
      budgets: token budgets that requests choose from, the first unless they say; not used at
        fixed resolution.
      batch_sizes: sizes that batches are filled up to, for each of which programs are compiled.
      wait_ms: milliseconds for which an item waits for others, at most, where the device is free.
      queue: items taken on at the same time; more are refused until some are answered.
      max_items: items of a request, and labels times templates.
      deadline: seconds from a request's arrival to its answer.
      max_request_bytes: size of a request.
      max_held_bytes: size of all requests together that are not answered yet.
      max_image_bytes: size of an encoded image.
      max_pixels: width * height of an image.
      max_text_chars: characters of a text.
      decode_workers: processes that decode images.
      decode_seconds: time for an image to be decoded in.
      text_cache: texts whose embeddings are kept.
      stuck_seconds: time for a batch, after which the device counts as stuck.
      grace: seconds between SIGTERM and the last connection taken: `/ready` is red in them, and
        answers close their connections.
      api_keys: one of them must come with a request; none are needed if empty.
      url_hosts: hosts that images are fetched from; none unless given.
      url_seconds: time for an image to be fetched in.
      labels: sets by name.
      calibration: of any texts, fitted to pairs; None takes the model's own temperature and bias.
    """

    model_name: str = "siglip2"
    budgets: tuple[int, ...] = (256,)
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    wait_ms: float = 5.0
    queue: int = 4096
    max_items: int = 2048
    deadline: float = 60.0
    max_request_bytes: int = 32 << 20
    max_held_bytes: int = 512 << 20
    max_image_bytes: int = 16 << 20
    max_pixels: int = 64_000_000
    max_text_chars: int = 20_000
    decode_workers: int = 1
    decode_seconds: float = 10.0
    text_cache: int = 16_384
    stuck_seconds: float = 120.0
    grace: float = 1.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    url_hosts: tuple[str, ...] = ()
    url_seconds: float = 10.0
    labels: Mapping[str, LabelSet] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """All calibrations, by what they are called in messages."""
        named = {f"the label set {name!r}": x.calibration for name, x in self.labels.items()}
        named["the calibration"] = self.calibration
        return {name: x for name, x in named.items() if x is not None}

    def __post_init__(self) -> None:
        """Refuses limits that contradict each other.

        Raises:
          ValueError: one is not positive, or a request may exceed the queue.
        """
        for name in ("budgets", "batch_sizes"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} is {values}; expected whole numbers of at least 1")
        if not 2 <= 2 * self.max_items <= self.queue:
            raise ValueError(
                f"a request of {self.max_items} items, and as many labels, must fit the queue of "
                f"{self.queue}; make that at least twice as long"
            )
