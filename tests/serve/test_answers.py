"""Every field of a request does what it says, asked by OpenAI's own client over a socket."""

from __future__ import annotations

import math

import openai
import pytest
import torch
from tests import tiny
from tests.serve.conftest import told_server
from tests.serve.engines import short

from moiety.data import load_tokenizer

PROMPT = "ba ba deke"
SET = ("anchor", "amy", "bob", "cat")


def ask(client, prompt=PROMPT, **how):
    how = {"model": "mixture", "temperature": 0, "max_tokens": 8} | how
    return client.completions.create(prompt=prompt, **how)


@pytest.fixture(scope="module")
def mixture(tiny_world):
    return tiny_world.load("amy", "bob", "cat")


@pytest.mark.parametrize("prompt", tiny.PROMPTS)
def test_a_greedy_answer_is_the_mixtures(client, mixture, prompt):
    done = ask(client, prompt, max_tokens=12)
    assert done.choices[0].text == tiny.greedy_by_recomputation(mixture, prompt, 12)
    assert done.choices[0].finish_reason in ("length", "stop")
    prompt_tokens = len(mixture.tokenizer(prompt)["input_ids"])
    assert done.usage.prompt_tokens == prompt_tokens
    assert done.usage.total_tokens == prompt_tokens + done.usage.completion_tokens


@pytest.mark.parametrize(
    ("how", "experts"),
    [
        ({"model": "mixture+amy"}, ("amy",)),
        ({"model": "mixture+cat+bob"}, ("bob", "cat")),
        ({"model": "mixture-amy"}, ("bob", "cat")),
        ({"model": "mixture-cat-amy"}, ("bob",)),
        ({"model": "mixture+anchor"}, ()),
        ({"extra_body": {"moiety": {"experts": ["bob"]}}}, ("bob",)),
        ({"extra_body": {"moiety": {"experts": []}}}, ()),
        ({"extra_body": {"moiety": {"without": ["bob"]}}}, ("amy", "cat")),
        ({"extra_body": {"moiety": {"purpose": "research"}}}, ("amy", "bob", "cat")),
    ],
)
def test_a_set_is_used_and_told(client, mixture, live, how, experts):
    done = ask(client, max_tokens=12, **how)
    assert done.choices[0].text == tiny.greedy_by_recomputation(mixture, PROMPT, 12, experts)
    told = done.moiety
    assert told["experts"] == ["anchor", *experts]
    assert told["roster"] == live.house.served.digest
    assert done.system_fingerprint == "fp_" + told["roster"][:16]
    assert set(told["shares"]) == {"anchor", *experts}
    assert math.isclose(sum(told["shares"].values()), 1, abs_tol=1e-5)


def test_shares_are_the_mean_weight_over_the_answers_tokens(client, mixture):
    done = ask(client, max_tokens=6, extra_body={"moiety": {"routing": True}})
    rows = done.choices[0].moiety["routing"]
    ids = mixture.tokenizer(PROMPT + done.choices[0].text)["input_ids"]
    assert len(rows) == done.usage.completion_tokens == 6
    seen = []
    with mixture.watching(seen.append):
        tiny.logits_of(mixture, torch.tensor([ids[:-1]]))
    expected = seen[0][0, -6:]
    torch.testing.assert_close(torch.tensor(rows), expected)
    means = dict(zip(SET, expected.double().mean(0).tolist(), strict=True))
    assert done.moiety["shares"] == pytest.approx(means)


def test_routing_is_told_to_who_asks_alone(client):
    assert "moiety" not in ask(client).choices[0].model_extra


def test_n_prompts_and_seeds(client):
    done = ask(client, ["ba", "mo"], n=3, temperature=1.5, seed=5)
    assert [choice.index for choice in done.choices] == list(range(6))
    texts = [choice.text for choice in done.choices]
    assert len(set(texts[:3])) > 1
    again = ask(client, ["ba", "mo"], n=3, temperature=1.5, seed=5)
    assert [choice.text for choice in again.choices] == texts
    alone = ask(client, "mo", temperature=1.5, seed=6)
    assert alone.choices[0].text == texts[4], "choice i of a seed is choice 0 of seed + i"
    assert done.usage.prompt_tokens < sum(
        ask(client, one).usage.prompt_tokens * 3 for one in ("ba", "mo")
    )


def test_prompts_of_tokens_are_prompts_of_text(client, release):
    tokenizer, separator = load_tokenizer(release)
    ids = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    text = ask(client).choices[0].text
    assert ask(client, ids).choices[0].text == text
    assert ask(client, [separator, *ids]).choices[0].text == text
    both = ask(client, [ids, ids[:3]])
    assert [choice.text for choice in both.choices] == [text, ask(client, ids[:3]).choices[0].text]


