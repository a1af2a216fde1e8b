"""Who may use what: the policy and the owners' terms, against a rule written another way."""

from __future__ import annotations

import itertools
import time
from datetime import date

import pytest
from tests.serve.conftest import TERMS, policed, policy_of, serving, settled
from tests.serve.engines import ToldEngine, short, steps

from moiety.errors import ConfigError
from moiety.serve import ServePlan, Server
from moiety.serve.policy import LOCAL, hash_key, new_key, read_policy
from moiety.serve.refusals import RefusalError
from moiety.serve.requests import Extension
from moiety.serve.served import Served

BEFORE, DURING, AFTER = date(2029, 1, 1), date(2030, 3, 1), date(2031, 1, 1)
NAMES = tuple(TERMS)


@pytest.fixture(scope="module")
def folder(release_with_terms):
    return release_with_terms


class Calendar:
    day = BEFORE

    def __call__(self):
        return self.day


@pytest.fixture
def calendar():
    return Calendar()


@pytest.fixture
def served(folder, calendar):
    return Served(folder, "m", calendar)


def rights(**fields):
    return LOCAL.model_copy(update={"id": "app", "experts": (), "purposes": ()} | fields)


def allowed(experts, purposes, purpose, day):
    """The rule, spelled out."""
    if purpose is None and len(purposes) == 1 and purposes != ("any",):
        purpose = purposes[0]
    found = {"anchor"}
    for name, terms in TERMS.items():
        in_policy = experts is None or name in experts
        in_time = terms.expires is None or day <= terms.expires
        for_this = terms.purposes == ("any",) or purpose in terms.purposes
        if in_policy and in_time and for_this:
            found.add(name)
    return found


SETS = [None, (), ("amy",), ("bob", "cat"), NAMES]
PURPOSES = [(), ("any",), ("research",), ("care", "research"), ("ads",)]


@pytest.mark.parametrize("day", [BEFORE, DURING, AFTER])
@pytest.mark.parametrize("purposes", PURPOSES)
@pytest.mark.parametrize("experts", SETS)
def test_a_request_that_names_nothing_gets_all_it_may_use(served, calendar, experts, purposes, day):
    calendar.day = day
    who = rights(experts=experts, purposes=purposes)
    for purpose in (None, "research", "care", "ads"):
        ask = Extension(purpose=purpose)
        if purpose and purposes != ("any",) and purpose not in purposes:
            with pytest.raises(RefusalError) as caught:
                served.choose(who, "m", ask)
            assert (caught.value.status, caught.value.code) == (403, "purpose_not_allowed")
            continue
        chosen = served.choose(who, "m", ask)
        may = allowed(experts, purposes, purpose, day)
        assert set(chosen.names) == may
        assert chosen.slots == tuple(sorted(chosen.slots))
        assert chosen.names == tuple(served.names[slot] for slot in chosen.slots)
        for gone in NAMES:
            assert set(served.choose(who, f"m-{gone}", ask).names) == may - {gone}


@pytest.mark.parametrize("day", [BEFORE, DURING, AFTER])
@pytest.mark.parametrize("purposes", PURPOSES)
@pytest.mark.parametrize("experts", SETS)
def test_a_request_that_names_a_set_gets_that_or_nothing(served, calendar, experts, purposes, day):
    calendar.day = day
    who = rights(experts=experts, purposes=purposes)
    may = allowed(experts, purposes, None, day)
    for count in range(len(NAMES) + 1):
        for names in itertools.combinations(NAMES, count):
            ways = [("m", Extension(experts=list(names)))]
            ways += [("m+" + "+".join(names), Extension())] if names else []
            for model, ask in ways:
                if set(names) <= may:
                    assert set(served.choose(who, model, ask).names) == {"anchor", *names}
                    continue
                with pytest.raises(RefusalError) as caught:
                    served.choose(who, model, ask)
                assert caught.value.status == 403
                assert all(name in caught.value.message for name in set(names) - may)


