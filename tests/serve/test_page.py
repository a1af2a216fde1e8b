"""The page in a real browser, against what the API itself answers."""

from __future__ import annotations

import shutil

import pytest
from tests.serve.browsing import PROMPT, percent
from tests.serve.conftest import NAME, SET, settled, told_server
from tests.serve.engines import steps
from tests.serve.test_withdrawal import order_of

from moiety.data import load_tokenizer
from moiety.serve.jobs import Ending


def told_by_the_api(live, experts, tokens=40, key=None, prompt=PROMPT):
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
    return live.post(key=key, json=body | {"moiety": {"experts": experts, "routing": True}}).json()


def weights_by_the_api(answer, pieces):
    """For each piece of the page the mean weights of the tokens that begin in it, by expert."""
    choice, names = answer["choices"][0], answer["moiety"]["experts"]
    starts, rows = choice["logprobs"]["text_offset"], choice["moiety"]["routing"]
    found, at = [], 0
    for piece in pieces:
        own = [r for s, r in zip(starts, rows, strict=True) if at <= s < at + len(piece)]
        means = [sum(column) / len(own) for column in zip(*own, strict=True)]
        found.append(dict(zip(names, means, strict=True)))
        at += len(piece)
    return found


def test_two_sets_answer_and_every_token_has_the_tint_of_its_expert(live, visit):
    tab = visit(live.url).open()
    tab.switch(1, "bob").check()
    tab.ask(PROMPT)
    for number, experts in enumerate((["amy", "bob", "cat"], ["bob"])):
        answer = told_by_the_api(live, experts)
        assert tab.text(number) == answer["choices"][0]["text"]
        pieces, tints = zip(*tab.tints(number), strict=True)
        weights = weights_by_the_api(answer, pieces)
        assert list(tints) == [max(one, key=one.get) for one in weights]
        shares = {name: percent(share) for name, share in answer["moiety"]["shares"].items()}
        assert tab.shares(number) == dict.fromkeys(SET, "") | shares
        assert tab.status(number) == f"Done. Used: {', '.join(answer['moiety']['experts'])}."
        meter = tab.pane(number).locator(".meter")
        assert f"{answer['usage']['completion_tokens']} tokens" in meter.text_content()
        assert meter.locator("code").get_attribute("title") == answer["moiety"]["roster"]
    assert len({tint for _, tint in tab.tints(0)}) > 1, "the test needs an answer of many"
    assert tab.text(0) != tab.text(1)
    tab.picture("light")


def test_characters_of_several_tokens_are_one_piece(release, visit, tmp_path):
    tokenizer, _ = load_tokenizer(release)
    text = "é 好 👍 b"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) > len(text)

    def script(job):
        yield from steps(job, ids)
        yield Ending("length")

    with told_server(release, tmp_path, script) as live:
        tab = visit(live.url).open().ask("x")
        assert tab.text(0) == text
        assert all("\ufffd" not in piece for piece, _ in tab.tints(0))
        assert f"{len(ids)} tokens" in tab.pane(0).locator(".meter").text_content()


def endless(job):
    """Token after token, as many as the context holds."""
    yield from steps(job, [300 + place % 10 for place in range(min(job.max_tokens, 1000))])
    yield Ending("length")


def test_both_stream_at_once_until_escape(release, visit, tmp_path):
    with told_server(release, tmp_path, endless, wait=0.03, name=NAME) as live:
        tab = visit(live.url).open()
        tab.begin("ba", tokens=100)
        for number in (0, 1):
            tab.pane(number).locator(".token").nth(2).wait_for()
        assert tab.page.locator(".pane.busy").count() == 2
        tab.picture("streaming")
        tab.page.keyboard.press("Escape")
        tab.wait()
        assert [tab.status(number) for number in (0, 1)] == ["Stopped.", "Stopped."]
        seen = [len(tab.tints(number)) for number in (0, 1)]
        assert all(3 <= count < 100 for count in seen)
        streams = live.house.engine.streams
        assert settled(lambda: all(stream.cancelled.is_set() for stream in streams))
        assert len(streams) == 2


def test_asking_anew_ends_the_answers_that_still_run(release, visit, tmp_path):
    with told_server(release, tmp_path, endless, wait=0.02, name=NAME) as live:
        tab = visit(live.url).open()
        tab.begin("ba", tokens=110)
        tab.pane(1).locator(".token").nth(2).wait_for()
        tab.ask("mo", tokens=5)
        assert [len(tab.tints(number)) for number in (0, 1)] == [5, 5]
        assert tab.pane(0).locator(".prompt").text_content() == "mo"
        streams = live.house.engine.streams
        assert settled(lambda: all(stream.cancelled.is_set() for stream in streams[:2]))


