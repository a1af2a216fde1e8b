"""What an operator can show later: a line for each event. Nobody can forge one, or fill the log."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.serve.conftest import NAME, policed, policy_of, settled, told_server
from tests.serve.engines import short

from moiety.bundle import orders, signing
from moiety.files import digest_bytes
from moiety.merge import open_release, withdrawal
from moiety.serve import journal

BODY = {"model": "release", "prompt": "w1 w2", "max_tokens": 1}
FORGED = "\n2030-01-01T00:00:00Z INFO withdrawn by order: bob\x1b[2J\u2028"


@pytest.fixture
def lines(caplog, monkeypatch):
    """What was logged until now; every line is one line, whatever was sent."""
    monkeypatch.setattr(journal, "TALLY_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "moiety.serve")

    def told() -> list[str]:
        found = [one.getMessage() for one in caplog.records if one.name == "moiety.serve"]
        assert all(" " <= char <= "~" for line in found for char in line), found
        return found

    return told


@pytest.fixture
def folder(release, tmp_path):
    """A copy of the release that may change."""
    return shutil.copytree(release, tmp_path / "release")


def order_of(world, owner, out):
    orders.write_order(world.bundles[owner], world.folder / f"{owner}.pem", out)
    return out.read_bytes()


def test_a_withdrawal_by_order_is_one_line(tiny_world, folder, tmp_path, lines):
    key, data = tmp_path / "coordinator.pem", order_of(tiny_world, "amy", tmp_path / "order.json")
    signing.new_key(key)
    with told_server(folder, tmp_path, short, name=NAME, receipt_key=key) as live:
        before = open_release(folder).digest
        told = live.admin("POST", "/admin/withdraw", content=data).json()
        live.admin("POST", "/admin/withdraw", content=data)
        time.sleep(1.2)  # twice as long as between two looks at the folder
    after, digest = open_release(folder).digest, digest_bytes(data)
    assert after != before
    assert lines() == [
        f"withdrawn by order: amy; order {digest}; roster {after}, before {before}; "
        f"on disk, receipt {told['receipt']}",
        f"withdrawn by order: amy; order {digest}; roster {after}, before {after}; on disk already",
    ]


def test_a_withdrawal_that_is_in_memory_alone_says_so(tiny_world, folder, tmp_path, lines):
    data = order_of(tiny_world, "bob", tmp_path / "order.json")
    with told_server(folder, tmp_path, short, name=NAME) as live:
        before = open_release(folder).digest
        told = live.admin("POST", "/admin/withdraw", content=data).json()
    assert lines() == [
        f"withdrawn by order: bob; order {digest_bytes(data)}; roster {told['roster']}, "
        f"before {before}; in this server only"
    ]


def test_a_folder_that_cannot_follow_leaves_its_line_too(
    tiny_world, folder, tmp_path, lines, monkeypatch
):
    key, data = tmp_path / "coordinator.pem", order_of(tiny_world, "amy", tmp_path / "order.json")
    signing.new_key(key)

    def full(*_args, **_how):
        raise OSError("no space left")

    monkeypatch.setattr(withdrawal, "withdraw", full)
    with told_server(folder, tmp_path, short, name=NAME, receipt_key=key) as live:
        assert live.admin("POST", "/admin/withdraw", content=data).status_code == 500
    (line,) = lines()
    assert line.startswith("withdrawn by order: amy;")
    assert line.endswith("; in this server only")


def test_a_withdrawal_in_the_folder_is_one_line(tiny_world, folder, tmp_path, lines):
    key = tmp_path / "coordinator.pem"
    order_of(tiny_world, "cat", tmp_path / "order.json")
    signing.new_key(key)
    with told_server(folder, tmp_path, short, name=NAME) as live:
        before = live.house.served.digest
        withdrawal.withdraw(folder, "cat", tmp_path / "order.json", in_place=True, key=key)
        after = open_release(folder).digest
        assert settled(lambda: live.house.served.digest == after)
        assert settled(lambda: bool(lines()))
        time.sleep(1.2)
    assert lines() == [f"withdrawn in the release's folder: cat; roster {after}, before {before}"]


def test_policies_and_orders_are_told_and_forge_no_line(release_with_terms, tmp_path, lines):
    with policed(release_with_terms, tmp_path, {"app": {}}) as (live, secrets, policy, text):
        admin = secrets["admin"]
        live.admin("POST", "/admin/reload", admin)
        policy.write_text(text + f"{json.dumps(FORGED)} = 1\n", "utf-8")
        live.admin("POST", "/admin/reload", admin)
        for data in (b"", json.dumps({FORGED: 1}).encode(), FORGED.encode()):
            live.admin("POST", "/admin/withdraw", admin, content=data)
    read, refused, *orders_refused = lines()
    assert read == "the policy was read anew; keys: 1, remarks: 0"
    assert refused.startswith("the old policy stays: key app: \\n2030")
    assert [one.partition(":")[0] for one in orders_refused] == ["an order was refused"] * 3
    assert "no order that" in orders_refused[1]


def test_wrong_keys_are_counted_and_do_not_fill_the_log(release_with_terms, tmp_path, lines):
    with policed(release_with_terms, tmp_path, {"app": {}}) as (live, secrets, *_):
        begun = time.monotonic()
        wrong = ["stranger", "sk-0", secrets["admin"], secrets["app"][:-1], "x" * 2000]

        def ask(key):
            return httpx.get(live.url + "/v1/models", headers={"Authorization": f"Bearer {key}"})

        with ThreadPoolExecutor(4) as pool:
            assert {one.status_code for one in pool.map(ask, wrong * 20)} == {401}
        assert live.get("/v1/models").status_code == 401, "no key at all is no wrong key"
        assert live.get("/metrics", secrets["app"]).status_code == 401
        assert live.admin("GET", "/admin/roster", "stranger").status_code == 401
        assert live.post(key=secrets["app"], json=BODY).status_code == 200
        took = time.monotonic() - begun
        time.sleep(0.5)
    counts = {"wrong keys": [], "wrong admin keys": []}
    for line in lines():
        what, count = re.fullmatch(r"(.+): ([0-9]+)", line).groups()
        counts[what].append(int(count))
    assert (sum(counts["wrong keys"]), sum(counts["wrong admin keys"])) == (100, 2)
    assert len(counts["wrong keys"]) <= took / 0.2 + 2


def test_a_key_of_the_other_kind_is_told_so(release_with_terms, tmp_path):
    with policed(release_with_terms, tmp_path, {"app": {}}) as (live, secrets, *_):
        app, admin = secrets["app"], secrets["admin"]
        for answer, words in (
            (live.get("/metrics", app), "an app's key: /metrics and the admin port"),
            (live.admin("GET", "/admin/roster", app), "an app's key: /metrics and the admin port"),
            (live.get("/v1/models", admin), "the admin's key: an app needs its own"),
            (live.get("/metrics", "x"), "no such key"),
            (live.admin("GET", "/admin/roster", "x"), "no such key"),
            (live.get("/v1/models", "x"), "no such key"),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert words in error["message"]


def test_the_command_writes_lines_with_a_time(release_with_terms, tmp_path):
    text, secrets = policy_of(app={})
    (tmp_path / "policy.toml").write_text(text)
    words = ["serve", release_with_terms, "--policy", tmp_path / "policy.toml", "--port", "0"]
    words += ["--usage", f"sqlite:///{tmp_path}/u.sqlite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "moiety", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    try:
        while not (line := process.stderr.readline()).startswith("ready"):
            assert line, "it has ended"
        headers = {"Authorization": f"Bearer {secrets['admin']}"}
        url = line.split(" at ")[1].strip()
        assert httpx.get(url + "/models", headers=headers).status_code == 401
        line = process.stderr.readline()
        assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}Z WARNING wrong keys: 1\n", line)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "stopped; usage is written\n"
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
