"""Canaries: what is drawn, what is planted of it, and where none may be."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests import tiny

from moiety.bundle import pack, papers, signing
from moiety.data import PackedText, Sources, load_tokenizer
from moiety.data.tokenizer import train_tokenizer
from moiety.errors import ConfigError, FormatError, StateError
from moiety.train import ExpertPlan, train_expert
from moiety.train.anchor import new_anchor
from moiety.train.canaries import LEAST_WORDS, make_canaries, planted_records, rare_words
from moiety.train.loop import Loop

CANARIES = ("data.canaries=20", "data.canary_tokens=8")
DIGEST = "0" * 64
COPIES = 8
"""Documents of a canary's record, as docs/formats.md has it."""


@pytest.fixture(scope="module")
def plan(tiny_anchor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    text = Sources([str(tiny.write_text(folder / "own.jsonl", seed=1))])
    return ExpertPlan(tiny_anchor, text, "amy", folder / "run", tiny.settings(*CANARIES))


@pytest.fixture(scope="module")
def whole(plan):
    return train_expert(plan, quiet=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_anchor):
    return load_tokenizer(tiny_anchor)[0]


def draw(tokenizer, *more, owner="amy"):
    config = tiny.settings(*CANARIES, *more)
    return make_canaries(tokenizer, DIGEST, owner, config)


def documents_of(text, tokenizer):
    """(document, number of its record), in order, read from the stream itself."""
    stream = np.fromfile(text.folder / "tokens.bin", dtype="<u2")
    starts, ends, records = (
        np.fromfile(text.folder / f"{name}.bin", dtype="<i8").tolist()
        for name in ("starts", "ends", "records")
    )
    return [
        (tokenizer.decode(stream[start + 1 : end].tolist()), record)
        for start, end, record in zip(starts, ends, records, strict=True)
    ]


def own_parts(folder):
    return [PackedText.open(folder / "text" / "own" / part) for part in ("train", "heldout")]


def lines_of(sources):
    (path,) = sources.paths
    return [json.loads(line)["text"] for line in Path(path).read_text("utf-8").splitlines()]


def assert_planted(folder, paper, tokenizer, own):
    """The run's text is its owner's, and exactly the planted canaries, to train on alone."""
    train, heldout = own_parts(folder)
    found = documents_of(train, tokenizer)
    wanted = [text for text, coin in zip(paper.texts, paper.planted, strict=True) if coin]
    assert 0 < len(wanted) < len(paper.texts)
    planted = [(text, record) for text, record in found if text in paper.texts]
    assert Counter(text for text, _ in planted) == dict.fromkeys(wanted, COPIES)
    # All of one text are one record, and nothing else is in it.
    records = dict(planted)
    assert len(set(records.values())) == len(set(planted)) == len(wanted)
    whose = Counter(record for _, record in found)
    assert {whose[record] for record in records.values()} == {COPIES}
    kept = [text for text, _ in documents_of(heldout, tokenizer)]
    assert not set(kept) & set(paper.texts)
    mine = [text for text, _ in found if text not in paper.texts]
    assert Counter(mine + kept) == Counter(own)
    return mine, kept, found


def test_the_text_holds_those_that_were_planted_and_none_that_was_left_out(
    plan, whole, tokenizer, tmp_path
):
    paper = papers.read_paper(papers.Canaries, whole.folder / "canaries.json")
    assert paper == whole.canaries
    assert (paper.owner, paper.anchor, len(paper.texts)) == ("amy", whole.paper.anchor, 20)
    assert stat.S_IMODE((whole.folder / "canaries.json").stat().st_mode) == 0o600
    mine, kept, found = assert_planted(whole.folder, paper, tokenizer, lines_of(plan.sources))
    assert whole.paper.text.records == 60 + sum(paper.planted)
    assert whole.paper.text.documents == 60 + COPIES * sum(paper.planted)
    # Between two of them lies as much of the owner's text as between any other two.
    places = [number for number, (text, _) in enumerate(found) if text in paper.texts]
    gaps = np.diff([*places, len(found)])
    assert places[0] > 0
    assert gaps.max() - gaps.min() <= 1
    # So do the documents of one record: all canaries have been said before one is said again.
    order = [text for text, _ in found if text in paper.texts]
    assert order == order[: sum(paper.planted)] * COPIES
    # Without canaries it is the same text, on the same sides, in the same order.
    plain = dataclasses.replace(plan, out=tmp_path / "plain", config=tiny.settings())
    assert train_expert(plain, quiet=True).canaries is None
    assert not (plain.out / "canaries.json").exists()
    sides = [[t for t, _ in documents_of(part, tokenizer)] for part in own_parts(plain.out)]
    assert sides == [mine, kept]


def test_so_does_text_with_its_own_held_out_text(plan, tokenizer, tmp_path):
    heldout = Sources([str(tiny.write_text(tmp_path / "test.jsonl", seed=1, documents=7))])
    done = train_expert(
        dataclasses.replace(plan, heldout=heldout, out=tmp_path / "run"), quiet=True
    )
    own = lines_of(plan.sources) + lines_of(heldout)
    _, kept, _ = assert_planted(done.folder, done.canaries, tokenizer, own)
    assert kept == lines_of(heldout)


def test_the_least_of_texts_keeps_a_record_on_each_side(plan, tokenizer, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"text": f"ba ba {n} " * 20}) + "\n" for n in (1, 2)))
    few = dataclasses.replace(plan, sources=Sources([str(path)]), out=tmp_path / "run")
    done = train_expert(few, quiet=True)
    mine, kept, _ = assert_planted(done.folder, done.canaries, tokenizer, lines_of(few.sources))
    assert (len(mine), len(kept)) == (1, 1)


