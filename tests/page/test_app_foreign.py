"""What others chose to write stays text: names of files, classes and uploads, and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_driver import hits, turn_to
from PIL import Image

from indexing import Corpus, ImageIndex

EVIL = "![](https:evil.example) :red[a] $x$ *b* \x1b[2J\n\u202e"  # no slash: it names a file
MARKUP = re.compile(r"(?<!\\)(\[|\$|\*|!|:(?=\S))|[\x00-\x1f\u202e]")
"""What would be more than text, were it left alone."""


def markdown(page) -> list[str]:
    """Every piece of Markdown on the page that speaks of what is evil, our own markup left out."""
    kinds = (page.markdown, page.caption, page.error, page.warning, page.info, page.subheader)
    texts = [each.value for kind in kinds for each in kind]
    buttons = [text for button in page.button for text in (button.label, button.help or "")]
    tables = [str(value) for table in page.table for value in table.value.to_numpy().ravel()]
    return [text for text in (*texts, *buttons, *tables) if "evil" in text]


def is_plain(text: str) -> bool:
    return not MARKUP.search(text)


def test_there_is_something_to_escape():
    assert not is_plain(EVIL)


@pytest.fixture
def evil_page(open_page, tiny_model, tmp_path):
    folder = tmp_path / f"photos {EVIL}" / f"class {EVIL}"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("L", (9, 9), 60 * number).save(folder / f"{number} {EVIL}.png")
    (folder / f"bad {EVIL}.png").write_text("text")
    ImageIndex.build(tiny_model, Corpus.open(folder.parent), tmp_path / "i.index")
    tiny_model.save(tmp_path / "encoder")
    return open_page("--index", tmp_path / "i.index", "--encoder", tmp_path / "encoder")


def test_names_of_files_and_classes_are_text_on_every_tab(evil_page):
    for tab in ("search", "choose", "corpus", "eval"):
        turn_to(evil_page, tab)
        assert not evil_page.exception
        said = markdown(evil_page)
        assert all(map(is_plain, said))
        named = [name for _, name in hits(evil_page, "").values()]
        assert tab == "eval" or any("evil" in text for text in [*said, *named])


def test_a_file_that_is_gone_is_named_in_text(evil_page, tmp_path):
    for file in tmp_path.glob("photos*/*/0*.png"):
        file.unlink()
    evil_page.run()
    (error,) = evil_page.error
    assert "evil" in error.value
    assert is_plain(error.value.removeprefix("This cannot be used as a query: "))


@pytest.mark.parametrize("said", ["index", "query", "submodel", "k"])
def test_a_link_is_quoted_as_text(follow_link, said):
    page = follow_link(**{said: EVIL})
    assert not page.exception
    (warning,) = page.warning
    assert "evil" in warning.value
    assert is_plain(warning.value)


def test_the_name_of_an_upload_is_text(page, monkeypatch):
    monkeypatch.setattr("app.page.pictures.MAX_UPLOAD_BYTES", 3)
    page.file_uploader[0].set_value((f"{EVIL}.png", b"text", "image/png")).run()
    (error,) = page.error
    assert "evil" in error.value
    assert is_plain(error.value)


def test_the_folder_of_an_evaluation_is_text(page, photo_folder):
    evil = photo_folder.rename(Path(photo_folder.parent, EVIL))
    turn_to(page, "eval")
    page.text_input[0].set_value(f"{evil} and more")
    page.button[0].click().run()
    if "judging" in page.session_state:
        page.session_state["judging"].wait()
        page.run()
    (error,) = page.error
    assert "evil" in error.value
    assert is_plain(error.value)
