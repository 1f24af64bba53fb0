"""How fast the page is and whether it grows, for small and for large indexes.

    python benchmarks/page.py --index small.index large.index

Each index is served by `matvit app` and visited by a headless Chromium, with the four trained
sizes and six hits of each: 24 pictures, on a tuned index too. A first view lasts from asking for
the address until every picture is there. `first_view_cold_s` is that of the very first visitor of
a server that has only just begun to answer: libraries are imported, encoder and index loaded.
`first_view_s` is the median of three later ones. `query_browser_ms` is the time from a click on
"Another image" until the last of its 24 pictures is drawn, the median of the first twenty of
`--interactions` clicks; the memory of the server is read after every tenth of all of them.
`hasty_mb` is the memory while another visitor, with a page newly opened, then clicks as often
without waiting for an answer, and at the end waits for one.
`query_server_cpu_ms` is the processor's time that the server spends on such a click, until its
last picture is drawn, and `bare_cpu_ms` what the work itself takes: the same image read, decoded
once and `Retriever.search` asked once with the same four sizes, in another process right after the
click. Other work on the machine lengthens neither much. `share` is the median of `--shared` clicks
over the median of as many bare searches; they come after the first `--interactions`, so that what
the server keeps is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image
from playwright.sync_api import Browser, Page
from provenance import provenance, without_paths, write_result
from tqdm import tqdm
from visitor import (
    PICTURES,
    chromium,
    finished,
    look,
    new_page,
    resident_bytes,
    serving,
    settle,
    visit,
)

from app.options import load_encoder_for
from app.page.opened import MOST
from indexing import ImageIndex
from retrieval import Retriever

_RENAMED = "before => document.querySelector('.mv-name').innerText !== before"
SIZES, HITS = ("S", "M", "L", "XL"), 6
_VIEWS, _TIMED, _WINDOW = 3, 20, (1400, 1000)


def main() -> None:
    """Measure every index and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path, nargs="+", required=True)
    parser.add_argument("--interactions", type=int, default=200)
    parser.add_argument("--shared", type=int, default=30)
    parser.add_argument("--note", default="", help="What else the machine did meanwhile.")
    given = parser.parse_args()
    about = provenance("python benchmarks/page.py " + without_paths(sys.argv[1:]))
    if given.note:
        about["note"] = given.note
    rows: list[dict[str, Any]] = []
    with chromium() as browser:
        for path in given.index:
            rows.append(measure(browser, path, given.interactions, given.shared))
            write_result("page", {**about, "rows": sorted(rows, key=lambda row: row["images"])})


def measure(browser: Browser, path: Path, interactions: int, shared: int) -> dict[str, Any]:
    """Measure the page on one index."""
    index = ImageIndex.open(path)
    bare = _bare(Retriever(load_encoder_for(index), index))
    with serving(path) as (server, process):
        address = f"{server}/?k={HITS}&" + "&".join(f"submodel={size}" for size in SIZES)
        cold = _first_view(browser, address)
        views = [_first_view(browser, address) for _ in range(_VIEWS)]
        page = look(browser, address, size=_WINDOW)
        clicks, memory = _click_along(page, process, interactions)
        costs = _click_beside(page, process, bare, shared)
        page.close()
        another = look(browser, address, size=_WINDOW)
        hasty = _click_hastily(another, process, interactions)
        another.close()
    return {
        "images": len(index),
        "kind": index.info()["kind"],
        **costs,
        "first_view_cold_s": round(cold, 3),
        "first_view_s": round(median(views), 3),
        "interactions": interactions,
        "query_browser_ms": round(1000 * median(clicks), 1),
        "server_mb": _megabytes(memory),
        "hasty_mb": _megabytes(hasty),
    }


def _first_view(browser: Browser, address: str) -> float:
    page = new_page(browser, size=_WINDOW)
    start = perf_counter()
    visit(page, address)
    seconds = perf_counter() - start
    if page.locator(PICTURES).count() != len(SIZES) * HITS:
        raise RuntimeError(f"not {len(SIZES) * HITS} pictures: the index needs more images")
    page.close()
    return seconds


def _click_along(page: Page, process: int, times: int) -> tuple[list[float], list[int]]:
    """Ask with one image after the other; seconds of each, memory after every tenth part."""
    seconds, memory = [], [resident_bytes(process)]
    another = page.get_by_role("button", name="Another image")
    for turn in tqdm(range(1, times + 1), desc="clicking", unit="query"):
        before = page.locator(".mv-name").inner_text()
        start = perf_counter()
        another.click()
        page.wait_for_function(_RENAMED, arg=before)
        if turn <= _TIMED:
            settle(page)
            seconds.append(perf_counter() - start)
        finished(page)
        if turn % max(1, times // 10) == 0:
            memory.append(resident_bytes(process))
    return seconds, memory


def _click_hastily(page: Page, process: int, times: int) -> list[int]:
    """Click without waiting for an answer; memory after every tenth part, and after the last."""
    another = page.get_by_role("button", name="Another image")
    memory = [resident_bytes(process)]
    for turn in tqdm(range(1, times + 1), desc="clicking hastily", unit="query"):
        another.click()
        if turn % max(1, times // 10) == 0:
            memory.append(resident_bytes(process))
    settle(page)
    finished(page)
    return [*memory, resident_bytes(process)]


def _megabytes(used: list[int]) -> list[float]:
    return [round(each / 1e6, 1) for each in used]


def _bare(retriever: Retriever) -> Callable[[int], float]:
    """Make what a click is held against; gives the seconds of the processor that it takes."""
    preprocess, index = retriever.encoder.preprocess, retriever.index

    def ask(number: int) -> float:
        start = process_time()
        image = Image.fromarray(preprocess.pixels(index.image_bytes(number)))
        for size in SIZES:
            retriever.search(image, size, MOST)
        return process_time() - start

    ask(int(index.ids[0]))  # selects kernels and fills caches
    return ask


def _click_beside(
    page: Page, process: int, bare: Callable[[int], float], times: int
) -> dict[str, float]:
    """Click, and ask the same without a page: one after the other, so that both see one machine."""
    another, clicks, searches = page.get_by_role("button", name="Another image"), [], []
    for _ in tqdm(range(times), desc="comparing", unit="query"):
        before, start = page.locator(".mv-name").inner_text(), _processor_seconds(process)
        another.click()
        page.wait_for_function(_RENAMED, arg=before)
        settle(page)
        finished(page)
        clicks.append(_processor_seconds(process) - start)
        (asked,) = parse_qs(urlsplit(page.url).query)["query"]
        searches.append(bare(int(asked)))
    return {
        "query_server_cpu_ms": round(1000 * median(clicks), 1),
        "bare_cpu_ms": round(1000 * median(searches), 1),
        "share": round(median(clicks) / median(searches), 2),
    }


def _processor_seconds(process: int) -> float:
    """Time that the processors spent on a process, threads that ended included (Linux)."""
    return time.clock_gettime(
        (~process << 3) | 2
    )  # CPUCLOCK_SCHED, as clock_getcpuclockid(3) has it


if __name__ == "__main__":
    main()
