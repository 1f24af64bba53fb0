"""Decoding side by side: the same results however it is done, and nothing lost to a crash.

Mutants these must catch: a crash that takes the images before or after with it, or the whole run;
a crashed image that is retried for ever; a worker that outlives its parent.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexing.corpus import decode_process
from indexing.corpus.corpus import Corpus
from indexing.corpus.decode_process import DecodeError
from indexing.corpus.decoding import DecodePool, Decoders
from matvit.preprocess import Preprocess

PREPROCESS = Preprocess(img_size=8)

# A worker whose decoder dies over some files, as one with a bug in C would.
FRAGILE = """
import os, signal, time
from indexing.corpus import decode_process

decode = decode_process.Preprocess.decode

def decode_or_die(self, data):
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == b"hang":
        decode_process.signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(60)
    print("a library that talks", flush=True)
    return decode(self, data)

decode_process.Preprocess.decode = decode_or_die
decode_process.main()
"""


def png(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def decode_all(corpus, **options):
    batches = list(corpus.decode(PREPROCESS, Decoders(batch_size=5, **options)))
    failures = [failure for batch in batches for failure in batch.failures]
    records = [record for batch in batches for record in batch.records]
    return np.concatenate([batch.pixels for batch in batches]), records, failures


def test_processes_threads_and_the_calling_thread_give_the_same(photo_folder):
    (photo_folder / "apple/02.jpg").write_text("this is a text file")
    (photo_folder / "bread/05.jpg").touch()
    (photo_folder / "cheese/00.jpg").symlink_to(photo_folder / "gone.jpg")
    corpus = Corpus.open(photo_folder)
    pixels, records, failures = decode_all(corpus, workers=0)
    assert (len(records), len(failures)) == (12, 3)
    for options in ({"workers": 3}, {"workers": 2, "processes": True}):
        others = decode_all(corpus, **options)
        np.testing.assert_array_equal(others[0], pixels)
        assert others[1:] == (records, failures)


def test_decoder_that_crashes_costs_its_own_image_alone(photo_folder, monkeypatch):
    expected = [PREPROCESS.pixels(file) for file in sorted(photo_folder.rglob("*.png"))]
    (photo_folder / "apple/01.png").write_bytes(b"crash")
    (photo_folder / "cheese/99.png").write_bytes(b"crash")
    monkeypatch.setattr(decode_process, "_PROGRAM", FRAGILE)
    pixels, records, failures = decode_all(Corpus.open(photo_folder), workers=2, processes=True)
    np.testing.assert_array_equal(pixels, np.stack(expected))
    assert [record.position for record in records] == [0, *range(2, 13)]
    assert [(failure.path, failure.error, failure.message) for failure in failures] == [
        (path, "DecoderCrash", "the decoder crashed over it (SIGKILL)")
        for path in ("apple/01.png", "cheese/99.png")
    ]


def processes_of(pool):
    """The processes of a pool that has nothing to do."""
    queue = pool._processes._idle
    found = [queue.get_nowait() for _ in range(queue.qsize())]
    for process in found:
        queue.put(process)
    return [process._process for process in found]


def test_process_that_is_killed_for_another_reason_costs_nothing(monkeypatch):
    with DecodePool(PREPROCESS, Decoders(1, processes=True)) as pool:
        pool.decode(png(0))
        (process,) = processes_of(pool)
        process.kill()
        process.wait()
        np.testing.assert_array_equal(pool.decode(png(1)).pixels, PREPROCESS.pixels(png(1)))


def test_decoder_that_hangs_is_stopped_and_not_asked_again(monkeypatch):
    monkeypatch.setattr(decode_process, "_PROGRAM", FRAGILE)
    with DecodePool(PREPROCESS, Decoders(1, processes=True)) as pool:
        with pytest.raises(DecodeError, match="decoding took longer than 120 seconds") as raised:
            pool.decode(b"hang")
        assert raised.value.kind == "TimeoutError"
        assert pool.decode(png(0)).width == 24


def test_decoding_process_is_small_because_it_imports_nothing_large():
    program = "import sys, indexing.corpus.decode_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "indexing.corpus.decode_process" in loaded
    assert not loaded & {"torch", "faiss", "pyarrow", "timm"}


def test_process_that_cannot_start_is_an_error_and_not_a_failure_of_every_image(
    photo_folder, monkeypatch
):
    monkeypatch.setattr(decode_process, "_PROGRAM", "raise SystemExit(7)")
    with pytest.raises(RuntimeError, match=r"did not start \(exit code 7\); decode in threads"):
        decode_all(Corpus.open(photo_folder), processes=True)


def test_closing_ends_every_process():
    with DecodePool(PREPROCESS, Decoders(2, processes=True)) as pool:
        for future in [pool.submit(pool.decode, png(seed)) for seed in range(20)]:
            future.result()
        processes = processes_of(pool)
    assert processes
    assert [process.returncode for process in processes] == [0] * len(processes)


ENDLESS = """
import sys
from pathlib import Path
from indexing.corpus.decoding import DecodePool, Decoders
from matvit.preprocess import Preprocess

data = Path(sys.argv[1]).read_bytes()
with DecodePool(Preprocess(img_size=8), Decoders(2, processes=True)) as pool:
    while True:
        for future in [pool.submit(pool.decode, data) for _ in range(8)]:
            future.result()
        print("busy", flush=True)
"""


def parent_of(pid):
    """Parent of a process; None if it has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def children_of(parent):
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if parent_of(pid) == parent]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path, how):
    (tmp_path / "image.png").write_bytes(png(0))
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, tmp_path / "image.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as parent:
        for _ in range(2):
            assert parent.stdout.readline() == b"busy\n"
        workers = children_of(parent.pid)
        assert workers
        os.killpg(parent.pid, how)  # as a terminal does
        parent.stdout.close()
        assert parent.wait(60)  # a signal, or the pipe that is closed was noticed first
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(parent_of(pid) for pid in workers):
        time.sleep(0.01)
    assert not [pid for pid in workers if parent_of(pid)]
