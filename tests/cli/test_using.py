"""``generate``, ``eval``, ``attribute``: what is on stdout, and that numbers are the model's."""

from __future__ import annotations

import math

import pytest
import torch
from tests import tiny

from moiety.data import Skipped, Sources, load_tokenizer, pack_text

OWNERS = ("amy", "bob", "cat")


@pytest.fixture(scope="module")
def release(tiny_world):
    return tiny_world.release(*OWNERS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return {
        name: tiny.write_text(folder / f"{name}.jsonl", seed=seed, documents=4)
        for seed, name in enumerate(("public", "amy", "bob"))
    }


def test_stdout_of_generate_is_the_continuation_alone(moiety, tiny_world, release):
    words = ["generate", release, "--prompt", "ba deke", "--max-tokens", 9]
    for more, how, chosen in (
        (["--temperature", 0], {"temperature": 0}, OWNERS),
        (["--seed", 4], {"seed": 4}, OWNERS),
        (["--temperature", 0, "--experts", "amy, cat"], {"temperature": 0}, ("amy", "cat")),
        (["--temperature", 0, "--without", "amy"], {"temperature": 0}, ("bob", "cat")),
        (["--temperature", 0, "--experts", ""], {"temperature": 0}, ()),
    ):
        mixture = tiny_world.load(*OWNERS)
        with mixture.only(*chosen):
            expected = mixture.generate("ba deke", max_new_tokens=9, **how)
        assert moiety(*words, *more).out == expected + "\n"


def test_streamed_text_is_the_same_text(moiety, release):
    words = ["generate", release, "--prompt", "ba deke", "--max-tokens", 9, "--temperature", 0]
    assert moiety(*words, "--stream").out.strip() == moiety(*words).out.strip()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--experts", "eve"], "there are: anchor, amy, bob, cat"),
        (["--without", "amy,eve"], "no expert called eve"),
        (["--temperature", "-1"], "temperature must be"),
        (["--max-tokens", "0"], "max tokens"),
        (["--prompt", "ba " * 200], "longer than the model's"),
    ],
)
def test_what_cannot_be_generated_exits_2(moiety, release, more, what):
    said = moiety("generate", release, "--prompt", "ba", *more)
    assert (said.code, said.out) == (2, "")
    assert what in said.err


def packed(release, path, folder):
    """A text's documents, each in windows of its own."""
    tokenizer, separator = load_tokenizer(release)
    return pack_text(
        Sources([str(path)]).documents(Skipped()),
        tokenizer,
        folder,
        window_tokens=32,
        separator=separator,
        align=True,
    )


def bits_by_hand(mixture, text):
    """Bits per byte of all documents of a text, counted token by token."""
    windows = text.windows(range(text.num_windows))
    tokens, documents = torch.from_numpy(windows.tokens), torch.from_numpy(windows.documents)
    nats = mixture.score(tokens, documents)
    same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return float(nats[same].double().sum()) / int(text.document_bytes.sum()) / math.log(2)


def test_eval_scores_every_set_of_experts_on_every_text(
    moiety, tiny_world, release, texts, tmp_path
):
    pairs = [f"{name}={path}" for name, path in texts.items()]
    words = ["--window-tokens", 32, "--json", "--out", tmp_path / "report"]
    said = moiety("eval", release, "--data", *pairs, *words)
    assert said.code == 0, said.err
    table = said.json["bits_per_byte"]
    sets = {"anchor": (), "all": OWNERS}
    for owner in OWNERS:
        sets[f"anchor+{owner}"] = (owner,)
        sets[f"all-{owner}"] = tuple(name for name in OWNERS if name != owner)
    assert set(table) == set(sets)
    mixture = tiny_world.load(*OWNERS)
    for number, (text, path) in enumerate(texts.items()):
        pieces = packed(release, path, tmp_path / str(number))
        for model, chosen in sets.items():
            with mixture.only(*chosen):
                expected = bits_by_hand(mixture, pieces)
            assert table[model][text] == pytest.approx(expected, abs=1e-5)
    assert set(said.json["removal"]) >= {"amy", "bob"}
    assert "gap_closed" in said.json
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000


def test_eval_takes_texts_after_one_flag_or_several(moiety, release, texts):
    pairs = [f"{name}={path}" for name, path in texts.items()][:2]
    words = ["--window-tokens", 32, "--json"]
    one = moiety("eval", release, "--data", *pairs, *words).json
    several = moiety("eval", release, "--data", pairs[0], "--data", pairs[1], *words).json
    assert one["bits_per_byte"] == several["bits_per_byte"]


def test_a_text_that_is_not_there_exits_2(moiety, release, tmp_path):
    said = moiety("eval", release, "--data", f"amy={tmp_path / 'none.jsonl'}")
    assert said.code == 2
    assert "none.jsonl" in said.err


def test_doctor_finds_this_machine_well(moiety):
    said = moiety("doctor", "--json")
    assert said.code == 0, said.out
    assert said.json["healthy"] is True
    assert {"torch", "python", "device"} <= {f["what"] for f in said.json["findings"]}


def test_attribute_prints_a_table_and_the_same_numbers_as_json(moiety, release, texts):
    said = moiety("attribute", release, texts["amy"], texts["bob"], "--json", "--max-tokens", 900)
    assert said.code == 0
    found = said.json
    assert list(found["owners"]) == list(OWNERS)
    total = sum(owner["shapley"] for owner in found["owners"].values())
    assert total == pytest.approx(found["together"], abs=1e-6)
    for name, owner in found["owners"].items():
        row = next(line for line in said.out.splitlines() if line.split()[:1] == [name])
        assert f"{owner['shapley']:+.4f}" in row
        assert f"{owner['routing']:.0%}" in row
    assert f"{found['tokens']:,} tokens" in said.out
    assert "8 sets of owners (every set scored)" in said.out


def test_attribute_refuses_what_it_cannot_read(moiety, release, tmp_path):
    said = moiety("attribute", release, tmp_path / "no.txt")
    assert said.code == 2
    assert "no.txt" in said.err
    assert moiety("attribute", release).code == 2


def test_a_report_that_is_there_already_is_refused_before_anything_is_scored(
    moiety, texts, tmp_path
):
    (tmp_path / "old.html").write_text("x")
    data = f"public={texts['public']}"
    said = moiety("eval", tmp_path / "nothing", "--data", data, "--out", tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "exists already" in said.err
