"""Sizes of anchors that ``moiety anchor new`` makes, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import Olmo2Config

from moiety.train.config import OptimConfig, TrainConfig

PresetName = Literal["tiny", "small", "base"]


@dataclass(frozen=True)
class Preset:
    """Sizes of an OLMo 2 decoder. ``parameters`` counts all of them, embeddings included."""

    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int
    learning_rate: float

    @property
    def parameters(self) -> int:
        """Parameters of the dense model; embedding and head are not shared."""
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 4 * self.width
        return 2 * self.vocab * self.width + self.layers * block + self.width

    def model_config(self, *, separator: int, pad: int, max_positions: int) -> Olmo2Config:
        """The configuration as ``transformers`` knows it."""
        return Olmo2Config(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=max_positions,
            bos_token_id=separator,
            eos_token_id=separator,
            pad_token_id=pad,
            tie_word_embeddings=False,
        )

    def train_config(self, seed: int) -> TrainConfig:
        """Training settings for an anchor of this size."""
        optim = OptimConfig(learning_rate=self.learning_rate, weight_decay=0.1)
        return TrainConfig(optim=optim, seed=seed)


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(vocab=2048, width=192, hidden=512, layers=4, heads=4, learning_rate=3e-3),
    "small": Preset(vocab=4096, width=256, hidden=768, layers=6, heads=4, learning_rate=3e-3),
    "base": Preset(vocab=16384, width=768, hidden=2048, layers=12, heads=12, learning_rate=1e-3),
}
