"""An index of crops of photographs, served by the command, and a visitor in a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER
from matvit.cost import count_macs
from matvit.model import MatViT
from retrieval import Conditions, OperatingPoint, ParetoFrontier

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

ROOT = Path(__file__).parent.parent.parent.parent
PATIENCE_MS = 60_000
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An index of crops of two photographs, a report, and one crop more of each to ask with."""
    folder = tmp_path_factory.mktemp("browser")
    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for number in range(17):
            left, top = rng.integers(100, 300), rng.integers(60, 200)
            into = folder / ("photos" if number < 16 else "queries") / name
            into.mkdir(parents=True, exist_ok=True)
            photograph.crop((left, top, left + 200, top + 200)).save(into / f"{number:02}.jpg")
    model = MatViT.load(DEFAULT_ENCODER)
    index = ImageIndex.build(model, Corpus.open(folder / "photos"), folder / "photos.index")
    points = [point(model, *found) for found in (("S", 0.8), ("3xS,3xM", 0.9), ("XL", 1.0))]
    (folder / "report").mkdir()
    frontier = ParetoFrontier(points, conditions=conditions(model, len(index)))
    (folder / "report" / "report.json").write_text(frontier.to_json())
    return folder


def point(model: MatViT, name: str, overlap: float) -> OperatingPoint:
    macs, full = (count_macs(model.config, model.submodel(each)) for each in (name, None))
    return OperatingPoint(
        submodel=name, macs=macs, macs_fraction=macs / full, params=1, queries=9, k=10,
        overlap_at_k=overlap,
    )  # fmt: skip


def conditions(model: MatViT, images: int) -> Conditions:
    return Conditions(
        encoder=model.name, fingerprint=model.fingerprint, weights=model.weights_fingerprint,
        images=images, queries=9, unreadable=0, without_relevant=None, in_index=0,
        device="cpu", precision="float32",
    )  # fmt: skip


@contextmanager
def serving(index: Path) -> Iterator[str]:
    """Start `matvit app` on a free port and end it, and what it started, afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (index.parent / "server.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "app", str(index), "--port", str(port)],
        env={**os.environ, "STREAMLIT_SERVER_HEADLESS": "true", "PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not answers(f"{address}/_stcore/health"):
            assert server.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait()
        log.close()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(browser, place) -> Iterator[str]:  # no server without one to visit it
    with serving(place / "photos.index") as address:
        yield address


@pytest.fixture(scope="module")
def sync_api():
    return pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; it comes with the extra `dev`"
    )


@pytest.fixture(scope="module")
def browser(sync_api):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(sync_api, browser, server):
    """The page of a new visitor; at the end nothing may have gone wrong in the console."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if is_wrong(said) else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server)
    sync_api.expect(page.locator(".mv-head")).to_have_count(4)
    sync_api.expect(page.locator("input[type=file]")).to_be_attached()
    yield page
    page.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []


def is_wrong(said) -> bool:
    """Whether a line of the console tells of an error.

    Not the loss of a picture: whoever goes on before all pictures are there leaves some that the
    server has let go, and the pictures that count are looked at by the tests.
    """
    lost = "/media/" in said.location.get("url", "") and "404" in said.text
    return said.type == "error" and not lost
