"""One page in one file: pictures with what is to be said about them, and nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace
from PIL import Image

import indexing
import matvit
import retrieval
from app.output import readable

_SIDE, _QUALITY = 160, 82
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 3rem) 3rem; max-width: 1500px; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; }
.row { display: flex; flex-wrap: wrap; gap: .7rem; }
figure { margin: 0; width: 160px; font-size: .8rem; }
img, .gone { width: 160px; height: 160px; border-radius: 8px; display: block; object-fit: cover; }
.gone { display: grid; place-items: center; border: 1px dashed; box-sizing: border-box; }
.good img { outline: 3px solid light-dark(#166f30, #4cc26c); outline-offset: -3px; }
.bad img { outline: 3px dashed light-dark(#bb2234, #ff8080); outline-offset: -3px; }
figcaption { padding-top: .25rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 8px; }
"""


class Gallery:
    """Gathers pictures of an index and writes them, with their captions, as one HTML file.

    Args:
        index: Whose images.
        preprocess: How its encoder looks at them: a picture shows the same part.
    """

    def __init__(self, index: indexing.IndexedImages, preprocess: matvit.Preprocess) -> None:
        self._index = index
        self._preprocess = replace(preprocess, img_size=_SIDE)
        self._parts: list[str] = []

    def add_text(self, text: str, *, heading: bool = False) -> None:
        """Add a line of text."""
        self._parts.append(f"<h2>{_safe(text)}</h2>" if heading else f"<p>{_safe(text)}</p>")

    def add_table(self, rows: Iterable[Iterable[str]]) -> None:
        """Add a table; its first row names the columns."""
        head, *body = [[_safe(cell) for cell in row] for row in rows]
        lines = ["".join(f"<th>{cell}</th>" for cell in head)]
        lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
        self._parts.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")

    def add_drawing(self, svg: bytes) -> None:
        """Add a drawing that this program made."""
        text = svg.decode()
        self._parts.append(text[text.index("<svg") :])

    def add_answer(self, title: str, hits: Iterable[retrieval.Hit], nothing: str = "") -> None:
        """Add what a query found.

        Args:
            title: What was asked, and what it cost.
            hits: What was found.
            nothing: Why it is nothing.
        """
        self.add_text(title, heading=True)
        figures = [
            self.figure(
                hit.id,
                f"{hit.rank} \u00b7 {hit.score:.4f}",
                hit.path + (f" (+{hit.twins:,} alike)" if hit.twins else ""),
            )
            for hit in hits
        ]
        self.add_row(figures)
        if nothing:
            self.add_text(nothing)

    def add_row(self, figures: Iterable[str]) -> None:
        """Add figures beside each other."""
        self._parts.append(f'<div class="row">{"".join(figures)}</div>')

    def figure(self, number: int, *captions: str, verdict: bool | None = None) -> str:
        """Return the picture of an image of the index with lines below it.

        Args:
            number: Id of the image.
            captions: The lines.
            verdict: Whether it is right, where that is known: the colour of its frame.
        """
        try:
            return self.picture(self._index.image_bytes(number), *captions, verdict=verdict)
        except (OSError, ValueError):
            return _figure('<div class="gone">gone or changed</div>', captions, verdict)

    def picture(self, data: bytes, *captions: str, verdict: bool | None = None) -> str:
        """Return the picture of an image file with lines below it; see `figure`.

        Raises:
            ValueError: If it cannot be read.
        """
        source = base64.b64encode(small_picture(data, self._preprocess)).decode()
        alt = html.escape(readable(captions[-1] if captions else ""), quote=True)
        image = f'<img alt="{alt}" loading="lazy" src="data:image/jpeg;base64,{source}">'
        return _figure(image, captions, verdict)

    def write(self, file: Path, title: str) -> None:
        """Write the page.

        Raises:
            OSError: If that is not possible.
        """
        body = "\n".join(self._parts)
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        text = (
            '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{_safe(title)}</title><style>{_STYLE}</style>"
            f"<h1>{_safe(title)}</h1>\n{body}\n</html>\n"
        )
        matvit.write_atomically(file, lambda stream: stream.write(text.encode()))


def small_picture(data: bytes, preprocess: matvit.Preprocess) -> bytes:
    """Make a small JPEG of an image file.

    Args:
        data: The file.
        preprocess: Which part of it, and how large.

    Raises:
        ValueError: If it cannot be read.
    """
    stream = io.BytesIO()
    Image.fromarray(preprocess.pixels(data)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _figure(inside: str, captions: Iterable[str], verdict: bool | None) -> str:
    kind = {True: ' class="good"', False: ' class="bad"', None: ""}[verdict]
    said = "<br>".join(map(_safe, captions))
    return f"<figure{kind}>{inside}<figcaption>{said}</figcaption></figure>"


def _safe(text: str) -> str:
    return html.escape(readable(text))
