"""Law 10: any flipped, cut, added or reordered byte of a bundle is refused with a trust error.

The oracle is the honest bundle: it passes before the first change and after the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

import pytest
from tests.makers import make_anchor, make_bundle

from moiety.bundle import anchors, signing, verify_bundle
from moiety.errors import TrustError

FILES = ("README.md", "expert.safetensors", "manifest.json", "signature.json")


class Bundle:
    """A small honest bundle and all that a coordinator knows of it."""

    def __init__(self, home: Path, rank: int | None) -> None:
        anchor = make_anchor(home / "anchor", layers=2, width=8, hidden=16)
        self.folder = make_bundle(home, anchor, "owner", rank=rank)
        self.facts = anchors.open_facts(anchor)
        self.keys = {signing.load_public(home / "owner.pub")}

    def verify(self) -> None:
        verify_bundle(self.folder, anchor=self.facts, keys=self.keys).close()

    def refused(self) -> bool:
        try:
            self.verify()
        except TrustError:
            return True
        return False

    @contextmanager
    def restored(self, name: str) -> Iterator[bytes]:
        """The file's honest bytes, put back afterwards; the bundle passes before and after."""
        self.verify()
        honest = (self.folder / name).read_bytes()
        yield honest
        (self.folder / name).write_bytes(honest)
        self.verify()


@pytest.fixture(scope="module", params=[None, 2], ids=["full", "rank-2"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(tmp_path_factory.mktemp("law-10"), request.param)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_refused(bundle: Bundle, name: str) -> None:
    path = bundle.folder / name
    with bundle.restored(name) as honest, path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(honest):
            _put(file, place, byte ^ (1 << place % 8))
            assert bundle.refused(), f"byte {place} of {name}"
            _put(file, place, byte)


def _put(file: RawIOBase, place: int, byte: int) -> None:
    file.seek(place)
    file.write(bytes([byte]))


@pytest.mark.parametrize("name", FILES)
def test_every_cut_is_refused(bundle: Bundle, name: str) -> None:
    with bundle.restored(name) as honest:
        for part in range(48):
            (bundle.folder / name).write_bytes(honest[: len(honest) * part // 48])
            assert bundle.refused(), f"{name} cut at {part}/48"
        for lost in (1, 2, 3, 4, 8, 64):
            (bundle.folder / name).write_bytes(honest[:-lost])
            assert bundle.refused(), f"{name} without its last {lost} bytes"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("added", [b"\x00", b"\n", b" ", b"}", b"\x00" * 4096])
def test_added_bytes_are_refused(bundle: Bundle, name: str, added: bytes) -> None:
    with bundle.restored(name) as honest:
        for part in range(17):
            place = len(honest) * part // 16
            (bundle.folder / name).write_bytes(honest[:place] + added + honest[place:])
            assert bundle.refused(), f"{added!r} at {place} of {name}"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [4, 32, 100])
def test_reordered_blocks_are_refused(bundle: Bundle, name: str, size: int) -> None:
    with bundle.restored(name) as honest:
        for place in range(0, len(honest) - 2 * size, 3 * size):
            one, two = honest[place : place + size], honest[place + size : place + 2 * size]
            if one == two:
                continue
            (bundle.folder / name).write_bytes(
                honest[:place] + two + one + honest[place + 2 * size :]
            )
            assert bundle.refused(), f"blocks of {size} exchanged at {place} of {name}"
