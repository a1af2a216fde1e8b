"""Every paper has one byte form, and it comes back equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.bundle import papers
from moiety.errors import FormatError, TrustError
from moiety.files import canonical_json


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (papers.AnchorPaper, "anchor/anchor.json"),
        (papers.RunPaper, "clinic.run/run.json"),
        (papers.RunPaper, "court.run/run.json"),
        (papers.Manifest, "clinic.expert/manifest.json"),
        (papers.Manifest, "court.expert/manifest.json"),
        (papers.Envelope, "clinic.expert/signature.json"),
    ],
)
def test_a_paper_on_disk_is_canonical(home: Path, kind: type[papers.Paper], place: str) -> None:
    data = (home / place).read_bytes()
    paper = papers.parse_paper(kind, data, place)
    assert papers.paper_bytes(paper) == data == canonical_json(json.loads(data))
    assert data.endswith(b"}\n")
    assert b" " not in data.split(b'"statement"')[0]


def test_a_written_paper_is_read_back(home: Path, tmp_path: Path) -> None:
    run = papers.read_paper(papers.RunPaper, home / "clinic.run" / "run.json")
    data = papers.write_paper(tmp_path / "run.json", run)
    assert papers.read_paper(papers.RunPaper, tmp_path / "run.json") == run
    assert (tmp_path / "run.json").read_bytes() == data


def test_a_paper_cannot_be_changed(home: Path) -> None:
    run = papers.read_paper(papers.RunPaper, home / "clinic.run" / "run.json")
    with pytest.raises(ValueError, match="frozen"):
        run.owner = "court"  # type: ignore[misc]


@pytest.mark.parametrize("config", [{"x": float("nan")}, {"x": float("inf")}])
def test_a_config_without_json_form_cannot_be_written(home: Path, config: object) -> None:
    run = papers.read_paper(papers.RunPaper, home / "clinic.run" / "run.json")
    with pytest.raises(ValueError, match=r"JSON|finite"):
        papers.paper_bytes(run.model_copy(update={"config": config}))


@given(st.binary(max_size=200))
def test_junk_gives_a_trust_error(data: bytes) -> None:
    for kind in (papers.Manifest, papers.Envelope, papers.AnchorPaper, papers.RunPaper):
        with pytest.raises(TrustError):
            papers.parse_paper(kind, data, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(field=st.sampled_from(sorted(papers.WithdrawalOrder.model_fields)), value=JSON)
def test_any_value_in_any_field_gives_the_paper_or_a_trust_error(field: str, value: object) -> None:
    honest = {
        "format": "moiety.order/1",
        "action": "withdraw",
        "owner": "clinic",
        "bundle": "1" * 64,
        "anchor": "2" * 64,
        "issued": "2031-02-03T04:05:06Z",
    }
    data = (
        json.dumps(
            honest | {field: value}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
        ).encode("ascii")
        + b"\n"
    )
    try:
        paper = papers.parse_paper(papers.WithdrawalOrder, data, "here")
    except FormatError as error:
        str(error).encode("utf-8")
    else:
        assert papers.paper_bytes(paper) == data
