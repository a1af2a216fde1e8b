"""The report: every number on the page, nobody's markup in it, nothing to fetch, same bytes."""

import html
import io
import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from moiety.errors import StateError
from moiety.evaluate import bootstrap, charts, pages, report, tables
from moiety.evaluate.bootstrap import TextScores
from moiety.evaluate.report import Evaluation, ShortTexts, TextFacts
from moiety.evaluate.routing import TokenShare, place_names

OWNERS = ("hospital", "law-office", "software-house")


def make(owners=OWNERS, *, seed=0, foreign="novels"):
    """An evaluation from simulated scores in which experts help on their own text."""
    generator = np.random.default_rng(seed)
    texts = ["public", *owners, foreign]
    models = ["anchor", *(f"anchor+{name}" for name in owners), "all"]
    models += [f"all-{name}" for name in owners]
    scores = {text: _scores(generator, text, models, owners) for text in texts}
    measures = bootstrap.measure(models, scores, samples=200)
    shares = {
        text: dict(zip(["anchor", *owners], generator.dirichlet(1 + 9 * own), strict=True))
        for text in texts
        for own in [np.array([text not in owners, *(text == name for name in owners)])]
    }
    return Evaluation(
        release="5f" * 32,
        top_k=len(owners) + 1,
        texts=tuple(
            TextFacts(name=text, documents=60, tokens=21_234 + n, bytes=91_011 + n)
            for n, text in enumerate(texts)
        ),
        models=tuple(models),
        routing={text: {k: float(v) for k, v in row.items()} for text, row in shares.items()},
        **_routing(generator, shares),
        beginnings=tuple(_beginning(scores, models, n) for n in (32, 128)),
        command="moiety eval release --text public=public.jsonl --out report",
        seconds=83.4,
        versions={"moiety": "0.1.0", "torch": "2.13.0"},
        **asdict(measures),
    )


def _routing(generator, shares):
    """Shares that grow; public text ends early. Every token has a space and a break."""
    names = list(next(iter(shares.values())))
    known_P = np.array([0.1, 0.5, 0.9, 1.0]) + generator.uniform(-0.05, 0, 4)
    by_place = {
        text: np.outer(known_P, list(row.values())) + (1 - known_P)[:, None] / len(names)
        for text, row in shares.items()
    }
    by_place["public"] = by_place["public"][:3]
    return {
        "routing_places": place_names(),
        "routing_by_place": {
            text: {name: tuple(map(float, rows[:, n])) for n, name in enumerate(names)}
            for text, rows in by_place.items()
        },
        "used_together": {
            text: {a: {b: float(min(row[a], row[b])) for b in names} for a in names}
            for text, row in shares.items()
        },
        "tokens_taken": {
            name: tuple(
                TokenShare(
                    token=f" {name[:3]}\n{chr(97 + n)}",
                    times=1000 + n,
                    share=0.9,
                    excess=0.5 - n / 40,
                )
                for n in range(12)
            )
            for name in names
        },
    }


def _beginning(scores, models, first):
    """As if every document were ``first`` bytes shorter, and every byte a token."""
    cut = {n: TextScores(one.nats, one.document_bytes - first) for n, one in scores.items()}
    found = bootstrap.measure(models, cut, samples=200)
    return ShortTexts(
        first_tokens=first,
        tokens={name: int(one.document_bytes.sum()) for name, one in cut.items()},
        bits_per_token=found.bits_per_byte,
        bits_per_token_interval=found.bits_per_byte_interval,
        gap_closed=found.gap_closed,
        gap_closed_interval=found.gap_closed_interval,
    )


def _scores(generator, text, models, owners):
    bytes_D = generator.integers(500, 4000, 60).astype(float)
    hard_D = generator.normal(0, 0.2, 60)
    rows = []
    for model in models:
        helps = text in owners and (model == f"anchor+{text}" or (model[:3] == "all"))
        helps = helps and model != f"all-{text}"
        rate = 2.4 - 0.8 * helps + 0.02 * (model[:3] == "all") + generator.normal(0, 0.01)
        rows.append((rate + hard_D + generator.normal(0, 0.03, 60)) * math.log(2) * bytes_D)
    return TextScores(np.array(rows), bytes_D)


