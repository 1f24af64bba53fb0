"""Pictures of the page: `docs/images/page*.png`.

    python benchmarks/screenshots.py

The corpus is cut out of the two photographs that come with scikit-learn, sorted into classes by
the part of the photograph that a piece is from, so that hits of a neighbouring part are wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect
from sklearn.datasets import load_sample_image
from visitor import chromium, look, serving

from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT
from retrieval import Retriever

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PIECES, QUERIES = 700, 800
_COLOURS = 256


def main() -> None:
    """Make the corpus, index and tune it, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--query", type=int, default=87, help="Id of the image to ask with.")
    parser.add_argument("--work", type=Path, help="Folder to keep corpus and index in.")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = make_index(given.work or Path(folder))
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
    """Cut the photographs up, index the pieces, tune the index."""
    path = folder / "pieces.index"
    if path.exists():
        return path
    cut(folder / "pieces", PIECES, seed=0)
    cut(folder / "queries", QUERIES, seed=1)
    model = MatViT.load(DEFAULT_ENCODER)
    index = ImageIndex.build(model, Corpus.open(folder / "pieces"), path, progress=True)
    # Neighbouring parts overlap, so the answers of the full encoder say more than the classes.
    queries = Corpus.open(folder / "queries").without_labels()
    Retriever(model, index).tune(queries, size=QUERIES, progress=True)
    return path


def cut(folder: Path, pieces: int, seed: int) -> None:
    """Cut squares of many sizes out of both photographs, at random places."""
    rng = np.random.default_rng(seed)
    for number in range(pieces):
        name = ("temple", "dahlia")[number % 2]
        photograph = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))
        side = int(rng.integers(110, 240))
        left, top = (int(rng.integers(0, most - side)) for most in photograph.size)
        across = ("left", "middle", "right")[3 * (left + side // 2) // photograph.width]
        down = ("upper", "lower")[2 * (top + side // 2) // photograph.height]
        into = folder / f"{name}, {down} {across}"
        into.mkdir(parents=True, exist_ok=True)
        piece = photograph.crop((left, top, left + side, top + side))
        piece.save(into / f"{number:04}.jpg", quality=92)


if __name__ == "__main__":
    main()
