"""How the page looks: its colours, its style sheet, its sign."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

STYLE = Path(__file__).with_name("style.css")
_SCRIPT = Path(__file__).with_name("paste.js")

_LIGHT = {"primaryColor": "#2166ac", "linkColor": "#2166ac"}
_DARK = {"primaryColor": "#4f9be0", "linkColor": "#6fb1ee"}
_SIDE, _BLUE, _FAINT = 64, (33, 102, 172, 255), (138, 151, 168, 110)


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


def icon() -> Image.Image:
    """Draw the sign of the page: bars that keep more and more of their blocks."""
    image = Image.new("RGBA", (_SIDE, _SIDE))
    draw = ImageDraw.Draw(image)
    for place, share in enumerate((0.25, 0.5, 0.75, 1)):
        left, high = 3 + 15 * place, round(share * 56)
        draw.rounded_rectangle((left, 4, left + 11, 60), 3, fill=_FAINT)
        draw.rounded_rectangle((left, 60 - high, left + 11, 60), 3, fill=_BLUE)
    return image
