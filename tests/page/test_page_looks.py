from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.page import chart, looks


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def pairs() -> list[tuple[str, str, str]]:
    """Name, light and dark colour of everything the style sheet writes text with."""
    style = looks.STYLE.read_text(encoding="utf-8")
    return re.findall(r"--mv-(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)


@pytest.mark.parametrize(("name", "light", "dark"), pairs())
def test_colours_can_be_told_from_both_backgrounds(name, light, dark):
    wanted = 4.5 if name in ("good", "bad", "trained", "blue", "name") else 3  # text, and mere bars
    assert contrast(light, "#ffffff") >= wanted
    assert contrast(dark, "#171614") >= wanted


def mixed(colour: str, with_other: str, share: float) -> str:
    """What `color-mix` makes of two colours, as a colour."""
    parts = [
        round(share * int(colour[i : i + 2], 16) + (1 - share) * int(with_other[i : i + 2], 16))
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in parts)


def tints() -> list[tuple[str, str, float]]:
    """Light and dark colour of text that stands on a tint of itself, and how strong that is."""
    style = looks.STYLE.read_text(encoding="utf-8")
    found = re.findall(
        r"(?<!-)color: var\(--mv-(\w+)\); background: color-mix\(in srgb, var\(--mv-(\w+)\) (\d+)%",
        style,
    )
    known = {name: (light, dark) for name, light, dark in pairs()}
    assert all(text == tint for text, tint, _ in found)
    return [(*known[text], int(percent) / 100) for text, _, percent in found]


def test_text_can_be_told_from_a_tint_of_itself():
    assert len(tints()) == 3
    for light, dark, share in tints():
        assert contrast(light, mixed(light, "#ffffff", share)) >= 4.5
        assert contrast(dark, mixed(dark, "#171614", share)) >= 4.5


def test_marks_of_the_chart_can_be_told_from_both_backgrounds():
    colours = re.findall(r'"(#\w{6})"', Path(chart.__file__).read_text(encoding="utf-8"))
    assert len(colours) == 4
    for colour in colours:
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#171614")) >= 3


def test_there_are_colours_to_check():
    assert {name for name, _, _ in pairs()} >= {"good", "bad", "trained", "blue", "name"}


def test_both_themes_are_named_for_streamlit():
    options = looks.theme_options()
    assert "--theme.light.primaryColor" in options
    assert "--theme.dark.primaryColor" in options
    assert len(options) % 2 == 0


def test_nothing_is_fetched_from_elsewhere():
    for text in (looks.STYLE.read_text(encoding="utf-8"), looks.script()):
        assert not re.search(r"https?:|//\w+\.\w+|@import|url\(", text)


def test_the_sign_is_a_small_picture():
    assert looks.icon().size == (64, 64)