def test_a_bound_key_has_one_set(served, calendar):
    who = rights(bound=("amy", "dan-b"), purposes=("research",))
    for model, ask in (
        ("m", Extension()),
        ("m+dan-b+amy", Extension()),
        ("m", Extension(experts=["amy", "dan-b", "anchor"])),
        ("m-bob", Extension()),
        ("m", Extension(without=["cat"])),
    ):
        assert served.choose(who, model, ask).names == ("anchor", "amy", "dan-b")
    for model, ask in (
        ("m+amy", Extension()),
        ("m-amy", Extension()),
        ("m", Extension(experts=[])),
        ("m", Extension(without=["dan-b"])),
        ("m", Extension(experts=["amy", "dan-b", "bob"])),
    ):
        with pytest.raises(RefusalError, match="bound to one set") as caught:
            served.choose(who, model, ask)
        assert caught.value.status == 403
    calendar.day = AFTER
    with pytest.raises(RefusalError, match="dan-b ended on 2030-01-01"):
        served.choose(who, "m", Extension())


def test_a_bound_set_that_the_release_lacks_is_never_narrowed(served):
    with pytest.raises(RefusalError, match="eve is not in this release"):
        served.choose(rights(bound=("amy", "eve")), "m", Extension())


def test_a_key_that_says_nothing_has_nothing(tmp_path, served):
    text, secrets = policy_of(app={})
    (tmp_path / "policy.toml").write_text(text)
    key = read_policy(tmp_path / "policy.toml").find(secrets["app"])
    assert key is not None
    assert served.choose(key, "m", Extension()).names == ("anchor",)
    assert not key.may_see_routing
    assert None not in (key.requests_per_minute, key.tokens_per_minute, key.concurrent)


def test_keys_are_long_random_and_found_by_their_hash_alone(tmp_path):
    secret, kept = new_key()
    assert len(secret) >= 43 + len("moiety-")
    assert secret not in kept
    text, secrets = policy_of(one={}, two={})
    (tmp_path / "policy.toml").write_text(text)
    policy = read_policy(tmp_path / "policy.toml")
    assert policy.find(secrets["two"]).id == "two"
    for wrong in (secret, "", kept, hash_key(secrets["two"]), secrets["two"][:-1], "ü", "\ud800"):
        assert policy.find(wrong) is None
    assert policy.find(secrets["admin"]) is None, "the admin's key is for the admin port"


def test_finding_a_key_compares_every_hash(tmp_path, monkeypatch):
    text, secrets = policy_of(**{f"k{number}": {} for number in range(5)})
    (tmp_path / "policy.toml").write_text(text)
    policy, seen = read_policy(tmp_path / "policy.toml"), []
    monkeypatch.setattr(
        "moiety.serve.policy.hmac.compare_digest", lambda a, b: seen.append(a) or a == b
    )
    for secret in (secrets["k0"], secrets["k4"], "wrong"):
        seen.clear()
        policy.find(secret)
        assert len(seen) == 5


def test_without_a_policy_only_this_machine(folder, tmp_path):
    for host in ("0.0.0.0", "192.168.0.1", "::", "example.org"):
        with pytest.raises(ConfigError, match="without a policy"):
            Server(ServePlan(folder, host=host), lambda: None, print)


def test_without_a_policy_the_operator_may_say_what_requests_are_for(folder, tmp_path):
    engine = ToldEngine(("anchor", *NAMES), short)
    for purpose in (None, "care"):
        usage = f"sqlite:///{tmp_path}/u.sqlite"
        plan = ServePlan(folder, port=0, usage=usage, purpose=purpose)
        with serving(plan, lambda: engine) as live:
            (told,) = [line for line in live.said if line.startswith("not used")]
            assert ("bob may be used for care, research" in told) == (purpose is None)
            assert "cat may be used for research" in told
            used = live.post(json=BODY).json()["moiety"]["experts"]
            assert ("amy" in used, "bob" in used, "cat" in used) == (True, purpose == "care", False)
            other = live.post(json=BODY | {"moiety": {"purpose": "research"}})
            assert other.status_code == (200 if purpose is None else 403)


