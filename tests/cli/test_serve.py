"""`siglip2 serve`: options to settings, and what is refused before it starts."""

from __future__ import annotations

import socket

import pytest

for package in ("fastapi", "uvicorn"):
    pytest.importorskip(package)

from siglip2_jax.cli import parser  # noqa: E402
from siglip2_jax.cli.serve import _settings  # noqa: E402
from siglip2_jax.evals.prompts import OPENAI_TEMPLATES  # noqa: E402
from siglip2_jax.serve.settings import LabelSet, Settings  # noqa: E402

pytestmark = pytest.mark.serve


def settings(*options) -> Settings:
    return _settings(parser().parse_args(["serve", "some/place/model.npz", *map(str, options)]))


def test_defaults_of_the_command_are_those_of_settings():
    assert settings("--decode-workers", "1") == Settings(model_name="model")


def test_options(tmp_path):
    animals, keys = tmp_path / "animals.txt", tmp_path / "keys"
    animals.write_text("dog\n cat \n\ndog\n")
    keys.write_text("first\nsecond\n")
    actual = settings(
        *("--labels-file", animals, "--templates", "openai", "--api-keys", keys),
        *("--max-num-patches", 256, 1024, "--batch-sizes", 2, 16, "--wait-ms", 2.5),
        *("--queue", 99, "--max-items", 9, "--deadline", 7, "--max-request-mb", 2),
        *("--max-image-mb", 1, "--max-pixels", 5, "--grace", 0, "--decode-workers", 3),
        *("--allow-url-hosts", "a.test, b.test", "--model-name", "mine"),
    )
    assert actual == Settings(
        model_name="mine",
        budgets=(256, 1024),
        batch_sizes=(2, 16),
        wait_ms=2.5,
        queue=99,
        max_items=9,
        deadline=7.0,
        max_request_bytes=2 << 20,
        max_image_bytes=1 << 20,
        max_pixels=5,
        decode_workers=3,
        grace=0.0,
        api_keys=("first", "second"),
        url_hosts=("a.test", "b.test"),
        labels={"animals": LabelSet(("dog", "cat"), OPENAI_TEMPLATES)},
    )
    assert "first" not in repr(actual)


def test_what_is_refused(siglip2, model_dir, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, words in (
            (("--port", port), f"127.0.0.1 port {port} cannot be listened on"),
            (("--port", 0, "--api-keys", empty), "holds no key"),
            (("--port", 0, "--labels-file", empty), "holds no label"),
            (("--port", 0, "--queue", 10), "must fit the queue of 10"),
            (("--port", 0, "--calibration", empty), "not JSON"),
        ):
            result = siglip2("serve", model_dir, *options)
            assert result.code == 2 and words in result.err and result.err.count("\n") == 1


def test_a_calibration_of_another_model(siglip2, model_dir, tmp_path, photos):
    from siglip2_jax.testing import tiny_embedder

    other = tmp_path / "other"
    tiny_embedder(seed=1).save(other, "hf")
    rows = ["image,label", *(f"photos/{x},dog" for x in ("a.png", "b.jpg", "d.webp"))]
    rows += [f"photos/{x},cat" for x in ("e.bmp", "f.tif", "g.gif")]
    (tmp_path / "examples.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "pets.calibration.json"
    fitted = siglip2("calibrate", other, "--examples", tmp_path / "examples.csv", "--out", out)
    assert fitted.code == 0, fitted.err
    result = siglip2("serve", model_dir, "--port", 0, "--calibration", out)
    assert result.code == 2
    assert "the label set 'pets' was fitted with another model: weights" in result.err
