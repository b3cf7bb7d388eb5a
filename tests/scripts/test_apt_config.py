"""Reading apt's sources in both formats, and finding the distribution's own archive among them."""

from scripts.setup_env.apt_config import (
    AptSource,
    distribution_archives,
    newer_suites,
    parse_list,
    parse_os_release,
    parse_sources,
)

BOOKWORM = {"ID": "debian", "VERSION_CODENAME": "bookworm"}

DEB822 = """\
Types: deb
# a comment between two fields
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://embedded.invalid/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQENBF
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_deb822_stanzas_are_read_with_their_key() -> None:
    """Address, suites, components and the key file come through; a comment inside a stanza does not end it."""
    assert parse_sources(DEB822)[0] == AptSource(
        ("http://mirror.invalid/debian",),
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        {"Signed-By": "/usr/share/keyrings/archive.gpg"},
    )


def test_deb822_disabled_stanza_is_left_out() -> None:
    """``Enabled: no`` means that the person does not want it asked."""
    assert [source.uris[0] for source in parse_sources(DEB822)] == [
        "http://mirror.invalid/debian",
        "http://embedded.invalid/debian",
    ]


def test_deb822_embedded_key_survives_the_way_back() -> None:
    """A key written into the stanza keeps its lines, indented, as apt wants them."""
    source = parse_sources(DEB822)[1]
    again = parse_sources(source.for_suite("sid").stanza("deb-src"))[0]
    assert again.options == source.options
    assert " mQENBF\n" in again.stanza("deb-src")
    assert source.keyring == ""


def test_one_line_format_is_read_with_its_options() -> None:
    """Options in brackets are optional; those about trust travel along, the others do not."""
    text = (
        "# a comment\n"
        "deb http://plain.invalid/debian bookworm main  # trailing comment\n"
        "deb-src [arch=amd64 signed-by=/k.gpg] https://signed.invalid/debian/ bookworm main contrib\n"
        "nonsense\n"
    )
    assert parse_list(text) == [
        AptSource(("http://plain.invalid/debian",), ("bookworm",), ("main",), {}),
        AptSource(("https://signed.invalid/debian/",), ("bookworm",), ("main", "contrib"), {"Signed-By": "/k.gpg"}),
    ]


def test_stanza_for_another_suite_asks_for_free_software_only() -> None:
    """The private apt asks the same address, with the same key, for one suite."""
    source = AptSource(("http://mirror.invalid/debian",), ("bookworm",), ("main", "contrib"), {"Signed-By": "/k.gpg"})
    assert source.for_suite("sid").stanza("deb-src") == (
        "Types: deb-src\nURIs: http://mirror.invalid/debian\nSuites: sid\nComponents: main\nSigned-By: /k.gpg\n"
    )


def test_keyring_is_the_first_file_of_signed_by() -> None:
    """Several files may be named; a fingerprint is no file."""
    assert AptSource((), (), (), {"Signed-By": "/a.gpg, /b.gpg"}).keyring == "/a.gpg"
    assert AptSource((), (), (), {"Signed-By": "0123456789ABCDEF"}).keyring == ""


def test_archive_of_the_distribution_comes_before_third_parties() -> None:
    """A third party may name its suite like the distribution's; the address and the code name decide the order."""
    third = AptSource(("http://third.invalid/repo",), ("stable",), ("main",))
    other = AptSource(("http://other.invalid/apt",), ("bookworm",), ("main",))
    own = AptSource(("http://mirror.invalid/debian",), ("bookworm", "bookworm-updates"), ("main",))
    node = AptSource(("http://node.invalid/",), ("nodistro",), ("main",))
    assert distribution_archives([third, node, other, own], BOOKWORM) == [own, other, third]


def test_archive_is_named_once_and_security_is_none() -> None:
    """Updates of the same address are the same archive; a security archive holds no other suite."""
    own = AptSource(("http://mirror.invalid/debian",), ("bookworm",), ("main",))
    security = AptSource(("http://mirror.invalid/debian-security",), ("bookworm-security",), ("main",))
    again = AptSource(("http://mirror.invalid/debian",), ("bookworm",), ("main", "contrib"))
    assert distribution_archives([own, security, again], BOOKWORM) == [own]


def test_os_release_values_lose_their_quotes() -> None:
    """Both kinds of quotes are allowed, and comments."""
    text = "# c\nID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME=\"Debian 12\"\nNAME='Debian'\n"
    assert parse_os_release(text) == {**BOOKWORM, "PRETTY_NAME": "Debian 12", "NAME": "Debian"}


def test_suites_are_tried_newest_first_and_end_with_the_installed_one() -> None:
    """Debian and Ubuntu name their newest suite differently; each name is on every mirror of theirs."""
    assert newer_suites(BOOKWORM) == ["sid", "testing", "stable", "bookworm"]
    assert newer_suites({"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_CODENAME": "noble"}) == ["devel", "noble"]
