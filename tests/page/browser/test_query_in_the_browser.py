"""The page that encodes in the browser, asking a server in a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from indexing import ImageIndex
from matvit import DEFAULT_ENCODER, Preprocess, embed, load_encoder
from retrieval import Retriever

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "query-in-the-browser"
TOKEN = "open sesame"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    spec = importlib.util.spec_from_file_location("build_page", PAGE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    folder = tmp_path_factory.mktemp("phone") / "page"
    try:
        build.build(folder, DEFAULT_ENCODER, "S")
    except subprocess.CalledProcessError:
        pytest.skip("npm cannot fetch onnxruntime-web")
    return folder


@pytest.fixture(scope="module")
def address(browser, place, built):
    """`matvit serve` with the page beside it, where requests bear a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "app.cli", "serve", place / "photos.index", "--port", port,
        "--page", built,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MATVIT_TOKEN": TOKEN}
    server = subprocess.Popen(list(map(str, command)), env=environment)
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/page/"
    server.terminate()
    server.wait()


@pytest.fixture
def visit(browser, address):
    page = browser.new_page()
    page.goto(address)
    yield page
    page.close()


def ready(page) -> None:
    page.wait_for_selector("#drop.ready", timeout=60_000)


@pytest.mark.parametrize(("file", "nearness"), [("model.onnx", 0.999), ("model.int8.onnx", 0.98)])
def test_a_picture_finds_what_its_submodel_finds_here(visit, place, file, nearness):
    visit.check(f"input[value='{file}']")
    visit.wait_for_function("document.querySelector('#said').textContent.includes('S, ')")
    ready(visit)
    assert "finds its golden vector" in visit.text_content("#said")
    # Asked without the token, the server says so, and the field for it appears.
    query = place / "queries" / "china" / "16.jpg"
    visit.set_input_files("#file", query)
    visit.wait_for_selector("#said.wrong")
    assert "a token is wanted" in visit.text_content("#said")
    visit.fill("#token", TOKEN)
    sent: list[str] = []
    visit.on("request", lambda asked: sent.append(asked.post_data or ""))
    visit.set_input_files("#file", [])
    visit.set_input_files("#file", query)
    visit.wait_for_function("document.querySelectorAll('#hits img').length === 10")
    encoder = load_encoder(DEFAULT_ENCODER)
    retriever = Retriever(encoder, ImageIndex.open(place / "photos.index"))
    wanted = retriever.search(query, "S", k=10)
    captions = visit.locator("#hits figcaption").all_text_contents()
    assert captions[0].split("  ")[1] == wanted.hits[0].path
    assert {caption.split("/")[0].split()[-1] for caption in captions[:5]} == {"china"}
    (asked,) = (json.loads(body) for body in sent if body)
    pixels = encoder.preprocess.pixels(query)
    vector = embed(encoder, pixels[None], encoder.submodel("S"))[0]
    assert np.dot(asked["vector"], vector) > nearness
    assert len(json.dumps(asked)) < 8000  # and no picture


def test_what_computes_wrongly_may_not_ask(browser, address):
    page = browser.new_page()
    page.route(
        "**/golden.json",
        lambda route: route.fulfill(json={"image": [0] * 64 * 64 * 3, "vector": [1 / 16] * 256}),
    )
    page.goto(address)
    page.wait_for_selector("#said.wrong")
    assert "model.onnx computes wrongly in this browser" in page.text_content("#said")
    assert page.is_disabled("#file")
    page.close()


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_pictures_are_resized_as_everywhere(visit, fit, interpolation, crop_pct):
    ready(visit)
    preprocess = Preprocess(img_size=48, fit=fit, interpolation=interpolation, crop_pct=crop_pct)
    pixels = load_sample_image("china.jpg")[40:240, 30:180]
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    found = visit.evaluate(
        """async ([rgba, width, height, preprocess]) => {
            const { resize } = await import("./encoder.js");
            return Array.from(resize(rgba, width, height, preprocess));
        }""",
        [rgba.ravel().tolist(), 150, 200, preprocess.to_dict()],
    )
    wanted = preprocess.pixels(Image.fromarray(pixels)).ravel().astype(int)
    assert np.abs(np.array(found) - wanted).max() <= 1
    assert np.mean(np.array(found) != wanted) < 0.01  # halves, rounded up or down
