"""What is refused, how it is told, and that nothing was begun before it."""

from __future__ import annotations

import json
import socket

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moiety.serve.door import BODY_MAX_BYTES
from moiety.serve.requests import CHAT_NOTHINGS, COMPLETION_NOTHINGS, ChatRequest, CompletionRequest

BODY = {"model": "mixture", "prompt": "ba", "max_tokens": 2, "temperature": 0}
CHAT = {"model": "mixture", "messages": [{"role": "user", "content": "ba"}]}
WANTED = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), 1.5),
    "logit_bias": {"1": 5},
    "best_of": 2,
    "suffix": "x",
    "store": True,
    "parallel_tool_calls": False,
    "tools": [{"type": "function"}],
    "response_format": {"type": "json_object"},
}


def check_envelope(answer: httpx.Response, status: int, param: str | None = None) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["code"]
    assert error["param"] == param
    return error


@pytest.mark.parametrize("name", COMPLETION_NOTHINGS)
def test_a_known_field_of_completions_that_is_not_supported_is_named(live, name):
    error = check_envelope(live.post(json=BODY | {name: WANTED.get(name, "x")}), 400, name)
    assert error["message"] == f"not supported here: {name}"


@pytest.mark.parametrize("name", CHAT_NOTHINGS)
def test_a_known_field_of_chats_that_is_not_supported_is_named(live, name):
    body = CHAT | {name: WANTED.get(name, "x")}
    error = check_envelope(live.post("/v1/chat/completions", json=body), 400, name)
    assert error["message"] == f"not supported here: {name}"


def test_every_field_of_openais_client_is_known():
    from openai.types import completion_create_params as completion
    from openai.types.chat import completion_create_params as chat

    for theirs, ours in ((completion, CompletionRequest), (chat, ChatRequest)):
        known = set(ours.nothings) | set(ours.model_fields)
        asked = set(theirs.CompletionCreateParamsBase.__annotations__) | {"stream"}
        assert asked - known == set()
        assert known - asked == {"moiety"}


BAD = {
    "model": [None, "", 5, ["mixture"]],
    "prompt": [None, [], 5, [[]], [1.5], ["a", 1], [[1], "a"], {"a": 1}, [-1], [2**40], True],
    "max_tokens": [-1, 1.5, "5", True, 2**40, 10_000],
    "temperature": [-0.1, 2.1, "1", True],
    "top_p": [0, 1.1, -1, "x"],
    "n": [0, 129, 1.5, "2", True],
    "stop": ["", ["a", ""], list("abcde"), 5, [5], "x" * 1001],
    "seed": [1.5, "1", 2**63, True],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": True}, {"x": 1}, 5],
    "logprobs": [-1, 6, True, 1.5],
    "echo": ["yes", 1],
    "moiety": [
        5,
        [],
        {"expert": ["amy"]},
        {"experts": "amy"},
        {"experts": ["eve"]},
        {"experts": [""]},
        {"without": ["anchor"]},
        {"experts": ["amy"], "without": ["bob"]},
        {"purpose": "any"},
        {"purpose": "Research\r\nX: y"},
        {"routing": 1},
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_value_is_a_400_that_names_its_field(live, name, value):
    answer = live.post(json=BODY | {name: value})
    assert answer.status_code == 400, answer.text
    error = check_envelope(answer, 400, answer.json()["error"]["param"])
    assert name in f"{error['param']} {error['message']}"
    for stream in (True,):
        streamed = live.post(json=BODY | {"stream": stream} | {name: value})
        if name not in ("stream", "stream_options"):
            assert streamed.status_code == 400, "before the first byte of a stream"


def test_unknown_fields_are_named_also_deep_inside(live):
    error = check_envelope(live.post(json=BODY | {"prompts": "x"}), 400, "prompts")
    assert error["code"] == "unknown_parameter"
    check_envelope(live.post(json=BODY | {"moiety": {"exprets": []}}), 400, "moiety.exprets")
    body = {"model": "mixture", "messages": [{"role": "user", "content": "a", "name": "b"}]}
    check_envelope(live.post("/v1/chat/completions", json=body), 400, "messages.0.name")


@pytest.mark.parametrize(
    "more",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"top_logprobs": 3},
        {"logprobs": 1},
        {"logprobs": True, "top_logprobs": 21},
        {"max_tokens": 0},
        {"max_tokens": 1, "max_completion_tokens": 2},
        {"prompt": "a"},
    ],
)
def test_bad_chats(live, more):
    answer = live.post("/v1/chat/completions", json=CHAT | more)
    check_envelope(answer, 400, answer.json()["error"]["param"])


