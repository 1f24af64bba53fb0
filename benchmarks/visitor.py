"""A visitor of the page: starts `matvit app` and looks at it in a headless Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
PATIENCE_MS = 120_000
PICTURES = ".mv-hit img"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@contextmanager
def serving(index: Path) -> Iterator[tuple[str, int]]:
    """Serve an index; gives the address and the process id of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "app", str(index), "--port", str(port)]
    server = subprocess.Popen(
        command,
        env={**os.environ, "STREAMLIT_SERVER_HEADLESS": "true", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(f"{address}/_stcore/health"):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {server.returncode}")
            time.sleep(0.1)
        yield address, _child_of(server.pid)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium of this machine, or the one that playwright brought."""
    path = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


def look(browser: Browser, address: str, *, scheme: str = "light", size: tuple[int, int]) -> Page:
    """Open the page and wait until every picture of it is there."""
    page = new_page(browser, scheme=scheme, size=size)
    visit(page, address)
    return page


def new_page(browser: Browser, *, scheme: str = "light", size: tuple[int, int]) -> Page:
    """Open an empty page."""
    width, height = size
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    return page


def visit(page: Page, address: str) -> None:
    """Go to an address and wait until every picture is there."""
    page.goto(address)
    page.locator(".mv-legend").wait_for()  # `expect` would look once a second only
    settle(page)


def settle(page: Page) -> None:
    """Wait until no picture is missing and nothing is drawn again."""
    page.wait_for_function(
        """() => {
          const all = document.querySelectorAll(".mv-hit");
          const drawn = [...document.querySelectorAll(".mv-hit img")];
          return all.length && drawn.length === all.length && drawn.every(it => it.complete)
            && !document.querySelector("[data-stale='true'], [data-testid='stSkeleton']");
        }"""
    )


def finished(page: Page) -> None:
    """Wait until the server has answered in full; pictures may still be on their way."""
    page.wait_for_selector("[data-test-script-state='notRunning']")


def resident_bytes(process: int) -> int:
    """Memory of a process (Linux)."""
    fields = Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _child_of(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    return int(children[0]) if children else process


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
