"""Pure: what a cluster's address says."""

from typing import Any, NamedTuple
from urllib.parse import parse_qsl

_FORM = "'tcp://host:port' or 'dask:tcp://host:port?retries=2&window=500'"
_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "inproc")


class Target(NamedTuple):
    """A scheduler, and options of ``DaskOffload`` for it."""

    address: str
    options: dict[str, Any]


def parse(url: str) -> Target:
    """Read an address, with or without ``dask:`` before it and options behind it.

    Args:
        url: As in ``tcp://host:port``; ``dask:host:port`` is short for ``dask:tcp://host:port``. Options follow after a
            ``?``: ``retries``, ``window``, ``connect_timeout``, and any number of ``resources.NAME``.
    Raises:
        ValueError: it is no such address, or an option is unknown or out of range.
    """
    rest = url.removeprefix("dask:")
    address, _, query = rest.partition("?")
    scheme, separator, host = address.partition("://")
    if not separator:
        scheme, host = "tcp", address if rest != url else ""
    name, colon, port = host.rpartition(":")
    if scheme not in _SCHEMES or not (name and colon and port.isdecimal()):
        raise ValueError(f"{url!r} is no address of a Dask scheduler; write {_FORM}")
    return Target(f"{scheme}://{host}", _options(url, query))


def _options(url: str, query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        try:
            if name in ("retries", "window"):
                options[name] = int(text)
            elif name == "connect_timeout":
                options[name] = float(text)
            elif name.startswith("resources.") and name != "resources.":
                options.setdefault("resources", {})[name.removeprefix("resources.")] = float(text)
            else:
                raise ValueError("is not known; there are retries, window, connect_timeout and resources.NAME")
        except ValueError as exc:
            raise ValueError(f"option {name!r} of {url!r}: {exc}") from None
    return options