def test_a_written_separator_is_characters(client, live, release):
    tokenizer, separator = load_tokenizer(release)
    ids = live.house.texts.encode("a<|endoftext|>b<|pad|>", 100, "prompt")
    assert ids[0] == separator
    assert separator not in ids[1:]
    assert tokenizer.decode(ids[1:]) == "a<|endoftext|>b<|pad|>"
    assert ask(client, "a<|endoftext|>b").usage.prompt_tokens > 5


def test_temperature_and_top_p(client):
    greedy = ask(client).choices[0].text
    for seed in range(4):
        how = {"temperature": 1.9, "seed": seed}
        assert ask(client, top_p=1e-6, **how).choices[0].text == greedy
        assert ask(client, temperature=1e-300, seed=seed).choices[0].text == greedy
    assert any(ask(client, temperature=1.9, seed=s).choices[0].text != greedy for s in range(4))


def test_what_is_not_said_has_openais_defaults(live):
    done = live.client().completions.create(model="mixture", prompt="ba", seed=1)
    hot = live.client().completions.create(
        model="mixture", prompt="ba", seed=1, temperature=1, top_p=1, n=1, max_tokens=16
    )
    assert done.choices[0].text == hot.choices[0].text
    assert done.usage.completion_tokens <= 16


def test_a_field_that_asks_for_nothing_is_accepted(live):
    body = {"model": "mixture", "prompt": "ba", "temperature": 0, "max_tokens": 2}
    nothings = {
        "best_of": 1,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "suffix": None,
        "user": None,
        "logprobs": None,
        "stop": None,
        "seed": None,
        "stream": None,
        "moiety": None,
    }
    assert (
        live.post(json=body | nothings).json()["choices"] == live.post(json=body).json()["choices"]
    )


def logprobs_by_hand(mixture, ids):
    logits = tiny.logits_of(mixture, torch.tensor([ids]))[0]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("count", [0, 3])
def test_logprobs_of_completions_are_four_arrays(client, mixture, count):
    done = ask(client, logprobs=count)
    told, text = done.choices[0].logprobs, done.choices[0].text
    ids = mixture.tokenizer(PROMPT + text)["input_ids"]
    begin = done.usage.prompt_tokens
    table = logprobs_by_hand(mixture, ids)
    expected = [float(table[place - 1, ids[place]]) for place in range(begin, len(ids))]
    assert told.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert "".join(told.tokens) == text
    assert [text[at:].startswith(t) for at, t in zip(told.text_offset, told.tokens, strict=True)]
    for place, (token, top) in enumerate(zip(told.tokens, told.top_logprobs, strict=True)):
        assert token in top
        assert max(count, 1) <= len(top) <= count + 1
        assert top[token] == told.token_logprobs[place]


def test_echo_tells_the_prompt(client):
    plain = ask(client).choices[0].text
    assert ask(client, echo=True).choices[0].text == PROMPT + plain
    both = ask(client, [PROMPT, "mo"], echo=True, n=2).choices
    assert [
        choice.text.startswith(p) for choice, p in zip(both, [PROMPT] * 2 + ["mo"] * 2, strict=True)
    ]


def test_echo_with_logprobs_scores_the_prompt(client, mixture):
    done = ask(client, echo=True, logprobs=2, max_tokens=0)
    told, choice = done.choices[0].logprobs, done.choices[0]
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert done.usage.completion_tokens == 0
    assert done.moiety["shares"] is None
    ids = mixture.tokenizer(PROMPT)["input_ids"]
    table = logprobs_by_hand(mixture, ids)
    expected = [float(table[place - 1, ids[place]]) for place in range(1, len(ids))]
    assert told.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert told.text_offset == [
        PROMPT.index("".join(told.tokens[n:])) for n in range(len(told.tokens))
    ]
    more = ask(client, echo=True, logprobs=2, max_tokens=3).choices[0]
    assert more.logprobs.tokens[: len(told.tokens)] == told.tokens
    assert more.text == PROMPT + ask(client, max_tokens=3).choices[0].text
    assert more.text[more.logprobs.text_offset[-1] :].startswith(more.logprobs.tokens[-1])


def stream_of(client, **how):
    return list(ask(client, stream=True, **how))


