"""The page against a model, a server and a web page that mean it ill."""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import contextmanager

from tests.serve.browsing import Visit
from tests.serve.conftest import NAME, settled, told_server
from tests.serve.engines import short, steps

from moiety.data import load_tokenizer
from moiety.serve.jobs import Ending

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


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
    for width in (1280, 700, 360):
        tab.page.set_viewport_size({"width": width, "height": 800})
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width


FOREIGN = """<!doctype html><title>foreign</title><iframe src="URL/"></iframe><script>
(async () => {
  const body = JSON.stringify({model: "NAME", prompt: "ba", max_tokens: 3});
  const typed = new Blob([body], {type: "application/json"});
  const told = [];
  const tries = [
    ["/v1/completions", {method: "POST", body, headers: {"Content-Type": "application/json"}}],
    ["/v1/completions", {method: "POST", body, headers: {"Content-Type": "text/plain"}}],
    ["/v1/completions", {method: "POST", body, mode: "no-cors"}],
    ["/v1/completions", {method: "POST", body: typed, mode: "no-cors"}],
    ["/v1/roster", {}], ["/v1/usage", {}], ["/page.js", {}],
    ["/v1/roster", {mode: "no-cors"}],
  ];
  for (const [path, how] of tries) {
    try { told.push((await (await fetch("URL" + path, how)).text()).length); }
    catch { told.push("refused"); }
  }
  const form = document.createElement("form");
  const where = {action: "URL/v1/completions", target: "_blank"};
  Object.assign(form, {method: "POST", enctype: "text/plain", ...where});
  const field = {name: body.slice(0, -1) + ',"user":"', value: '"}'};
  form.append(Object.assign(document.createElement("input"), field));
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
                assert settled(lambda tab=theirs: tab.page.title().startswith("["), 30)
                told = json.loads(theirs.page.title())
                assert told == ["refused", "refused", 0, 0, "refused", "refused", "refused", 0]
                framed = theirs.page.frames[1]
                assert framed.locator("#prompt").count() == 0
                theirs.context.close()
        assert len(live.house.engine.jobs) == jobs
        ours.context.close()
