"""Not a file at all: a pipe that never ends, a device, a socket, a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from tests.attacks.hostile import FILES, Target

from moiety.bundle import orders
from moiety.errors import FormatError


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_refused_without_waiting(target: Target, name: str) -> None:
    (target.folder / name).unlink()
    os.mkfifo(target.folder / name)
    target.refused(FormatError, "not a regular file")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_refused(target: Target, name: str) -> None:
    (target.folder / name).unlink()
    (target.folder / name).mkdir()
    target.refused(FormatError, "not a regular file")


def test_a_socket_is_refused(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    (target.folder / "README.md").unlink()
    monkeypatch.chdir(target.folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("README.md")
        target.refused(FormatError, "not a regular file")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_a_device_is_no_bundle(target: Target, place: str) -> None:
    target.folder = Path(place)
    target.refused(FormatError, "cannot be read", keys=None)


def test_an_order_that_is_a_device_or_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / ("n" * 5000)):
        with pytest.raises(FormatError):
            orders.verify_order(path)
        with pytest.raises(FormatError):
            orders.verify_receipt(path)
