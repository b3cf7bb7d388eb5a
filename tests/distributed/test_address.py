"""What may be written for a cluster's address."""

import pytest

from polyloop.distributed._address import parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("tcp://10.0.0.1:8786", "tcp://10.0.0.1:8786"),
        ("tls://scheduler.example:8786", "tls://scheduler.example:8786"),
        ("tcp://[::1]:8786", "tcp://[::1]:8786"),
        ("dask:tcp://host:1", "tcp://host:1"),
        ("dask:host:1", "tcp://host:1"),
    ],
)
def test_an_address_stands_alone_or_behind_dask(url: str, address: str) -> None:
    """``dask:`` may be there, and then TCP need not."""
    assert parse(url) == (address, {})


def test_options_follow_the_address() -> None:
    """Each with its type."""
    assert parse(
        "dask:tcp://h:1?retries=2&window=50&connect_timeout=1.5&resources.GPU=1&resources.MEM=2e9"
    ).options == {
        "retries": 2,
        "window": 50,
        "connect_timeout": 1.5,
        "resources": {"GPU": 1.0, "MEM": 2e9},
    }


@pytest.mark.parametrize(
    "url", ["", "host:1", "tcp://host", "tcp://:1", "http://host:1", "dask:", "dask:host", "tcp://host:port"]
)
def test_what_is_no_address_is_refused_with_an_example_of_one(url: str) -> None:
    """By ``ValueError``."""
    with pytest.raises(ValueError, match=r"write 'tcp://host:port'"):
        parse(url)


@pytest.mark.parametrize("query", ["retries=many", "speed=9", "resources.=1", "retries"])
def test_an_unknown_or_unreadable_option_is_refused(query: str) -> None:
    """By ``ValueError``."""
    with pytest.raises(ValueError, match=r"option|bad query"):
        parse(f"tcp://host:1?{query}")
