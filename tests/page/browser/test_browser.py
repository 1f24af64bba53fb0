"""The page in a real browser: started by the command, looked at, clicked, fed with a photograph."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from indexing import ImageIndex

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; it comes with the extra `dev`"
)

SETTLED = """() => [...document.images].every(it => it.complete)
  && !document.querySelector("[data-stale='true'], [data-testid='stSkeleton']")
  && !document.querySelector("[data-testid='stStatusWidget']")"""


def head_of(page, name: str):
    return page.locator(".mv-head", has=page.locator(".mv-title", has_text=name))


def first_hits(page) -> list[str]:
    """The first hit of every strip, as its button names it."""
    buttons = page.locator(".mv-hit[data-place^='strip-'][data-place$='-1'] .mv-ask")
    return [text.removeprefix("Ask with ") for text in buttons.all_text_contents()]


def test_a_visit(page, place):
    """Upload a photograph, ask with a hit, move the budget, click the chart."""
    expect = sync_api.expect
    expect(page.locator(".mv-asked > img")).to_be_visible()

    page.set_input_files("input[type=file]", place / "queries" / "flower" / "16.jpg")
    expect(page.locator(".mv-name")).to_have_text("16.jpg")
    expect(page.locator(".mv-head")).to_have_count(4)
    found = page.get_by_role("button", name="Ask with flower/")
    expect(found.first).to_be_visible()
    for _ in range(200):  # one row after the other is replaced by that of the new query
        hits = first_hits(page)
        if len(hits) == 4 and all(name.startswith("flower/") for name in hits):
            break
        page.wait_for_timeout(100)
    assert len(hits) == 4
    assert all(name.startswith("flower/") for name in hits)
    pictures = page.locator(".mv-hit img")
    expect(pictures).to_have_count(24)
    assert pictures.first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 200

    found.first.click()
    expect(page.locator(".mv-name")).to_have_text(hits[0])
    expect(page.locator(".mv-query .mv-tag")).to_have_text("class flower")
    expect(page).to_have_url(re.compile(r"index=photos\.index&query=\d"))

    page.get_by_role("tab", name="Choose a size").click()
    expect(page.locator(".mv-card .mv-title")).to_have_text("S")
    budget = page.get_by_role("slider", name="At most this many GMACs")
    budget.focus()
    page.keyboard.press("End")
    expect(page.locator(".mv-card .mv-title")).to_have_text("XL")
    expect(head_of(page, "XL").first).to_be_visible()
    point = page.locator("[data-testid=stVegaLiteChart] path[aria-label*='submodel: 3xS,3xM']")
    point.click()
    expect(page.locator(".mv-card .mv-title")).to_have_text("3xS,3xM")
    expect(page).to_have_url(re.compile("submodel=3xS%2C3xM"))


def test_a_point_is_chosen_again_after_another_choice_and_without_a_mouse(page):
    """A chart keeps what was clicked: clicking it again would be no news."""
    expect, pick = sync_api.expect, page.locator(".mv-card .mv-title")
    page.get_by_role("tab", name="Choose a size").click()
    expect(pick).to_have_text("S")
    point = page.locator("[data-testid=stVegaLiteChart] path[aria-label*='submodel: 3xS,3xM']")
    point.click()
    expect(pick).to_have_text("3xS,3xM")
    page.get_by_role("combobox", name="Click a point").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option", name="XL · 0.323 GMACs · 100.0%")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(pick).to_have_text("XL")
    page.wait_for_function(SETTLED)
    point.click()
    expect(pick).to_have_text("3xS,3xM")


def toggle(page, size: str) -> None:
    page.get_by_role("toolbar", name="Encoder sizes").get_by_role(
        "button", name=size, exact=True
    ).click()


def test_the_browser_goes_back_to_what_was_shown(page):
    expect, sizes = sync_api.expect, page.locator(".mv-head .mv-title")
    toggle(page, "M")
    expect(page).to_have_url(re.compile("submodel=S&submodel=L&submodel=XL&"))
    toggle(page, "S")
    expect(page).to_have_url(re.compile("[0-9]&submodel=L&submodel=XL&"))
    expect(sizes).to_have_text(["L", re.compile("XL")])
    page.go_back()
    expect(sizes).to_have_text(["S", "L", re.compile("XL")])
    page.go_back()
    expect(sizes).to_have_text(["S", "M", "L", re.compile("XL")])
    page.go_forward()
    expect(sizes).to_have_text(["S", "L", re.compile("XL")])


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [("M", "L", ["S", "XL"]), ("XL", "XL", ["S", "M", "L", "XL"])],
    ids=["another", "the same"],
)
def test_a_click_before_the_browser_has_heard_of_the_last_counts_too(page, first, second, left):
    """The server's answer is held up on its way: the browser sends the address it had before."""
    titles = [re.compile(f"^{each}(full)?$") for each in left]
    held: list[tuple[object, object]] | None = None

    def connect(socket):
        socket.connect_to_server().on_message(
            lambda said: socket.send(said) if held is None else held.append((socket, said))
        )

    page.route_web_socket(re.compile("stream"), connect)
    page.reload()
    sync_api.expect(page.locator(".mv-head")).to_have_count(4)
    sync_api.expect(page).to_have_url(re.compile("submodel=XL&"))
    page.wait_for_function(SETTLED)
    held = []
    toggle(page, first)
    while not any(b"submodel=S&" in said for _, said in held):
        page.wait_for_timeout(50)
    toggle(page, second)
    page.wait_for_timeout(100)  # for the click to be sent
    late, held = held, None
    for way, said in late:
        way.send(said)
    wanted = "".join(f"submodel={each}&" for each in left)
    sync_api.expect(page).to_have_url(re.compile(f"query=[0-9]+&{wanted}k="))
    sync_api.expect(page.locator(".mv-head .mv-title")).to_have_text(titles)