@pytest.fixture(scope="module")
def evaluation():
    return make()


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report"
    report.write_report(evaluation, path)
    return path


def visible(page):
    """What a reader sees: no style, no tags, entities resolved, spaces collapsed."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def numbers(evaluation):
    """Every number of the evaluation as the page must show it."""
    for model in evaluation.models:
        for text in evaluation.text_names:
            value = evaluation.bits_per_byte[model][text]
            low, high = evaluation.bits_per_byte_interval[model][text]
            yield f"{value:.3f} {low:.3f} to {high:.3f}"
            if model != "anchor":
                yield f"{round(value - evaluation.bits_per_byte['anchor'][text], 3) + 0.0:+.3f}"
    for short in evaluation.beginnings:
        low, high = short.gap_closed_interval
        shares = [f"{100 * share:.1f} %" for share in (short.gap_closed, low, high)]
        yield f"first {short.first_tokens} tokens {shares[0]} {shares[1]} to {shares[2]}"
        for model in evaluation.models:
            for text in evaluation.text_names:
                low, high = short.bits_per_token_interval[model][text]
                yield f"{short.bits_per_token[model][text]:.3f} {low:.3f} to {high:.3f}"
    for owner, price in evaluation.removal.items():
        low, high = evaluation.removal_interval[owner]
        yield f"{owner} {price:+.3f} {low:+.3f} to {high:+.3f}"
    for text, row in evaluation.routing.items():
        shares = " ".join(f"{100 * row[name]:.1f} %" for name in evaluation.experts)
        yield f"{text} {shares}"
    for text, by_place in evaluation.routing_by_place.items():
        own = text if text in OWNERS else "anchor"
        shares = [f"{100 * share:.1f} %" for share in by_place[own]]
        yield " ".join([text, own, *shares, *["-"] * (4 - len(shares))])
    for expert, tokens in evaluation.tokens_taken.items():
        for one in tokens:
            yield f"·{expert[:3]}⏎{one.token[-1]} +{100 * one.excess:.1f}, {one.times:,} times"
    for text in evaluation.texts:
        yield f"{text.name} {text.documents:,} {text.tokens:,} {text.bytes:,}"
    low, high = evaluation.gap_closed_interval
    yield f"{100 * evaluation.gap_closed:.1f} % of the gap closed"
    yield f"{100 * low:.1f} % to {100 * high:.1f} %"
    yield from (evaluation.command, evaluation.release, "83.4 seconds", "torch 2.13.0")


def test_the_page_shows_every_number(evaluation, folder):
    seen = visible((folder / "report.html").read_text("utf-8"))
    assert [number for number in numbers(evaluation) if number not in seen] == []


class Links(HTMLParser):
    """Collects every tag, and every attribute that can make a browser fetch something."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        fetching = ("src", "srcset", "href", "data", "action", "poster", "background")
        self.links += [value for name, value in attrs if name in fetching]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_the_page_needs_nothing_else(folder):
    page = (folder / "report.html").read_text("utf-8")
    parser = Links()
    parser.feed(page)
    assert parser.links
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert not parser.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"https?://|url\(|@import", page)


def test_the_page_is_well_formed(folder):
    """Every opened tag is closed in order."""
    open_tags = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "source", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Nesting().feed((folder / "report.html").read_text("utf-8"))
    assert open_tags == []


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=y>', "$\\frac{1$ [red]{{7*7}}")


