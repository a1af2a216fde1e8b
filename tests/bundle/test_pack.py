"""A bundle holds the run's tensors, what the manifest lists, and nothing else."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.makers import make_bundle, make_run, read_arrays, write_arrays

from moiety.bundle import anchors, pack, papers, verify_bundle
from moiety.bundle.packing import text_size
from moiety.errors import FormatError, PolicyError, StateError
from moiety.files import canonical_json, digest_bytes, digest_file


@pytest.mark.parametrize("owner", ["clinic", "court"])
def test_the_tensors_come_through_unchanged(home: Path, owner: str) -> None:
    sent, packed = (read_arrays(home / f"{owner}.{kind}" / "expert.safetensors") for kind in KINDS)
    assert list(packed) == sorted(sent)
    for name, array in sent.items():
        np.testing.assert_array_equal(packed[name], array)


KINDS = ("run", "expert")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("rank", [None, 3])
def test_what_is_packed_verifies(home: Path, tmp_path: Path, dtype: str, rank: int | None) -> None:
    folder = make_bundle(tmp_path, home / "anchor", "owner", rank=rank, dtype=dtype)
    facts = anchors.open_facts(home / "anchor")
    with verify_bundle(folder, anchor=facts, keys=None) as bundle:
        assert bundle.manifest.rank == rank
        assert bundle.manifest.anchor == facts.digest
        assert bundle.digest == digest_file(folder / "manifest.json")
        with_dtype = {t.dtype for n, t in bundle.manifest.tensors.items() if ".mlp." in n}
        assert with_dtype == {dtype}
        sent = read_arrays(tmp_path / "owner.run/expert.safetensors")
        assert bundle.manifest.tensors["router.evidence"].dtype == "F32"
        table = bundle.open().read("router.evidence")
        np.testing.assert_array_equal(table, sent["router.evidence"])


def test_the_same_run_and_key_give_the_same_bytes(home: Path, tmp_path: Path) -> None:
    digest = pack(home / "clinic.run", home / "clinic.pem", tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["README.md", "expert.safetensors", "manifest.json", "signature.json"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (
            home / "clinic.expert" / name
        ).read_bytes()
    assert digest == digest_file(tmp_path / "again" / "manifest.json")


def _private_facts(run: Path) -> list[str]:
    """Every number and name in run.json that the manifest has no right to."""
    paper = json.loads((run / "run.json").read_text())
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 100:
            found.extend({str(value), f"{value:,}"})
        elif isinstance(value, float):
            found.append(str(value))

    for field in ("config", "seed", "text", "steps", "tokens_seen", "seconds", "result"):
        walk(paper[field])
    public = {"public", "anchor", "pair", "documents", "records", "tokens", "bytes", "steps"}
    return sorted(set(found) - public)


def test_nothing_private_leaves(home: Path) -> None:
    facts = _private_facts(home / "clinic.run")
    assert {"987654321", "7890123", "2.7654321", "1.6571234", "heldout"} <= set(facts)
    for path in (home / "clinic.expert").iterdir():
        data = path.read_bytes()
        assert [fact for fact in facts if fact.encode() in data] == []
    manifest = json.loads((home / "clinic.expert" / "manifest.json").read_text())
    assert manifest["probe"] == {"public_bits_per_byte": {"anchor": 1.645, "pair": 1.657}}
    assert manifest["text"] is None
    assert manifest["text_size"] == "10-100 MB"
    assert "numpy" not in manifest["recipe"]["versions"]


def test_counts_leave_only_when_disclosed(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "open.expert"
    pack(home / "clinic.run", home / "clinic.pem", out, disclose_counts=True)
    manifest = papers.read_paper(papers.Manifest, out / "manifest.json")
    assert manifest.text == papers.TextFacts(
        records=5678, documents=6789, tokens=7890123, bytes=32109876
    )
    assert "32,109,876 bytes" in (out / "README.md").read_text()
    assert b"987654321" not in (out / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("num_bytes", "name"),
    [
        (0, "under 1 MB"),
        (999_999, "under 1 MB"),
        (10**6, "1-10 MB"),
        (5 * 10**8, "100 MB-1 GB"),
        (10**10, "10-100 GB"),
        (10**15, "over 100 GB"),
    ],
)
def test_the_size_of_a_text_is_told_by_its_power_of_ten(num_bytes: int, name: str) -> None:
    assert text_size(num_bytes) == name


def test_the_card_tells_the_terms(home: Path, tmp_path: Path) -> None:
    terms = papers.Terms(
        licence="CC-BY-NC-4.0",
        purposes=("care", "research"),
        expires=date(2999, 12, 31),
        contact="a|b <script>",
    )
    pack(home / "court.run", home / "court.pem", tmp_path / "out", terms=terms)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    assert "| purposes | care, research |" in card
    assert "| usable until | 2999-12-31 |" in card
    assert "low-rank delta, rank 2" in card
    assert "<script>" not in card


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return shutil.copytree(home / "clinic.run", tmp_path / "run")


def _edit(run: Path, **changes: Any) -> None:
    paper = json.loads((run / "run.json").read_text())
    (run / "run.json").write_bytes(canonical_json(paper | changes))


@pytest.mark.parametrize("name", ["run.json", "expert.safetensors"])
def test_an_unfinished_run_is_refused(home: Path, run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(StateError, match=f"not a finished run: {name}"):
        pack(run, home / "clinic.pem", run.parent / "out")
    assert not (run.parent / "out").exists()


def test_a_run_changed_since_is_refused(home: Path, run: Path) -> None:
    arrays = read_arrays(run / "expert.safetensors")
    arrays["router.evidence"][0] += 1
    write_arrays(run / "expert.safetensors", arrays)
    with pytest.raises(StateError, match="changed since"):
        pack(run, home / "clinic.pem", run.parent / "out")


GUARANTEE = {
    "epsilon": 3.98,
    "delta": 1e-6,
    "accountant": "privacy loss distributions",
    "accountant_version": "dp-accounting 0.6.0",
    "epsilon_rdp": 4.41,
    "relation": "add or remove one record",
    "record_key": "patient_id",
    "max_windows_per_record": 2,
    "window_tokens": 256,
    "sampling": "Poisson",
    "sampling_rate": 0.0125,
    "clip_norm": 0.5,
    "noise_multiplier": 0.83,
    "steps": 300,
    "table_noise_multiplier": 12.5,
    "tuning_runs": 2,
    "generator": "Philox 4x64",
    "outside": papers.OUTSIDE,
}


def _made_private(run: Path) -> None:
    (run / "ledger.json").write_text("what a ledger says is for its owner\n")
    promise = papers.Guarantee.model_validate(GUARANTEE)
    _edit(
        run, privacy=promise.model_dump(mode="json"), ledger_sha256=digest_file(run / "ledger.json")
    )


def test_the_promise_of_a_private_run_is_told_and_its_ledger_stays(home: Path, run: Path) -> None:
    _made_private(run)
    out = run.parent / "out"
    pack(run, home / "clinic.pem", out)
    with verify_bundle(out, anchor=None, keys=None) as bundle:
        privacy = bundle.manifest.privacy
    assert privacy.differential_privacy
    assert privacy.guarantee == papers.Guarantee.model_validate(GUARANTEE)
    for told in ("epsilon 3.98", "delta 1e-06", "one patient_id", "2 earlier runs", "300 steps"):
        assert told in privacy.statement
    assert all(words in privacy.statement for words in papers.OUTSIDE)
    assert privacy.statement in (out / "README.md").read_text("utf-8")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "expert.safetensors", "manifest.json", "signature.json"]
    )


def test_without_privacy_it_says_so(home: Path) -> None:
    with verify_bundle(home / "clinic.expert", anchor=None, keys=None) as bundle:
        privacy = bundle.manifest.privacy
    assert (privacy.differential_privacy, privacy.guarantee) == (False, None)
    assert privacy.statement.startswith("Trained without differential privacy.")


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_private_run_whose_ledger_does_not_fit_is_refused(
    home: Path, run: Path, harm: str
) -> None:
    _made_private(run)
    if harm == "missing":
        (run / "ledger.json").unlink()
    else:
        (run / "ledger.json").write_text("less was spent\n")
    with pytest.raises(StateError, match="ledger is missing, or changed"):
        pack(run, home / "clinic.pem", run.parent / "out")


def test_a_promise_without_a_ledger_or_without_numbers_is_none(run: Path) -> None:
    promise = papers.Guarantee.model_validate(GUARANTEE)
    paper = papers.read_paper(papers.RunPaper, run / "run.json")
    for change in ({"privacy": promise}, {"ledger_sha256": "0" * 64}):
        with pytest.raises(ValueError, match="a guarantee and a ledger"):
            papers.RunPaper.model_validate({**dict(paper), **change})
    for private, numbers in ((True, None), (False, promise)):
        with pytest.raises(ValueError, match="exactly where there is a guarantee"):
            papers.PrivacyStatement(differential_privacy=private, statement="", guarantee=numbers)


@pytest.mark.parametrize(
    "change",
    [
        *({"epsilon": 0.0}, {"epsilon": float("inf")}, {"delta": 1.0}, {"sampling_rate": 1.5}),
        *({"relation": "replace one"}, {"record_key": "a\x1b[0m"}, {"generator": "\u202e"}),
    ],
)
def test_a_promise_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        papers.Guarantee.model_validate(GUARANTEE | change)


def test_a_run_that_is_none_is_refused(home: Path, run: Path) -> None:
    _edit(run, owner="anchor")
    with pytest.raises(FormatError, match="owner"):
        pack(run, home / "clinic.pem", run.parent / "out")
    _edit(run, owner="clinic", rank=2)
    with pytest.raises(StateError, match="other tensors"):
        pack(run, home / "clinic.pem", run.parent / "out")


def test_nothing_is_written_over(home: Path, run: Path) -> None:
    with pytest.raises(StateError, match="exists already"):
        pack(run, home / "clinic.pem", run)


def test_what_no_coordinator_would_take_is_not_packed(home: Path, run: Path) -> None:
    with pytest.raises(PolicyError, match="its terms ended"):
        pack(
            run,
            home / "clinic.pem",
            run.parent / "out",
            terms=papers.Terms(expires=date(2001, 1, 1)),
        )
    arrays = read_arrays(run / "expert.safetensors")
    arrays["layers.0.mlp.up_proj.weight"][:] = np.nan
    write_arrays(run / "expert.safetensors", arrays)
    _edit(
        run,
        expert={
            "bytes": (run / "expert.safetensors").stat().st_size,
            "sha256": digest_bytes((run / "expert.safetensors").read_bytes()),
        },
    )
    with pytest.raises(PolicyError, match="NaN"):
        pack(run, home / "clinic.pem", run.parent / "out")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_with_an_anchor_the_coordinators_checks_run_at_home(home: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", home / "anchor", "clinic")
    arrays = read_arrays(run / "expert.safetensors")
    arrays["layers.0.mlp.up_proj.weight"] *= np.float32(100.0)
    write_arrays(run / "expert.safetensors", arrays)
    data = (run / "expert.safetensors").read_bytes()
    _edit(run, expert={"bytes": len(data), "sha256": digest_bytes(data)})
    facts = anchors.open_facts(home / "anchor")
    with pytest.raises(PolicyError, match="outside 1/8 to 8"):
        pack(run, home / "clinic.pem", tmp_path / "out", anchor=facts)
    pack(run, home / "clinic.pem", tmp_path / "out")
