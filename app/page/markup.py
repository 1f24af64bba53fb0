"""Small pieces of HTML: whatever Streamlit has no element for. All text in them is escaped."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Sequence

from app.output import readable
from app.page.comparison import Cell, Cost, Strip
from app.page.looks import spoken
from app.page.pictures import Picture, Query, Sight
from retrieval import OperatingPoint, ParetoFrontier, Step


def glyph(widths: Sequence[float]) -> str:
    """Draw one bar per block, as high as the share of its hidden units that is kept."""
    bars = "".join(f'<i><b style="height:{100 * width:.0f}%"></b></i>' for width in widths)
    said = ", ".join(f"{width:.0%}" for width in widths)
    return (
        f'<span class="mv-glyph" role="img" title="hidden units kept, block by block: {said}" '
        f'aria-label="hidden units kept, block by block: {said}">{bars}</span>'
    )


def strip_head(
    strip: Strip, cost: Cost, tags: Sequence[str], slowest_ms: float, *, is_full: bool
) -> str:
    """Name a submodel and say what its answer cost and how far it agrees with the full one's.

    Args:
        strip: The answer.
        cost: Of the submodel that answered.
        tags: Words about it, such as "full".
        slowest_ms: Milliseconds of the slowest answer: the length of the longest bar.
        is_full: Whether it is the full encoder itself.
    """
    answer = strip.answer
    named = "".join(f'<span class="mv-tag">{escape(tag)}</span>' for tag in tags)
    title = escape(spoken(strip.title))
    return (
        f'<div class="mv-head"><h3 class="mv-title">{glyph(cost.widths)}<span>{title}</span>'
        f"{named}</h3>{_route(answer.steps)}"
        f'<div class="mv-fact"><b>{answer.macs / 1e9:.3f}</b> GMACs · {strip.fraction:.0%}</div>'
        f"{_bar('compute', min(1.0, strip.fraction))}"
        f"{_times(strip, slowest_ms)}{_agreement(strip, is_full=is_full)}</div>"
    )


class Html(str):
    """HTML that Streamlit takes as it is; other text it searches for indents, which takes long."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


def strip(head: str, found: str) -> Html:
    """Put what an answer cost beside what it found."""
    return Html(f'<div class="mv-strip">{head}{found}</div>')


def grid(hits: Sequence[str], columns: int) -> Html:
    """Lay hits in rows.

    Args:
        hits: See `hit`.
        columns: Of a row, where there is room for so many.
    """
    return Html(f'<div class="mv-hits" style="--columns:{columns}">{"".join(hits)}</div>')


def hit(
    number: int, path: str, picture: Picture, *, place: str, verdict: str = "", below: str = ""
) -> str:
    """Draw an image with a button over it that asks with it.

    All of it is one piece of HTML, for each element of Streamlit's costs the server as much as a
    thumbnail; the script of the page hands on what the buttons say.

    Args:
        number: Id of the image.
        path: Its name.
        picture: Its thumbnail.
        place: Tells it from others on the page.
        verdict: `right` or `wrong`, if that is known.
        below: HTML below the picture.
    """
    name, kind = escape(path), f" mv-{verdict}" if verdict else ""
    seen = gone(path) if picture.data is None else _image("jpeg", picture.data, name)
    return (
        f'<div class="mv-hit{kind}" data-place="{escape(place)}">{seen}'
        f'<button type="button" class="mv-ask" data-say="={number}"><span>Ask with {name}</span>'
        f"</button>{below}</div>"
    )


def cell_caption(cell: Cell, scale: tuple[float, float], *, is_full: bool) -> str:
    """Say rank, score and rank change of a hit, with its score as a thin bar."""
    hit, (low, high) = cell.hit, scale
    share = 1.0 if high <= low else (hit.score - low) / (high - low)
    verdict = {True: "✓", False: "✗", None: ""}[cell.right]
    said = {True: "right class", False: "wrong class", None: ""}[cell.right]
    mark = (
        f'<span class="mv-mark mv-{"good" if cell.right else "bad"}">{_sign(verdict, said)}</span>'
        if verdict
        else ""
    )
    change = "" if is_full else _change(cell.change)
    told = hit.label is not None and not cell.right  # a right one has the query's
    label = f'<div class="mv-label">{escape(hit.label or "")}</div>' if told else ""
    return (
        f'<div class="mv-cell">{_bar("score", max(0.03, share))}'
        f'<div class="mv-line"><span class="mv-rank">{hit.rank}</span>'
        f'<span class="mv-number">{hit.score:.3f}</span>{change}{mark}</div>{label}'
        f"{_twins(hit.twins)}{_marks(hit.id)}</div>"
    )


def nothing(why: str) -> str:
    """Stand in for hits where there are none."""
    return f'<div class="mv-nothing">{escape(why)}</div>'


def legend(scale: tuple[float, float], *, labelled: bool) -> str:
    """Explain every mark of the strips in one line."""
    parts = [
        f"Thin bars: score (cosine), from {scale[0]:.3f} to {scale[1]:.3f} in every row",
        "▲ ▼ places moved against the full encoder; <b>new</b>: it did not return this",
        "ms: encode + search + fetch, measured when first asked; decoding the query is not in it",
    ]
    if labelled:
        parts.insert(1, "✓ ✗ right or wrong class")
    spans = "".join(f"<span>{part}</span>" for part in parts)
    spans += (
        "<span>Click a picture to ask with it, + or \N{MINUS SIGN} for more or less like it</span>"
    )
    return f'<div class="mv-legend">{spans}</div>'


