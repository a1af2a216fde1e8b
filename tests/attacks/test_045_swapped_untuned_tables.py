"""A tuned release whose kept tables are not the owners', so that nobody could go back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attacks.tuned_world import TunedWorld, seal
from tests.makers import read_arrays, write_arrays

from moiety.errors import IntegrityError, TrustError
from moiety.files import digest_bytes
from moiety.merge import open_release, tuned

KEPT = "untuned/evidence.safetensors"


def kept_tables(release: Path) -> np.ndarray[Any, Any]:
    return read_arrays(release / KEPT)["evidence"]


@pytest.mark.parametrize("fitting", [False, True], ids=["digests left", "digests made to fit"])
def test_other_tables_are_refused(tuned_world: TunedWorld, fitting: bool) -> None:
    tables = kept_tables(tuned_world.tuned)
    tables[1] *= 2
    write_arrays(tuned_world.tuned / KEPT, {"evidence": tables})

    def fit(roster: dict[str, Any]) -> None:
        if fitting:
            roster["experts"][1]["evidence"] = digest_bytes(tables[1].tobytes())

    seal(tuned_world.tuned, fit)
    with pytest.raises(IntegrityError, match="signed" if fitting else "not the table of"):
        open_release(tuned_world.tuned)


def test_two_owners_tables_exchanged_are_refused(tuned_world: TunedWorld) -> None:
    tables = kept_tables(tuned_world.tuned)
    tables[[1, 2]] = tables[[2, 1]]
    write_arrays(tuned_world.tuned / KEPT, {"evidence": tables})

    def fit(roster: dict[str, Any]) -> None:
        one, other = roster["experts"][1], roster["experts"][2]
        one["evidence"], other["evidence"] = other["evidence"], one["evidence"]

    seal(tuned_world.tuned, fit)
    with pytest.raises(IntegrityError, match="not the tensor that was signed"):
        open_release(tuned_world.tuned)


def test_tuned_tables_kept_as_the_owners_own_are_refused(tuned_world: TunedWorld) -> None:
    """Going back would then give the tuned release, and call it strict."""
    tables = read_arrays(tuned_world.tuned / "evidence.safetensors")
    write_arrays(tuned_world.tuned / KEPT, tables)

    def fit(roster: dict[str, Any]) -> None:
        for expert, digest in zip(roster["experts"], roster["tuning"]["evidence"], strict=True):
            expert["evidence"] = digest

    seal(tuned_world.tuned, fit)
    with pytest.raises(IntegrityError, match="not the tensor that was signed"):
        open_release(tuned_world.tuned)


def test_missing_tables_are_refused(tuned_world: TunedWorld) -> None:
    (tuned_world.tuned / KEPT).unlink()
    for act in (open_release, lambda folder: tuned.untune(folder, folder.parent / "back")):
        with pytest.raises(TrustError):
            act(tuned_world.tuned)


def test_a_strict_release_with_a_spare_set_of_tables_is_refused(tuned_world: TunedWorld) -> None:
    (tuned_world.strict / "untuned").mkdir()
    tables = read_arrays(tuned_world.strict / "evidence.safetensors")
    write_arrays(tuned_world.strict / KEPT, tables)
    with pytest.raises(IntegrityError, match="not in the roster"):
        open_release(tuned_world.strict)
