"""Near-duplicates: groups, who is kept, by NumPy from the stored vectors."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from toy import SIDE, ToyEncoder, photo

from indexing import Corpus, ImageIndex, find_duplicates


@pytest.fixture
def index(tmp_path) -> ImageIndex:
    """Forty pictures; of three there are copies, one of them larger than its original."""
    folder = tmp_path / "photos"
    for number in range(40):
        photo(folder / f"{number:02}.png", number)
    for copy in ("x.png", "y.png"):
        shutil.copy(folder / "03.png", folder / copy)
    shutil.copy(folder / "07.png", folder / "z.png")
    with Image.open(folder / "11.png") as image:
        image.resize((3 * SIDE, 3 * SIDE), Image.Resampling.NEAREST).save(folder / "large.png")
    return ImageIndex.build(ToyEncoder(), Corpus.open(folder), tmp_path / "i")


def named(index, groups):
    return [
        (index.path_of(group.kept), sorted(map(index.path_of, group.copies))) for group in groups
    ]


def test_copies_are_grouped_and_the_largest_is_kept(index):
    groups = find_duplicates(index, 0.98)
    assert named(index, groups) == [
        ("03.png", ["x.png", "y.png"]), ("07.png", ["z.png"]), ("large.png", ["11.png"]),
    ]  # fmt: skip


@pytest.mark.parametrize("above", [0.3, 0.6, 0.9, 0.98, 1.0])
def test_groups_are_what_numpy_says(index, above):
    cosines = index.embeddings[:] @ index.embeddings[:].T
    if (np.abs(cosines - above) < 1e-6).any() and above < 1:
        pytest.fail("choose another cosine: this one is one of two images")
    facts = index.metadata.to_pydict()
    order = sorted(
        range(len(index)),
        key=lambda r: (-facts["width"][r] * facts["height"][r], -facts["bytes"][r], r),
    )
    taken, expected = set(), {}
    for row in order:
        if row in taken:
            continue
        near = {r for r in range(len(index)) if cosines[row, r] >= above and r != row} - taken
        if near:
            expected[row] = near
            taken |= near | {row}
    found = {group.kept: set(group.copies) for group in find_duplicates(index, above)}
    if above < 1:  # identical images differ from 1 in the last bit
        assert found == expected
    for group in find_duplicates(index, above):
        assert list(group.scores) == sorted(group.scores, reverse=True)
        assert min(group.scores) >= above
        assert group.scores == pytest.approx(cosines[group.kept, list(group.copies)], abs=1e-6)


def test_a_crowd_of_copies_is_one_group(tmp_path):
    photo(tmp_path / "photos/0.png", 1)
    for number in range(1, 60):
        shutil.copy(tmp_path / "photos/0.png", tmp_path / f"photos/{number}.png")
    photo(tmp_path / "photos/other.png", 2)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "i")
    (group,) = find_duplicates(index, 0.999)
    assert len(group.copies) == 59


@pytest.mark.parametrize("above", [0, -1, 1.1, float("nan")])
def test_a_cosine_out_of_range_is_refused(index, above):
    with pytest.raises(ValueError, match="above must be a cosine above 0 and at most 1"):
        find_duplicates(index, above)


def test_the_command_names_what_to_keep(matvit, index, tmp_path):
    import json

    code, out, err = matvit("index", "duplicates", index.path, "--above", ".98")
    assert code == 0
    lines = out.splitlines()
    size = f"({SIDE} x {SIDE}, "
    assert lines[0] == "group 1: 3 images"
    assert lines[1].startswith(f"  keep    03.png  {size}")
    assert lines[2].startswith("  1.0000  x.png")
    assert "3 groups at 0.98 or above; 4 of 44 images, " in err
    page = tmp_path / "d.html"
    code, out, _ = matvit(
        "index", "duplicates", index.path, "--above", ".98", "--json", "--html", page
    )
    groups = [json.loads(line) for line in out.splitlines()]
    assert [(group["keep"]["path"], len(group["copies"])) for group in groups] == [
        ("03.png", 2), ("07.png", 1), ("large.png", 1),
    ]  # fmt: skip
    assert page.read_text().count('src="data:image/jpeg;base64,') == 7
    code, out, _ = matvit("index", "duplicates", index.path, "--above", ".98", "--paths")
    photos = tmp_path / "photos"
    wanted = [photos / name for name in ("x.png", "y.png", "z.png", "11.png")]
    assert (code, out.splitlines()) == (0, list(map(str, wanted)))
    code, out, err = matvit("index", "duplicates", index.path, "--above", "98")
    assert (code, out) == (1, "")
    assert "above must be a cosine" in err
