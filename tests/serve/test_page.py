"""The page in a real browser, against what the API itself answers."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from tests.serve.browsing import Visit, chromium
from tests.serve.conftest import NAME, TERMS, policy_of, serving, settled
from tests.serve.engines import ToldEngine, steps
from tests.serve.test_withdrawal import order_of

from moiety.data import load_tokenizer
from moiety.serve import ServePlan
from moiety.serve.jobs import Ending

PROMPT = "lito ba nusa ba mo rarara"
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SET = ("anchor", "amy", "bob", "cat")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser):
    """Opens tabs; nothing on them may have broken, or touched the content policy."""
    visits = []

    def make(url, **how):
        visits.append(Visit(browser, url, **how))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
        assert one.complaints() == []


def told_by_the_api(live, experts, tokens=40, key=None, prompt=PROMPT):
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
    return live.post(key=key, json=body | {"moiety": {"experts": experts, "routing": True}}).json()


def tints_by_the_api(answer, pieces):
    """For each piece of the page the expert that did most of it, by the tokens that begin in it."""
    choice, names = answer["choices"][0], answer["moiety"]["experts"]
    starts, rows = choice["logprobs"]["text_offset"], choice["moiety"]["routing"]
    found, at = [], 0
    for piece in pieces:
        own = [r for s, r in zip(starts, rows, strict=True) if at <= s < at + len(piece)]
        sums = [sum(column) for column in zip(*own, strict=True)]
        found.append(names[sums.index(max(sums))])
        at += len(piece)
    return found


def percent(share):
    return f"{100 * share:.{1 if 0.0005 <= share < 0.0995 else 0}f} %"


def test_two_sets_answer_and_every_token_has_the_tint_of_its_expert(live, visit):
    tab = visit(live.url).open()
    tab.switch(1, "bob").check()
    tab.ask(PROMPT)
    for number, experts in enumerate((["amy", "bob", "cat"], ["bob"])):
        answer = told_by_the_api(live, experts)
        assert tab.text(number) == answer["choices"][0]["text"]
        pieces, tints = zip(*tab.tints(number), strict=True)
        assert list(tints) == tints_by_the_api(answer, pieces)
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


@contextmanager
def told_server(release, place, script, wait=0.0, **how):
    how.setdefault("names", SET)
    engine = ToldEngine(how.pop("names"), script, wait)
    plan = ServePlan(release, port=0, admin_port=0, usage=f"sqlite:///{place}/u.sqlite", **how)
    with serving(plan, lambda: engine) as live:
        yield live


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
        assert page.evaluate(outline) != "none", "who has the focus must show it"
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
    for place, key in ((0, "ArrowRight"), (1, "ArrowRight"), (5, "End"), (4, "ArrowLeft"), (0, "Home")):
        press(key)
        words = tab.pane(0).locator(".weights").text_content().replace("\xa0", " ")
        weights = dict(zip(("anchor", "bob", "cat"), answer["choices"][0]["moiety"]["routing"][place], strict=True))
        most = sorted(weights, key=weights.get, reverse=True)
        told = ", ".join(f"{name} {percent(weights[name])}" for name in most)
        assert words == f"“{answer['choices'][0]['logprobs']['tokens'][place]}” {told}"


def test_hostile_text_of_a_model_and_a_prompt_stays_text(release, visit, tmp_path):
    tokenizer, _ = load_tokenizer(release)
    ids = tokenizer.encode(EVIL, add_special_tokens=False).ids

    def script(job):
        yield from steps(job, ids)
        yield Ending("length")

    with told_server(release, tmp_path, script) as live:
        tab = visit(live.url).open().ask(f"a{EVIL}b")
        assert tab.text(0) == EVIL
        assert tab.pane(0).locator(".prompt").text_content() == f"a{EVIL}b"
        assert tab.page.locator("main img, main script").count() == 0
        assert "owned" not in tab.page.title()


def test_hostile_names_from_a_server_stay_text(live, visit):
    """No release holds such names; the page does not count on it."""
    tab = visit(live.url)
    told = live.get("/v1/roster").json()
    terms = {"purposes": [EVIL], "expires": EVIL, "licence": EVIL, "contact": None}
    evil = {"name": EVIL, "bundle": EVIL, "terms": terms, "state": EVIL, "why_not": None}
    told |= {"model": EVIL, "roster": EVIL, "experts": [*told["experts"], evil]}
    hour = time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime())
    row = {"hour": hour, "expert": EVIL, "share_sum": 1.0}
    row |= dict.fromkeys(("requests", "prompt_tokens", "completion_tokens"), 1)
    tab.page.route("**/v1/roster*", lambda route: route.fulfill(json=told))
    tab.page.route("**/v1/usage*", lambda route: route.fulfill(json={"data": [row]}))
    tab.open()
    tab.page.locator("#usage-rows tr").first.wait_for(state="attached")
    assert tab.pane(0).locator(".name").nth(4).text_content() == EVIL
    assert tab.page.locator("#experts th").nth(4).text_content().strip() == EVIL
    assert tab.page.locator("#usage-legend li").text_content().startswith(f" {EVIL}")
    assert tab.page.locator("main img, main script").count() == 0
    assert tab.page.title() == f"{EVIL} · Moiety playground"


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


KEYS = {
    "app": {"experts": ["amy", "bob", "dan-b"], "purposes": ["care", "ads"]},
    "all": {"experts": "all", "purposes": ["any"], "may_see_routing": True},
    "slow": {"experts": "all", "requests_per_minute": 1},
    "tied": {"bound": ["amy"], "may_see_routing": True},
}


def short(job):
    yield from steps(job, [5, 6, 7][: job.max_tokens])
    yield Ending("length")


@pytest.fixture(scope="module")
def house(release_with_terms, tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    text, secrets = policy_of(**KEYS)
    (place / "policy.toml").write_text(text)
    how = {"policy": place / "policy.toml", "names": ("anchor", *TERMS)}
    with told_server(release_with_terms, place, short, **how) as live:
        yield live, secrets, place / "policy.toml", text


def test_a_key_is_asked_for_and_kept_out_of_sight(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open()
    page = tab.page
    assert page.locator("#key-part").is_visible()
    assert page.locator("#inside, #problem").filter(visible=True).count() == 0
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
    assert why.text_content() == "bob may be used for care, research, and the request names no purpose"
    assert not tab.switch(0, "bob").is_checked()
    tab.page.select_option("#purpose", "care")
    tab.page.wait_for_load_state("networkidle")
    assert not tab.switch(0, "bob").is_disabled()
    tab.ask("w1", tokens=2)
    assert tab.status(0) == "Done. Used: anchor, amy, bob, dan-b."
    tab.page.select_option("#purpose", "ads")
    tab.page.wait_for_load_state("networkidle")
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
    policy.write_text(text.replace(text.split('id = "app"\n')[1].split("\n")[0], f'hash = "sha256:{"0" * 64}"'))
    live.admin("POST", "/admin/reload", secrets["admin"])
    tab.page.click("#run")
    tab.page.locator("#key-part").wait_for()
    assert "does not know this key, or no longer" in tab.page.locator("#problem").text_content()
    policy.write_text(text)
    live.admin("POST", "/admin/reload", secrets["admin"])


def test_a_limit_says_when_to_come_again(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["slow"])
    tab.page.locator("#inside").wait_for()
    tab.ask("w1", tokens=2)
    refused = [tab.error(n) for n in (0, 1) if tab.pane(n).locator(".error:visible").count()]
    assert len(refused) == 1
    assert re.fullmatch(
        r"Too much at once: key slow has 1 requests a minute\. Try again in (60|5\d) seconds\.",
        refused[0],
    )
    tab.picture("refused")


def test_a_server_that_has_gone_is_told(release, visit, tmp_path):
    with told_server(release, tmp_path, endless) as live:
        tab = visit(live.url).open()
    tab.page.click("#run")
    tab.page.locator(".error", has_text="The connection to the server broke").nth(1).wait_for()


def test_usage_is_the_keys_own_as_a_picture_and_a_table(house, visit):
    live, secrets, *_ = house
    tab = visit(live.url).open(secrets["all"])
    tab.page.locator("#inside").wait_for()
    tab.ask("w1", tokens=3)
    rows = live.get("/v1/usage", secrets["all"]).json()["data"]
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
        for row in reversed(rows)
    ]
    for measure, column in (("tokens", "completion_tokens"), ("requests", "requests")):
        tab.page.select_option("#measure", measure)
        tab.page.wait_for_load_state("networkidle")
        total = sum(row[column] for row in rows if row["expert"] == "anchor")
        assert tab.page.locator("#usage-words").text_content().startswith(f"{total} ")
        assert tab.page.locator("#chart rect").count() == len(rows)
        heights = [float(one.get_attribute("height")) for one in tab.page.locator("#chart rect").all()]
        shares = [row["share_sum"] for row in rows]
        assert sorted(h / sum(heights) for h in heights) == pytest.approx(
            sorted(share / sum(shares) for share in shares), abs=1e-3
        )
    tab.picture("usage")


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
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility() || one.matches("[aria-disabled=true], [aria-disabled=true] *, .skip, svg *, option")) continue;
    const papers = [];
    for (let up = one; up; up = up.parentElement) papers.unshift(getComputedStyle(up).backgroundColor);
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
    nameless = re.findall(r"- (?:button|checkbox|switch|textbox|combobox|spinbutton|img|link)(?::|$)", tree, re.M)
    assert nameless == []
    for wanted in ('switch "amy" [checked]', 'textbox "Prompt"', 'combobox "Purpose"', 'button "Run'):
        assert wanted in tree
    ids = tab.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))


FOREIGN = """<!doctype html><title>foreign</title><iframe src="URL/"></iframe><script>
(async () => {
  const body = JSON.stringify({model: "NAME", prompt: "ba", max_tokens: 3});
  const told = [];
  const tries = [
    ["/v1/completions", {method: "POST", body, headers: {"Content-Type": "application/json"}}],
    ["/v1/completions", {method: "POST", body, headers: {"Content-Type": "text/plain"}}],
    ["/v1/completions", {method: "POST", body, mode: "no-cors"}],
    ["/v1/completions", {method: "POST", body: new Blob([body], {type: "application/json"}), mode: "no-cors"}],
    ["/v1/roster", {}], ["/v1/usage", {}], ["/page.js", {}],
    ["/v1/roster", {mode: "no-cors"}],
  ];
  for (const [path, how] of tries) {
    try { told.push((await (await fetch("URL" + path, how)).text()).length); }
    catch { told.push("refused"); }
  }
  const form = document.createElement("form");
  Object.assign(form, {method: "POST", enctype: "text/plain", action: "URL/v1/completions", target: "_blank"});
  const field = Object.assign(document.createElement("input"), {name: body.slice(0, -1) + ',"user":"', value: '"}'});
  form.append(field);
  document.body.append(form);
  form.submit();
  document.title = JSON.stringify(told);
})();
</script>"""


@contextmanager
def foreign_page(html):
    """Another server on this machine, so another origin, with a page of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_from_elsewhere_gets_nothing_and_does_nothing(release, browser, tmp_path):
    with told_server(release, tmp_path, short, name=NAME) as live:
        ours = Visit(browser, live.url).open().ask("ba", tokens=2)
        jobs = len(live.house.engine.jobs)
        assert jobs == 2, "our own page may"
        for host in ("127.0.0.1", "localhost"):
            url = live.url.replace("127.0.0.1", host)
            with foreign_page(FOREIGN.replace("URL", url).replace("NAME", NAME)) as place:
                theirs = Visit(browser, place)
                theirs.page.goto(place)
                theirs.page.wait_for_event("framenavigated", timeout=1) if False else None
                assert settled(lambda tab=theirs: tab.page.title().startswith("["), 30)
                told = json.loads(theirs.page.title())
                assert told == ["refused", "refused", 0, 0, "refused", "refused", "refused", 0]
                framed = theirs.page.frames[1]
                assert framed.locator("#prompt").count() == 0
                theirs.context.close()
        assert len(live.house.engine.jobs) == jobs
        ours.context.close()