def test_hostile_names_stay_text_everywhere():
    evaluation = make(HOSTILE, foreign="医療 & co")
    page = report.render_page(
        evaluation, charts.draw(evaluation, dark=False), charts.draw(evaluation, dark=True)
    )
    parser = Links()
    parser.feed(page)
    assert "script" not in parser.tags
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    seen = visible(re.sub(r'"data:image[^"]*"', '""', page))
    for name in (*HOSTILE, "医療 & co"):
        assert name in html.unescape(page), name
    assert "49" not in re.findall(r"\[red\]\S*", seen)
    assert "[red]{{7*7}}" in terminal(evaluation)


def test_best_values_are_marked_once_a_text(evaluation, folder):
    page = (folder / "report.html").read_text("utf-8")
    best = re.findall(r'<td class="best"><b>([\d.]+)</b>', page)
    tables = [evaluation.bits_per_byte, *(s.bits_per_token for s in evaluation.beginnings)]
    expected = sorted(
        f"{min(row[text] for row in values.values()):.3f}"
        for values in tables
        for text in evaluation.text_names
    )
    assert sorted(best) == expected


def terminal(evaluation):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    for table in tables.render_table(evaluation):
        console.print(table)
    return console.file.getvalue()


def right(text):
    return f"anchor+{text}" if text in OWNERS else "anchor"


def test_the_terminal_shows_every_number(evaluation):
    seen = " ".join(terminal(evaluation).replace("│", " ").split())
    for model in evaluation.models:
        row = [f"{evaluation.bits_per_byte[model][text]:.3f}" for text in evaluation.text_names]
        assert re.search(re.escape(model) + " " + r" ±[\d.]+ ".join(map(re.escape, row)), seen)
    for short in evaluation.beginnings:
        means = [
            np.mean([short.bits_per_token[how(text)][text] for text in evaluation.text_names])
            for how in (lambda _: "anchor", right, lambda _: "all")
        ]
        shares = [
            f"{100 * share:.1f} %" for share in (short.gap_closed, *short.gap_closed_interval)
        ]
        row = f"{shares[0]} {shares[1]} to {shares[2]} " + " ".join(f"{m:.3f}" for m in means)
        assert f"first {short.first_tokens} tokens {row}" in seen
    for owner, price in evaluation.removal.items():
        assert f"{owner} {price:+.3f}" in seen
    for text, shares in evaluation.routing.items():
        row = " ".join(f"{100 * shares[name]:.1f} %" for name in evaluation.experts)
        assert f"{text} {row}" in seen
        one, other = evaluation.most_used_pairs[text]
        share = evaluation.used_together[text][one][other]
        assert f"{one} and {other}, {100 * share:.1f} %" in seen
    assert f"gap closed {100 * evaluation.gap_closed:.1f} %" in seen


def test_the_best_is_bold_on_the_terminal(evaluation):
    matrix = tables.render_table(evaluation)[0]
    for number, text in enumerate(evaluation.text_names):
        cells = list(matrix.columns[number + 1].cells)
        bold = [model for model, cell in zip(evaluation.models, cells, strict=True)
                if "bold" in str(cell.style)]  # fmt: skip
        values = {model: evaluation.bits_per_byte[model][text] for model in evaluation.models}
        assert bold == [min(values, key=values.__getitem__)]


def test_the_json_line_has_the_promised_keys(evaluation):
    line = json.loads(json.dumps(report.to_json_line(evaluation)))
    assert list(line)[:3] == ["bits_per_byte", "gap_closed", "removal"]
    assert line["bits_per_byte"]["all"]["public"] == evaluation.bits_per_byte["all"]["public"]
    assert set(line["intervals"]) == {"bits_per_byte", "gap_closed", "removal"}
    low, high = line["intervals"]["removal"]["hospital"]
    assert low <= line["removal"]["hospital"] <= high
    assert line["texts"][0]["tokens"] == 21_234
    assert [short["first_tokens"] for short in line["beginnings"]] == [32, 128]
    assert line["beginnings"][0]["gap_closed"] == evaluation.beginnings[0].gap_closed
    assert list(line["routing_detail"]) == ["most_used_together"]
    pair = line["routing_detail"]["most_used_together"]["public"]
    assert tuple(pair["experts"]) == evaluation.most_used_pairs["public"]
    # The line ends in logs, and tokens are words of somebody's text.
    assert "⏎" not in json.dumps(line)
    assert "tokens_taken" not in line


