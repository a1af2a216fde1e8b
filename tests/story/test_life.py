"""The whole life of an expert through the command line, every command a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, FlexOlmoForCausalLM, Olmo2ForCausalLM

from moiety.merge import load_release

ANCHOR = ("data.window_tokens=32", "batch.windows=4", "budget.tokens=2560", "compute.compile=off")
OWNER = (*ANCHOR, "budget.final_tokens=512", "budget.judge_every=5", "budget.judge_tokens=256")


@dataclass(frozen=True)
class House:
    """A folder in which commands are run."""

    folder: Path

    def moiety(self, *words: str, code: int = 0) -> str:
        """Runs a command and returns its stdout."""
        done = subprocess.run(
            [sys.executable, "-m", "moiety", *words],
            cwd=self.folder,
            env={**os.environ, "MOIETY_HOME": str(self.folder / "home"), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"moiety {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def tree(self, name: str) -> dict[str, bytes]:
        """Every file of a folder with its bytes."""
        root = self.folder / name
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("life")
    for seed, name in enumerate(("public", "amy", "bob")):
        tiny.write_text(folder / f"{name}.jsonl", seed=seed)
        tiny.write_text(folder / f"{name}-test.jsonl", seed=seed, documents=3)
    (folder / "terms.toml").write_text('licence = "CC-BY-4.0"\npurposes = ["research"]\n')
    return House(folder)


def settings(assignments: tuple[str, ...]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def test_the_whole_life(house: House) -> None:
    anchor_and_owners(house)
    merged_and_judged(house)
    used(house)
    withdrawn_and_admitted(house)
    exported(house)


def anchor_and_owners(house: House) -> None:
    house.moiety("anchor", "new", "public.jsonl", "--out", "anchor", *settings(ANCHOR))
    house.moiety("verify", "anchor")
    for owner, more in (("amy", []), ("bob", ["--rank", "4"])):
        house.moiety("keys", "new", "--out", f"{owner}.pem")
        house.moiety(
            *("train", "anchor", f"{owner}.jsonl", "--owner", owner, "--out", f"{owner}-run"),
            *more,
            *settings(OWNER),
        )
        terms = ["--terms", "terms.toml"] if owner == "amy" else []
        bundle = f"{owner}.expert"
        house.moiety(*("pack", f"{owner}-run", "--key", f"{owner}.pem", "--out", bundle), *terms)
        house.moiety("verify", bundle, "--key", f"{owner}.pub", "--anchor", "anchor")
    house.moiety("verify", "amy.expert", "--key", "bob.pub", code=2)
    assert "CC-BY-4.0" in house.moiety("verify", "amy.expert")


def merged_and_judged(house: House) -> None:
    house.moiety("merge", "anchor", "bob.expert", "amy.expert", "--out", "release")
    house.moiety("verify", "release")
    data = [f"{name}={name}-test.jsonl" for name in ("public", "amy", "bob")]
    out = house.moiety(
        *("eval", "release", "--data", *data, "--window-tokens", "32", "--out", "report", "--json")
    )
    table = json.loads(out.splitlines()[-1])["bits_per_byte"]
    assert set(table) == {"anchor", "anchor+amy", "anchor+bob", "all", "all-amy", "all-bob"}
    for owner in ("amy", "bob"):
        assert table["all"][owner] < table["anchor"][owner]
    assert table["all-amy"] == pytest.approx(table["anchor+bob"])
    assert (house.folder / "report" / "report.html").is_file()


def used(house: House) -> None:
    words = ["generate", "release", "--prompt", "ba", "--max-tokens", "8", "--temperature", "0"]
    words += ["--without", "amy"]
    house.moiety("merge", "anchor", "bob.expert", "--out", "bob-alone")
    house.moiety("export", "bob-alone", "--out", "bob-plain")
    folder = house.folder / "bob-plain"
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert type(stock) is FlexOlmoForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("ba", return_tensors="pt", return_token_type_ids=False)
    ids = stock.eval().generate(**inputs, do_sample=False, max_new_tokens=8)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert house.moiety(*words) == text + "\n"


def withdrawn_and_admitted(house: House) -> None:
    house.moiety("keys", "new", "--out", "coordinator.pem")
    order = ["order", "withdraw", "amy.expert", "--out", "order.json", "--key"]
    house.moiety(*order, "bob.pem", code=2)
    house.moiety(*order, "amy.pem")
    house.moiety("verify", "order.json", "--key", "amy.pub")
    leave = ["withdraw", "--order", "order.json", "--key", "coordinator.pem"]
    house.moiety(*leave, "release", "amy", "--out", "without", "--receipt", "receipt.json")
    assert house.tree("without") == house.tree("bob-alone")
    house.moiety(*("verify", "receipt.json", "--release", "without", "--key", "coordinator.pub"))
    house.moiety("verify", "receipt.json", "--release", "release", code=2)
    house.moiety("admit", "without", "amy.expert", "--out", "again")
    assert house.tree("again") == house.tree("release")
    house.moiety(*leave, "again", "amy", "--in-place", "--receipt", "second.json")
    assert house.tree("again") == house.tree("bob-alone")
    house.moiety("verify", "second.json", "--release", "again")


def exported(house: House) -> None:
    house.moiety("export", "release", "--dense", "bob", "--out", "dense")
    model, report = AutoModelForCausalLM.from_pretrained(
        house.folder / "dense", output_loading_info=True
    )
    assert type(model) is Olmo2ForCausalLM
    assert {name: list(found) for name, found in report.items() if found} == {}
    tokenizer = AutoTokenizer.from_pretrained(house.folder / "dense")
    ids = tokenizer("ba ba", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.isfinite(model.eval()(input_ids=ids).logits).all()
    house.moiety("export", "release", "--out", "plain")
    plain = AutoModelForCausalLM.from_pretrained(house.folder / "plain").eval()
    ours = load_release(house.folder / "release")
    with torch.inference_mode():
        found = plain(input_ids=ids).logits
        expected = ours.backbone(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
