"""The picture of the server's page in README.md, from a running server and Debian's chromium.

siglip2 serve demo_run --max-num-patches 64 &
python scripts/serve/screenshot.py docs/images/serve.png [--url http://127.0.0.1:8000]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from siglip2_jax.demo import HERE

FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
IMAGES = ["000000000790.jpg", "000000012280.jpg"]  # CC BY 2.0
LABELS = ["people at a table with a cake", "an airport with a woman and her bags", "a dog in a car"]


def main() -> None:
    """Labels the images and saves what the window shows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
        page.screenshot(path=args.png)
        browser.close()


if __name__ == "__main__":
    main()
