"""The release's folder changes under a server: whoever left is taken out, whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import time

import pytest
from tests.serve.conftest import settled, told_server
from tests.serve.engines import short

from moiety.bundle import orders, signing
from moiety.errors import TrustError
from moiety.merge import open_release, withdrawal
from moiety.serve import house, load_engine

BODY = {"model": "release", "prompt": "ba", "max_tokens": 2}


@pytest.fixture
def folder(release, tmp_path):
    """A copy of the release that may change."""
    return shutil.copytree(release, tmp_path / "release")


@pytest.fixture
def without_cat(tiny_world, release, tmp_path):
    """The same without cat."""
    copy = shutil.copytree(release, tmp_path / "after")
    orders.write_order(
        tiny_world.bundles["cat"], tiny_world.folder / "cat.pem", tmp_path / "order.json"
    )
    signing.new_key(tmp_path / "coordinator.pem")
    withdrawal.withdraw(
        copy, "cat", tmp_path / "order.json", in_place=True, key=tmp_path / "coordinator.pem"
    )
    return copy


def test_no_weight_but_those_of_the_roster_is_served(folder):
    (shard,) = folder.glob("expert-cat*.safetensors")
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(TrustError, match="not the tensor in the roster"):
        load_engine(folder)


def health(live):
    answer = live.get("/health")
    return answer.status_code, answer.json().get("why")


def copy_rest(source, target):
    """All that is not there yet, then away with what should not be there."""
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
    for path in sorted(target.rglob("*"), reverse=True):
        if not (source / path.relative_to(target)).exists():
            path.rmdir() if path.is_dir() else path.unlink()


def follows(live, after):
    """Cat has left, and the server is ready and signs off with the new roster."""
    digest = open_release(after).digest
    return (
        live.house.served.digest == digest
        and health(live)[0] == 200
        and live.post(json=BODY | {"model": "release+cat"}).status_code == 403
        and live.post(json=BODY).json()["moiety"]["experts"] == ["anchor", "amy", "bob"]
    )


def test_a_folder_that_is_copied_file_by_file_is_followed_without_an_alarm(
    folder, without_cat, tmp_path
):
    with told_server(folder, tmp_path, short) as live:
        shutil.copy2(without_cat / "roster.json", folder / "roster.json")
        until = time.monotonic() + 2 * house.CHECK_SECONDS
        while time.monotonic() < until:
            assert health(live) == (200, None)
            time.sleep(0.05)
        copy_rest(without_cat, folder)
        assert settled(lambda: follows(live, without_cat), 3)
        assert not any("does not hold" in line for line in live.said)
        assert 3 in live.house.engine.removed


def test_while_a_folder_does_not_hold_requests_are_refused_and_then_it_is_followed(
    folder, without_cat, tmp_path, monkeypatch
):
    monkeypatch.setattr(house, "CHECK_SECONDS", 0.05)
    with told_server(folder, tmp_path, short) as live:
        shutil.copy2(without_cat / "roster.json", folder / "roster.json")
        assert settled(lambda: health(live) == (503, house.DOUBT))
        answer = live.post(json=BODY | {"model": "release+amy"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert str(folder) not in answer.text + live.get("/health").text
        copy_rest(without_cat, folder)
        assert settled(lambda: follows(live, without_cat))
        (told,) = [line for line in live.said if "does not hold" in line]
        assert str(folder) in told
        assert live.said[-1] == "the release's folder holds again"


def test_a_folder_that_is_gone_is_one_that_does_not_hold(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(house, "CHECK_SECONDS", 0.05)
    with told_server(folder, tmp_path, short) as live:
        folder.rename(tmp_path / "elsewhere")
        assert settled(lambda: health(live)[0] == 503)
        (tmp_path / "elsewhere").rename(folder)
        assert settled(lambda: health(live)[0] == 200)
        assert live.post(json=BODY | {"model": "release+cat"}).status_code == 200


FAULTS = [
    TrustError("cannot open: Too many open files"),
    OSError(errno.EMFILE, "Too many open files"),
    ZeroDivisionError("a mistake of ours"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_look_that_fails_for_whatever_reason_is_made_again(
    folder, without_cat, tmp_path, monkeypatch, fault
):
    monkeypatch.setattr(house, "CHECK_SECONDS", 0.05)
    looks = []

    def failing(_self):
        looks.append(fault)
        raise fault

    with told_server(folder, tmp_path, short) as live:
        assert settled(lambda: live.house._seen is not None)
        with monkeypatch.context() as patch:
            patch.setattr("moiety.serve.served.Served.read_again", failing)
            copy_rest(without_cat, folder)
            assert settled(lambda: len(looks) > 2 * house.LOOKS)
            assert health(live) == (503, house.DOUBT)
            told = [line for line in live.said if str(fault) in line]
            assert len(told) == 1, "once is enough"
        assert settled(lambda: follows(live, without_cat))


def test_a_roster_that_was_copied_with_its_old_time_is_seen(folder, without_cat, tmp_path):
    with told_server(folder, tmp_path, short) as live:
        assert settled(lambda: live.house._seen is not None)
        was = (folder / "roster.json").stat()
        (folder / "roster.json").write_bytes((without_cat / "roster.json").read_bytes())
        copy_rest(without_cat, folder)
        os.utime(folder / "roster.json", ns=(was.st_atime_ns, was.st_mtime_ns))
        assert settled(lambda: follows(live, without_cat), 3)
