"""A file that ends too early, or is empty."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import FILES, Target

from moiety.errors import TrustError


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_cut_file_is_refused(target: Target, name: str, part: float) -> None:
    data = (target.folder / name).read_bytes()
    (target.folder / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(TrustError):
        target.verify().close()
