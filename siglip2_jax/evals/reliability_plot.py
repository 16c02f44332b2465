"""Reliability plot of a calibration, beside the model's own probabilities (extra `report`)."""

from __future__ import annotations

import io
import os

from scipy.special import expit

from siglip2_jax.evals.calibrate import Pairs, reliability
from siglip2_jax.inference.calibration import Calibration
from siglip2_jax.outputs import write_whole


def draw_reliability(
    pairs: Pairs,
    calibration: Calibration,
    own: tuple[float, float],
    path: str | os.PathLike[str],
) -> None:
    """Draws the share of matches against the mean probability, each point a bin of pairs.

    Args:
      pairs: the examples.
      calibration: fitted to them.
      own: the model's own temperature and bias.
      path: the SVG file.

    Raises:
      ValueError: the extra `report` is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "a reliability plot needs matplotlib; install it with `pip install "
            "siglip2_jax[report]`, or leave out --plot"
        ) from error
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="grey", linewidth=1)
    fitted = calibration.temperature, calibration.bias
    for name, (temperature, bias), marker in (
        ("the model's own", own, "s"),
        ("calibrated", fitted, "o"),
    ):
        rows = reliability(expit(temperature * pairs.cosines + bias), pairs.matches)
        axes.plot([x for x, _, _ in rows], [y for _, y, _ in rows], marker=marker, label=name)
    axes.set(xlabel="mean probability", ylabel="share of matches", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "siglip2_jax"}):  # the same bytes each time
        figure.savefig(stream, format="svg", metadata={"Date": None})
    write_whole(path, stream.getvalue())
