"""Pictures of the page: `docs/images/page*.png`.

    python benchmarks/screenshots.py

They show the demo: a query finds other views of its place, and some of a place beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, expect
from tiny_imagenet import is_complete
from visitor import chromium, look, serving

from app.demo import INDEX, run_demo
from matvit import DEFAULT_ENCODER, MatViT

IMAGES = Path(__file__).parent.parent / "docs" / "images"
_COLOURS = 256


def main() -> None:
    """Make the demo and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--query", type=int, default=384, help="Id of the image to ask with.")
    parser.add_argument("--work", type=Path, help="Folder to keep the demo in.")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = make_index(given.work or Path(folder) / "demo")
        with serving(path) as (address, _), chromium() as browser:
            take_all(browser, f"{address}/?query={given.query}&k=6")


def take_all(browser: Browser, address: str) -> None:
    """Take every picture."""
    # While the first visitor waits for the server to load, the browser has nothing else to do, and
    # the milliseconds are those of the encoders.
    look(browser, address, size=(1400, 1000)).close()
    shots = {
        "page": ("light", (1400, 1000), None),
        "page-dark": ("dark", (1400, 1000), None),
        "page-choose": ("light", (1400, 1000), "Choose a size"),
        "page-map": ("light", (1400, 1000), "Map"),
        "page-narrow": ("light", (420, 1500), None),
    }
    for name, (scheme, size, tab) in shots.items():
        page = look(browser, address, scheme=scheme, size=size)
        if tab is not None:
            page.get_by_role("tab", name=tab).click()
            expect(page.locator("[data-testid=stVegaLiteChart] svg")).to_be_visible()
            page.wait_for_load_state("networkidle")
        page.mouse.move(0, 0)
        page.screenshot(path=IMAGES / f"{name}.png")
        page.close()
        shrink(IMAGES / f"{name}.png")


def shrink(path: Path) -> None:
    """Reduce a picture to a palette: a third of the size, and nobody sees it."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(path, optimize=True)


def make_index(folder: Path) -> Path:
    """Make the demo, or take the one that is there."""
    if not is_complete(folder / INDEX):
        run_demo(MatViT.load(DEFAULT_ENCODER), folder, None, progress=True)
    return folder / INDEX


if __name__ == "__main__":
    main()