def test_a_stream_is_the_whole_answer(client):
    whole = ask(client, max_tokens=20, n=2, seed=1, temperature=1.0)
    chunks = stream_of(
        client,
        max_tokens=20,
        n=2,
        seed=1,
        temperature=1.0,
        stream_options={"include_usage": True},
    )
    *rest, last = chunks
    texts, reasons = {0: "", 1: ""}, {}
    firsts = {chunk.choices[0].index: getattr(chunk, "moiety", None) for chunk in reversed(rest)}
    told = {name: whole.moiety[name] for name in ("experts", "roster")}
    assert firsts == {0: told, 1: told}, "who answers is told before the end"
    for chunk in rest:
        assert chunk.usage is None
        (choice,) = chunk.choices
        assert choice.index not in reasons, "nothing comes after the end"
        texts[choice.index] += choice.text
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert last.choices == []
    assert last.usage == whole.usage
    assert last.moiety == whole.moiety == rest[-1].moiety
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stream_has_no_usage_unless_asked(client):
    chunks = stream_of(client)
    assert all(chunk.choices for chunk in chunks)
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_logprobs_and_routing_of_a_stream_are_the_whole_answers(client):
    how = {"logprobs": 2, "extra_body": {"moiety": {"routing": True}}, "echo": True}
    whole = ask(client, **how).choices[0]
    found = {"tokens": [], "token_logprobs": [], "text_offset": [], "top_logprobs": []}
    rows = []
    for chunk in stream_of(client, **how):
        rows += chunk.choices[0].moiety["routing"]
        for name, values in found.items():
            values += getattr(chunk.choices[0].logprobs, name)
    assert found == {name: getattr(whole.logprobs, name) for name in found}
    assert rows == whole.moiety["routing"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", range(1, 24, 3))
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_ends_the_text_wherever_it_lies(client, place, length, stream):
    full = ask(client, max_tokens=20).choices[0].text
    stop = full[place : place + length]
    if not stop.strip():
        pytest.skip("no text there")
    expected = full[: full.index(stop)]
    how = {"max_tokens": 20, "stop": ["never there", stop], "logprobs": 0}
    if not stream:
        choice = ask(client, **how).choices[0]
        text, reason, starts = choice.text, choice.finish_reason, choice.logprobs.text_offset
    else:
        chunks = [chunk.choices[0] for chunk in stream_of(client, **how)]
        text, reason = "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason
        starts = [at for chunk in chunks for at in chunk.logprobs.text_offset]
    assert (text, reason) == (expected, "stop")
    assert all(start < max(len(expected), 1) for start in starts)


def test_what_only_begins_a_stop_is_told_in_the_end(client):
    full = ask(client, max_tokens=10).choices[0].text
    stop = full[-2:] + "and never more"
    assert ask(client, max_tokens=10, stop=stop).choices[0].text == full
    assert "".join(c.choices[0].text for c in stream_of(client, max_tokens=10, stop=stop)) == full


def test_models_are_those_that_can_be_used(client, live):
    ids = [model.id for model in client.models.list()]
    names = ("amy", "bob", "cat")
    assert ids == ["mixture", *(f"mixture{sign}{name}" for sign in "+-" for name in names)]
    for id_ in ids:
        assert client.models.retrieve(id_).id == id_
    assert client.models.retrieve("mixture-bob").moiety["experts"] == ["anchor", "amy", "cat"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_a_chat_without_a_template_says_so(client):
    with pytest.raises(openai.BadRequestError, match="no chat template") as caught:
        client.chat.completions.create(model="mixture", messages=[{"role": "user", "content": "a"}])
    assert caught.value.code == "no_chat_template"


def test_health_and_metrics(client, live):
    ask(client, max_tokens=3)
    assert live.get("/health").json() == {"status": "ready"}
    text = live.get("/metrics").text
    assert "moiety_ready 1.0" in text
    assert 'moiety_completion_tokens_total{expert="amy",key="local"}' in text
    assert 'moiety_answers_total{key="local",status="200"}' in text


def test_who_an_app_says_asks_changes_nothing_and_is_kept_nowhere(release, tmp_path, caplog):
    body = {"model": "mixture", "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    label = "label-of-somebody"
    with told_server(release, tmp_path, short, name="mixture") as live, caplog.at_level(0):
        plain, labelled = (live.post(json=body | more).json() for more in ({}, {"user": label}))
        assert labelled["choices"] == plain["choices"]
        assert labelled["usage"] == plain["usage"]
        assert live.post(json=body | {"user": 5}).json()["error"]["param"] == "user"
        chat = {"model": "mixture", "messages": [{"role": "user", "content": "a"}], "user": label}
        told = live.post("/v1/chat/completions", json=chat).json()["error"]
        assert told["code"] == "no_chat_template", "what a chat without a label is refused with"
        text = live.get("/metrics").text + live.get("/v1/usage").text + caplog.text + str(live.said)
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert label not in text
    assert label.encode() not in kept
