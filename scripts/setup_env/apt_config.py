"""Pure: reading apt's sources, in both of its formats, and saying which of them is the distribution's own archive."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

# Options of a source that say whom to trust: they must travel with its address.
_TRUST_OPTIONS = ("Signed-By", "Trusted")


@dataclass(frozen=True)
class AptSource:
    """One source of packages: a stanza of a ``.sources`` file, or a line of a ``.list`` file."""

    uris: Tuple[str, ...]
    suites: Tuple[str, ...]
    components: Tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    def stanza(self, types: str) -> str:
        """This source in the deb822 format."""
        lines = [
            f"Types: {types}",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
            *(f"{name}: {value}" for name, value in self.options.items()),
        ]
        return "\n".join(lines) + "\n"

    def for_suite(self, suite: str) -> "AptSource":
        """The same archive, another suite, free software only."""
        return replace(self, suites=(suite,), components=("main",))

    @property
    def keyring(self) -> str:
        """The first key file that ``Signed-By`` names, or ``""``: an embedded key or the system's own key rings."""
        words = self.options.get("Signed-By", "").replace(",", " ").split()
        return words[0] if words and words[0].startswith("/") else ""


def parse_sources(text: str) -> "List[AptSource]":
    """The enabled sources of a deb822 file (``.sources``)."""
    sources = []
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields = _deb822_fields(paragraph)
        if not fields.get("uris") or fields.get("enabled", "yes").lower() in {"no", "false", "off", "0"}:
            continue
        options = {name: fields[name.lower()] for name in _TRUST_OPTIONS if name.lower() in fields}
        sources.append(
            AptSource(
                uris=tuple(fields["uris"].split()),
                suites=tuple(fields.get("suites", "").split()),
                components=tuple(fields.get("components", "").split()),
                options=options,
            )
        )
    return sources


def _deb822_fields(paragraph: str) -> "Dict[str, str]":
    """Names in lower case; a value keeps its continuation lines, as an embedded key needs them."""
    fields: Dict[str, str] = {}
    current = ""
    for line in paragraph.splitlines():
        if line.lstrip().startswith("#"):
            continue
        if line[:1] in (" ", "\t") and current:
            fields[current] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            current = name.strip().lower()
            fields[current] = value.strip()
    return fields


_ONE_LINE = re.compile(r"deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<rest>.+)")


def parse_list(text: str) -> "List[AptSource]":
    """The sources of a one-line-per-source file (``.list``)."""
    sources = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if not match:
            continue
        words = (word.partition("=") for word in (match.group("options") or "").split())
        given = {name.rstrip("+-").lower(): value for name, _, value in words}
        options = {name: given[name.lower()] for name in _TRUST_OPTIONS if name.lower() in given}
        uri, *rest = match.group("rest").split()
        sources.append(AptSource((uri,), tuple(rest[:1]), tuple(rest[1:]), options))

    return sources


def parse_os_release(text: str) -> "Dict[str, str]":
    """The fields of ``/etc/os-release``."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip().strip("\"'") for name, value in pairs}


_ALIASES = {"stable", "testing", "unstable", "sid", "oldstable", "devel"}


def distribution_archives(sources: Iterable[AptSource], os_release: Mapping[str, str]) -> "List[AptSource]":
    """The sources that may be the distribution's own archive, the most likely one first.

    A third party may name its suite like the distribution's, so this is an order to try, not an answer.
    """
    codename = os_release.get("VERSION_CODENAME", "")
    families = [os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()]

    def likelihood(source: AptSource) -> "Tuple[bool, bool]":
        named = any(uri.rstrip("/").endswith(f"/{family}") for uri in source.uris for family in families if family)
        return named, codename in source.suites

    fitting = [
        source
        for source in sources
        if "main" in source.components and (codename in source.suites or _ALIASES.intersection(source.suites))
    ]
    distinct: Dict[object, AptSource] = {}
    for source in fitting:
        distinct.setdefault((source.uris, source.keyring), source)
    return sorted(distinct.values(), key=likelihood, reverse=True)


def newer_suites(os_release: Mapping[str, str]) -> "Sequence[str]":
    """Suites that may hold a newer Python than the installed release, newest first; names that every mirror has."""
    codename = os_release.get("VERSION_CODENAME", "")
    families = {os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()}
    suites = ["devel"] if "ubuntu" in families else ["sid", "testing", "stable"]
    return [*suites, codename] if codename and codename not in suites else suites
