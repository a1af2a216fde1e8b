"""What lies where in a release: file names, tensor names and shapes. No bytes are touched here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from moiety.family import EVIDENCE_TABLE, MATRICES, OLMO2, delta_in, delta_out, matrix_shape, weight

ROSTER = "roster.json"
SHARED = "shared.safetensors"
EVIDENCE = "evidence.safetensors"
UNTUNED = "untuned"
"""Folder of a tuned release that holds the owners' own tables, in a file named as in a strict one.
"""

CONFIG = "config.json"
CARD = "README.md"
ANCHOR_FILES = ("anchor/anchor.json", "anchor/probe.safetensors")
TOKENIZER_FILES = frozenset(
    {
        "LICENSE",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
)
"""What a release takes over from the anchor's folder. A list, so that no anchor can name a file
``roster.json``, or bring code."""

Shapes = dict[str, tuple[int, ...]]


def shard_name(name: str) -> str:
    """The file of the expert called ``name``."""
    return f"expert-{name}.safetensors"


def bundle_files(name: str) -> tuple[str, str]:
    """Where a release keeps the manifest and the signature of the expert called ``name``."""
    return f"bundles/{name}/manifest.json", f"bundles/{name}/signature.json"


def evidence_file(*, untuned: bool = False) -> str:
    """The file of the tables: those a release is run with, or the untuned ones."""
    return f"{UNTUNED}/{EVIDENCE}" if untuned else EVIDENCE


def own_files(names: Sequence[str], *, tuned: bool) -> list[str]:
    """Every file of a release but roster, shards and what came with the tokenizer."""
    found = [CONFIG, CARD, EVIDENCE, *ANCHOR_FILES]
    found += [evidence_file(untuned=True)] if tuned else []
    return sorted(found + [path for name in names[1:] for path in bundle_files(name)])


def matrix_names(num_layers: int, slot: int) -> list[tuple[str, str, str]]:
    """(in an anchor, in a bundle, in ``slot`` of a release) of each matrix, in the file's order."""
    return [
        (OLMO2.dense(layer, matrix), weight(layer, matrix), OLMO2.mixed(layer, slot, matrix))
        for layer in range(num_layers)
        for matrix in MATRICES
    ]


def factor_names(num_layers: int) -> list[tuple[str, str]]:
    """(input side, output side) of each matrix of a low-rank expert, in the file's order."""
    return [
        (delta_in(layer, matrix), delta_out(layer, matrix))
        for layer in range(num_layers)
        for matrix in MATRICES
    ]


def matrix_shapes(num_layers: int, width: int, hidden: int, slot: int) -> Shapes:
    """Tensors of an expert's file when it holds whole matrices."""
    return {
        OLMO2.mixed(layer, slot, matrix): matrix_shape(matrix, width, hidden)
        for layer in range(num_layers)
        for matrix in MATRICES
    }


def factor_shapes(num_layers: int, width: int, hidden: int, rank: int) -> Shapes:
    """Tensors of an expert's file when it holds factors: those of the bundle."""
    shapes: Shapes = {}
    for layer in range(num_layers):
        for matrix in MATRICES:
            rows, columns = matrix_shape(matrix, width, hidden)
            shapes[delta_in(layer, matrix)] = (rank, columns)
            shapes[delta_out(layer, matrix)] = (rows, rank)
    return shapes


def shared_names(names: Collection[str], num_layers: int) -> list[str]:
    """Of an anchor's tensors those outside its feed-forward blocks, in the file's order."""
    return sorted(set(names) - {dense for dense, _, _ in matrix_names(num_layers, 0)})


def table_tensor(slot: int, *, untuned: bool = False) -> str:
    """How papers name one expert's table of evidence in a release."""
    return f"{UNTUNED}.{EVIDENCE_TABLE}.{slot}" if untuned else f"{EVIDENCE_TABLE}.{slot}"
