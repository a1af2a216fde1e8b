"""How fast and how small a merge is: beside ``cp`` of the same bytes, in turns with it.

A merge has two passes. The first verifies: every byte is read and hashed once, so SHA-256 limits
it, 0.2 to 0.4 GB/s on a core without SHA instructions and about 1.5 GB/s with them. The second
reads and writes the release; it is what is compared with ``cp`` and ``sync``.

Makes a synthetic anchor of ``--gb`` gigabytes and four experts (blocks of one random pattern, so
that making them is cheap). Each repeat merges them in a process of its own and then copies, with
``cp``, the files the merge read: once after they were read in full, as the second pass of the merge
finds them, and once from a cold cache, to compare with the merge as a whole. Everything is removed
at the end.

    PYTHONPATH=src:. python tools/bench_merge.py --gb 4
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
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
NOISE_SCALE = 0.02
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
    pattern = encode((noise * NOISE_SCALE).astype(np.float32), sizes.dtype)
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
    shapes = family.expert_shapes(paper.num_layers, paper.width, paper.hidden, paper.vocab, rank)
    matrix_noise = (rng.normal(size=_PATTERN_BYTES // ITEM_BYTES[dtype]) * NOISE_SCALE).astype("f4")
    patterns = {"F32": encode(matrix_noise, "F32"), dtype: encode(matrix_noise, dtype)}
    plans = []
    for name, shape in shapes.items():
        kind = "F32" if name == family.EVIDENCE else dtype
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
            vocab=paper.vocab,
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


def measure_copy(paths: list[Path], target: Path, *, cold: bool) -> float:
    """Seconds of ``cp`` and ``sync`` of these files, from a cold cache or just read in full."""
    forget_cache()
    if not cold:
        for path in paths:
            subprocess.run(["cat", str(path)], check=True, stdout=subprocess.DEVNULL)
    target.mkdir()
    begin = time.monotonic()
    for number, path in enumerate(paths):
        subprocess.run(["cp", str(path), str(target / str(number))], check=True)
    os.sync()
    seconds = time.monotonic() - begin
    shutil.rmtree(target)
    return seconds


def measure_once(root: Path, anchor: Path, bundles: list[Path]) -> dict[str, float]:
    """One merge and two copies of what it read."""
    merged = measure_merge(anchor, bundles, root / "release")
    shutil.rmtree(root / "release")
    read = [anchor / "model.safetensors", *(bundle / "expert.safetensors" for bundle in bundles)]
    warm = measure_copy(read, root / "copy", cold=False)
    cold = measure_copy(read, root / "copy", cold=True)
    read_bytes = sum(path.stat().st_size for path in read)
    write_speed = merged["bytes"] / 1e9 / merged["write"]
    warm_speed, cold_speed = read_bytes / 1e9 / warm, read_bytes / 1e9 / cold
    whole_speed = merged["bytes"] / 1e9 / (merged["write"] + merged["verify"])
    return {
        "gigabytes_read": read_bytes / 1e9,
        "gigabytes_written": merged["bytes"] / 1e9,
        "sha256_gb_per_s_and_core": sha256_speed(),
        "processor_seconds": merged["processor"],
        "verify_seconds": merged["verify"],
        "verify_gb_per_s": read_bytes / 1e9 / merged["verify"],
        "write_seconds": merged["write"],
        "write_gb_per_s": write_speed,
        "cp_read_before_gb_per_s": warm_speed,
        "cp_cold_gb_per_s": cold_speed,
        "write_over_cp": write_speed / warm_speed,
        "whole_over_cp": whole_speed / cold_speed,
        "peak_megabytes_above_idle": (merged["peak"] - merged["idle"]) / 1e6,
    }


def bench(
    root: Path, gigabytes: float, dtype: str, rank: int | None, repeats: int
) -> dict[str, Any]:
    """The whole measurement in ``root``."""
    anchor = make_big_anchor(root / "anchor", sizes_for(gigabytes, dtype))
    bundles = [make_big_bundle(root, anchor, owner, rank, dtype) for owner in OWNERS]
    runs = [measure_once(root, anchor, bundles) for _ in range(repeats)]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    facts = {"anchor_gigabytes": gigabytes, "dtype": dtype, "rank": rank}
    return facts | {"cores": len(os.sched_getaffinity(0)), "runs": runs, "median": medians}


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
    titles = ["median", *(f"run {number + 1}" for number in range(given.repeats))]
    print(f"{'':28}" + "".join(f"{title:>10}" for title in titles))
    for key, median in result["median"].items():
        numbers = [median, *(run[key] for run in result["runs"])]
        print(f"{key:28}" + "".join(f"{number:10.2f}" for number in numbers))
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
