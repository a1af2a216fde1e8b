"""A release in the hand: names, errors, sampling, routing shares."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from transformers import configuration_utils

import moiety
from moiety.errors import ConfigError, FormatError, TrustError
from moiety.merge import load_release
from moiety.model import Mixture
from moiety.model.mixture import load_mixture

OWNERS = tuple(tiny.RANKS)


@pytest.fixture(scope="module")
def mixture(tiny_world):
    return tiny_world.load(*OWNERS)


def test_loading_a_release_warns_of_nothing(tiny_world, monkeypatch):
    said = []
    monkeypatch.setattr(configuration_utils.logger, "warning", lambda *words: said.append(words))
    tiny_world.load("amy")
    assert said == []


def test_names_are_in_slot_order_and_the_anchor_is_in_every_set(mixture):
    assert mixture.names == ["anchor", "amy", "bob", "cat"]
    assert mixture.slots(["cat", "amy"]) == (0, 1, 3)
    assert mixture.slots([]) == mixture.slots(["anchor"]) == (0,)
    with mixture.without("anchor", "bob"):
        assert mixture.routing.slots == (0, 1, 3)


@pytest.mark.parametrize(
    "use",
    [
        lambda mixture: mixture.only("eve", "amy", "dan").__enter__(),
        lambda mixture: mixture.without("eve", "amy", "dan").__enter__(),
        lambda mixture: mixture.generate(["a", "b"], experts=[["amy"], ["eve", "dan"]]),
    ],
    ids=["only", "without", "generate"],
)
def test_an_unknown_expert_is_named_and_so_are_those_there_are(mixture, use):
    with pytest.raises(ConfigError, match="no expert called dan, eve") as caught:
        use(mixture)
    assert caught.value.remedy == "there are: anchor, amy, bob, cat"
    assert mixture.routing.slots == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 0}, "max tokens"),
        ({"experts": [["amy"]]}, "1 expert sets for a batch of 2"),
        ({"prompt": ["x", "ba " * 200]}, "longer than the model's 128 positions"),
    ],
)
def test_what_cannot_be_generated_is_refused(mixture, how, what):
    with pytest.raises(ConfigError, match=what):
        mixture.generate(**({"prompt": ["a", "b"]} | how))


def test_an_empty_prompt_begins_with_the_separator(mixture):
    text = mixture.generate("", temperature=0, max_new_tokens=8)
    assert text == tiny.greedy_by_recomputation(mixture, "", 8)


def test_an_empty_prompt_without_a_separator_is_refused(tiny_world, tmp_path):
    raw = json.loads((tiny_world.anchor / "tokenizer.json").read_text("utf-8"))
    raw["post_processor"] = None
    mixture = tiny_world.load("amy")
    shutil.copytree(tiny_world.anchor, tmp_path / "plain")
    (tmp_path / "plain" / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    from transformers import AutoTokenizer

    mixture.tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="prompt is empty"):
        mixture.generate("")


def test_a_prompt_gives_a_text_and_prompts_give_texts(mixture):
    one = mixture.generate("ba", temperature=0, max_new_tokens=6)
    assert isinstance(one, str)
    assert mixture.generate(["ba"], temperature=0, max_new_tokens=6) == [one]


def test_the_same_seed_gives_the_same_text_and_leaves_the_callers_dice_alone(mixture):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    texts = {
        seed: [mixture.generate("ba", seed=seed, max_new_tokens=12) for _ in range(2)]
        for seed in (0, 1, 2)
    }
    assert torch.equal(torch.rand(3), expected)
    assert all(one == other for one, other in texts.values())
    assert len({one for one, _ in texts.values()}) > 1


def test_streaming_prints_the_text_it_returns(mixture, capsys):
    texts = []
    for prompt in ("ba", *tiny.PROMPTS):
        texts.append(mixture.generate(prompt, temperature=0, max_new_tokens=10, stream=True))
        assert capsys.readouterr().out.strip() == texts[-1].strip()
    assert any(text.strip() for text in texts)


def test_sampling_follows_the_models_probabilities(tiny_world):
    mixture = tiny_world.load("amy")
    with torch.no_grad():
        mixture.backbone.lm_head.weight.mul_(3)
    ids = mixture.tokenizer("ba ba", return_tensors="pt")["input_ids"]
    expected = tiny.logits_of(mixture, ids)[0, -1].softmax(dim=-1)
    count = 600
    texts = mixture.generate(["ba ba"] * count, temperature=1, top_p=1, max_new_tokens=1, seed=3)
    for text in sorted(set(texts)):
        # Several tokens may read alike: every broken piece of UTF-8 does.
        share = sum(
            float(chance)
            for token, chance in enumerate(expected)
            if mixture.tokenizer.decode([token], skip_special_tokens=True) == text
        )
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(texts.count(text) / count - share) < 5 * spread + 1 / count


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("chosen", [OWNERS, ("bob",), ()])
def test_shares_are_the_summed_weights_of_real_positions(tiny_world, chosen, top_k):
    mixture = tiny_world.load(*OWNERS, top_k=top_k)
    tokens = tiny.random_tokens(2, 13)
    documents = torch.tensor([[0] * 5 + [1] * 8, [1] * 9 + [-1] * 4])
    seen = watch_weights(mixture)
    with mixture.only(*chosen), mixture.watching() as shares:
        mixture.score(tokens, documents)
        slots = list(mixture.routing.slots)
    real = documents[:, :-1] >= 0
    if len(slots) == 4 and top_k == 2:
        assert shares.sum() < real.sum(), "kept weights are not renormalised"
    else:
        torch.testing.assert_close(shares.sum(), real.sum().double())
    absent = [n for n in range(len(mixture.names)) if n not in slots]
    assert shares[absent].abs().sum() == 0
    for weights in seen:
        torch.testing.assert_close(weights[real].double().sum(0), shares[slots])


def test_shares_of_requests_with_sets_of_their_own_are_those_of_each_alone(mixture):
    tokens = tiny.random_tokens(3, 13)
    documents = torch.tensor([[0] * 5 + [1] * 8, [1] * 9 + [-1] * 4, [2] * 13])
    sets, seen, alone = [["amy"], ["bob", "cat"], []], [], torch.zeros(4, dtype=torch.double)
    with mixture.watching(seen.append) as shares:
        mixture.score(tokens, documents, experts=sets)
    assert [weights.shape for weights in seen] == [(3, 12, 4)]
    for row, names in enumerate(sets):
        with mixture.only(*names), mixture.watching() as one:
            mixture.score(tokens[row : row + 1], documents[row : row + 1])
        torch.testing.assert_close(seen[0][row].double().sum(0), one)
        alone += one
    torch.testing.assert_close(shares, alone)


def test_shares_of_generation_count_every_token_that_entered_once(tiny_world, mixture):
    """Prompts are padded on the left, and after the first pass only new tokens enter."""
    sets, entered, masks = [["amy"], ["bob", "cat"], []], [], []

    def keep(_model, _args, kwargs):
        entered.append(kwargs["input_ids"])
        masks.append(kwargs["attention_mask"])

    hook = mixture.backbone.model.register_forward_pre_hook(keep, with_kwargs=True)
    with mixture.watching() as shares:
        mixture.generate(tiny.PROMPTS, experts=sets, temperature=0, max_new_tokens=6)
    hook.remove()
    assert [ids.shape[1] for ids in entered[1:]] == [1] * 5
    expected = torch.zeros(4, dtype=torch.double)
    for ids, mask, names in zip(torch.cat(entered, 1), masks[-1], sets, strict=True):
        read, slots = ids[mask.bool()], mixture.slots(names)
        for end in range(1, len(read) + 1):
            weights = weights_by_hand(tiny_world, read[:end], None, ("anchor", *names))
            expected[list(slots)] += torch.tensor(weights, dtype=torch.double)
    assert not masks[-1].all()
    torch.testing.assert_close(shares, expected, rtol=1e-5, atol=1e-5)


def watch_weights(mixture):
    """What each layer mixed by in the latest pass, by layer."""
    seen = [None] * tiny.LAYERS
    for number, layer in enumerate(mixture.backbone.model.layers):

        def keep(mlp, _inputs, number=number):
            seen[number] = mlp.routing.weights_BTE

        layer.mlp.register_forward_pre_hook(keep)
    return seen


def weights_by_hand(world, tokens, top_k, names=("anchor", *OWNERS)):
    """What each expert gets after these tokens of one document."""
    count = len(tokens)
    logits = [
        sum(float(world.table(name)[token]) for token in tokens) * 16 / (count + 16)
        for name in names
    ]
    total = sum(math.exp(logit) for logit in logits)
    least = sorted(logits)[-(top_k or len(logits))]
    return [math.exp(logit) / total if logit >= least else 0.0 for logit in logits]


@pytest.mark.parametrize("top_k", [None, 2, 1])
def test_every_layer_follows_the_evidence_counted_by_hand(tiny_world, top_k):
    mixture, tokens = tiny_world.load(*OWNERS, top_k=top_k), tiny.random_tokens(2, 13)
    documents = torch.tensor([[0] * 5 + [1] * 8, [1] * 9 + [-1] * 4])
    seen = watch_weights(mixture)
    mixture.score(tokens, documents)
    for window, inside in enumerate(documents[:, :-1].tolist()):
        for at, document in enumerate(inside):
            if document >= 0:
                read = tokens[window, inside.index(document) : at + 1]
                expected = torch.tensor(weights_by_hand(tiny_world, read, top_k))
                for weights in seen:
                    torch.testing.assert_close(weights[window, at], expected, rtol=1e-4, atol=1e-5)


def test_who_else_is_in_a_release_changes_nothing_in_an_experts_odds(tiny_world):
    tokens = tiny.random_tokens(2, 13)
    odds = []
    for team in (OWNERS, ("bob",)):
        mixture = tiny_world.load(*team)
        seen = watch_weights(mixture)
        tiny.logits_of(mixture, tokens)
        odds.append(seen[0][:, :, mixture.names.index("bob")] / seen[0][:, :, 0])
    torch.testing.assert_close(odds[0], odds[1], rtol=1e-5, atol=1e-6)


def test_evidence_needs_tokens(mixture):
    words = mixture.backbone.get_input_embeddings()(tiny.random_tokens(1, 6))
    with pytest.raises(ConfigError, match="reads tokens"):
        mixture.backbone(inputs_embeds=words, use_cache=False)


def test_nothing_is_watched_after_the_block(mixture):
    tokens = tiny.random_tokens(1, 5)
    with mixture.watching() as shares:
        tiny.logits_of(mixture, tokens)
    before = shares.clone()
    tiny.logits_of(mixture, tokens)
    assert torch.equal(shares, before)


def test_an_attention_mask_of_four_dimensions_is_refused(mixture):
    with pytest.raises(ConfigError, match="shape"):
        tiny.logits_of(
            mixture,
            tiny.random_tokens(1, 4),
            attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool),
        )


def test_the_packages_own_door_loads_a_release(tiny_world):
    folder = tiny_world.release(*OWNERS)
    model = moiety.load(str(folder))
    assert isinstance(model, Mixture)
    tokens = tiny.random_tokens(1, 9)
    ours = load_release(folder)
    assert torch.equal(tiny.logits_of(model, tokens), tiny.logits_of(ours, tokens))


def test_a_release_that_does_not_hold_is_not_loaded(tiny_world, tmp_path):
    shutil.copytree(tiny_world.release("amy"), tmp_path / "release")
    (tmp_path / "release" / "extra").write_text("x")
    with pytest.raises(TrustError):
        moiety.load(tmp_path / "release")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_the_users_mistake(tiny_world, device):
    with pytest.raises(ConfigError, match=f"no such device here: {device}"):
        moiety.load(tiny_world.release("amy"), device=device)


def test_tensors_that_do_not_fit_are_an_error_with_a_place(tiny_world, tmp_path):
    folder = tiny_world.release("amy")
    held = load_file(folder / "expert-amy.safetensors")
    name = next(iter(sorted(held)))
    save_file(held | {name: held[name][:, :-1].contiguous()}, tmp_path / "odd.safetensors")
    with pytest.raises(FormatError, match="tensors of slot 1 do not fit") as caught:
        load_mixture(
            folder,
            ["anchor", "amy"],
            [folder / "expert-anchor.safetensors", tmp_path / "odd.safetensors"],
            [None, None],
            evidence=folder / "evidence.safetensors",
            top_k=2,
        )
    assert "layer" in caught.value.where