@pytest.mark.parametrize(
    ("tab", "event", "by"),
    [
        ("Search", "ClipboardEvent('paste'", "clipboardData"),
        ("Choose a size", "DragEvent('drop'", "dataTransfer"),
        ("Corpus", "ClipboardEvent('paste'", "clipboardData"),
    ],
)
def test_an_image_is_pasted_or_dropped_anywhere(page, place, tab, event, by):
    page.get_by_role("tab", name=tab).click()
    page.wait_for_function(SETTLED)
    page.wait_for_function("window.matvitPaste")
    data = base64.b64encode((place / "queries" / "china" / "16.jpg").read_bytes()).decode()
    page.evaluate(
        f"""data => {{
          const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0));
          const sent = new DataTransfer();
          sent.items.add(new File([bytes], "sent.jpg", {{ type: "image/jpeg" }}));
          document.body.dispatchEvent(
            new {event}, {{ {by}: sent, bubbles: true, cancelable: true }}));
        }}""",
        data,
    )
    sync_api.expect(page.get_by_alt_text("the query, sent.jpg")).to_be_visible()
    sync_api.expect(page.get_by_role("button", name="Ask with china/").first).to_be_visible()


def test_a_hit_is_reached_and_asked_with_by_keyboard_alone(page):
    button = page.locator("[data-place='strip-0-1'] .mv-ask")
    name = button.text_content().removeprefix("Ask with ")
    page.get_by_role("button", name="Another image").first.focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if button.evaluate("it => it === document.activeElement"):
            break
    assert button.evaluate("it => it === document.activeElement")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".mv-name")).to_have_text(name)


def test_a_picture_is_named_to_whoever_points_at_it(page):
    button = page.locator("[data-place='strip-0-1'] .mv-ask")
    name = button.locator("span")
    sync_api.expect(name).to_have_css("color", "rgba(0, 0, 0, 0)")
    button.hover()
    sync_api.expect(name).to_have_css("color", "rgb(255, 255, 255)")
    assert re.fullmatch(r"Ask with (china|flower)/\d\d\.jpg", name.inner_text())


def test_a_link_shows_no_picture_from_elsewhere(page, server):
    page.goto(f"{server}?submodel=![](https://evil.example/p.png)&index=:smile:$x$")
    warning = page.locator("[data-testid=stAlert]")
    sync_api.expect(warning).to_contain_text("it is about the index ':\u2060smile:$x$'")
    page.goto(f"{server}?submodel=![](https://evil.example/p.png)")
    sync_api.expect(warning).to_contain_text("![](https:\u2060//evil.example/p.png)")
    assert warning.locator("img, a").count() == 0  # that nothing was fetched is seen at the end


