"""The page and a policy: keys, purposes, refusals in plain words, a key's own usage."""

from __future__ import annotations

import re

import pytest
from tests.serve.browsing import percent
from tests.serve.conftest import TERMS, policed

KEYS = {
    "app": {"experts": ["amy", "bob", "dan-b"], "purposes": ["care", "ads"]},
    "all": {"experts": "all", "purposes": ["any"], "may_see_routing": True},
    "slow": {"experts": "all", "requests_per_minute": 1},
    "single": {"experts": "all", "concurrent": 1},
    "tied": {"bound": ["amy"], "may_see_routing": True},
}


@pytest.fixture(scope="module")
def house(release_with_terms, tmp_path_factory):
    with policed(release_with_terms, tmp_path_factory.mktemp("page"), KEYS) as found:
        yield found


def test_a_key_is_asked_for_and_kept_out_of_sight(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open()
    page = tab.page
    assert page.locator("#key-part").is_visible()
    assert page.locator("#inside, #problem").filter(visible=True).count() == 0
    assert tab.console == [], "nothing was asked that the server refuses"
    tab.picture("key")
    for wrong in ("moiety-wrong", secrets["admin"]):
        page.fill("#key", wrong)
        page.click("text=Use key")
        page.locator("#problem", has_text="does not know this key").wait_for()
        assert not page.locator("#inside").is_visible()
    page.fill("#key", secrets["app"])
    page.keyboard.press("Enter")
    page.locator("#inside").wait_for()
    assert not page.locator("#problem").is_visible()
    kept = "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])"
    assert page.evaluate(kept) == '[{},{},""]'
    page.reload()
    page.locator("#key-part").wait_for()
    tab.open(secrets["app"], keep=True)
    page.locator("#inside").wait_for()
    page.reload()
    page.locator("#inside").wait_for()
    page.click("#forget")
    page.locator("#key-part").wait_for()
    assert page.evaluate(kept) == '[{},{},""]'
    assert not [url for url in tab.urls if "moiety-" in url]
    assert {re.sub(r"[?#].*", "", url).removeprefix(live.url) for url in tab.urls} == {
        *("/", "/page.css", "/ask.js", "/pane.js", "/usage.js", "/page.js"),
        *("/v1/roster", "/v1/usage"),
    }


def test_purposes_and_terms_decide_what_can_be_switched_on(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["app"])
    tab.page.locator("#inside").wait_for()
    options = tab.page.locator("#purpose option")
    assert options.all_text_contents() == ["none said", "ads", "care"]
    names = tab.pane(0).locator(".name").all_text_contents()
    assert names == ["anchor", "amy", "bob", "dan-b"], "of cat this key is not told"
    assert "cat" not in tab.page.locator("body").inner_text()
    why = tab.pane(0).locator("[data-name='bob'] .why")
    assert (
        why.text_content() == "bob may be used for care, research, and the request names no purpose"
    )
    assert not tab.switch(0, "bob").is_checked()
    tab.page.select_option("#purpose", "care")
    tab.rest()
    assert not tab.switch(0, "bob").is_disabled()
    tab.ask("w1", tokens=2)
    assert tab.status(0) == "Done. Used: anchor, amy, bob, dan-b."
    tab.page.select_option("#purpose", "ads")
    tab.rest()
    assert why.text_content() == "bob may be used for care, research, not for ads"
    tab.ask("w1", tokens=2)
    assert tab.status(0) == "Done. Used: anchor, amy, dan-b."
    tab.picture("purposes")


def test_a_key_that_may_not_see_the_routing_gets_shares_alone(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["app"])
    tab.page.locator("#no-tints").wait_for()
    tab.ask("w1", tokens=3)
    assert [tint for _, tint in tab.tints(0)] == [None] * 3
    assert tab.shares(0) == {"anchor": "33 %", "amy": "33 %", "bob": "", "dan-b": "33 %"}
    assert "3 tokens" in tab.pane(0).locator(".meter").text_content()


def test_a_key_bound_to_a_set_cannot_switch(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["tied"])
    tab.page.locator("#inside").wait_for()
    for name in ("anchor", "amy"):
        assert tab.switch(0, name).is_disabled()
        assert tab.switch(0, name).is_checked()
    tab.ask("w1", tokens=2)
    assert [tab.status(number) for number in (0, 1)] == ["Done. Used: anchor, amy."] * 2


def test_refusals_are_told_in_plain_words(house, visit):
    live, secrets, policy, text = house
    tab = visit(live.url).open(secrets["app"])
    tab.page.locator("#inside").wait_for()
    policy.write_text(text.replace('["amy", "bob", "dan-b"]', '["bob"]'))
    live.admin("POST", "/admin/reload", secrets["admin"])
    tab.ask("w1", tokens=2)
    assert tab.error(0).startswith("Not allowed: amy is not among this key's experts")
    assert tab.status(1) == "Done. Used: anchor."
    tab.page.fill("#prompt", "w1 " * 200)
    tab.page.click("#run")
    tab.page.locator(".error", has_text="needs at least").nth(1).wait_for()
    policy.write_text(text.replace('id = "app"', 'id = "other"'))
    live.admin("POST", "/admin/reload", secrets["admin"])
    tab.open(secrets["app"])
    tab.page.locator("#inside").wait_for()
    policy.write_text(
        text.replace(text.split('id = "app"\n')[1].split("\n")[0], f'hash = "sha256:{"0" * 64}"')
    )
    live.admin("POST", "/admin/reload", secrets["admin"])
    tab.page.click("#run")
    tab.page.locator("#key-part").wait_for()
    assert "does not know this key, or no longer" in tab.page.locator("#problem").text_content()
    policy.write_text(text)
    live.admin("POST", "/admin/reload", secrets["admin"])


def test_what_a_key_may_do_one_at_a_time_is_done_one_after_the_other(house, visit, monkeypatch):
    live, secrets, *_ = house
    monkeypatch.setattr(live.house.engine, "_wait", 0.5)
    tab = visit(live.url).open(secrets["single"])
    tab.page.locator("#inside").wait_for()
    answers = []
    tab.page.on("response", lambda one: answers.append((one.url[-11:], one.status)))
    tab.begin("w1", tokens=3)
    waiting = tab.page.locator(".pane.busy .status", has_text="Too much at once")
    waiting.wait_for()
    assert waiting.text_content() == (
        "Too much at once: key single has 1 request running, as many as it may. "
        "Asked again after the other set, in 1 second at the earliest."
    )
    tab.picture("waiting")
    tab.wait()
    assert [tab.status(number)[:5] for number in (0, 1)] == ["Done."] * 2
    assert [len(tab.tints(number)) for number in (0, 1)] == [3] * 2
    asked = sorted(status for path, status in answers if path == "completions")
    assert asked == [200, 200, 429], "an answer takes longer than the second that was asked for"


def test_a_limit_is_waited_for_and_what_still_waits_can_be_stopped(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["slow"])
    tab.page.locator("#inside").wait_for()
    tab.begin("w1", tokens=2)
    waiting = tab.page.locator(".pane.busy .status", has_text="Too much at once")
    waiting.wait_for()
    assert re.fullmatch(
        r"Too much at once: key slow has used up its requests a minute, which are 1\. "
        r"Asked again after the other set, in (60|5\d) seconds at the earliest\.",
        waiting.text_content(),
    )
    tab.page.locator(".pane:not(.busy) .status", has_text="Done.").wait_for()
    tab.page.keyboard.press("Escape")
    tab.wait()
    assert sorted(tab.status(number)[:8] for number in (0, 1)) == ["Done. Us", "Stopped."]


def test_a_limit_that_is_met_again_says_when_to_come(house, visit, monkeypatch):
    """Somebody else uses the same key."""
    live, secrets, *_ = house
    monkeypatch.setattr(live.house.engine, "_wait", 3)
    tab = visit(live.url).open(secrets["single"])
    tab.page.locator("#inside").wait_for()
    with live.http.stream(
        "POST",
        live.url + "/v1/completions",
        headers={"Authorization": f"Bearer {secrets['single']}"},
        json={"model": "release", "prompt": "w1", "max_tokens": 3, "stream": True},
    ):
        tab.ask("w1", tokens=2)
    for number in (0, 1):
        assert tab.error(number) == (
            "Too much at once: key single has 1 request running, as many as it may. "
            "Try again in 1 second."
        )
    tab.picture("refused")


def test_usage_is_the_keys_own_as_a_picture_and_a_table(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["all"])
    tab.page.locator("#inside").wait_for()
    tab.ask("w1", tokens=3)
    rows = live.get("/v1/usage", secrets["all"]).json()["data"]
    rows.sort(key=lambda row: ["anchor", *TERMS].index(row["expert"]))
    rows.sort(key=lambda row: row["hour"], reverse=True)
    tab.page.click("text=As a table")
    table = tab.page.locator("#usage-rows tr").all()
    told = [row.locator("td").all_text_contents() for row in table]
    assert [[cell.replace("\xa0", " ") for cell in row] for row in told] == [
        [
            row["hour"][:16].replace("T", " "),
            row["expert"],
            *(str(row[name]) for name in ("requests", "prompt_tokens", "completion_tokens")),
            percent(row["share_sum"] / row["completion_tokens"]),
        ]
        for row in rows
    ]
    for measure, column in (("tokens", "completion_tokens"), ("requests", "requests")):
        tab.page.select_option("#measure", measure)
        tab.rest()
        total = sum(row[column] for row in rows if row["expert"] == "anchor")
        assert tab.page.locator("#usage-words").text_content().startswith(f"{total} ")
        assert tab.page.locator("#chart rect").count() == len(rows)
        heights = [
            float(one.get_attribute("height")) for one in tab.page.locator("#chart rect").all()
        ]
        shares = [row["share_sum"] for row in rows]
        assert sorted(h / sum(heights) for h in heights) == pytest.approx(
            sorted(share / sum(shares) for share in shares), abs=1e-3
        )
    tab.picture("usage")