@pytest.mark.parametrize("off", [(), ("amy",), ("amy", "cat"), ("amy", "bob", "cat")])
def test_switches_say_what_is_asked_and_used(live, visit, off):
    tab = visit(live.url).open()
    for name in off:
        tab.switch(0, name).uncheck()
    bodies = []
    tab.page.on("request", lambda request: bodies.append(request.post_data_json or {}))
    tab.ask("ba", tokens=3)
    left = [name for name in SET[1:] if name not in off]
    asked = [body["moiety"]["experts"] for body in bodies if body]
    assert asked == [left, []]
    assert tab.status(0) == f"Done. Used: {', '.join(['anchor', *left])}."
    code = tab.pane(0).locator(".id code").text_content()
    assert code == f'model="{NAME}+{"+".join(left or ["anchor"])}"'
    model = live.get(f"/v1/models/{code[7:-1]}").json()
    assert model["moiety"]["experts"] == ["anchor", *left]
    anchor = tab.switch(0, "anchor")
    assert (anchor.is_checked(), anchor.is_disabled()) == (True, True)


def test_everything_by_keyboard(live, visit):
    tab = visit(live.url).open()
    page, press = tab.page, tab.page.keyboard.press
    seen = []
    for _ in range(25):
        press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        shown = (
            page.evaluate(outline) != "none"
            or page.evaluate("document.activeElement.tagName") == "BODY"
        )
        assert shown, f"{seen[-1]} must show that it has the focus"
    assert {"skip", "prompt", "max-tokens", "temperature", "purpose", "run", "answer"} <= set(seen)
    page.focus("#prompt")
    press("Control+a")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    page.keyboard.type("6")
    tab.switch(0, "amy").focus()
    press("Space")
    press("Control+Enter")
    tab.wait()
    assert tab.status(0) == "Done. Used: anchor, bob, cat."
    answer = told_by_the_api(live, ["bob", "cat"], tokens=6)
    assert tab.text(0) == answer["choices"][0]["text"]
    tab.pane(0).locator(".answer").focus()
    pieces = [piece for piece, _ in tab.tints(0)]
    weights = weights_by_the_api(answer, pieces)
    keys = {"ArrowRight": 0, "End": -1, "ArrowLeft": -2, "Home": 0}
    for key, place in keys.items():
        press(key)
        words = tab.pane(0).locator(".weights").text_content().replace("\xa0", " ")
        most = sorted(weights[place], key=weights[place].get, reverse=True)
        told = ", ".join(f"{name} {percent(weights[place][name])}" for name in most)
        assert words == f"“{pieces[place]}” {told}"


def test_a_field_that_does_not_hold_is_told_below_as_well(live, visit):
    tab = visit(live.url).open().ask("ba", tokens=3)
    assert tab.status(0).startswith("Done.")
    asked = len(tab.urls)
    tab.page.fill("#max-tokens", "-5")
    tab.page.keyboard.press("Control+Enter")
    words = "Not asked: a field above does not hold."
    assert [tab.status(number) for number in (0, 1)] == [words] * 2
    assert len(tab.urls) == asked
    assert tab.ask("ba", tokens=3).status(0).startswith("Done.")


def test_an_owner_who_leaves_ends_the_answer_and_the_switch(tiny_world, release, visit, tmp_path):
    folder = shutil.copytree(release, tmp_path / "release")
    with told_server(folder, tmp_path, endless, wait=0.03, name=NAME) as live:
        tab = visit(live.url).open()
        tab.switch(1, "bob").check()
        tab.begin("ba", tokens=60)
        tab.pane(0).locator(".token").nth(2).wait_for()
        before = tab.page.locator("#digest").text_content()
        order = order_of(tiny_world, "amy", tmp_path / "order.json")
        live.admin("POST", "/admin/withdraw", content=order.read_bytes())
        tab.wait()
        assert tab.error(0) == "An expert has left: amy has been withdrawn."
        assert len(tab.tints(0)) < 60
        assert tab.status(1) == "Done. Used: anchor, bob."
        for number in (0, 1):
            assert tab.switch(number, "amy").is_disabled()
            why = tab.pane(number).locator("[data-name='amy'] .why:visible")
            assert why.text_content() == "amy has been withdrawn"
        assert "withdrawn" in tab.page.locator("#experts tr").nth(1).text_content()
        assert tab.page.locator("#digest").text_content() not in ("", before)
        tab.picture("withdrawn")
        tab.ask("ba", tokens=3)
        assert tab.status(0) == "Done. Used: anchor, bob, cat."


def test_an_engine_that_fails_is_told_beside_what_it_said(release, visit, tmp_path):
    def script(job):
        yield from steps(job, [300, 301])
        yield Ending("failed", "the engine broke")

    with told_server(release, tmp_path, script) as live:
        tab = visit(live.url).open().ask("ba")
        assert tab.error(0) == "The server failed: the engine broke."
        assert len(tab.tints(0)) == 2
        assert tab.status(0) == "No whole answer."


def test_a_server_that_has_gone_is_told(release, visit, tmp_path):
    with told_server(release, tmp_path, endless) as live:
        tab = visit(live.url).open()
    tab.page.click("#run")
    tab.page.locator(".error", has_text="The connection to the server broke").nth(1).wait_for()
