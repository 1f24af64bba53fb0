"""How the page looks: its colours, its style sheet, its sign; and foreign text in Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from app.output import one_line, readable

STYLE = Path(__file__).with_name("style.css")
_SCRIPT = Path(__file__).with_name("paste.js")

_LIGHT = {"primaryColor": "#2166ac", "linkColor": "#2166ac"}
_DARK = {"primaryColor": "#4f9be0", "linkColor": "#6fb1ee"}
_BLUE, _FAINT = "#2166ac", "#8a97a86e"

_PUNCTUATION = re.compile(r"[\\`*_{}\[\]<>#!|$~&@]|:(?=\S)")
_ITEM = re.compile(r"^(\d*)([-+=.)])")
# What is looked for after Markdown has been read, where no backslash helps: names of signs
# between two colons, addresses, arrows.
_SIGN = re.compile(r":(?=[\w+/-]+:|//)|@(?=\w)|\bwww(?=\.)|<(?=-)|-(?=[->])", re.IGNORECASE)
_JOINER = "\u2060"


def theme_options() -> list[str]:
    """Name the colours of both themes for `streamlit run`; the browser's setting picks one."""
    options = {
        **{f"--theme.light.{name}": colour for name, colour in _LIGHT.items()},
        **{f"--theme.dark.{name}": colour for name, colour in _DARK.items()},
    }
    return [part for pair in options.items() for part in pair]


def script() -> str:
    """The script of the page, as HTML: what is pasted goes the way of an upload."""
    return f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script>"


def icon() -> str:
    """Draw the sign of the page, an SVG: bars that keep more and more of their blocks."""
    bars = [
        f'<rect x="{3 + 15 * place}" y="{60 - high}" width="12" height="{high}" rx="3" '
        f'fill="{colour}"/>'
        for place, kept in enumerate((14, 28, 42, 56))
        for high, colour in ((56, _FAINT), (kept, _BLUE))
    ]
    return f'<svg viewBox="0 0 64 64">{"".join(bars)}</svg>'


def spoken(submodel: str) -> str:
    """Write a submodel as the page does: `S:int8` is shown as `S int8`."""
    return submodel.replace(":", " ")


def plain(text: str | BaseException) -> str:
    """Write foreign text so that Markdown shows it as it is, on one line.

    Without this a link into the page could show a picture from another server, say.

    Args:
        text: What somebody else chose to write, or an error that may quote it.
    """
    words = one_line(text) if isinstance(text, BaseException) else readable(text)
    words = " ".join(filter(None, words.split(" ")))  # Markdown takes several for one
    split = _SIGN.sub(rf"\g<0>{_JOINER}", words)
    return _ITEM.sub(r"\1\\\2", _PUNCTUATION.sub(r"\\\g<0>", split))
