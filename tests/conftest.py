"""What all tests share: loops in threads, kinds of event loops, seeds, and a look at what each test leaves behind."""

import asyncio
import contextlib
import faulthandler
import importlib
import importlib.util
import os
import random
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tests import leaks

from polyloop.testing import TestLoop

# A shell without job control starts its background jobs with SIGINT ignored, and the programs that the tests start
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

leaks.install()


def gil_came_on() -> bool:
    """Whether a free-threaded interpreter has lost its freedom, so that the tests prove nothing any more."""
    return FREE_THREADED and sys._is_gil_enabled() and os.environ.get("PYTHON_GIL") != "1"


@pytest.fixture(autouse=True, scope="session")
def free_threaded_to_the_end() -> Iterator[None]:
    """The first and the last test of a session on a free-threaded build run without the GIL."""
    assert not gil_came_on()
    yield
    assert not gil_came_on()


#: Whole servers, processes of their own and clients that take their time.
SLOW_FILES = frozenset(
    f"test_{name}"
    for name in ("asgi_bad_input", "drain", "hang", "hanging", "serve", "serve_options", "serve_restart", "server_end")
) | {"test_successor"}

#: Clients that do the same on every build; SQLAlchemy needs one with a GIL.
SLOW_CLIENTS = frozenset(f"test_{name}" for name in ("aiohttp", "asyncpg", "httpx", "psycopg", "redis"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long and is the same on every build: all orders of something, the benchmarks, a cluster.

    Where several processes share the tests (`make test`), each runs whole files; the tests with a cluster share one.
    """
    for item in items:
        stem = item.path.stem
        together = item.path.parent if item.path.parent.name == "distributed" else item.path
        item.add_marker(pytest.mark.xdist_group(str(together)))
        if item.name.partition("[")[0].endswith(("_in_any_order", "_in_every_order")):
            item.add_marker(pytest.mark.slow)
        if stem in SLOW_FILES or (stem in SLOW_CLIENTS and item.path.parent.name == "pools"):
            item.add_marker(pytest.mark.slow)
        if stem.endswith("_interleavings") or stem.startswith("test_bench") or item.path.parent.name == "distributed":
            item.add_marker(pytest.mark.slow)
    # The longest files first, so that none of them is the last.
    items.sort(key=lambda item: not item.path.stem.endswith("_interleavings"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The run ends when its summary has been shown, also where a test that failed has left a thread behind."""
    if leaks.threads_that_hold_the_process():
        faulthandler.dump_traceback(all_threads=True)
        sys.stdout.flush()
        os._exit(1)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A thread, loop, task or socket that outlives its test fails it, and so does a GIL that came on."""
    gil_before = gil_came_on()
    before = leaks.Snapshot()
    yield
    found = before.leaks(descriptors=not uses_untidy_loop(request.node))
    if found:
        pytest.fail("the test left something behind:\n" + "\n".join(found), pytrace=False)
    if gil_came_on() and not gil_before:
        pytest.fail("an import of this test switched the GIL on", pytrace=False)


def uses_untidy_loop(node: pytest.Item) -> bool:
    """Whether the test runs on a loop of others that leaves its own sockets behind."""
    callspec = getattr(node, "callspec", None)
    return callspec is not None and any(
        isinstance(value, Flavour) and value.untidy for value in callspec.params.values()
    )


@pytest.fixture
def loops() -> Iterator[Callable[[int], list[TestLoop]]]:
    """Makes test loops that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(count: int) -> list[TestLoop]:
            return [stack.enter_context(TestLoop(f"loop-{index}")) for index in range(count)]

        yield make


@pytest.fixture
def left() -> Iterator[TestLoop]:
    """A loop in a thread."""
    with TestLoop("left") as loop:
        yield loop


@pytest.fixture
def right() -> Iterator[TestLoop]:
    """Another loop in another thread."""
    with TestLoop("right") as loop:
        yield loop


@dataclass(frozen=True)
class Flavour:
    """A kind of event loop; ``new`` makes one, and is ``None`` for polyloop's own. One leaves its sockets behind."""

    name: str
    module: str | None = None
    untidy: bool = False

    @property
    def new(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        if self.name == "own":
            return None
        if self.module is None:
            return asyncio.SelectorEventLoop
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(self.module).new_event_loop
        return factory

    def why_not(self) -> str | None:
        """Why this kind cannot be had here, if it cannot."""
        if self.module is None:
            return None
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        version = getattr(importlib.import_module(self.module), "__version__", "0")
        if self.module == "uvloop" and FREE_THREADED and tuple(map(int, version.split(".")[:2])) < (0, 23):
            return f"uvloop {version} loses wake-ups without the GIL"
        return None


FLAVOURS = (
    Flavour("own"),
    Flavour("asyncio"),
    Flavour("uvloop", "uvloop"),
    # rloop 0.2 drops the sockets of its self-pipe without closing them, and its poll with its last reference.
    pytest.param(
        Flavour("rloop", "rloop", untidy=True),
        marks=[
            pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
            pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
        ],
    ),
)


@pytest.fixture(params=FLAVOURS, ids=lambda flavour: flavour.name)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Each kind of event loop in turn."""
    chosen: Flavour = request.param
    reason = chosen.why_not()
    if reason is not None:
        pytest.skip(reason)
    return chosen


@pytest.fixture
def any_loop(flavour: Flavour) -> Iterator[TestLoop]:
    """A loop of each kind in turn, served by polyloop."""
    with TestLoop(f"{flavour.name}-loop", loop_factory=flavour.new) as loop:
        yield loop


@pytest.fixture
def seed() -> int:
    """A random seed that a failing test shows; POLYLOOP_SEED repeats one."""
    chosen = int(os.environ.get("POLYLOOP_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"\nPOLYLOOP_SEED={chosen}")
    return chosen


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Random numbers from that seed."""
    return random.Random(seed)


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long a random race goes on: a second, or what POLYLOOP_STRESS_SECONDS says for one marked ``stress``."""
    marked = request.node.get_closest_marker("stress") is not None
    return float(os.environ.get("POLYLOOP_STRESS_SECONDS", "60")) if marked else 1.0
