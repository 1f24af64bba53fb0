from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import places
from app.places import PHOTOGRAPHS, SIDE, places_of, view_of, write_places


@pytest.fixture(scope="module")
def coins(tmp_path_factory) -> Path:
    return write_places(tmp_path_factory.mktemp("places"), ("coins",), views=3)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_every_place_is_a_class_of_so_many_views(coins):
    names = {f"coins {place}/{view:02}.jpg" for place in range(1, 7) for view in range(3)}
    assert set(files(coins)) == names
    for path in coins.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")


def test_views_are_the_same_each_time_and_never_alike(coins, tmp_path):
    assert files(write_places(tmp_path, ("coins",), views=3)) == files(coins)
    assert len(set(files(coins).values())) == 18


def test_files_that_are_there_are_left_alone(tmp_path):
    write_places(tmp_path, ("print",), views=2)
    kept, gone = tmp_path / "print 1" / "00.jpg", tmp_path / "print 2" / "01.jpg"
    kept.write_bytes(b"mine")
    gone.unlink()
    write_places(tmp_path, ("print",), views=2)
    assert kept.read_bytes() == b"mine"
    assert gone.exists()


@pytest.mark.parametrize("size", [(512, 512), (640, 427), (427, 640), (384, 191), (60, 60)])
def test_places_cover_the_photograph_and_lie_inside(size):
    covered = np.zeros(size[::-1], dtype=bool)
    for left, top, side in places_of(size):
        assert 0 <= left <= size[0] - side
        assert 0 <= top <= size[1] - side
        covered[round(top) : round(top + side), round(left) : round(left + side)] = True
    assert covered.all()


def test_a_view_shows_its_place_and_nothing_from_outside_the_photograph():
    photograph = Image.new("RGB", (400, 400), (200, 200, 200))
    photograph.paste((200, 0, 0), (0, 0, 200, 400))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        red = np.asarray(view_of(photograph, (0, 100, 200), rng), float).mean(axis=(0, 1))
        gray = np.asarray(view_of(photograph, (200, 100, 200), rng), float).mean(axis=(0, 1))
        assert red[0] > red[1] + 50
        assert np.ptp(gray) < 60  # the light has a colour of its own
        assert gray.min() > 60  # what lies outside would be black


def test_every_photograph_is_in_the_wheel_and_is_found_without_importing_it():
    program = (
        "import sys; from app.places import PHOTOGRAPHS, _find_photographs\n"
        "source = _find_photographs()\n"
        "print(sum((source / file).is_file() for file in PHOTOGRAPHS.values()))\n"
        "print({'skimage', 'scipy', 'networkx', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(len(PHOTOGRAPHS)), "set()"]


def test_without_scikit_image_the_pip_command_is_named(tmp_path, monkeypatch, matvit):
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    code, _, err = matvit("demo", "--out", tmp_path / "demo")
    assert code == 1
    assert len(err.strip().splitlines()[-1:]) == 1
    assert "pip install 'matvit-retrieval[demo]'" in err
    assert "Traceback" not in err