def test_nothing_is_wider_than_a_telephone(page):
    page.set_viewport_size({"width": 400, "height": 900})
    for tab in ("Choose a size", "Corpus", "Evaluate", "Map", "Search"):
        chosen = page.get_by_role("tab", name=tab)
        chosen.click()
        sync_api.expect(chosen).to_have_attribute("aria-selected", "true")
        page.wait_for_function(SETTLED)
        too_wide = page.evaluate(
            """() => [...document.querySelectorAll("[data-testid=stMain] :not(input)")]
              .filter(it => it.checkVisibility() && it.getBoundingClientRect().right > innerWidth)
              .map(it => it.outerHTML.slice(0, 200))"""
        )
        assert too_wide == []


def test_more_like_a_hit_and_back_with_the_mouse(page):
    """+ and - are plain HTML: a script hands on what they say."""
    expect, cell = sync_api.expect, page.locator("[data-place='strip-3-2']")
    page.wait_for_function(SETTLED)
    page.wait_for_function("window.matvitPaste")
    name = cell.locator(".mv-ask").text_content().removeprefix("Ask with ")
    sign = cell.get_by_role("button", name="More like this")
    expect(sign.locator("xpath=..")).to_have_css("opacity", "0")
    cell.hover()
    expect(sign.locator("xpath=..")).to_have_css("opacity", "1")
    sign.click()
    marked = page.locator("[class*='st-key-marked-'] button")
    expect(marked).to_have_count(1)
    expect(marked).to_contain_text(name)
    expect(page.get_by_role("button", name=f"Ask with {name}", exact=True)).to_have_count(0)
    marked.click()
    expect(marked).to_have_count(0)
    expect(page.get_by_role("button", name=f"Ask with {name}", exact=True).first).to_be_visible()


def test_keys_go_over_the_hits_mark_them_and_choose_sizes(page):
    expect = sync_api.expect
    page.wait_for_function(SETTLED)
    page.wait_for_function("window.matvitPaste")
    here = "document.activeElement.closest('.mv-hit')?.dataset.place ?? ''"
    page.mouse.click(700, 20)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(here) == "strip-0-1"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(here) == "strip-0-2"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(here) == "strip-1-2"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(here) == "strip-0-1"
    page.keyboard.press("+")
    expect(page.locator("[class*='st-key-marked-'] button")).to_have_count(1)
    page.keyboard.press("2")
    expect(page.locator(".mv-head .mv-title")).to_have_count(3)
    page.wait_for_function(SETTLED)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_have_count(0)
    page.keyboard.press("/")
    upload = page.locator("[data-testid='stFileUploader'] button").first
    expect(upload).to_be_focused()
    button = page.locator("[data-place='strip-0-1'] .mv-ask")
    name = button.text_content().removeprefix("Ask with ")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".mv-name")).to_have_text(name)


def test_a_filter_leaves_what_numpy_finds_among_the_stored_vectors(page, place):
    index = ImageIndex.open(place / "photos.index")
    vectors, flowers = index.embeddings[:], [name.startswith("flower/") for name in index.paths]
    order = [index.paths[row] for row in np.argsort(-(vectors @ vectors[0])) if flowers[row]]
    page.wait_for_function(SETTLED)
    page.get_by_role("button", name="Filter").click()
    names = page.get_by_label("Only names like")
    names.fill("flower/**")
    names.press("Enter")
    found = page.locator(".mv-hit[data-place^='strip-3-'] .mv-ask")
    sync_api.expect(found).to_have_text([f"Ask with {name}" for name in order[:6]])


def test_the_map_shows_the_way_of_the_query_from_the_smallest_size_to_full(page):
    page.get_by_role("tab", name="Map").click()
    chart = page.locator("[data-testid=stVegaLiteChart] svg")
    for size in ("S", "M", "L", "XL"):
        sync_api.expect(chart.get_by_text(size, exact=True)).to_be_visible()


def test_the_focus_stays_where_it_was_when_an_answer_replaces_the_hits(page):
    page.wait_for_function(SETTLED)
    page.wait_for_function("window.matvitPaste")
    button = page.locator("[data-place='strip-1-2'] .mv-ask")
    name = button.text_content().removeprefix("Ask with ")
    button.focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".mv-name")).to_have_text(name)
    page.wait_for_function(SETTLED)
    sync_api.expect(button).to_be_focused()


def test_keys_leave_alone_who_types(page):
    page.wait_for_function(SETTLED)
    page.get_by_role("button", name="Filter").click()
    names = page.get_by_label("Only names like")
    names.fill("")
    names.press("2")
    names.press("/")
    sync_api.expect(names).to_have_value("2/")
    sync_api.expect(page.locator(".mv-head .mv-title")).to_have_count(4)
