"""A tuned release whose kept tables or rows are not the owners', so that nobody could go back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.attacks.tuned_world import TunedWorld, seal
from tests.makers import read_arrays, write_arrays

from moiety.errors import IntegrityError, TrustError
from moiety.files import digest_bytes
from moiety.merge import open_release, tuned

EVIDENCE, ROUTER = "untuned/evidence.safetensors", "untuned/router.safetensors"


def digests(rows: dict[str, np.ndarray[Any, Any]], slot: int) -> str | list[str]:
    """As a roster tells them: a table's, or the token rows' in the order of the layers."""
    found = [digest_bytes(rows[name][slot].tobytes()) for name in sorted(rows)]
    return found[0] if "evidence" in rows else found


@pytest.mark.parametrize(("name", "kind"), [(EVIDENCE, "evidence"), (ROUTER, "token")])
@pytest.mark.parametrize("fitting", [False, True], ids=["digests left", "digests made to fit"])
def test_other_rows_are_refused(
    tuned_world: TunedWorld, name: str, kind: str, fitting: bool
) -> None:
    rows = read_arrays(tuned_world.tuned / name)
    for row in rows.values():
        row[1] *= 2
    write_arrays(tuned_world.tuned / name, rows)

    def fit(roster: dict[str, Any]) -> None:
        if fitting:
            roster["experts"][1]["rows"][kind] = digests(rows, 1)

    seal(tuned_world.tuned, fit)
    with pytest.raises(IntegrityError, match="signed" if fitting else "not the row of"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize(("name", "kind"), [(EVIDENCE, "evidence"), (ROUTER, "token")])
def test_two_owners_rows_exchanged_are_refused(
    tuned_world: TunedWorld, name: str, kind: str
) -> None:
    rows = read_arrays(tuned_world.tuned / name)
    for row in rows.values():
        row[[1, 2]] = row[[2, 1]]
    write_arrays(tuned_world.tuned / name, rows)

    def fit(roster: dict[str, Any]) -> None:
        one, other = (roster["experts"][slot]["rows"] for slot in (1, 2))
        one[kind], other[kind] = other[kind], one[kind]

    seal(tuned_world.tuned, fit)
    with pytest.raises(IntegrityError, match="not the tensor that was signed"):
        open_release(tuned_world.tuned)


@pytest.mark.parametrize("name", [EVIDENCE, ROUTER])
def test_missing_rows_are_refused(tuned_world: TunedWorld, name: str) -> None:
    (tuned_world.tuned / name).unlink()
    for act in (open_release, lambda folder: tuned.untune(folder, folder.parent / "back")):
        with pytest.raises(TrustError):
            act(tuned_world.tuned)


def test_a_strict_release_with_a_spare_set_of_rows_is_refused(tuned_world: TunedWorld) -> None:
    (tuned_world.strict / "untuned").mkdir()
    rows = read_arrays(tuned_world.strict / "router.safetensors")
    write_arrays(tuned_world.strict / ROUTER, rows)
    with pytest.raises(IntegrityError, match="not in the roster"):
        open_release(tuned_world.strict)