def query_card(query: Query, sight: Sight) -> Html:
    """Show the query and what the encoder sees of it, with its name and its class."""
    name, side = escape(query.name), len(sight.pixels)
    known = "" if query.label is None else f'<div class="mv-tag">class {escape(query.label)}</div>'
    return Html(
        f'<div class="mv-asked">{_image("jpeg", sight.whole, f"the query, {name}")}'
        f'<div class="mv-query"><div class="mv-name">{name}</div>{known}</div>'
        f'<div class="mv-seen">{_image("png", sight.seen, "the query as the encoder sees it")}'
        f"<span>All the encoder sees: {side} by {side} pixels</span></div></div>"
    )


def gone(path: str) -> str:
    """Stand in for a picture whose file is gone or was changed."""
    return f'<div class="mv-gone"><span>{escape(path)}<br>is gone or has changed</span></div>'


def cost_card(cost: Cost, point: OperatingPoint | None, frontier: ParetoFrontier | None) -> str:
    """Say what a submodel costs, and what it finds where that was measured."""
    merged = f" · {cost.merged} patches merged" if cost.merged else ""
    found = "not measured yet: its cost is exact, what it finds is not known"
    if point is not None and frontier is not None:
        found = f"{frontier.metric} <b>{frontier.recall(point):.4f}</b>"
        if point.latency_ms_p50 is not None:
            found += f" · {point.latency_ms_p50:.1f} ms an image"
    return (
        f'<div class="mv-card"><h3 class="mv-title">{glyph(cost.widths)}'
        f"<span>{escape(spoken(cost.submodel))}</span></h3>"
        f'<div class="mv-fact"><b>{cost.macs / 1e9:.3f}</b> GMACs · {cost.fraction:.0%} of full'
        f" · {cost.params / 1e6:.2f} M parameters{merged}</div>"
        f"{_bar('compute', min(1.0, cost.fraction))}"
        f'<div class="mv-fact">{found}</div></div>'
    )


def escape(text: str) -> str:
    """Write foreign text so that HTML shows it as it is, on one line."""
    return html.escape(readable(text))


def _image(kind: str, data: bytes, alt: str) -> str:
    return f'<img src="data:image/{kind};base64,{b64encode(data).decode()}" alt="{alt}">'


def _bar(name: str, share: float) -> str:
    return (
        f'<div class="mv-track"><span class="mv-{name}" style="width:{100 * share:.1f}%"></span>'
        "</div>"
    )


def _change(change: int | None) -> str:
    if change is None:
        return '<span class="mv-new">new</span>'
    if change == 0:
        return f'<span class="mv-same">{_sign("=", "same rank as full")}</span>'
    word = "up" if change > 0 else "down"
    arrow = "▲" if change > 0 else "▼"
    return f'<span class="mv-{word}">{_sign(arrow, word)}{abs(change)}</span>'


def _twins(count: int) -> str:
    return f'<div class="mv-label">and {count:,} alike</div>' if count else ""


def _marks(number: int) -> str:
    """Buttons that mark a hit; the script of the page hands on what they say."""
    buttons = "".join(
        f'<button type="button" class="mv-sign" data-say="{sign}{number}" '
        f'aria-label="{said}" title="{said}"></button>'
        for sign, said in (("+", "More like this"), ("-", "Less like this"))
    )
    return f'<div class="mv-signs">{buttons}</div>'


def _sign(sign: str, said: str) -> str:
    """Show a sign to those who see it, and say it to those who listen."""
    return f'<span aria-hidden="true">{sign}</span><span class="mv-hidden">{said} </span>'


def _times(strip: Strip, slowest_ms: float) -> str:
    """Milliseconds as a bar in three parts, as long as they took."""
    answer = strip.answer
    parts = {"encode": answer.encode_ms, "search": answer.search_ms, "fetch": strip.fetch_ms}
    longest = max(slowest_ms, 1e-9)
    bars = "".join(
        f'<span class="mv-{name}" style="width:{100 * ms / longest:.2f}%" '
        f'title="{name} {ms:.1f} ms"></span>'
        for name, ms in parts.items()
    )
    said = " + ".join(f"{ms:.1f}" for ms in parts.values())
    return (
        f'<div class="mv-fact"><b>{strip.total_ms:.1f}</b> ms = {said}</div>'
        f'<div class="mv-track" aria-hidden="true">{bars}</div>'
    )


def _agreement(strip: Strip, *, is_full: bool) -> str:
    share = strip.shared / max(1, strip.wanted)
    strength = "all" if share == 1 else "most" if share >= 0.5 else "few"
    text = ""
    if not is_full:
        text = (
            f'<span class="mv-badge mv-{strength}">finds {strip.shared} of full\'s '
            f"{strip.wanted}</span>"
        )
    if strip.right is not None:
        judged = sum(cell.right is not None for cell in strip.cells)
        text += f'<span class="mv-badge">✓ {strip.right} of {judged}</span>'
    if strip.cells and strip.nothing:
        text += f'<span class="mv-badge">{escape(strip.nothing)}</span>'
    return f'<div class="mv-badges">{text}</div>'


def _route(steps: Sequence[Step]) -> str:
    """The way of a query that chose for itself, from submodel to submodel."""
    if not steps:
        return ""
    stops = [
        f'<span class="mv-stop" title="confidence {step.confidence:.2f}">'
        f"{escape(spoken(step.submodel))}<small>{step.confidence:.2f}</small></span>"
        for step in steps
    ]
    return f'<div class="mv-route">{" → ".join(stops)}</div>'
