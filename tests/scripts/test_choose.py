"""Which interpreter and which source package set-up chooses."""

from scripts.setup_env.choose import (
    Interpreter,
    SourcePackage,
    interpreters_from_uv,
    newest,
    packages_from_madison,
)


def entry(
    version: str, *, variant: str = "default", path: str | None = None, implementation: str = "cpython"
) -> dict[str, object]:
    return {
        "version": version,
        "variant": variant,
        "path": path if path is not None else f"/opt/{version}/bin/python",
        "implementation": implementation,
    }


def python(version: tuple[int, int, int], *, free_threaded: bool = True, final: bool = True) -> Interpreter:
    return Interpreter("/usr/bin/python", version, free_threaded, final)


def test_uv_listing_keeps_cpython_only_and_tells_the_builds_apart() -> None:
    """PyPy and what is not installed (no path) are no candidates; the variant names a free-threaded build."""
    found = interpreters_from_uv(
        [
            entry("3.14.2", variant="freethreaded"),
            entry("3.14.2"),
            entry("3.11.11", implementation="pypy"),
            {**entry("3.15.0"), "path": None},
        ]
    )
    assert [(one.version, one.free_threaded) for one in found] == [((3, 14, 2), True), ((3, 14, 2), False)]


def test_uv_listing_names_each_build_once() -> None:
    """uv lists every link to an interpreter; the first path is kept."""
    found = interpreters_from_uv([entry("3.13.5", path="/a"), entry("3.13.5", path="/b")])
    assert [one.path for one in found] == ["/a"]


def test_uv_listing_knows_pre_releases_and_debug_variants() -> None:
    """A beta is not final; ``freethreaded+debug`` is still free-threaded."""
    found = interpreters_from_uv([entry("3.15.0b2", variant="freethreaded+debug")])
    assert found == [Interpreter("/opt/3.15.0b2/bin/python", (3, 15, 0), free_threaded=True, final=False)]


def test_newest_prefers_a_final_release_to_a_later_beta() -> None:
    """A pre-release is taken only where there is nothing else."""
    beta, final = python((3, 15, 0), final=False), python((3, 14, 2))
    assert newest([beta, final], free_threaded=True, at_least=(3, 14)) == final
    assert newest([beta], free_threaded=True, at_least=(3, 14)) == beta


def test_newest_compares_versions_as_numbers() -> None:
    """3.13.15 is newer than 3.13.9."""
    found = newest([python((3, 13, 9)), python((3, 13, 15))], free_threaded=True, at_least=(3, 13))
    assert found == python((3, 13, 15))


def test_newest_keeps_to_the_kind_and_the_range() -> None:
    """Neither a build with a GIL nor a version outside of the range is chosen."""
    candidates = [python((3, 14, 0), free_threaded=False), python((3, 13, 1))]
    assert newest(candidates, free_threaded=True, at_least=(3, 14)) is None
    assert newest(candidates, free_threaded=False, at_least=(3, 13), below=(3, 14)) is None
    assert newest(candidates, free_threaded=True, at_least=(3, 13), below=(3, 14)) == python((3, 13, 1))


def test_source_package_version_drops_debians_revision() -> None:
    """The version of Python is what stands between epoch and revision."""
    assert SourcePackage("python3.13", "3.13.5-2+deb13u5").python_version == (3, 13, 5)
    assert SourcePackage("python3.14", "1:3.14.2-1ubuntu1").python_version == (3, 14, 2)


def test_source_package_of_a_pre_release_has_no_version() -> None:
    """Alphas, betas and candidates are marked by a tilde and are never built."""
    assert SourcePackage("python3.15", "3.15.0~b2-1").python_version == ()


MADISON = """\
python3.13 |  3.13.9-1 | http://mirror.invalid/debian testing/main Sources
python3.13 | 3.13.15-1 | http://mirror.invalid/debian sid/main Sources
python3.13 | 3.13.15-1 | http://mirror.invalid/debian testing/main Sources
python3.14 |  3.14.2-1 | http://mirror.invalid/debian sid/main amd64 Packages
python3.15 | 3.15.0~rc1-1 | http://mirror.invalid/debian sid/main Sources
python3.12 |  3.12.9-1 | http://mirror.invalid/debian sid/main Sources
"""


def test_madison_gives_final_sources_newest_first() -> None:
    """Doubles, binary packages, pre-releases and versions before 3.13 are left out."""
    assert packages_from_madison(MADISON) == [
        SourcePackage("python3.13", "3.13.15-1"),
        SourcePackage("python3.13", "3.13.9-1"),
    ]


def test_madison_of_nothing_is_nothing() -> None:
    """A mirror without sources gives an empty list."""
    assert packages_from_madison("") == []
