"""The harness on a mixture: every answer against a pass by hand, and ``hf`` on the same release."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests import tiny

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'moiety[eval]'"
)
# The harness and what it pulls in warn on their own account.
pytestmark = pytest.mark.filterwarnings("ignore")

OWNERS = ("amy", "bob", "cat")
PAIRS = [
    ("ba ba deke", " nusa"),
    ("mo", " lito ba nusa"),
    ("lito ba nusa ba mo rarara ", "deke"),  # the blank moves into the answer
    ("", "nusa ba"),
    ("ba deke mo", " ba"),
]


def harness(*given, **how):
    from moiety.evaluate.harness import HarnessModel

    return HarnessModel(*given, **how)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def mixture(tiny_world):
    return tiny_world.load(*OWNERS)


def by_hand(mixture, context, answer):
    """One request in a pass of its own, without padding; which tokens are the answer by length."""
    encode = mixture.tokenizer.encode
    whole = encode(context.rstrip() + context[len(context.rstrip()) :] + answer)
    begin = len(encode(context.rstrip())) if context else 1
    scores = tiny.logits_of(mixture, torch.tensor([whole[:-1]])).double().log_softmax(-1)[0]
    total, greedy = 0.0, True
    for place in range(begin, len(whole)):
        total += float(scores[place - 1, whole[place]])
        greedy &= int(scores[place - 1].argmax()) == whole[place]
    return total, greedy


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_answer_is_that_of_a_pass_of_its_own(tiny_world, batch_size):
    mixture = tiny_world.load(*OWNERS)
    model = harness(mixture, batch_size=batch_size)
    for names in (OWNERS, ("amy",), ()):
        with mixture.only(*names):
            found = model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
            expected = [by_hand(mixture, *pair) for pair in PAIRS]
        for (value, greedy), (by_pass, greedy_by_pass) in zip(found, expected, strict=True):
            assert value == pytest.approx(by_pass, abs=1e-4)
            assert greedy == greedy_by_pass


def test_the_greedy_choice_is_known_as_such(mixture):
    model, ids = harness(mixture), mixture.tokenizer.encode("ba deke")
    likely = []
    for _ in range(3):
        likely.append(int(tiny.logits_of(mixture, torch.tensor([ids + likely]))[0, -1].argmax()))
    other = [likely[0], likely[1], 2 if likely[2] != 2 else 3]
    answers = model._loglikelihood_tokens([(("", ""), ids, one) for one in (likely, other)])
    assert [greedy for _, greedy in answers] == [True, False]
    assert model._loglikelihood_tokens([(("", ""), ids, [])]) == [(0.0, True)]


def test_a_whole_text_costs_what_the_mixture_says(mixture):
    texts = list(tiny.language(1, 4, words=30))
    model = harness(mixture, batch_size=3)
    with mixture.without("bob"):
        found = model.loglikelihood_rolling(
            requests("loglikelihood_rolling", [(t,) for t in texts])
        )
        for text, value in zip(texts, found, strict=True):
            ids = torch.tensor([mixture.tokenizer.encode(text)])
            nats = mixture.score(ids, torch.zeros_like(ids))
            assert value == pytest.approx(-float(nats.double().sum()), rel=1e-5)


def test_a_long_text_is_the_sum_of_its_pieces(mixture):
    """Pieces of sixteen; the last one sees sixteen tokens, too, and counts those that are left."""
    text = next(tiny.language(1, 1, words=60))
    ids = mixture.tokenizer.encode(text)[1:]
    model = harness(mixture, max_tokens=16)
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    expected = 0.0
    for at in range(0, len(ids), 16):
        end = min(at + 16, len(ids))
        piece = torch.tensor([([0, *ids])[end - 16 : end + 1]])
        nats = mixture.score(piece, torch.zeros_like(piece))[0, at - end :]
        expected -= float(nats.double().sum())
    assert len(ids) > 32
    assert len(ids) % 16
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_it_continues_as_the_mixture_does_and_stops_where_told(mixture, batch_size):
    prompts = [*tiny.PROMPTS, "deke ba"]
    model = harness(mixture, batch_size=batch_size)
    wish = {"until": [" ", "."], "max_gen_toks": 9, "do_sample": False}
    for names in (OWNERS, ("cat",)):
        with mixture.only(*names):
            whole = [tiny.greedy_by_recomputation(mixture, p, 9, names) for p in prompts]
            free = model.generate_until(
                requests("generate_until", [(p, {"max_gen_toks": 9}) for p in prompts])
            )
            stopped = model.generate_until(requests("generate_until", [(p, wish) for p in prompts]))
        assert free == whole
        assert stopped == [text.split(" ")[0].split(".")[0] for text in whole]


def test_a_context_that_is_too_long_loses_its_beginning(mixture):
    model, long = harness(mixture, max_tokens=20), "ba deke mo " * 30
    ids = mixture.tokenizer.encode(long)
    (text,) = model.generate_until(requests("generate_until", [(long, {"max_gen_toks": 8})]))
    tail = torch.tensor([ids[-12:]])
    for _ in range(8):
        best = tiny.logits_of(mixture, tail)[0, -1].argmax()
        tail = torch.cat([tail, best[None, None]], dim=1)
    assert text == mixture.tokenizer.decode(tail[0, 12:], skip_special_tokens=True)


TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "goes_on": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Three kinds of task on a local file, each a YAML page."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = [
        {"text": text[:20], "choices": [" nusa", " ba", " mo"], "answer": n % 3}
        for n, text in enumerate(tiny.language(1, 6, words=12))
    ]
    lines = [json.dumps(one) for one in documents]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    for name, told in TASKS.items():
        page = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "test.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **told,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(page))  # JSON is YAML
    return folder, documents


def run(model, folder):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    return {
        name: {k: v for k, v in row.items() if "," in k} for name, row in found["results"].items()
    }


def test_the_harness_runs_local_tasks_on_a_masked_model(tiny_world, tasks):
    folder, documents = tasks
    mixture = tiny_world.load(*OWNERS)
    with mixture.without("amy"):
        found = run(harness(mixture), folder)
        right = 0
        nats = size = 0.0
        for one in documents:
            values = [by_hand(mixture, one["text"], choice)[0] for choice in one["choices"]]
            right += values.index(max(values)) == one["answer"]
            ids = torch.tensor([mixture.tokenizer.encode(one["text"])])
            nats += float(mixture.score(ids, torch.zeros_like(ids)).double().sum())
            size += len(one["text"].encode())
    assert found["choice"]["acc,none"] == pytest.approx(right / len(documents))
    assert found["whole"]["bits_per_byte,none"] == pytest.approx(
        nats / size / math.log(2), rel=1e-5
    )
    assert 0 <= found["goes_on"]["exact_match,none"] <= 1
    every = run(harness(mixture), folder)
    assert every["whole"] != found["whole"]


def test_the_stock_path_loads_a_plain_checkpoint_and_agrees(tiny_world, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM

    from moiety.merge import exporting

    folder, _ = tasks
    exporting.export_plain(tiny_world.release(*OWNERS), tmp_path / "plain")
    stock = HFLM(pretrained=str(tmp_path / "plain"), dtype="float32", device="cpu")
    ours = harness(tiny_world.load(*OWNERS))
    ask = requests("loglikelihood", PAIRS)
    for one, other in zip(ours.loglikelihood(ask), stock.loglikelihood(ask), strict=True):
        assert one == (pytest.approx(other[0], abs=1e-4), other[1])
    theirs, mine = run(stock, folder), run(ours, folder)
    assert mine["choice"] == theirs["choice"]
    assert mine["goes_on"] == theirs["goes_on"]