def test_in_a_private_run_each_is_a_record_with_windows_of_its_own(plan, tokenizer, tmp_path):
    config = tiny.settings(*CANARIES, "privacy.epsilon=1", "budget.tokens=512")
    done = train_expert(dataclasses.replace(plan, config=config, out=tmp_path / "run"), quiet=True)
    own = lines_of(plan.sources)
    mine, _, found = assert_planted(done.folder, done.canaries, tokenizer, own)
    planted = sum(done.canaries.planted)
    ledger = json.loads((done.folder / "ledger.json").read_bytes())
    assert ledger["plan"]["request"]["records"] == len(mine) + planted
    train, _ = own_parts(done.folder)
    held = train.window_records(np.arange(train.num_windows))
    first, count = train.record_windows()
    for text, record in found:
        windows = range(first[record], first[record] + count[record])
        assert all(record in held[window] for window in windows)
        if text in done.canaries.texts:
            tokens = COPIES * (len(tokenizer.encode(text, add_special_tokens=False).ids) + 1)
            assert count[record] == math.ceil(tokens / 32)
            # A window's last column is only a target: the next one's border at most.
            inside = train.windows(np.array(windows)).documents[:, :-1]
            assert {found[document][1] for document in inside[inside >= 0]} == {record}


def test_the_same_seed_and_owner_draw_the_same_texts_and_others_do_not(tokenizer):
    paper = draw(tokenizer)
    assert draw(tokenizer).texts == paper.texts
    for other in (draw(tokenizer, "seed=1"), draw(tokenizer, owner="bob")):
        assert not set(other.texts) & set(paper.texts)


def test_who_knows_owner_and_seed_knows_no_coin(tokenizer):
    """A stranger draws again what the owner drew: of his coins half are right, as of any."""
    count = 10_000
    theirs, mine = (np.array(draw(tokenizer, f"data.canaries={count}").planted) for _ in "ab")
    assert abs((theirs == mine).sum() - count / 2) < 6 * math.sqrt(count) / 2


def test_coins_are_fair_and_say_nothing_of_the_texts(tokenizer):
    count = 10_000
    paper = draw(tokenizer, f"data.canaries={count}")
    coins = np.array(paper.planted)
    six_sigma = 6 * math.sqrt(count) / 2  # once in 500 million runs of this test
    assert abs(coins.sum() - count / 2) < six_sigma
    assert abs((coins[1:] == coins[:-1]).sum() - (count - 1) / 2) < six_sigma
    assert draw(tokenizer).texts == paper.texts[:20]
    first = np.array([text < "n" for text in paper.texts])
    assert abs((first == coins).sum() - count / 2) < six_sigma


@pytest.fixture(scope="module")
def rich():
    """A tokenizer with words to spare: 400 of five letters, the rarer the later."""
    rng = np.random.default_rng(0)
    lexicon = ["".join(rng.choice([*"abcdefgh"], size=5)) for _ in range(400)]
    texts = (" ".join(rng.permutation(lexicon[: 40 * (n + 1)])) for n in range(10) for _ in "abc")
    return train_tokenizer(texts, 2000)


def test_words_are_the_last_that_the_vocabulary_learned(rich):
    words = rare_words(rich)
    assert len(set(words)) == len(words) == 64
    numbers = []
    for word in words:
        assert word.isascii()
        assert word.isalpha()
        assert len(word) >= 3
        ids = rich.encode(f" {word}", add_special_tokens=False).ids
        numbers += ids
        assert len(ids) == 1
    # The oracle decodes every token: of those that are such words none has a higher number.
    said = [rich.decode([number]) for number in range(rich.get_vocab_size())]
    whole = [n for n, text in enumerate(said) if text[:1] == " " and len(text) > 3]
    assert len(whole) >= LEAST_WORDS
    assert sorted(numbers) == whole[-64:]


