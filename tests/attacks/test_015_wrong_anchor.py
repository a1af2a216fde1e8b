"""An expert for another anchor, or that lies about the sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.attacks.hostile import Target

from moiety.bundle import anchors
from moiety.errors import IntegrityError, PolicyError


def test_an_expert_for_another_anchor_is_refused(target: Target) -> None:
    other = anchors.open_facts(target.home / "other-anchor")
    target.refused(PolicyError, "trained for another anchor", anchor=other)


def test_a_claimed_anchor_is_refused(target: Target) -> None:
    target.change_manifest(lambda manifest: manifest.update(anchor="0" * 64))
    target.refused(PolicyError, "trained for another anchor")


def test_other_sizes_than_the_anchors_are_refused(target: Target) -> None:
    def shrink(manifest: dict[str, Any]) -> None:
        manifest["num_layers"] = 1
        manifest["tensors"] = {k: v for k, v in manifest["tensors"].items() if ".1." not in k}

    target.change_manifest(shrink)
    target.refused(PolicyError, "num_layers is 1, the anchor's is 2")


def test_an_exchanged_probe_is_refused(target: Target, tmp_path: Path) -> None:
    facts = anchors.open_facts(target.home / "anchor")
    other = target.home / "other-anchor" / "public" / "probe.safetensors"
    target.refused(IntegrityError, "not the probe", anchor=replace(facts, probe=other))
