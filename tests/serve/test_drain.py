"""`siglip2 serve` as users run it: started, loaded, ended by SIGTERM under load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from serve.running import base64_of, encoded
from xla import QUICK_FLAGS

from siglip2_jax.testing import tiny_embedder

pytestmark = [pytest.mark.serve, pytest.mark.slow]


@pytest.fixture
def server(tmp_path):
    model = tmp_path / "tiny"
    tiny_embedder().save(model, "hf")
    (tmp_path / "animals.txt").write_text("dog\ncat\n")
    command = [sys.executable, "-m", "siglip2_jax", "serve", str(model), "--port", "0"]
    command += ["--batch-sizes", "1", "4", "--max-num-patches", "16", "--grace", "1"]
    command += ["--labels-file", str(tmp_path / "animals.txt")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": QUICK_FLAGS},
    )
    try:
        line = process.stdout.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+", line)
        assert line.startswith("serving tiny at ")
        end = time.monotonic() + 120
        while not _is_ready(url):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_sigterm_under_load_loses_no_accepted_request(server):
    process, url = server
    image = encoded(20, 30)
    expected = tiny_embedder().embed_images(image, max_num_patches=16)[0]
    body = {"input": [{"image": base64_of(image)}, "a dog"]}
    answers, lost, states = [], [], []

    def load():
        with httpx.Client(base_url=url, timeout=60) as client:
            while True:
                try:
                    answers.append(client.post("/v1/embeddings", json=body))
                except httpx.ConnectError:
                    return  # no longer taken on
                except httpx.TransportError as error:
                    lost.append(error)
                    return

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    before = len(answers)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    states.append(httpx.get(f"{url}/ready"))
    for thread in threads:
        thread.join(60)
    assert process.wait(60) == 0
    assert states[0].status_code == 503 and states[0].json() == {"status": "draining"}
    assert states[0].headers["Connection"] == "close"
    assert not lost and len(answers) > before > 6
    for answer in answers:
        assert answer.status_code == 200
        row = answer.json()["data"][0]["embedding"]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert process.stderr.read() == ""


def test_labels_of_a_file(server):
    _, url = server
    body = {"images": base64_of(encoded(20, 30)), "label_set": "animals"}
    (result,) = httpx.post(f"{url}/v1/classify", json=body).json()["results"]
    assert {x["label"] for x in result["labels"]} == {"dog", "cat"}
