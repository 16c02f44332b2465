"""The example page that labels images in a browser: `docs/examples/browser.html`.

With SIGLIP2_ONNXRUNTIME_WEB, the directory `dist` of the npm package onnxruntime-web, the model
runs in the page, too; without it only the preprocessing does.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.demo import shipped_examples
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.testing import TINY, TINY_FIXED, tiny_embedder

sync_api = pytest.importorskip("playwright.sync_api")

PAGE = Path(__file__).parents[2] / "docs" / "examples" / "browser.html"
RUNTIME = os.environ.get("SIGLIP2_ONNXRUNTIME_WEB")
LABELS = ["a dog", "people at a table", "a street"]

pytestmark = pytest.mark.browser


class Files(http.server.SimpleHTTPRequestHandler):
    """Files of a directory, without a line for each on stderr."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
    }

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the address under which it is served."""
    handler = functools.partial(Files, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: sync_api.Browser, site: tuple[Path, str]) -> Iterator[sync_api.Page]:
    directory, address = site
    html = PAGE.read_text()
    assert 'const RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"' in html
    start = html.index('"https://cdn')
    html = html[:start] + '"./runtime/"' + html[html.index("\n", start) :]
    (directory / "index.html").write_text(html)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    yield page
    context.close()


@pytest.mark.parametrize("budget", [16, 100, 256])
@pytest.mark.parametrize("size", [(37, 91), (300, 200), (8, 8)])
def test_native_preprocessing_is_ours(page, size, budget):
    check_patches(page, ImagePreprocessor(patch_size=16, image_size=None), size, budget)


@pytest.mark.parametrize("size", [(37, 91), (300, 200), (8, 8)])
def test_fixed_preprocessing_is_ours(page, size):
    check_patches(page, ImagePreprocessor(patch_size=14, image_size=64), size, 256)


def check_patches(
    page: sync_api.Page, preprocess: ImagePreprocessor, size: tuple[int, int], budget: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rules = {
        "patch_size": preprocess.patch_size,
        "image_size": preprocess.image_size,
        "mode": preprocess.mode,
    }
    result = page.evaluate(
        """([rgb, [height, width], rules, budget]) => {
          const {pixels, yx, count} = toPatches(Uint8Array.from(rgb), height, width, rules, budget)
          return [Array.from(pixels), Array.from(yx), count]
        }""",
        [image.ravel().tolist(), list(size), rules, budget],
    )
    pixels, (rows, columns) = preprocess.to_patches(Image.fromarray(image), budget)
    assert result[2] == rows * columns
    assert result[1] == np.indices((rows, columns)).reshape(2, -1).T.ravel().tolist()
    difference = np.abs(np.reshape(result[0], pixels.shape) - pixels)
    if preprocess.image_size is None:
        assert difference.max() < 1e-5
    else:  # cut to 8 bits: rounding may take a value across a whole level, but seldom
        assert difference.max() < 1 / 127 and (difference > 1e-6).mean() < 1e-3


@pytest.mark.onnx
@pytest.mark.skipif(not RUNTIME, reason="needs SIGLIP2_ONNXRUNTIME_WEB")
@pytest.mark.parametrize(
    ("config", "int8"), [(TINY, False), (TINY_FIXED, True)], ids=["native", "fixed, int8"]
)
def test_page_gives_the_probabilities_of_the_model(browser, site, config, int8, request):
    pytest.importorskip("jax2onnx")
    from siglip2_jax.export.onnx_embedder import OnnxEmbedder
    from siglip2_jax.export.onnx_graphs import export_onnx
    from siglip2_jax.export.onnx_int8 import Int8

    assert RUNTIME
    directory, _ = site
    model = tiny_embedder(config)
    export_onnx(model, directory / "m", labels=LABELS, quantize=Int8() if int8 else None)
    for path in (directory / "m").iterdir():
        path.rename(directory / path.name)
    (directory / "runtime").symlink_to(RUNTIME)
    page = request.getfixturevalue("page")
    sync_api.expect(page.locator("#status")).not_to_be_empty(timeout=120_000)
    assert page.locator("#status").text_content() == "Ready."
    if config is TINY:
        page.get_by_label("Patches of an image").fill("64")
    with Image.open(shipped_examples()[0].image) as image:
        image.save(directory / "image.png")  # without loss: browsers decode JPEG differently
    page.get_by_label("Drop an image here").set_input_files(directory / "image.png")
    sync_api.expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ ms$"), timeout=120_000)
    embedder = OnnxEmbedder(model, directory) if int8 else model
    images = embedder.embed_images([directory / "image.png"], max_num_patches=64)
    expected = model.probabilities(images, model.embed_texts(LABELS))[0]
    order = np.argsort(-expected)
    shown = page.locator("#labels li").all_text_contents()
    assert [x.split(":")[0] for x in shown] == [LABELS[i] for i in order]
    scores = page.evaluate(
        """async () => {
          const file = document.getElementById("file").files[0]
          return [Array.from(await embed(file)), Object.fromEntries(await classify(file))]
        }"""
    )
    np.testing.assert_allclose(scores[0], images[0], rtol=0, atol=1e-3 if int8 else 1e-5)
    for label, probability in zip(LABELS, expected, strict=True):
        assert scores[1][label] == pytest.approx(probability, rel=1e-2 if int8 else 1e-4)
