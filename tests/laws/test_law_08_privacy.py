"""Law 8: clipped sums equal one record at a time, and epsilon equals published constants.

Legend: B window, T position, D width, F hidden, R record.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import tiny
from torch import nn
from torch.nn import functional

from moiety.errors import StateError
from moiety.model import training_loss
from moiety.privacy import Tape, accountant, add_noise
from moiety.privacy.seeds import Secret
from moiety.train.compute import Compute

RECORDS = np.array([3, 3, 3, 7, 9, 9, 11])
"""Whose each of seven windows is: several records, of one to three windows."""


class Case:
    """A pair away from its start, seven windows, and a loss that is a sum over windows."""

    def __init__(self, bench, rank, *, seed=0, bf16=False):
        config = tiny.settings(*([f"pair.rank={rank}"] if rank else []))
        self.pair, self.bf16 = bench.pair(config), bf16
        self.parameters = self.pair.trainable()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(self.parameters.items()):
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        windows = bench.texts.own_heldout.windows(np.arange(len(RECORDS)))
        self.tokens_BT = torch.from_numpy(windows.tokens[:, :-1])
        self.targets_BT = torch.from_numpy(np.where(windows.counted, windows.tokens[:, 1:], -100))
        self.documents_BT = torch.from_numpy(windows.documents[:, :-1].copy())
        self.tape = Tape(self.parameters)
        self.pair.multiply_by(self.tape.product)

    def loss(self, rows):
        self.pair.expect(self.tokens_BT[rows], self.documents_BT[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            total = training_loss(
                self.pair.backbone, self.tokens_BT[rows], self.targets_BT[rows], reduction="sum"
            )
        return total / 32

    def clipped(self, rows, clip_norm):
        with self.tape.recording(RECORDS[rows], 32):
            self.loss(rows).backward()
        return self.tape.clipped(clip_norm)

    def one_by_one(self, rows, clip_norm):
        """Plain autograd: each record alone, its whole gradient in hand."""
        sums = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        norms = []
        for record in np.unique(RECORDS[rows]):
            own = rows[RECORDS[rows] == record]
            gradients = torch.autograd.grad(self.loss(own), list(self.parameters.values()))
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            norms.append(float(norm))
            for name, gradient in zip(self.parameters, gradients, strict=True):
                sums[name] += min(1.0, clip_norm / float(norm)) * gradient
        return sums, norms


ALL = np.arange(len(RECORDS))


def middle(norms):
    """A clip norm that cuts some records and leaves others."""
    return float(np.median(norms))


def length(sums):
    return float(
        torch.cat([tensor.double().flatten() for _, tensor in sorted(sums.items())]).norm()
    )


@pytest.mark.parametrize("rank", [None, 3], ids=["full", "low rank"])
def test_clipped_sums_equal_one_record_at_a_time(bench, rank):
    case = Case(bench, rank)
    clip_norm = middle(case.one_by_one(ALL, 1.0)[1])
    sums, norms = case.one_by_one(ALL, clip_norm)
    ours = case.clipped(ALL, clip_norm)
    np.testing.assert_allclose(ours.norms_R.numpy(), norms, rtol=1e-5)
    assert min(norms) < clip_norm < max(norms), "some are cut and some are not"
    for name, expected in sums.items():
        torch.testing.assert_close(ours.sums[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3], ids=["full", "low rank"])
def test_micro_batches_add_up(bench, rank):
    case = Case(bench, rank)
    clip_norm = middle(case.one_by_one(ALL, 1.0)[1])
    whole = case.clipped(ALL, clip_norm).sums
    parts = [case.clipped(rows, clip_norm).sums for rows in (ALL[:3], ALL[3:4], ALL[4:])]
    for name, expected in whole.items():
        total = sum(part[name] for part in parts)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3], ids=["full", "low rank"])
@pytest.mark.parametrize("clip_norm", [1e-3, 0.3, 1e3])
def test_neighbours_differ_by_at_most_the_clip_norm(bench, rank, clip_norm):
    case = Case(bench, rank)
    whole, of = case.clipped(ALL, clip_norm), RECORDS
    for number, record in enumerate(np.unique(RECORDS)):
        without = case.clipped(ALL[of != record], clip_norm)
        gap = length({n: whole.sums[n] - without.sums[n] for n in whole.sums})
        assert gap <= clip_norm * (1 + 1e-4)
        assert gap == pytest.approx(min(clip_norm, float(whole.norms_R[number])), rel=1e-2)


@pytest.mark.parametrize("rank", [None, 3], ids=["full", "low rank"])
def test_under_bf16_norms_are_float32_and_bound_what_is_summed(bench, rank):
    case = Case(bench, rank, bf16=True)
    norms = case.clipped(ALL, 1.0).norms_R
    exact = Case(bench, rank).clipped(ALL, 1.0).norms_R
    torch.testing.assert_close(norms, exact, rtol=0.1, atol=0)
    # The oracle: what a record alone adds, unclipped, has the norm that was said of it. A norm
    # taken in bf16 would be off by up to one part in 256.
    of = RECORDS
    for number, record in enumerate(np.unique(of)):
        alone = case.clipped(ALL[of == record], 1e9)
        assert all(tensor.dtype == torch.float32 for tensor in alone.sums.values())
        assert length(alone.sums) == pytest.approx(float(alone.norms_R[0]), rel=1e-5)
        assert float(alone.norms_R[0]) == pytest.approx(float(norms[number]), rel=2e-2)


def test_activation_checkpoints_leave_the_same_tape(bench):
    case = Case(bench, None)
    before = case.clipped(ALL, 0.5)
    Compute("cpu", bf16=False, compiled=False, checkpoint_activations=True).decoder(
        case.pair.backbone
    )
    after = case.clipped(ALL, 0.5)
    for name, expected in before.sums.items():
        torch.testing.assert_close(after.sums[name], expected)


@pytest.mark.parametrize("positions", [2, 40], ids=["by Gram matrices", "directly"])
def test_gram_matrices_and_products_give_the_same_norms(positions):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 16))
    fed = torch.randn(6, positions, 16)
    records = np.array([0, 0, 1, 2, 2, 3])
    tape = Tape({"weight": weight})
    with tape.recording(records, positions):
        tape.product(fed, weight).square().sum().backward()
    norms = tape.clipped(1.0).norms_R
    for number in range(4):
        loss = functional.linear(fed[records == number], weight).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert float(norms[number]) == pytest.approx(float(gradient.norm()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_clipped_sums_equal_those_of_opacus():
    opacus = pytest.importorskip("opacus", reason="an oracle that is not installed here")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 9, bias=False), nn.Tanh(), nn.Linear(9, 4, bias=False))
    fed, clip_norm = torch.randn(5, 7, 6), 8.0
    theirs = opacus.GradSampleModule(plain, loss_reduction="sum")
    theirs(fed).square().sum().backward()
    samples = {name: parameter.grad_sample for name, parameter in plain.named_parameters()}
    norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples.values()]).norm(dim=0)
    assert float(norms.min()) < clip_norm < float(norms.max())
    factors = (clip_norm / norms).clamp(max=1)
    theirs.remove_hooks()
    weights = {name: nn.Parameter(p.detach().clone()) for name, p in plain.named_parameters()}
    tape = Tape(weights)
    with tape.recording(np.arange(5), 7):
        inner = torch.tanh(tape.product(fed, weights["0.weight"]))
        tape.product(inner, weights["2.weight"]).square().sum().backward()
    ours = tape.clipped(clip_norm)
    torch.testing.assert_close(ours.norms_R.float(), norms)
    for name, sample in samples.items():
        torch.testing.assert_close(ours.sums[name], torch.einsum("r...,r->...", sample, factors))


def test_a_record_that_is_no_number_counts_as_nothing(bench):
    case = Case(bench, None)
    rest = case.clipped(ALL[RECORDS != 7], 0.5)
    pair, lone = case.pair, int(np.flatnonzero(RECORDS == 7)[0])
    told = pair.expect

    def expect(tokens, documents):
        told(tokens, documents)
        if len(tokens) == len(ALL):
            pair.routing.share_BT1[lone] = torch.nan

    pair.expect = expect
    ours = case.clipped(ALL, 0.5)
    assert ours.num_broken == 1
    for name, expected in rest.sums.items():
        torch.testing.assert_close(ours.sums[name], expected, rtol=1e-4, atol=1e-6)


# The guard: every way past the tape is an error.


class Mixture(nn.Module):
    """An expert that sees only the tokens which are sent to it."""

    def __init__(self, tape):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))
        self.tape = tape

    def forward(self, hidden_BTD, routed_BT):
        out = hidden_BTD.clone()
        out[routed_BT] = self.tape.product(hidden_BTD[routed_BT], self.weight)
        return out


@pytest.mark.parametrize("tokens", [1, 4, 13], ids=["one", "as many as windows", "some"])
def test_a_mixture_that_is_fed_by_the_token_is_caught(tokens):
    # Opacus takes these tokens for records: with 1 or 4 of them it says nothing and clips falsely.
    mixture = Mixture(None)
    mixture.tape = Tape({"weight": mixture.weight})
    routed_BT = torch.zeros(4, 5, dtype=torch.bool)
    routed_BT.view(-1)[:tokens] = True
    with (
        pytest.raises(StateError, match="could not be told apart"),
        mixture.tape.recording(np.arange(4), 5),
    ):
        mixture(torch.randn(4, 5, 8), routed_BT).sum().backward()


def two():
    weights = {name: nn.Parameter(torch.randn(3, 3)) for name in "ab"}
    return weights, Tape(weights), torch.randn(2, 4, 3)


TWO = np.arange(2)


def through(tape, fed, weights, names, besides=None):
    for name in names:
        fed = tape.product(fed, weights[name])
    return fed.sum() + (0 if besides is None else besides.sum())


def test_a_path_past_the_tape_is_caught():
    weights, tape, fed = two()
    with (
        pytest.raises(StateError, match="a got a gradient past the tape"),
        tape.recording(TWO, 4),
    ):
        through(tape, fed, weights, "ab", besides=weights["a"]).backward()


def test_a_matrix_that_the_tape_misses_is_caught():
    weights, tape, fed = two()
    with (
        pytest.raises(StateError, match="b was trained but not seen"),
        tape.recording(TWO, 4),
    ):
        through(tape, fed, weights, "a").backward()


def test_a_matrix_that_is_used_twice_is_caught():
    weights, tape, fed = two()
    with pytest.raises(StateError, match="used twice"), tape.recording(TWO, 4):
        through(tape, fed, weights, "aa").backward()


def test_a_gradient_that_was_there_before_is_caught():
    weights, tape, fed = two()
    through(tape, fed, weights, "a").backward()
    with pytest.raises(StateError, match="had a gradient before"), tape.recording(TWO, 4):
        pass


def test_windows_of_a_record_must_stand_side_by_side():
    _, tape, _ = two()
    with pytest.raises(ValueError, match="side by side"), tape.recording(np.array([1, 0, 1]), 4):
        pass


# Noise, and what it buys.


def test_noise_has_the_deviation_it_should_and_is_new_every_step():
    def drawn(step):
        sums = {"b": torch.zeros(300, 200), "a": torch.zeros(300, 200)}
        add_noise(sums, 0.7, Secret(bytes(32)).generator("noise", step))
        return sums

    first, second = drawn(0), drawn(1)
    count = 60_000
    for noise in (*first.values(), *second.values()):
        assert float(noise.mean()) == pytest.approx(0, abs=4 * 0.7 / count**0.5)
        assert float(noise.std()) == pytest.approx(0.7, rel=4 / (2 * count) ** 0.5)
        assert float((noise.abs() < 0.7).float().mean()) == pytest.approx(0.6827, abs=0.01)
    flat = torch.stack([n.flatten() for n in (*first.values(), *second.values())])
    assert float((torch.corrcoef(flat) - torch.eye(4)).abs().max()) < 0.02
    assert all(torch.equal(first[name], drawn(0)[name]) for name in first)
    sums = {"a": torch.ones(3)}
    add_noise(sums, 0.0, np.random.default_rng(0))
    assert torch.equal(sums["a"], torch.ones(3)), "it is added to what is there"


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta", "pld", "rdp"),
    [(64 / 20000, 1.0, 3000, 1e-5, 0.910, 1.177)],
)
def test_epsilon_equals_published_constants(rate, noise, steps, delta, pld, rdp):
    # The table is noised beyond telling, so that only the steps count.
    spent = accountant.spent(accountant.Mechanisms(rate, noise, steps, 1e5), delta)
    assert spent.epsilon == pytest.approx(pld, abs=1e-3)
    assert spent.epsilon_rdp == pytest.approx(rdp, abs=5e-3)


def test_the_table_is_composed_with_the_steps():
    # One Gaussian mechanism has a closed form: Balle and Wang 2018, theorem 8.
    from scipy.optimize import brentq
    from scipy.stats import norm

    def delta_of(epsilon, noise):
        shift = 1 / (2 * noise)
        low, high = norm.cdf(shift - epsilon * noise), norm.cdf(-shift - epsilon * noise)
        return low - np.exp(epsilon) * high

    for noise in (1.0, 4.0):
        spent = accountant.spent(accountant.Mechanisms(1e-9, 1.0, 1, noise), 1e-5)
        exact = brentq(lambda e, n=noise: delta_of(e, n) - 1e-5, 1e-6, 50)
        assert spent.epsilon == pytest.approx(exact, rel=1e-3)
    both = accountant.spent(accountant.Mechanisms(0.1, 2.0, 10, 4.0), 1e-5).epsilon
    steps = accountant.spent(accountant.Mechanisms(0.1, 2.0, 10, 1e5), 1e-5).epsilon
    table = accountant.spent(accountant.Mechanisms(1e-9, 2.0, 1, 4.0), 1e-5).epsilon
    assert max(steps, table) < both < steps + table
