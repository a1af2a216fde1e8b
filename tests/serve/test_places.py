"""Places and attention over them, against the slowest way; who sits where."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moiety.serve.board import Board, Row, _shares
from moiety.serve.following import Trail
from moiety.serve.places import Attention, Layout, Piece, Places

LAYERS, WIDTH, POSITIONS = 2, 8, 160


def make_places(places: int, heads: int = 2) -> Places:
    config = SimpleNamespace(
        num_hidden_layers=LAYERS, num_key_value_heads=heads, head_dim=WIDTH, num_attention_heads=4
    )
    return Places(config, places, POSITIONS, torch.float32, torch.device("cpu"))


def naive(query_QW, keys_HCW, values_HCW):
    """One token's attention to all it is given, head by head."""
    out = []
    for head, query_W in enumerate(query_QW):
        shared = head * len(keys_HCW) // len(query_QW)
        weights_C = (keys_HCW[shared] @ query_W / WIDTH**0.5).softmax(dim=0)
        out.append(weights_C @ values_HCW[shared])
    return torch.stack(out)


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("lengths", "pieces"),
    [
        ([5], []),
        ([9, 9, 9], []),
        ([3, 12, 1, 7], [Piece(4, 0, 6), Piece(5, 10, 13), Piece(7, 20, 21)]),
        ([], [Piece(0, 0, 1), Piece(1, 0, 33)]),
        ([150, 2, 3, 2, 5, 2, 3, 4], []),  # so uneven that each is attended alone
    ],
)
def test_each_token_attends_to_its_own_request_up_to_itself(lengths, pieces, heads):
    places, rng = make_places(8, heads), torch.Generator().manual_seed(0)
    for store in (places.keys_LPHCW, places.values_LPHCW):
        for place, length in enumerate(lengths):
            store[:, place, :, : length - 1].normal_(generator=rng)
        for piece in pieces:
            store[:, piece.place, :, : piece.begin].normal_(generator=rng)
    layout = Layout(lengths, pieces)
    count = len(layout.positions())
    query = torch.randn(count, 4, WIDTH, generator=rng)
    key, value = (torch.randn(count, heads, WIDTH, generator=rng) for _ in range(2))
    attention = Attention(places, layout)
    for layer in range(LAYERS):
        found = attention(layer, query, key, value)
        pairs = zip(layout.places(), layout.positions(), strict=True)
        for at, (place, position) in enumerate(pairs):
            keys = places.keys_LPHCW[layer, place, :, : position + 1]
            values = places.values_LPHCW[layer, place, :, : position + 1]
            assert torch.equal(keys[:, -1], key[at])
            assert torch.equal(values[:, -1], value[at])
            torch.testing.assert_close(
                found[at], naive(query[at], keys, values), rtol=1e-4, atol=1e-5
            )


def make_row(number: int, length: int) -> Row:
    job = SimpleNamespace(prompt=(0,) * length)
    nothing = torch.zeros(1)
    trail = Trail(nothing, nothing, nothing)
    return Row(job, None, [0] * length, trail, nothing, None, number)


def test_rows_keep_their_keys_however_they_come_and_go():
    rng, places = np.random.default_rng(0), make_places(6)
    board, seated = Board(places), {}
    for number in range(400):
        if len(board.rows) < 6 and rng.random() < 0.6:
            row = make_row(number, int(rng.integers(1, 20)))
            board.enter(row)
            seated[row] = number + 1.0
        elif board.rows:
            row = board.rows[int(rng.integers(len(board.rows)))]
            if row.unread:
                row.fed += 1
                places.keys_LPHCW[:, row.place, :, row.fed - 1] = seated[row]
                places.values_LPHCW[:, row.place, :, row.fed - 1] = -seated[row]
                if not row.unread:
                    board.decodes(row)
            else:
                board.leave(row)
                del seated[row]
        assert set(board.rows) == set(seated)
        assert [row.place for row in board.rows] == list(range(len(board.rows)))
        assert [not row.unread for row in board.rows] == sorted(
            (not row.unread for row in board.rows), reverse=True
        )
        for row in board.rows:
            for store, sign in ((places.keys_LPHCW, 1), (places.values_LPHCW, -1)):
                assert (store[:, row.place, :, : row.fed] == sign * seated[row]).all()
                assert not store[:, row.place, :, row.fed :].any()
        assert not places.keys_LPHCW[:, len(board.rows) :].any()


def test_no_prompt_starves_and_short_ones_pass_long_ones():
    rng = np.random.default_rng(0)
    for _ in range(200):
        unread = rng.integers(1, 500, size=rng.integers(1, 8)).tolist()
        budget = int(rng.integers(1, 200))
        shares = _shares(unread, budget)
        assert sum(shares) == min(budget, sum(unread))
        assert all(0 <= share <= rest for share, rest in zip(shares, unread, strict=True))
        assert shares[0] >= min(unread[0], budget // 2)
    assert _shares([], 10) == []
    assert _shares([1000, 300, 8], 64) == [32, 24, 8]
