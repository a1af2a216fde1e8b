"""What a server holds for those whom it does not serve."""

from __future__ import annotations

import gc

from starlette.datastructures import Headers
from tests.serve.conftest import policed


def test_nothing_of_a_refused_request_is_kept(release_with_terms, tmp_path):
    with policed(release_with_terms, tmp_path, {"app": {}}) as (live, *_):
        for _ in range(50):
            assert live.get("/v1/models").status_code == 401
        gc.collect()
        assert sum(type(one) is Headers for one in gc.get_objects()) < 10
