"""The clients whose connections the pools are tested with: they are here, and they leave the GIL off."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys

import pytest
from tests.conftest import FREE_THREADED

GREENLET_HARMS = FREE_THREADED and sys.version_info < (3, 14)


@pytest.mark.parametrize("name", ["asyncpg", "httpx", "psycopg", "psycopg_pool", "redis", "sqlalchemy"])
def test_a_client_can_be_imported_and_leaves_the_gil_off(name: str) -> None:
    """What cannot be imported is skipped, and in CI fails; that the GIL stays off is looked at after each test."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    print(name, importlib.metadata.version(name.replace("_", "-")))


@pytest.mark.compat
@pytest.mark.skipif(not GREENLET_HARMS, reason="greenlet is harmless here")
def test_free_threaded_3_13_is_without_greenlet() -> None:
    """There its import switches the GIL on, so it is in no group that is installed there."""
    assert importlib.util.find_spec("greenlet") is None


@pytest.mark.skipif(FREE_THREADED, reason="greenlet is installed on builds with a GIL only")
def test_builds_with_a_gil_have_sqlalchemys_asyncio_part() -> None:
    """It needs greenlet."""
    importlib.import_module("sqlalchemy.ext.asyncio")
    print("greenlet", importlib.metadata.version("greenlet"))