@pytest.mark.parametrize(
    "model",
    [
        *("mixtur", "mixture+", "mixture-", "mixture+eve", "mixture+amy+amy", "mixture-amy-amy"),
        *(
            "mixture+amy-bob",
            "mixture-amy+bob",
            "mixture-anchor",
            "MIXTURE",
            "mixture+amy ",
            "../x",
        ),
        *("mixture+Amy", "mixture--amy", "mixture+amy+", "mixture\x00", "mixture-" + "a-" * 2000),
    ],
)
def test_model_ids_that_are_none(live, model):
    error = check_envelope(live.post(json=BODY | {"model": model}), 404, "model")
    assert error["code"] == "model_not_found"
    assert error["message"].isascii()
    assert len(error["message"]) < 300


def test_a_set_is_named_once(live):
    body = BODY | {"model": "mixture-amy", "moiety": {"experts": ["amy"]}}
    check_envelope(live.post(json=body), 400, "moiety")
    only_purpose = {"model": "mixture-amy", "moiety": {"purpose": "x"}}
    assert live.post(json=BODY | only_purpose).status_code == 200


def test_too_long_is_refused_before_any_work(live):
    before = live.house.engine.load().generated_tokens
    for prompt in ("ba " * 200, "x" * 1_000_000, list(range(2, 202))):
        error = check_envelope(live.post(json=BODY | {"prompt": prompt}), 400, "prompt")
        assert error["code"] == "context_length_exceeded"
    error = check_envelope(live.post(json=BODY | {"max_tokens": 127}), 400, "max_tokens")
    assert error["code"] == "context_length_exceeded"
    assert live.house.engine.load().generated_tokens == before
    check_envelope(live.post(json=BODY | {"prompt": ["a"] * 64, "n": 3}), 400, "n")


def test_more_answers_than_ever_fit_are_a_400_with_the_number(live):
    most = live.house.engine.most_jobs
    assert most == 80
    for more in ({"n": 81}, {"n": 128}, {"prompt": ["ba"] * 81}, {"prompt": ["ba"] * 27, "n": 4}):
        error = check_envelope(live.post(json=BODY | more), 400, "n" if "n" in more else "prompt")
        assert "80" in error["message"]
    assert live.post(json=BODY | {"n": most}).status_code == 200, "as many fit"


def test_tokens_that_nobody_may_send(live):
    assert (
        "no token"
        in check_envelope(live.post(json=BODY | {"prompt": [320]}), 400, "prompt")["message"]
    )
    assert (
        "begins"
        in check_envelope(live.post(json=BODY | {"prompt": [5, 0]}), 400, "prompt")["message"]
    )


def test_bodies_that_are_no_json(live):
    headers = {"Content-Type": "application/json"}
    bad = (
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "a", "model": "b"}',
        b"[" * 100_000,
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
        json.dumps(BODY | {"prompt": "\ud800"}).encode(),
        json.dumps({"\ud800": 1}).encode(),
    )
    for data in bad:
        answer = live.post(content=data, headers=headers)
        assert answer.status_code == 400, (data[:40], answer.text)
        check_envelope(answer, 400, answer.json()["error"]["param"])


