"""How fast and how small a merge is: beside ``cp`` of the same bytes, in the same run.

What limits a merge is SHA-256: every byte is hashed when it is verified and again when it is
copied, 0.3 to 0.4 GB/s on a core without SHA instructions and about 1.5 GB/s with them. So the
table gives that speed as well, and the processor seconds of the merge, which say what it would
take where nothing else runs.

Makes a synthetic anchor of ``--gb`` gigabytes and four experts (blocks of one random pattern, so
that making them is cheap), merges them in a process of its own, then copies with ``cp`` and
``sync`` exactly the bytes the merge wrote. Everything is removed at the end.

    PYTHONPATH=src:. python tools/bench_merge.py --gb 4
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests import makers

from moiety import family
from moiety.bundle import anchors, pack, papers, signing
from moiety.files import digest_file
from moiety.tensors import ITEM_BYTES, TensorPlan, encode, write_tensors

OWNERS = ("bank", "court", "hospital", "press")
ROW_SCALE = 0.02
_PATTERN_BYTES = 2**22

_MEASURED = """
import json, sys, time
from pathlib import Path
import moiety.merge
def peak():
    # Not getrusage: its maximum is inherited from the process that forked us.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
idle = peak()
anchor, out, *bundles = map(Path, sys.argv[1:])
done = moiety.merge.merge(anchor, bundles, out)
print(json.dumps({"idle": idle, "peak": peak(), "verify": done.verify_seconds,
                  "write": done.write_seconds, "bytes": done.num_bytes,
                  "processor": time.process_time()}))
