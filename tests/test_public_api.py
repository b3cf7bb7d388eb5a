"""The public names: listed, documented, typed, and where they say they are."""

import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

import polyloop

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "polyloop"
PACKAGES = [
    "polyloop",
    *sorted(
        f"polyloop.{path.name}"
        for path in SOURCE.iterdir()
        if (path / "__init__.py").is_file() and not path.name.startswith("_") and path.name != "cli"
    ),
]
EVERYDAY = {name: getattr(polyloop, name) for name in polyloop.__all__}


def public(package: str) -> dict[str, Any]:
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_a_sorted_tuple_of_names_that_exist(package: str) -> None:
    """``__all__`` is what the package hands on, and nothing else in it looks public by accident."""
    module = importlib.import_module(package)
    assert isinstance(module.__all__, tuple)
    assert list(module.__all__) == sorted(set(module.__all__))
    stray = [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and name not in module.__all__ and not isinstance(thing, types.ModuleType)
    ]
    assert stray == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    """And so is every public method and property of the classes."""
    missing: list[str] = []
    for name, thing in public(package).items():
        if not (isinstance(thing, type) or callable(thing)):
            continue
        if not inspect.getdoc(thing):
            missing.append(name)
        if isinstance(thing, type):
            missing += [f"{name}.{member}" for member in undocumented(thing)]
    assert missing == []


def undocumented(cls: type) -> list[str]:
    """Its public members without a docstring of their own or of a base class."""
    members = {name: member for base in cls.__mro__ if is_ours(base) for name, member in vars(base).items()}
    return [
        name
        for name, member in members.items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod)))
        and not inspect.getdoc(getattr(cls, name))
    ]


def is_ours(thing: Any) -> bool:
    return getattr(thing, "__module__", "").split(".")[0] == "polyloop"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_made_in_a_private_module_of_ours(package: str) -> None:
    """A folder is the topic, its files are private; nothing of somebody else is handed on as ours."""
    for name, thing in public(package).items():
        if isinstance(thing, type) or inspect.isfunction(thing):
            assert is_ours(thing), name
            assert thing.__module__.rsplit(".", 1)[1].startswith("_"), name
            assert thing.__name__ == name


def test_the_everyday_names_are_those_of_the_topics() -> None:
    """One object each, wherever it is imported from."""
    for package in PACKAGES[1:]:
        for name, thing in public(package).items():
            assert EVERYDAY.get(name, thing) is thing, f"{package}.{name}"


@pytest.mark.parametrize("name", polyloop.__all__)
def test_every_everyday_name_is_in_the_api_reference(name: str) -> None:
    """``docs/api.md`` has an entry for it."""
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"::\s+polyloop\.{re.escape(name)}$", reference, re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_every_name_of_a_topic_is_in_the_api_reference(package: str) -> None:
    """By its own name, or as an everyday one."""
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in public(package)
        if name not in EVERYDAY and not re.search(rf"::\s+{package}\.{re.escape(name)}$", reference, re.MULTILINE)
    ]
    assert missing == []


def test_the_reference_names_nothing_that_is_gone() -> None:
    """Each of its entries can be imported."""
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in re.findall(r"^\.\. auto\w+::\s+([\w.]+)$", reference, re.MULTILINE):
        module, name = path.rsplit(".", 1)
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if "pip install" not in str(error):
                raise
            continue  # an extra that cannot be had here: its module says so
        assert hasattr(found, name), path


def test_the_package_is_typed() -> None:
    """``py.typed`` tells type checkers so."""
    assert (SOURCE / "py.typed").is_file()
