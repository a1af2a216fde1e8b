"""A refusal names the field that an app set, and tells what to mend there."""

from __future__ import annotations

import re

import pytest
from tests.serve.conftest import policed
from tests.serve.test_refusals import BAD, BODY, CHAT, check_envelope


def reaches(body, param):
    """Whether a body has the field that ``param`` names, or would in an object that it has."""
    *way, last = param.split(".")
    for part in way:
        body = body[int(part)] if isinstance(body, list) else body[part]
    return isinstance(body, dict) or int(last) < len(body)


def wrong_bodies():
    """Each bad value in its body, and unknown fields that are called like types."""
    texts = [{"type": "text"}, 5, {"type": "text", "text": 5}, "a"]
    contents = [5, [], *([text] for text in texts)]
    turns = [5, {"role": "user"}, *({"role": "user", "content": one} for one in contents)]
    for name, values in BAD.items():
        yield from (("/v1/completions", BODY | {name: value}) for value in values)
    yield from (("/v1/chat/completions", CHAT | {"messages": [turn]}) for turn in turns)
    for name in ("str", "int", "constrained-str", "list[str]"):
        yield "/v1/completions", BODY | {name: 1}
        yield "/v1/completions", BODY | {"moiety": {name: 1}}


@pytest.mark.parametrize(("path", "body"), [*wrong_bodies()])
def test_what_is_wrong_is_told_by_the_fields_of_the_body_alone(live, path, body):
    told = live.post(path, json=body).json()["error"]
    assert told["param"] is None or reaches(body, told["param"]), told
    if told["code"] == "unknown_parameter":
        assert told["message"] == f"unknown field: {told['param']}"
    else:
        assert not re.search(r"constrained|list\[|instance|dictionary|None", told["message"])


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"stop": list("abcde")}, "stop", "at most 4 items"),
        ({"stop": ["a", ""]}, "stop.1", "at least 1 character"),
        ({"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"moiety": 5}, "moiety", "an object"),
        ({"constrained-str": 1}, "constrained-str", "unknown field: constrained-str"),
    ],
)
def test_what_is_told_is_what_can_be_mended(live, more, param, words):
    assert words in check_envelope(live.post(json=BODY | more), 400, param)["message"]


def test_a_body_that_is_no_object_is_told_so(live):
    assert check_envelope(live.post(json=[]), 400)["message"] == "the body should be an object"


@pytest.fixture(scope="module")
def house(release_with_terms, tmp_path_factory):
    keys = {"some": {"experts": ["amy", "dan-b"]}, "tied": {"bound": ["amy"]}}
    with policed(release_with_terms, tmp_path_factory.mktemp("params"), keys) as (
        live,
        secrets,
        *_,
    ):
        yield live, secrets


@pytest.mark.parametrize("key", ["some", "tied"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "release+bob"}, "model"),
        ({"moiety": {"experts": ["amy", "bob"]}}, "moiety.experts"),
        ({"moiety": {"without": ["amy"]}}, "moiety.without"),
    ],
)
def test_a_set_that_may_not_be_had_is_told_by_the_field_that_names_it(house, key, fields, param):
    live, secrets = house
    answer = live.post(key=secrets[key], json=BODY | {"model": "release", "prompt": "w1"} | fields)
    if key == "some" and param == "moiety.without":
        assert answer.status_code == 200
    else:
        assert check_envelope(answer, 403, param)["code"] == "expert_not_allowed"


@pytest.mark.parametrize("wish", ["+amy-dan-b", "-amy+dan-b", "+Amy", "+amy+amy", "-bo", "+"])
def test_an_id_that_names_no_set_is_told_how_sets_are_named_and_whose_experts_there_are(
    house, wish
):
    live, secrets = house
    for key, experts in (("some", "amy, dan-b"), ("tied", "amy")):
        asked = BODY | {"model": f"release{wish}", "prompt": "w1"}
        words = check_envelope(live.post(key=secrets[key], json=asked), 404, "model")["message"]
        assert words == (
            f"no such model here: 'release{wish}'; release takes experts after + or after -, "
            f"not after both, each once: {experts}"
        )
    asked = BODY | {"model": "gpt-4", "prompt": "w1"}
    words = check_envelope(live.post(key=secrets["some"], json=asked), 404, "model")["message"]
    assert words == "no such model here: 'gpt-4'; /v1/models lists those there are"
