"""What the committed requirement files may hold: names, versions and hashes, and no word on where to get them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "requirements").glob("*.txt"))


def test_every_group_is_compiled() -> None:
    """``make lock`` writes one file per group."""
    groups = {"bench", "clients", "dask", "docs", "greenlet", "http", "lint", "loops", "test", "tonio", "uv"}
    assert {path.stem for path in FILES} == groups


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_requirements_name_no_index(path: Path) -> None:
    """Whoever installs uses the indexes of their own machine."""
    offending = [line for line in path.read_text().splitlines() if "://" in line or line.lstrip().startswith("-i")]
    options = re.findall(r"^\s*--(?!hash=)\S+", path.read_text(), flags=re.MULTILINE)
    assert (offending, options) == ([], [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_requirements_are_pinned_with_hashes(path: Path) -> None:
    """Each entry is one exact version with at least one hash."""
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE))
    loose = [entry.splitlines()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry]
    assert loose == []


def test_a_package_has_one_version_in_all_files() -> None:
    """``.venv`` is made from two of the files; they must agree."""
    versions: dict[str, set[str]] = {}
    for path in FILES:
        for name, version in re.findall(r"^([a-z0-9][\w.-]*)==(\S+) *\\?$", path.read_text(), flags=re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
