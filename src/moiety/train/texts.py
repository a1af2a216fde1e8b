"""The texts of a run, tokenised once into its folder: the owner's and the public sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moiety.bundle import papers
from moiety.data import PackedText, Skipped, Sources, load_tokenizer, pack_split, pack_text
from moiety.files import new_folder
from moiety.train.config import TrainConfig
from moiety.train.sample import sample_sources


@dataclass(frozen=True)
class Texts:
    """What a run trains on, and what it is judged on."""

    own: PackedText
    own_heldout: PackedText
    public: PackedText
    public_heldout: PackedText

    def facts(self) -> papers.TextFacts:
        """Exact size of the owner's text, canaries included: for the run's own paper, which stays
        at home."""
        parts = (self.own, self.own_heldout)
        return papers.TextFacts(
            records=sum(part.num_records for part in parts),
            documents=sum(part.num_documents for part in parts),
            tokens=sum(part.num_tokens for part in parts),
            bytes=sum(part.num_bytes for part in parts),
        )


def prepare_texts(
    anchor: Path,
    own: Sources,
    heldout: Sources | None,
    config: TrainConfig,
    folder: Path,
    skipped: Skipped,
    planted: Sequence[tuple[str, str]] = (),
) -> Texts:
    """Tokenises what is not there yet; a resumed run finds everything in place.

    ``planted`` are canaries, each behind the name of its record: they are trained on beside the own
    text.
    """
    public = sample_sources(anchor)
    public_parts = prepare_text(anchor, public, None, config, folder / "public", Skipped())
    private = config.privacy.epsilon is not None
    own_parts = prepare_text(
        anchor, own, heldout, config, folder / "own", skipped, by_record=private, planted=planted
    )
    return Texts(*own_parts, *public_parts)


def prepare_text(
    anchor: Path,
    sources: Sources,
    heldout: Sources | None,
    config: TrainConfig,
    folder: Path,
    skipped: Skipped,
    *,
    by_record: bool = False,
    planted: Sequence[tuple[str, str]] = (),
) -> tuple[PackedText, PackedText]:
    """One text, tokenised unless it is there: to train on, and to be judged on.

    With ``by_record`` no window that is trained on mixes records. ``planted`` texts are never
    judged on.
    """
    if not folder.exists():
        _pack(anchor, sources, heldout, config, folder, skipped, by_record, planted)
    return PackedText.open(folder / "train"), PackedText.open(folder / "heldout")


def _pack(
    anchor: Path,
    sources: Sources,
    heldout: Sources | None,
    config: TrainConfig,
    folder: Path,
    skipped: Skipped,
    by_record: bool,
    planted: Sequence[tuple[str, str]],
) -> None:
    tokenizer, separator = load_tokenizer(anchor)
    window = config.data.window_tokens
    documents = sources.documents(skipped)
    if heldout is None:
        fraction = config.data.heldout_fraction
        pack_split(
            documents,
            tokenizer,
            folder,
            window_tokens=window,
            separator=separator,
            heldout_fraction=fraction,
            by_record=by_record,
            planted=planted,
        )
        return
    # The folder's name appears only when both parts stand: a killed run begins this again.
    with new_folder(folder) as fresh:
        for part, text in (("train", documents), ("heldout", heldout.documents(skipped))):
            pack_text(
                text,
                tokenizer,
                fresh / part,
                window_tokens=window,
                separator=separator,
                align=part == "heldout",
                by_record=by_record and part == "train",
                planted=planted if part == "train" else (),
            )