def test_a_purpose_is_one_and_goes_without_a_policy(folder, tmp_path):
    for purpose in ("any", "Research!", ""):
        with pytest.raises(ConfigError, match="purpose"):
            Server(ServePlan(folder, purpose=purpose), lambda: None, print)
    (tmp_path / "policy.toml").write_text("")
    plan = ServePlan(folder, policy=tmp_path / "policy.toml", purpose="care")
    with pytest.raises(ConfigError, match="policy says"):
        Server(plan, lambda: None, print)


BODY = {"model": "release", "prompt": "w1 w2", "max_tokens": 3, "temperature": 0}
KEYS = {
    "app": {"experts": ["amy", "bob"], "purposes": ["care"]},
    "all": {"experts": "all", "purposes": ["any"], "may_see_routing": True},
    "slow": {"experts": "all", "requests_per_minute": 2},
    "poor": {"experts": "all", "tokens_per_minute": 20, "requests_per_minute": 1000},
    "one": {"experts": "all", "concurrent": 1},
    "tied": {"bound": ["amy"]},
}


@pytest.fixture(scope="module")
def house(folder, tmp_path_factory):
    """A server with a policy, and the secrets of its keys."""
    with policed(folder, tmp_path_factory.mktemp("policy"), KEYS) as found:
        yield found


def test_every_route_but_health_and_the_description_needs_a_key(house):
    live, secrets, *_ = house
    for path in ("/v1/models", "/v1/models/release", "/metrics", "/nothing", "/docs"):
        for key in (None, "wrong", secrets["app"][:-1]):
            answer = live.get(path, key)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert live.post(path, json=BODY).status_code == 401
    for headers in (
        [("Authorization", f"Bearer {secrets['app']}"), ("Authorization", "Bearer x")],
        [("Authorization", f"Basic {secrets['app']}")],
        [("Authorization", secrets["app"])],
        [("X-Api-Key", secrets["app"])],
    ):
        assert live.http.get(live.url + "/v1/models", headers=headers).status_code == 401
    assert live.get("/health").status_code == 200
    assert live.get("/openapi.json").status_code == 200


def test_each_key_sees_and_gets_its_own(house):
    live, secrets, *_ = house
    app = live.post(key=secrets["app"], json=BODY).json()
    assert app["moiety"]["experts"] == ["anchor", "amy", "bob"]
    ids = [model["id"] for model in live.get("/v1/models", secrets["app"]).json()["data"]]
    assert ids == ["release", "release+amy", "release+bob", "release-amy", "release-bob"]
    tied = [model["id"] for model in live.get("/v1/models", secrets["tied"]).json()["data"]]
    assert tied == ["release"]
    refused = live.post(key=secrets["app"], json=BODY | {"model": "release+cat"})
    assert refused.status_code == 403
    assert "cat" in refused.json()["error"]["message"]
    assert live.get("/v1/models/release+cat", secrets["app"]).status_code == 403
    assert live.get("/metrics", secrets["app"]).status_code == 401
    assert live.get("/metrics", secrets["admin"]).status_code == 200
    scraped = live.get("/metrics", secrets["admin"]).text
    assert 'moiety_answers_total{key="admin",status="200"}' in scraped
    assert 'key="local"' not in scraped
    assert live.get("/v1/models", secrets["admin"]).status_code == 401


def test_caches_belong_to_keys_whatever_a_caller_says(house):
    live, secrets, *_ = house
    engine = live.house.engine
    for key in ("app", "all"):
        live.post(key=secrets[key], json=BODY)
        assert engine.jobs[-1].tenant == key
    refused = live.post(key=secrets["app"], json=BODY | {"moiety": {"tenant": "all"}})
    assert refused.status_code == 400


def test_routing_is_for_keys_that_may_see_it(house):
    live, secrets, *_ = house
    ask = BODY | {"moiety": {"routing": True}}
    assert live.post(key=secrets["all"], json=ask).status_code == 200
    for stream in (False, True):
        refused = live.post(key=secrets["app"], json=ask | {"stream": stream})
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            403,
            "routing_not_allowed",
        )


