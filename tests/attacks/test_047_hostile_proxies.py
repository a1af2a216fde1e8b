"""Proxies that are none: other lists, other fields, other bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.merge.tunings import proxies_paper

from moiety.bundle import orders, papers, signing
from moiety.errors import FormatError, TrustError
from moiety.files import canonical_json, digest_bytes

TWO = sorted(digest_bytes(word) for word in (b"one", b"two"))
MANY = [f"{number:064x}" for number in range(papers.MAX_PROXIES + 1)]


@pytest.fixture
def said(home: Path) -> dict[str, Any]:
    return json.loads(papers.paper_bytes(proxies_paper(home / "anchor", "victim")))  # type: ignore[no-any-return]


@pytest.fixture(params=["signed", "unsigned"])
def write(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Any:
    """Writes anything as proxies, well signed or not at all."""

    def write(value: Any) -> Path:
        data = canonical_json(value)
        if request.param == "signed":
            key = signing.load_key(home / "victim.pem")
            data = signing.sign_envelope(data, "proxies", key)
        path = tmp_path / "proxies.json"
        path.write_bytes(data)
        return path

    return write


def test_honest_ones_are_read(write: Any, said: dict[str, Any]) -> None:
    assert list(orders.verify_proxies(write(said)).proxies.documents) == TWO


@pytest.mark.parametrize(
    "change",
    [
        {"format": "moiety.proxies/2"},
        {"owner": "../x"},
        {"owner": "anchor"},
        {"anchor": "0" * 63},
        {"documents": []},
        {"documents": TWO[:1]},
        {"documents": TWO[::-1]},
        {"documents": [TWO[0], TWO[0]]},
        {"documents": [TWO[0], "../../etc/passwd"]},
        {"documents": [1, 2]},
        {"documents": "all"},
        {"documents": MANY, "sample_documents": 2**40},
        {"sample_documents": 1},
        {"sample_documents": -1},
        {"accuracy": "97.3 %"},
        {"accuracy": 0.973},
        {"text": ["private"]},
        {"scores": {}},
        {"documents": None},
    ],
)
def test_proxies_out_of_form_are_refused(
    write: Any, said: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(FormatError):
        orders.verify_proxies(write(said | change))


def test_a_field_that_is_missing_is_refused(write: Any, said: dict[str, Any]) -> None:
    for name in said:
        with pytest.raises(FormatError):
            orders.verify_proxies(write({k: v for k, v in said.items() if k != name}))


def test_every_flipped_byte_of_signed_proxies_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "proxies.json"
    orders.write_proxies(proxies_paper(home / "anchor", "victim"), home / "victim.pem", path)
    data = path.read_bytes()
    for place in range(len(data)):
        flipped = bytes([data[place] ^ (1 << place % 8)])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        with pytest.raises(TrustError):
            orders.verify_proxies(path)


@pytest.mark.parametrize("kind", ["order", "receipt", "expert"])
def test_a_signature_for_another_kind_of_paper_is_refused(
    home: Path, tmp_path: Path, said: dict[str, Any], kind: str
) -> None:
    path = tmp_path / "proxies.json"
    key = signing.load_key(home / "victim.pem")
    path.write_bytes(signing.sign_envelope(canonical_json(said), kind, key))
    with pytest.raises(FormatError, match="kind 'proxies'"):
        orders.verify_proxies(path)


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[]", b"3", b"[" * 60_000, b"\xff" * 99, b'{"payload":"' + b"A" * 99]
)
def test_junk_is_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "proxies.json"
    path.write_bytes(junk)
    with pytest.raises(FormatError):
        orders.verify_proxies(path)


def test_a_giant_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "proxies.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FormatError, match="the limit is"):
        orders.verify_proxies(path)


def test_the_largest_paper_we_accept_is_within_the_limit(home: Path, tmp_path: Path) -> None:
    paper = proxies_paper(
        home / "anchor", "victim", documents=tuple(MANY[1:]), sample_documents=2**50
    )
    orders.write_proxies(paper, home / "victim.pem", tmp_path / "proxies.json")
    assert orders.verify_proxies(tmp_path / "proxies.json").proxies == paper
