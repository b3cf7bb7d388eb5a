"""A plain thread for tests: what it raises reaches the test."""

from collections.abc import Callable

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._ending import thread_stack
from polyloop.testing._steps import STEP_TIMEOUT


class TestThread[T]:
    """Runs ``fn(*args)`` in a thread of its own, at once; ``result`` waits for its end.

    Args:
        name: Name of the thread.
        timeout: Seconds after which ``result`` gives up.

    .. versionadded:: 0.1
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__[*Ts](
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        name: str = "polyloop-test-thread",
        timeout: float = STEP_TIMEOUT,
    ) -> None:
        self._outcome = Completion[T]()
        self._timeout = timeout

        def work() -> None:
            try:
                self._outcome._complete(fn(*args))
            except BaseException as exc:
                self._outcome._complete(None, exc)

        self._thread = _prims.start_thread(work, name)

    @property
    def ident(self) -> int:
        """Identity of the thread, as ``threading.get_ident`` gives it there."""
        assert self._thread.ident is not None
        return self._thread.ident

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def result(self) -> T:
        """Wait for the thread to end and return what ``fn`` returned.

        Raises:
            TimeoutError: it did not end in time; the message shows where it is.
            BaseException: what ``fn`` raised.
        """
        self._thread.join(self._timeout)
        if self._thread.is_alive():
            stack = "\n    ".join(thread_stack(self.ident))
            raise TimeoutError(f"{self._thread.name!r} did not end within {self._timeout} s; it is at\n    {stack}")
        return self._outcome._outcome()