def test_requests_a_minute(house):
    live, secrets, *_ = house
    codes = [live.post(key=secrets["slow"], json=BODY).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    refused = live.post(key=secrets["slow"], json=BODY)
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert live.post(key=secrets["all"], json=BODY).status_code == 200, "others are not slowed"


def test_tokens_a_minute(house):
    live, secrets, *_ = house
    too_many = live.post(key=secrets["poor"], json=BODY | {"max_tokens": 60})
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (400, "too_many_tokens")
    # Six of a possible eighteen are used; the rest is given back.
    codes = [
        live.post(key=secrets["poor"], json=BODY | {"max_tokens": 15}).status_code for _ in range(3)
    ]
    assert codes == [200, 429, 429]
    assert live.post(key=secrets["poor"], json=BODY).status_code == 200


def test_requests_at_once(house):
    live, secrets, *_ = house
    engine = live.house.engine
    engine._wait = 0.2
    try:
        headers = {"Authorization": f"Bearer {secrets['one']}"}
        with live.http.stream(
            "POST", live.url + "/v1/completions", json=BODY | {"stream": True}, headers=headers
        ) as first:
            assert first.status_code == 200
            refused = live.post(key=secrets["one"], json=BODY)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
            first.read()
        assert live.post(key=secrets["one"], json=BODY).status_code == 200
    finally:
        engine._wait = 0.0


def test_a_new_policy_takes_effect_and_a_broken_one_does_not(house):
    live, secrets, path, text = house
    engine = live.house.engine
    engine._wait = 0.3
    try:
        headers = {"Authorization": f"Bearer {secrets['app']}"}
        with live.http.stream(
            "POST", live.url + "/v1/completions", json=BODY | {"stream": True}, headers=headers
        ) as running:
            path.write_text(text.replace('id = "app"', 'id = "other"'))
            done = live.admin("POST", "/admin/reload", secrets["admin"])
            assert "other" in done.json()["keys"]
            assert "no longer valid" in running.read().decode()
        path.write_text("broken =")
        assert live.admin("POST", "/admin/reload", secrets["admin"]).status_code == 400
        assert live.post(key=secrets["app"], json=BODY).status_code == 200, "same key, new id"
    finally:
        path.write_text(text)
        engine._wait = 0.0
        assert live.admin("POST", "/admin/reload", secrets["admin"]).status_code == 200


def test_the_admin_port_needs_the_admin_key(house):
    live, secrets, *_ = house
    for key in ("wrong", secrets["all"]):
        for method, path in (
            ("GET", "/admin/roster"),
            ("POST", "/admin/reload"),
            ("GET", "/metrics"),
        ):
            assert live.admin(method, path, key).status_code == 401
        assert live.admin("POST", "/admin/withdraw", key, content=b"{}").status_code == 401
    told = live.admin("GET", "/admin/roster", secrets["admin"]).json()
    assert [expert["name"] for expert in told["experts"]] == ["anchor", *NAMES]
    assert told["experts"][2]["terms"]["purposes"] == ["care", "research"]


def test_terms_that_end_end_what_runs(folder, tmp_path):
    calendar = Calendar()
    engine = ToldEngine(("anchor", *NAMES), lambda job: steps(job, itertools.cycle([5])), wait=0.05)
    plan = ServePlan(folder, port=0, usage=f"sqlite:///{tmp_path}/u.sqlite")
    with serving(plan, lambda: engine) as live:
        live.house.served._today = calendar
        ask = BODY | {"stream": True, "max_tokens": 100}
        with live.http.stream("POST", live.url + "/v1/completions", json=ask) as with_dan:
            begun = time.monotonic()
            calendar.day = AFTER
            text = with_dan.read().decode()
        assert time.monotonic() - begun < 2
        assert "the terms of dan-b ended on 2030-01-01" in text
        assert text.endswith("data: [DONE]\n\n")
        told = live.post(json=BODY | {"model": "release+dan-b"})
        assert told.status_code == 403
        assert settled(lambda: not live.house.runs.now)