def test_other_kinds_of_bodies_are_415(live):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = live.post(content=json.dumps(BODY), headers={"Content-Type": kind})
        check_envelope(answer, 415)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    check_envelope(live.post(content=b"x", headers=headers), 415)


def test_a_huge_body_is_a_413_and_is_not_kept(live):
    headers = {"Content-Type": "application/json"}
    data = b'{"prompt": "' + b"a" * (BODY_MAX_BYTES + 1) + b'"}'
    check_envelope(live.post(content=data, headers=headers), 413)
    check_envelope(live.post(content=iter([data[:100], data[100:]]), headers=headers), 413)
    assert live.post(json=BODY).status_code == 200


def test_routes_that_are_not_there(live):
    check_envelope(live.get("/index.html"), 404)
    check_envelope(live.get("/v1/models/"), 404, "model")
    check_envelope(live.get("/v1/embeddings"), 404)
    check_envelope(live.get("/admin/roster"), 404)
    check_envelope(live.get("/v1/completions"), 405)
    check_envelope(live.http.delete(live.url + "/v1/models"), 405)
    check_envelope(live.get("/docs"), 404)
    check_envelope(live.get("/v1/../admin/roster"), 404)


def test_the_official_client_sees_its_own_errors(client):
    def ask(**how):
        client.completions.create(**({"model": "mixture", "prompt": "a"} | how))

    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-4")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(best_of=2)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "best_of")
    with pytest.raises(openai.BadRequestError, match="no expert called 'eve'"):
        ask(extra_body={"moiety": {"experts": ["eve"]}})


def raw(live, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", live.server.port), timeout=10) as line:
        line.sendall(text)
        line.settimeout(10)
        data = b""
        while b"\r\n\r\n" not in data:
            part = line.recv(65536)
            if not part:
                break
            data += part
    return data


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: [::1]evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:80.evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_a_web_page_cannot_reach_a_server_on_this_machine(live, head):
    assert raw(live, head).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "other", ""])
def test_a_web_page_cannot_make_a_server_on_this_machine_work(live, site):
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    for url in (live.url, live.admin_url):
        for path in ("/v1/models/mixture-amy", "/admin/roster", "/health", "/"):
            error = check_envelope(live.http.get(url + path, headers=headers), 403)
            assert error["code"] == "site_not_allowed"
    for own in ("same-origin", "none"):
        assert live.http.get(f"{live.url}/", headers={"Sec-Fetch-Site": own}).status_code == 200


def test_requests_that_are_no_http_do_no_harm(live):
    for text in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G" * 100_000 + b"\r\n\r\n"):
        assert b"200" not in raw(live, text)[:20]
    both = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    assert raw(live, both + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").split()[1][:1] in (
        b"4",
        b"5",
    )
    assert live.get("/health").status_code == 200


def test_nothing_of_a_request_comes_back_in_a_header(live):
    evil = "mixture\r\nX-Evil: yes"
    answer = live.post(json=BODY | {"model": evil})
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers
    answer = live.get("/v1/models/x%0d%0aX-Evil:%20yes")
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers


def test_the_description_tells_both_bodies(live):
    told = live.get("/openapi.json").json()
    for path, name in (
        ("/v1/completions", "CompletionRequest"),
        ("/v1/chat/completions", "ChatRequest"),
    ):
        content = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"].endswith(name)
        assert told["components"]["schemas"][name]["additionalProperties"] is False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields, *CHAT_NOTHINGS, "odd"})
PATHS = st.sampled_from(("/v1/completions", "/v1/chat/completions"))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=PATHS, whole=JSON, more=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_no_body_makes_a_500(live, path, whole, more):
    for body in (whole, BODY | more, CHAT | more):
        headers = {"Content-Type": "application/json"}
        answer = live.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code in (200, 400, 404), answer.text
        if answer.status_code != 200:
            check_envelope(answer, answer.status_code, answer.json()["error"]["param"])
