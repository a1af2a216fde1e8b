"""What a key may know of the experts and of its own use, and what is answered without a key."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from tests.serve.conftest import NAME, TERMS, policed

from moiety.serve.api import OPEN
from moiety.serve.usage import COLUMNS, Bill

BODY = {"model": "release", "prompt": "w1 w2", "max_tokens": 3, "temperature": 0}
NAMES = ("anchor", *TERMS)
KEYS = {
    "some": {"experts": ["amy", "bob"], "purposes": ["care", "ads"]},
    "one": {"experts": "all", "purposes": ["research"], "may_see_routing": True},
    "any": {"experts": "all", "purposes": ["any"]},
    "tied": {"bound": ["amy"]},
    "none": {},
}
PAGE = ("/", "/page.css", "/ask.js", "/pane.js", "/usage.js", "/page.js")


@pytest.fixture(scope="module")
def house(release_with_terms, tmp_path_factory):
    """A server with a policy, on a day in 2030 when one of the terms is over."""
    with policed(release_with_terms, tmp_path_factory.mktemp("own"), KEYS) as (live, secrets, *_):
        live.house.served._today = lambda: date(2030, 3, 1)
        yield live, secrets


def roster_of(house, key, query=""):
    live, secrets = house
    answer = live.get(f"/v1/roster{query}", secrets[key])
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("purpose", [None, "care", "research", "ads"])
def test_the_roster_tells_what_requests_then_get(house, key, purpose):
    live, secrets = house
    query = f"?purpose={purpose}" if purpose else ""
    answer = live.get(f"/v1/roster{query}", secrets[key])
    ask = BODY | {"moiety": {"purpose": purpose} if purpose else {}}
    used = live.post(key=secrets[key], json=ask)
    if used.status_code == 403 and used.json()["error"]["code"] == "purpose_not_allowed":
        assert answer.json() == used.json()
        return
    told = answer.json()
    usable = [one["name"] for one in told["experts"] if one["why_not"] is None]
    assert usable == used.json()["moiety"]["experts"]
    assert told["roster"] == used.json()["moiety"]["roster"]
    for one in told["experts"][1:]:
        model = "release" if told["bound"] else f"release+{one['name']}"
        asked = live.post(key=secrets[key], json=ask | {"model": model})
        assert (asked.status_code == 200) is (one["why_not"] is None)
        if one["why_not"]:
            assert asked.json()["error"]["message"] == one["why_not"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("purpose", [None, "care", "research"])
def test_the_models_that_are_told_are_those_that_answer(house, key, purpose):
    live, secrets = house
    query = f"?purpose={purpose}" if purpose else ""
    ask = BODY | {"moiety": {"purpose": purpose} if purpose else {}}
    answer = live.get(f"/v1/models{query}", secrets[key])
    if answer.status_code == 403:
        assert answer.json() == live.post(key=secrets[key], json=ask).json()
        return
    told = [one["id"] for one in answer.json()["data"]]
    for model in {*told, *(f"release+{name}" for name in TERMS)}:
        used = live.post(key=secrets[key], json=ask | {"model": model})
        one = live.get(f"/v1/models/{model}{query}", secrets[key])
        if model in told or key != "tied":
            assert (model in told) is (used.status_code == one.status_code == 200), model
        if model in told:
            assert one.json()["moiety"]["experts"] == used.json()["moiety"]["experts"]
    assert "release" in told


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_who_asks_for_the_head_alone_gets_it(house, path):
    live, secrets = house
    headers = {"Authorization": f"Bearer {secrets['any']}"}
    whole, head = (
        live.http.request(how, live.url + path, headers=headers) for how in ("GET", "HEAD")
    )
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert live.http.head(live.url + "/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("some", ["anchor", "amy", "bob"]),
        ("one", [*NAMES]),
        ("any", [*NAMES]),
        ("tied", ["anchor", "amy"]),
        ("none", ["anchor"]),
    ],
)
def test_no_key_is_told_of_experts_that_its_policy_does_not_give(house, key, names):
    live, secrets = house
    told = roster_of(house, key)
    assert [one["name"] for one in told["experts"]] == names
    text = live.get("/v1/roster", secrets[key]).text
    assert not [name for name in TERMS if name not in names and f'"{name}"' in text]
    assert told["model"] == "release"
    assert told["bound"] is (key == "tied")
    assert told["routing"] is (key == "one")
    assert told["purposes"] == KEYS[key].get("purposes", [])
    assert told["purpose"] == ("research" if key == "one" else None)


def test_terms_and_states_are_told(house):
    found = {one["name"]: one for one in roster_of(house, "any")["experts"]}
    assert found["anchor"]["terms"] is None
    for name, terms in TERMS.items():
        assert found[name]["terms"] == terms.model_dump(mode="json")
        assert len(found[name]["bundle"]) == 64
        assert found[name]["state"] == ("expired" if name == "dan-b" else "served")
    assert found["dan-b"]["why_not"] == "the terms of dan-b ended on 2030-01-01"


def test_without_a_policy_all_is_told(live):
    told = live.get("/v1/roster").json()
    assert [one["name"] for one in told["experts"]] == ["anchor", "amy", "bob", "cat"]
    assert (told["model"], told["purposes"], told["routing"]) == (NAME, ["any"], True)
    assert told["roster"] == live.house.served.digest


def rows_of(house, key, query=""):
    live, secrets = house
    answer = live.get(f"/v1/usage{query}", secrets[key])
    assert answer.status_code == 200
    told = answer.json()
    assert told["key"] == key
    return told["data"]


def test_a_key_sees_its_own_use_and_nobody_elses(house):
    live, secrets = house
    before = {key: rows_of(house, key) for key in KEYS}
    done = live.post(key=secrets["some"], json=BODY | {"moiety": {"purpose": "care"}}).json()
    for key in KEYS:
        rows = rows_of(house, key)
        assert {row["key"] for row in rows} <= {key}
        if key != "some":
            assert rows == before[key]
    rows = {row["expert"]: row for row in rows_of(house, "some", "?hours=2")}
    assert set(rows) >= {"anchor", "amy", "bob"}
    old = {row["expert"]: row for row in before["some"]}
    for name in ("anchor", "amy", "bob"):
        more = {c: rows[name][c] - (old[name][c] if name in old else 0) for c in COLUMNS[3:]}
        assert more["requests"] == 1
        assert more["prompt_tokens"] == done["usage"]["prompt_tokens"]
        assert more["completion_tokens"] == 3
        assert more["share_sum"] == pytest.approx(3 * done["moiety"]["shares"][name])


def test_only_the_latest_hours_are_told(house):
    live, _secrets = house
    now = datetime.now(UTC)

    async def write():
        for back in (0, 1, 23, 24, 743, 744):
            hour = (now - timedelta(hours=back)).strftime("%Y-%m-%dT%H:00:00Z")
            await live.house.books.write(Bill("none", 1, 1, {f"back-{back}": 1.0}, hour))

    asyncio.run(write())
    if datetime.now(UTC).hour != now.hour:
        pytest.skip("the hour is over")

    def backs(query):
        rows = rows_of(house, "none", query)
        return [row["expert"] for row in rows if row["expert"].startswith("back-")]

    assert backs("?hours=1") == ["back-0"]
    assert backs("?hours=2") == ["back-1", "back-0"]
    assert backs("?hours=24") == ["back-23", "back-1", "back-0"]
    assert backs("") == ["back-24", "back-23", "back-1", "back-0"]
    assert backs("?hours=744") == ["back-743", "back-24", "back-23", "back-1", "back-0"]


HOSTILE = [
    "/v1/usage?hours=0",
    "/v1/usage?hours=745",
    "/v1/usage?hours=-1",
    "/v1/usage?hours=",
    "/v1/usage?hours=1.5",
    "/v1/usage?hours=nan",
    "/v1/usage?hours=1e2",
    "/v1/usage?hours=" + "9" * 5000,
    "/v1/usage?hours=1&hours=2",
    "/v1/usage?hours=1%27%20or%201=1",
    "/v1/usage?hours=%00",
    "/v1/usage?hours=%ff%fe",
    "/v1/usage?key=any",
    "/v1/roster?purpose=",
    "/v1/roster?purpose=%3Cscript%3E",
    "/v1/roster?purpose=" + "a" * 64,
    "/v1/roster?purpose=care&purpose=ads",
    "/v1/roster?purpose=any",
    "/v1/roster?key=any",
    "/v1/models?key=any",
    "/v1/models?purpose=any",
    "/v1/models/release?purpose=",
    "/v1/models/release?purpose=care&purpose=ads",
    "/v1/roster?" + "&".join(f"x{n}=1" for n in range(500)),
]


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path[:30])
def test_a_hostile_query_is_a_400_that_tells_nothing_back(house, path):
    live, secrets = house
    answer = live.get(path, secrets["any"])
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.text) < 600
    assert "script" not in answer.text


def test_usage_that_cannot_be_read_is_a_503(house, monkeypatch):
    from sqlalchemy.exc import OperationalError

    import moiety.serve.usage as books

    live, secrets = house

    def broken(*_columns):
        raise OperationalError("select secret", {}, Exception("disk I/O error"))

    monkeypatch.setattr(books.sql, "select", broken)
    answer = live.get("/v1/usage", secrets["any"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "usage_not_read")
    assert "secret" not in answer.text


def test_just_these_paths_need_no_key(house):
    live, secrets = house
    assert set(PAGE) | {"/health", "/openapi.json"} == OPEN
    for path in OPEN:
        assert live.get(path).status_code == 200
    for path in ("/v1/roster", "/v1/usage", "//", "/page", "/index.html", "/page.js/", "/PAGE.JS"):
        assert live.get(path).status_code == 401, path
        assert live.get(path, secrets["any"] + "x").status_code == 401
    assert live.get("/v1/usage", secrets["admin"]).status_code == 401
    for path in ("/", "/page.js"):
        assert live.post(path, json={}).status_code == 405


def test_the_page_is_closed_to_everything_from_elsewhere(house):
    live, _secrets = house
    for path in PAGE:
        headers = live.get(path).headers
        rules = dict(
            rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";")
        )
        assert rules == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    text = "".join(live.get(path).text for path in PAGE)
    for never in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", " style="):
        assert never not in text
    links = text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in links
    assert "https:" not in links


def test_what_a_key_may_know_is_in_the_description(live):
    told = live.get("/openapi.json").json()
    (hours,) = told["paths"]["/v1/usage"]["get"]["parameters"]
    assert (hours["schema"]["minimum"], hours["schema"]["maximum"]) == (1, 744)
    assert hours["schema"]["default"] == 168
    for path in ("/v1/roster", "/v1/models", "/v1/models/{model}"):
        *_, purpose = told["paths"][path]["get"]["parameters"]
        assert (purpose["name"], purpose["in"], purpose["required"]) == ("purpose", "query", False)
    for path in ("/v1/usage", "/v1/roster", "/v1/models"):
        assert "422" not in told["paths"][path]["get"]["responses"]
    assert not set(PAGE) & set(told["paths"])