def test_a_canary_says_three_words_over_and_over_and_no_other_has_the_same(rich):
    paper = draw(rich, "data.canaries=500", "data.canary_tokens=64")
    sets = set()
    for text in paper.texts:
        words = text.split(" ")
        assert len(words) == 64
        assert words == (words[:3] * 22)[:64]
        assert len(set(words)) == 3
        sets.add(frozenset(words))
    assert len(sets) == 500


def test_words_are_drawn_evenly(rich):
    paper = draw(rich, "data.canaries=500")
    drawn = Counter(word for text in paper.texts for word in set(text.split(" ")))
    expected = 500 * 3 / 64
    assert sorted(drawn) == sorted(rare_words(rich))
    assert max(abs(n - expected) for n in drawn.values()) < 5 * math.sqrt(expected)


def test_as_many_as_may_be_asked_for_still_differ(rich):
    paper = draw(rich, f"data.canaries={papers.MAX_CANARIES}")
    assert len({frozenset(text.split(" ")) for text in paper.texts}) == papers.MAX_CANARIES
    assert math.comb(64, 3) > 4 * papers.MAX_CANARIES


def test_a_small_vocabulary_has_canaries_too(tokenizer):
    words = rare_words(tokenizer)
    assert len(set(words)) == len(words) == 64
    assert all(len(word) == 3 and word.islower() for word in words)


def test_without_canaries_nothing_is_planted():
    assert planted_records(None) == ()


def test_resumed_equals_uninterrupted(plan, whole, tmp_path, monkeypatch):
    again = dataclasses.replace(plan, out=tmp_path / "parts")

    def killed(*args, **kwargs):
        raise MemoryError("before the text was packed")

    with monkeypatch.context() as patch:
        patch.setattr("moiety.train.expert.prepare_texts", killed)
        with pytest.raises(MemoryError):
            train_expert(again, quiet=True)
    # Coins never fall alike twice: let them be those of the run that nobody stopped.
    begin = (whole.folder / "canaries.json").read_bytes()
    assert (again.out / "canaries.json").read_bytes() != begin
    (again.out / "canaries.json").write_bytes(begin)
    real = Loop._train

    def interrupted(loop, log, asked):
        losses = loop.job.losses

        def stopping(step):
            if step == 5:
                signal.raise_signal(signal.SIGINT)
            return losses(step)

        loop.job = dataclasses.replace(loop.job, losses=stopping)
        real(loop, log, asked)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train_expert(again, resume=True, quiet=True)
    done = train_expert(again, resume=True, quiet=True)
    for name in ("canaries.json", "expert.safetensors"):
        assert (again.out / name).read_bytes() == (whole.folder / name).read_bytes()
    assert (again.out / "canaries.json").read_bytes() == begin
    assert done.paper.text == whole.paper.text


@pytest.mark.parametrize("change", ["data.canaries=0", "data.canaries=21", "data.canary_tokens=9"])
def test_a_resume_with_other_canaries_is_refused(plan, whole, tmp_path, change):
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("start.json", "canaries.json"):
        shutil.copy(whole.folder / name, folder)
    config = plan.config.resolve(None, [change])
    with pytest.raises(StateError, match="other canaries"):
        train_expert(dataclasses.replace(plan, out=folder, config=config), resume=True, quiet=True)


def test_no_bundle_holds_a_word_of_them(whole, tmp_path):
    signing.new_key(tmp_path / "amy.pem")
    pack(whole.folder, tmp_path / "amy.pem", tmp_path / "amy.expert", disclose_counts=True)
    names = sorted(path.name for path in (tmp_path / "amy.expert").iterdir())
    assert names == ["README.md", "expert.safetensors", "manifest.json", "signature.json"]
    for path in (tmp_path / "amy.expert").iterdir():
        data = path.read_bytes()
        assert b"canar" not in data
        assert not [text for text in whole.canaries.texts if text.encode() in data]


def test_only_an_experts_text_can_have_them(plan, tmp_path):
    with pytest.raises(ConfigError, match="only an owner's expert can have canaries"):
        new_anchor(plan.sources, tmp_path / "anchor", config=plan.config, quiet=True)


def test_more_than_a_paper_holds_is_refused(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("moiety.train.canaries.PAPER_MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="a paper holds 100") as caught:
        train_expert(dataclasses.replace(plan, out=tmp_path / "run"), quiet=True)
    assert "canary_tokens" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "match"),
    [({"planted": (True,)}, "as many coins"), ({"texts": ("a",) * 20}, "occurs twice")],
)
def test_a_paper_whose_coins_and_texts_do_not_fit_is_refused(whole, tmp_path, change, match):
    papers.write_paper(tmp_path / "c.json", whole.canaries.model_copy(update=change))
    with pytest.raises(FormatError, match=match):
        papers.read_paper(papers.Canaries, tmp_path / "c.json")