"""


@dataclass(frozen=True)
class Sizes:
    """A model of about ``--gb`` gigabytes."""

    layers: int
    width: int
    hidden: int
    vocab: int
    dtype: str


def sizes_for(gigabytes: float, dtype: str) -> Sizes:
    """Layers of a fixed shape, as many as fill the size; small shapes for small sizes."""
    width = 2048 if gigabytes >= 1 else 512
    hidden, vocab = 4 * width, 8 * width
    item = ITEM_BYTES[dtype]
    a_layer = (4 * width * width + 3 * width * hidden) * item
    layers = max(1, round((gigabytes * 1e9 - 2 * vocab * width * item) / a_layer))
    return Sizes(layers, width, hidden, vocab, dtype)


def pattern_blocks(pattern: bytes, num_bytes: int) -> Iterator[memoryview]:
    """``num_bytes`` bytes, the pattern over and over."""
    view = memoryview(pattern)
    for at in range(0, num_bytes, len(view)):
        yield view[: min(len(view), num_bytes - at)]


def plan(name: str, shape: tuple[int, ...], dtype: str, pattern: bytes) -> TensorPlan:
    """A tensor filled with the pattern."""
    empty = TensorPlan(name, dtype, shape, ())
    return TensorPlan(name, dtype, shape, pattern_blocks(pattern, empty.num_bytes))


def make_big_anchor(folder: Path, sizes: Sizes) -> Path:
    """A whole anchor folder whose checkpoint is random noise of the size asked for."""
    makers.make_anchor(folder, sizes.layers, sizes.width, 16, 64, dtype=sizes.dtype)
    (folder / "anchor.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"intermediate_size": sizes.hidden, "vocab_size": sizes.vocab}
    (folder / "config.json").write_text(json.dumps(config))
    noise = np.random.default_rng(0).normal(size=_PATTERN_BYTES // ITEM_BYTES[sizes.dtype])
    pattern = encode((noise * ROW_SCALE).astype(np.float32), sizes.dtype)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes.vocab, sizes.width),
        "lm_head.weight": (sizes.vocab, sizes.width),
        "model.norm.weight": (sizes.width,),
    }
    for layer in range(sizes.layers):
        for matrix in family.MATRICES:
            shape = family.matrix_shape(matrix, sizes.width, sizes.hidden)
            shapes[family.OLMO2.dense(layer, matrix)] = shape
        for letter in "qkvo":
            name = f"model.layers.{layer}.self_attn.{letter}_proj.weight"
            shapes[name] = (sizes.width, sizes.width)
    plans = [plan(name, shape, sizes.dtype, pattern) for name, shape in shapes.items()]
    write_tensors(folder / "model.safetensors", plans)
    anchors.write_anchor_paper(folder, family="olmo2")
    return folder


def make_big_bundle(folder: Path, anchor: Path, owner: str, rank: int | None, dtype: str) -> Path:
    """A signed bundle of noise of the anchor's scale, and its run removed again."""
    facts = anchors.open_facts(anchor)
    run = folder / f"{owner}.run"
    run.mkdir(parents=True)
    rng = np.random.default_rng(sorted(OWNERS).index(owner) + 1)
    paper = facts.paper
    shapes = family.expert_shapes(paper.num_layers, paper.width, paper.hidden, rank)
    matrix_noise = (rng.normal(size=_PATTERN_BYTES // ITEM_BYTES[dtype]) * ROW_SCALE).astype("f4")
    patterns = {"F32": encode(matrix_noise, "F32"), dtype: encode(matrix_noise, dtype)}
    plans = []
    for name, shape in shapes.items():
        kind = "F32" if ".router." in name else dtype
        plans.append(plan(name, shape, kind, patterns[kind]))
    write_tensors(run / "expert.safetensors", plans)
    weights = run / "expert.safetensors"
    pair = papers.PairBits(anchor=1.0, pair=1.0, documents=1)
    papers.write_paper(
        run / "run.json",
        papers.RunPaper(
            owner=owner,
            anchor=facts.digest,
            family=paper.family,
            num_layers=paper.num_layers,
            width=paper.width,
            hidden=paper.hidden,
            rank=rank,
            expert=papers.FileFacts(bytes=weights.stat().st_size, sha256=digest_file(weights)),
            config={},
            seed=0,
            versions={},
            text=papers.TextFacts(records=1, documents=1, tokens=1, bytes=1),
            steps=1,
            tokens_seen=1,
            seconds=1.0,
            result=papers.RunResult(heldout=pair, public=pair),
        ),
    )
    signing.new_key(folder / f"{owner}.pem")
    pack(run, folder / f"{owner}.pem", folder / f"{owner}.expert")
    shutil.rmtree(run)
    return folder / f"{owner}.expert"


def forget_cache() -> None:
    """Writes out what is dirty, and drops the page cache where we may (root on Linux)."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the page cache could not be dropped: reads may come from memory", file=sys.stderr)


def measure_merge(
    anchor: Path, bundles: list[Path], out: Path, *, cold: bool = True
) -> dict[str, Any]:
    """One merge in a fresh process: its seconds, its peak memory and that of the idle process."""
    if cold:
        forget_cache()
    arguments = [str(anchor), str(out), *map(str, bundles)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def sha256_speed() -> float:
    """Gigabytes a second that one core hashes: the ceiling of whatever is verified."""
    data = bytes(2**27)
    begin = time.process_time()
    hashlib.sha256(data).digest()
    return len(data) / 1e9 / (time.process_time() - begin)


def measure_copy(paths: list[Path], target: Path) -> float:
    """Seconds of ``cp`` and ``sync`` of these files and folders, from a cold cache."""
    forget_cache()
    target.mkdir()
    begin = time.monotonic()
    subprocess.run(["cp", "-r", *map(str, paths), str(target)], check=True)
    os.sync()
    seconds = time.monotonic() - begin
    shutil.rmtree(target)
    return seconds


def bench(
    root: Path, gigabytes: float, dtype: str, rank: int | None, repeats: int
) -> dict[str, Any]:
    """The whole measurement in ``root``."""
    anchor = make_big_anchor(root / "anchor", sizes_for(gigabytes, dtype))
    bundles = [make_big_bundle(root, anchor, owner, rank, dtype) for owner in OWNERS]
    runs = []
    for _ in range(repeats):
        found = measure_merge(anchor, bundles, root / "release")
        found["cp"] = measure_copy([root / "release"], root / "copy")
        shutil.rmtree(root / "release")
        runs.append(found | {"sha256": sha256_speed()})
    rows = [
        {
            "gigabytes_written": run["bytes"] / 1e9,
            "sha256_gb_per_s_and_core": run["sha256"],
            "processor_seconds": run["processor"],
            "verify_seconds": run["verify"],
            "write_seconds": run["write"],
            "cp_seconds": run["cp"],
            "write_speed_over_cp": run["cp"] / run["write"],
            "whole_speed_over_cp": run["cp"] / (run["write"] + run["verify"]),
            "peak_megabytes_above_idle": (run["peak"] - run["idle"]) / 1e6,
        }
        for run in runs
    ]
    return {"anchor_gigabytes": gigabytes, "dtype": dtype, "rank": rank, "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4.0, help="size of the anchor")
    parser.add_argument("--dtype", choices=("F32", "BF16"), default="BF16")
    parser.add_argument("--rank", type=int, help="low-rank experts (default: whole ones)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: the temp folder)")
    parser.add_argument("--json", action="store_true", help="one JSON line last")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as root:
        result = bench(Path(root), given.gb, given.dtype, given.rank, given.repeats)
    print(f"{'':28}" + "".join(f"{f'run {n + 1}':>10}" for n in range(given.repeats)))
    for key in result["runs"][0]:
        print(f"{key:28}" + "".join(f"{run[key]:10.2f}" for run in result["runs"]))
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
