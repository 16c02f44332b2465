"""The picture of the server's page in README.md, from a running server and Debian's chromium.

siglip2 serve demo_run --max-num-patches 64 &
python scripts/serve/screenshot.py docs/images/serve.png [--url http://127.0.0.1:8000]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from siglip2_jax.demo import HERE

FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
IMAGES = ["000000431848.jpg", "000000215245.jpg"]  # CC BY 2.0
LABELS = ["a person doing a trick on a skateboard", "zebras on a grassy field", "pizza and wine"]
COLOURS = 128  # enough for a small file


def main() -> None:
    """Labels the images and saves what the window shows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("png", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 760})
        page.goto(args.url)
        page.get_by_label("Images", exact=True).set_input_files(
            [HERE / "photos" / name for name in IMAGES]
        )
        page.get_by_label("Labels", exact=True).fill("\n".join(LABELS))
        page.get_by_role("button", name="Label images").click()
        expect(page.locator("#status")).to_contain_text("Done")
        args.png.parent.mkdir(parents=True, exist_ok=True)
        page.evaluate("scrollTo(0, 0)")
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        image.quantize(COLOURS).save(args.png, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
