"""The command lines that other people's scripts rely on, word for word, and what they mean."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from moiety.cli import app

LINES = {
    "anchor new a.txt b/ --out DIR": {"data": ["a.txt", "b/"], "out": Path("DIR")},
    "anchor new a.txt --out DIR --preset tiny": {"preset": "tiny"},
    "anchor new a.txt --out DIR --preset small": {"preset": "small"},
    "anchor new a.txt --out DIR --preset base": {"preset": "base"},
    "anchor import CKPT --public a b --out DIR": {
        "checkpoint": "CKPT",
        "public": ["a"],
        "more": ["b"],
    },
    "anchor import CKPT --public a --public b --out DIR": {"public": ["a", "b"]},
    "train ANCHOR a.txt b.txt --owner amy --out DIR": {
        "anchor": Path("ANCHOR"),
        "data": ["a.txt", "b.txt"],
        "owner": "amy",
        "rank": None,
        "resume": False,
    },
    "train A d --owner amy --out D --rank 8 --tokens 1000 --seed 3 --resume": {
        "rank": 8,
        "tokens": 1000,
        "seed": 3,
        "resume": True,
    },
    "train A d --owner amy --out D --config run.toml --set a.b=c --set d.e=f": {
        "config": Path("run.toml"),
        "set_": ["a.b=c", "d.e=f"],
    },
    "audit RUN --anchor A --data a.txt --out DIR": {
        "subject": Path("RUN"),
        "data": ["a.txt"],
        "heldout": [],
        "owner": None,
        "control": True,
    },
    "audit REL --owner amy --data a --data b --heldout c --out DIR --no-control --json": {
        "anchor": None,
        "owner": "amy",
        "data": ["a", "b"],
        "heldout": ["c"],
        "control": False,
        "as_json": True,
    },
    "keys new --out KEY.pem": {"out": Path("KEY.pem")},
    "pack RUN --key KEY.pem --out NAME.expert": {"run": Path("RUN"), "terms": None},
    "pack RUN --key KEY.pem --terms TERMS.toml --out NAME.expert": {"terms": Path("TERMS.toml")},
    "verify PATH": {"path": Path("PATH"), "release": None},
    "verify PATH --key KEY.pub": {"key": [Path("KEY.pub")]},
    "verify RECEIPT --release REL": {"path": Path("RECEIPT"), "release": Path("REL")},
    "verify RECEIPT --key KEY.pub --release REL": {"release": Path("REL")},
    "merge ANCHOR a.expert b.expert --out DIR": {
        "bundles": [Path("a.expert"), Path("b.expert")],
        "top_k": None,
    },
    "merge ANCHOR a.expert --out DIR --top-k 2": {"top_k": 2},
    "merge ANCHOR a.expert --out DIR --top-k auto": {"top_k": "auto"},
    "order withdraw a.expert --key KEY.pem --out ORDER.json": {"bundle": Path("a.expert")},
    "withdraw REL amy --order ORDER.json --out DIR": {"out": Path("DIR"), "in_place": False},
    "withdraw REL amy --order ORDER.json --in-place": {"out": None, "in_place": True},
    "admit REL a.expert --out DIR": {"release": Path("REL"), "bundle": Path("a.expert")},
    "export REL --out DIR": {"release": Path("REL"), "experts": None, "dense": None},
    "export REL --experts amy,bob --out DIR": {"experts": "amy,bob"},
    "export REL --dense amy --out DIR": {"dense": "amy"},
    "serve REL": {
        "release": Path("REL"),
        "policy": None,
        "host": "127.0.0.1",
        "port": 8000,
        "admin_port": None,
        "receipt_key": None,
        "engine": "local",
    },
    "serve REL --policy P.toml --host 0.0.0.0 --port 80 --admin-port 81 --name m --usage URL": {
        "policy": Path("P.toml"),
        "host": "0.0.0.0",
        "admin_port": 81,
        "name": "m",
        "usage": "URL",
    },
    "serve REL --receipt-key KEY.pem --engine local": {"receipt_key": Path("KEY.pem")},
    "serve REL --engine vllm --vllm-python PY --vllm-args E.toml": {
        "engine": "vllm",
        "vllm_python": Path("PY"),
        "vllm_args": Path("E.toml"),
    },
    "serve-key app": {"id_": "app"},
    "usage export REL --out U.csv --url URL": {"out": Path("U.csv"), "url": "URL"},
    "proxies ANCHOR a.txt b.txt --owner amy --out P.json": {
        "data": ["a.txt", "b.txt"],
        "owner": "amy",
        "key": None,
        "documents": None,
    },
    "proxies ANCHOR a.txt --owner amy --key KEY.pem --documents 64 --out P.json": {
        "key": Path("KEY.pem"),
        "documents": 64,
    },
    "tune-router REL --anchor A --proxies P.json --proxies Q.json --out DIR": {
        "anchor": Path("A"),
        "proxies": [Path("P.json"), Path("Q.json")],
        "steps": 200,
        "resume": False,
    },
    "tune-router REL --anchor A --proxies P --out D --steps 9 --set a.b=c --resume": {
        "steps": 9,
        "set_": ["a.b=c"],
        "resume": True,
    },
    "untune REL --out DIR": {"release": Path("REL"), "out": Path("DIR")},
    "eval REL --data x=1 y=2": {"data": ["x=1"], "more": ["y=2"]},
    "eval REL --data x=1 --data y=2": {"data": ["x=1", "y=2"]},
    "eval REL --data x=1 --out DIR --json": {"out": Path("DIR"), "as_json": True},
    "attribute REL a.txt b.txt --json": {"text": ["a.txt", "b.txt"], "as_json": True},
    'generate REL --prompt "The patient"': {"prompt": "The patient"},
    "generate REL --prompt a --max-tokens 5 --temperature 0": {
        "max_tokens": 5,
        "temperature": 0.0,
    },
    "generate REL --prompt a --experts A,B": {"experts": "A,B", "without": None},
    "generate REL --prompt a --without A": {"experts": None, "without": "A"},
    "study STUDY.toml --out DIR": {"plan": Path("STUDY.toml"), "seed": [], "methods": None},
    "study STUDY.toml --out DIR --seed 0 --seed 1 --methods a,b --json": {
        "seed": [0, 1],
        "methods": "a,b",
        "as_json": True,
    },
    "demo": {"out": Path("demo")},
    "demo --out DIR": {"out": Path("DIR")},
    "doctor": {},
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_means_what_it_meant(line):
    command, words = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    found = command.make_context("moiety", words).params
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
    assert {name: plain[name] for name in LINES[line]} == LINES[line]


def test_every_command_has_a_line_here():
    def every(command, name):
        if hasattr(command, "commands"):
            return [line for n, c in command.commands.items() for line in every(c, f"{name} {n}")]
        return [name.strip()]

    commands = every(typer.main.get_command(app), "")
    assert [name for name in commands if not any(line.startswith(name) for line in LINES)] == []
