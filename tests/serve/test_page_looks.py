"""The page on a phone, by day and by night, and for who cannot see it."""

from __future__ import annotations

import re

import pytest
from tests.serve.browsing import PROMPT


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_and_never_sideways(live, visit, scheme):
    tab = visit(live.url, color_scheme=scheme, device_scale_factor=2, has_touch=True)
    tab.page.set_viewport_size({"width": 360, "height": 780})
    tab.open().ask("W" * 60 + " " + PROMPT, tokens=40)
    tab.page.click("text=As a table")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360
    beyond = """[...document.querySelectorAll("body *:not(.scroll *):not(.skip)")]
        .filter((one) => one.getBoundingClientRect().right > 360.5).map((one) => one.outerHTML)"""
    assert tab.page.evaluate(beyond) == []
    tab.pane(0).locator(".token").first.tap()
    assert "anchor" in tab.pane(0).locator(".weights").text_content()
    tab.picture(f"phone-{scheme}")


@pytest.mark.parametrize("width", [360, 1280])
def test_names_have_the_room_that_they_need_and_bars_begin_in_one_line(live, visit, width):
    tab = visit(live.url)
    told = live.get("/v1/roster").json()
    names = ("hospital", "law-office", "software-house", "a-" * 31 + "a")
    told["experts"] += [{**told["experts"][1], "name": name} for name in names]
    tab.page.route("**/v1/roster*", lambda route: route.fulfill(json=told))
    tab.page.set_viewport_size({"width": width, "height": 780})
    tab.open()
    tab.picture(f"names-{width}")
    lines = """[...document.querySelectorAll(".pane:first-child .name")].map(
        (one) => one.offsetHeight / Number.parseFloat(getComputedStyle(one).lineHeight))"""
    *usual, longest = tab.page.evaluate(lines)
    assert max(usual) < 1.5, "not broken"
    assert longest >= 1
    boxes = [bar.bounding_box() for bar in tab.pane(0).locator(".bar").all()]
    assert len({(box["x"], box["width"]) for box in boxes}) == 1
    assert boxes[0]["width"] > 32


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map(
      (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const EXEMPT = "[aria-disabled=true], [aria-disabled=true] *, .skip, svg *, option";
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility() || one.matches(EXEMPT)) continue;
    const papers = [];
    for (let up = one; up; up = up.parentElement) {
      papers.unshift(getComputedStyle(up).backgroundColor);
    }
    const paper = light(over(["white", ...papers]));
    const ink = light(over(["white", ...papers, getComputedStyle(one).color]));
    const ratio = (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05);
    found.push([ratio, one.className + ": " + one.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(live, visit, scheme):
    tab = visit(live.url, color_scheme=scheme, reduced_motion="reduce").open().ask(PROMPT)
    # Each colour under the strongest tint, which no answer need have.
    for place in range(8):
        tab.page.evaluate(
            """(place) => {
                const token = document.querySelectorAll(".token")[place];
                token.dataset.expert = "somebody";
                token.style.setProperty("--hue", `var(--hue-${place})`);
                token.style.setProperty("--weight", 1);
            }""",
            place,
        )
    found = tab.page.evaluate(CONTRAST)
    assert len(found) > 60
    assert [one for one in found if one[0] < 4.5] == []
    paper = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) is (scheme == "dark")
    motion = "getComputedStyle(document.querySelector('.bar span')).transitionProperty"
    assert tab.page.evaluate(motion) == "none"
    tab.picture(f"{scheme}-colours")


def test_all_controls_have_names_and_parts_have_headings(live, visit):
    tab = visit(live.url).open().ask("ba", tokens=3)
    tree = tab.page.locator("body").aria_snapshot()
    nameless = re.findall(
        r"- (?:button|checkbox|switch|textbox|combobox|spinbutton|img|link)(?::|$)", tree, re.M
    )
    assert nameless == []
    for wanted in (
        'switch "amy" [checked]',
        'textbox "Prompt"',
        'combobox "Purpose"',
        'button "Run',
    ):
        assert wanted in tree
    ids = tab.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