def test_report_json_comes_back_as_it_was(evaluation, folder):
    data = (folder / "report.json").read_bytes()
    assert json.loads(data)["format"] == "moiety.report/1"
    assert Evaluation.model_validate_json(data) == evaluation


def test_an_incomplete_evaluation_is_refused(evaluation):
    fields = evaluation.model_dump()
    fields["bits_per_byte"] = {**fields["bits_per_byte"], "all": {"public": 1.0}}
    with pytest.raises(ValidationError, match="every model on every text"):
        Evaluation(**fields)
    fields = evaluation.model_dump()
    del fields["beginnings"][1]["bits_per_token"]["all"]
    with pytest.raises(ValidationError, match="every model on every text"):
        Evaluation(**fields)
    fields = evaluation.model_dump()
    del fields["used_together"]["public"]
    with pytest.raises(ValidationError, match="not told of every text"):
        Evaluation(**fields)
    fields = evaluation.model_dump() | {"routing_places": ("1 to 8",)}
    with pytest.raises(ValidationError, match="places without a name"):
        Evaluation(**fields)


def test_the_same_evaluation_makes_the_same_bytes(evaluation, folder, tmp_path):
    report.write_report(evaluation, tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    with pytest.raises(StateError):
        report.write_report(evaluation, folder)


def test_charts_are_pictures_with_something_on_them(folder):
    names = ("bits-per-byte", "difference", "removal", "routing", "short-texts")
    for name in (*names, "routing-by-place", "used-together"):
        with Image.open(folder / f"{name}.png") as picture:
            width, height = picture.size
            assert width >= 1000
            assert height >= 250
            colours = picture.convert("RGB").getcolors(width * height)
            background = max(colours)
            assert background[1] == (255, 255, 255) or name == "difference"
            assert len(colours) > 100


def test_what_a_text_does_not_reach_is_paper_by_day_and_by_night(evaluation):
    """The public text has no fourth place; the last column of its panel stays empty."""
    for dark, paper in ((False, (255, 255, 255)), (True, (23, 28, 33))):
        data = charts.draw(evaluation, dark=dark)["routing-by-place"]
        with Image.open(io.BytesIO(data)) as picture:
            # the first panel of three: where its fourth column would be
            width, height = picture.size
            seen = picture.convert("RGB").crop(
                (int(0.33 * width), int(0.2 * height), int(0.38 * width), int(0.45 * height))
            )
            assert [colour for _, colour in seen.getcolors(1000)] == [paper]


def test_an_evaluation_with_nothing_but_the_anchor_has_a_page_too(tmp_path):
    generator = np.random.default_rng(0)
    measures = bootstrap.measure(
        ["anchor"], {"public": _scores(generator, "public", ["anchor"], ())}, samples=20
    )
    empty = {
        "beginnings": (),
        "routing": {},
        "routing_places": (),
        "routing_by_place": {},
        "used_together": {},
        "tokens_taken": {},
    }
    bare = make().model_copy(update={"models": ("anchor",)} | empty | asdict(measures))
    bare = Evaluation(**(bare.model_dump() | {"texts": ({"name": "public", "documents": 60,
                                                         "tokens": 9, "bytes": 30},)}))  # fmt: skip
    report.write_report(bare, tmp_path / "bare")
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "bits-per-byte.png", "report.html", "report.json",
    ]  # fmt: skip
    assert "Here it is not given" in (tmp_path / "bare" / "report.html").read_text("utf-8")


def test_no_negative_zero_is_shown():
    assert pages.show_signed(-0.0001) == "+0.000"
    assert pages.show_share(-0.00001) == "0.0 %"
