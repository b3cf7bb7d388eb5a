"""``per_loop``: one instance of something for each loop, made there on first use and closed there with it."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, cast, overload

from polyloop._core._context import here
from polyloop._core._errors import PoolClosedError, RuntimeClosedError
from polyloop._core._port import Port, current_port, logger
from polyloop.pools._loop_end import LoopEnd
from polyloop.sync import Event

type _Close = Callable[[Any], object]


class _Instance[T]:
    """The instance of one loop. Its loop's thread, but for ``loop_lost`` and ``close_soon``."""

    def __init__(self, holder: "_Holder[T]") -> None:
        self._holder = holder
        self.port = current_port()
        self.closed = Event()
        self.value: T | None = None  # before it is made, and when it was closed
        self.made = False
        self._closing: asyncio.Task[None] | None = None
        self._end = LoopEnd(self)  # last: a loop that was given up is lost at once

    def get(self) -> T:
        """The instance, made at the first call."""
        if not self.made:
            if self._end.passed or self.closed.is_set():
                raise RuntimeClosedError(f"{self._holder!r} cannot make an instance: {self.port!r} is ending")
            self.value = self._holder._make_value()
            self.made = True
        return cast("T", self.value)

    async def loop_ends(self) -> None:
        await self._close()  # and stays where it is until the loop is gone, so that nothing new is made here

    def loop_lost(self) -> None:
        self._holder._forget(self)
        self.closed.set()

    def close_soon(self) -> None:
        """Close it, on its loop. Any thread."""
        self.port.post(self._start_close)
        if self.port.mailbox.closed:
            self.loop_lost()

    def _start_close(self) -> None:
        if self._closing is None and not self._end.passed:  # else it is being closed
            self._closing = self.port.loop.create_task(
                self._close_and_go(), name=f"close {self._holder!r}", context=contextvars.Context()
            )

    async def _close_and_go(self) -> None:
        await self._close()
        self._holder._forget(self)
        self._end.dismiss()

    async def _close(self) -> None:
        try:
            if self.made:
                self.made = False
                value, self.value = self.value, None
                await self._holder._close_one(cast("T", value))
        except Exception:
            logger.exception("polyloop: an instance of %r could not be closed", self._holder)
        finally:
            self.closed.set()


class _Holder[T]:
    """What both kinds share. ``_instances``: each is entered by its loop's thread, by single operations."""

    def __init__(self, factory: Callable[[], T], name: str, close: _Close | None) -> None:
        self._factory = factory
        self._name = name
        self._close_fn = close
        self._instances: dict[Port, _Instance[T]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<per_loop({self._name}) on {len(self._instances)} loops>"

    def _get(self) -> T:
        port = here.port
        if port is None or not port.is_current():
            port = current_port()
        instance = self._instances.get(port)
        if instance is None or not instance.made:
            return self._make(port)
        return cast("T", instance.value)

    def _make(self, port: Port) -> T:
        if self._is_closed():
            raise PoolClosedError(f"{self!r} is closed; use it before aclose(), or make a new one")
        instance = self._instances.get(port)
        if instance is None:
            instance = self._instances[port] = _Instance(self)
            # Read after it was entered, and set before aclose() looks: one of the two sees the other.
            if self._is_closed():
                instance.close_soon()
                raise PoolClosedError(f"{self!r} was closed at this moment")
        return instance.get()

    def _is_closed(self) -> bool:
        return self._closed

    def _make_value(self) -> T:
        return self._factory()

    def _forget(self, instance: _Instance[T]) -> None:
        self._instances.pop(instance.port, None)

    async def _close_one(self, value: T) -> None:
        await self._close_value(value)

    async def _close_value(self, value: object) -> None:
        if self._close_fn is not None:
            done = self._close_fn(value)
        else:
            method = getattr(value, "aclose", None) or getattr(value, "close", None)
            done = None if method is None else method()
        if inspect.isawaitable(done):
            await done

    async def aclose(self) -> None:
        """Close all instances, each on its loop, and make no more.

        Cancellation: the loops go on closing them.
        Thread safety: any loop.
        """
        self._closed = True
        instances = list(self._instances.copy().values())
        for instance in instances:
            instance.close_soon()
        for instance in instances:
            await instance.closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class PerLoop[T](_Holder[T]):
    """One instance for each loop; made by ``per_loop``. Call it to get that of the running loop.

    Thread safety: call it on any loop; the instance it gives belongs to that loop. ``aclose`` may be awaited on any.

    .. versionadded:: 0.4
    """

    def __init__(self, factory: Callable[[], T], close: _Close | None = None) -> None:
        super().__init__(factory, _name_of(factory), close)

    def _make_value(self) -> T:
        value = self._factory()
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError(f"{self!r} got a coroutine from its factory; make it with 'async def', and await the call")
        return value

    def __call__(self) -> T:
        """The instance of the running loop, made at the first call there.

        Raises:
            RuntimeError: no loop runs on this thread.
            TypeError: the factory gave a coroutine.
            PoolClosedError: ``aclose`` was called.
            RuntimeClosedError: the loop is ending.
            BaseException: what the factory raised; the next call tries again.
        Thread safety: any loop.
        """
        return self._get()

    def _anew(self) -> T:
        """Another instance for the running loop, whose own is of no use any more."""
        self._instances[current_port()].made = False
        return self._get()


class AsyncPerLoop[T](_Holder["asyncio.Task[T]"]):
    """``PerLoop`` for an async factory: ``await`` the call. Calls that come at once share one run of the factory.

    Cancellation: cancelling one call leaves the factory running, for the others and for the next.
    Thread safety: as ``PerLoop``.

    .. versionadded:: 0.4
    """

    def __init__(self, factory: Callable[[], Coroutine[Any, Any, T]], close: _Close | None = None) -> None:
        def begin() -> asyncio.Task[T]:
            loop = asyncio.get_running_loop()
            task = loop.create_task(factory(), name=f"make {self!r}", context=contextvars.Context())
            task.add_done_callback(self._look_at_failure)
            return task

        super().__init__(begin, _name_of(factory), close)

    async def __call__(self) -> T:
        """The instance of the running loop, made at the first call there; what it raises, see ``PerLoop``."""
        making = self._get()
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if making.cancelled() and task is not None and not task.cancelling():  # it is the factory that was
                raise PoolClosedError(f"{self!r} was closed while its instance was being made") from None
            raise

    def _look_at_failure(self, task: "asyncio.Task[T]") -> None:
        """The factory has ended; if in vain, the next call tries again, also if nobody has waited for this one."""
        if task.cancelled() or task.exception() is not None:
            instance = self._instances.get(current_port())
            if instance is not None and instance.value is task:
                instance.made = False

    async def _close_one(self, value: "asyncio.Task[T]") -> None:
        if not value.done():
            value.cancel()
            await asyncio.wait([value])
        if not value.cancelled() and value.exception() is None:
            await self._close_value(value.result())


def _name_of(factory: object) -> str:
    return str(getattr(factory, "__qualname__", repr(factory)))


@overload
def per_loop[T](  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    factory: Callable[[], Coroutine[Any, Any, T]], close: Callable[[T], object] | None = None
) -> AsyncPerLoop[T]: ...
@overload
def per_loop[T](factory: Callable[[], T], close: Callable[[T], object] | None = None) -> PerLoop[T]: ...
def per_loop(factory: Callable[[], Any], close: _Close | None = None) -> Any:
    """One instance per loop of what keeps a pool, a session or other state of its own that is bound to a loop.

    The instance is made on the loop that first asks for it, and closed there when that loop ends, after its tasks::

        sessions = polyloop.per_loop(aiohttp.ClientSession)

        async def fetch(url):                      # on any loop
            async with sessions().get(url) as response:
                return await response.read()

    Args:
        factory: Makes an instance, on the loop that it is for. If it is an async function, ``await`` the call:
            ``pool = await pools()``.
        close: Closes an instance, on its loop; a function, async or not. By default its ``aclose`` or ``close`` method
            is called, if it has one.
    Returns:
        A ``PerLoop``: call it for the instance of the running loop.
    Cancellation and thread safety: see ``PerLoop``.

    .. versionadded:: 0.4
    """
    if not callable(factory):
        raise TypeError(f"per_loop() needs a function that makes an instance, got {factory!r}; write per_loop(make)")
    # An object's __call__ may be the async function; that of a class is its metaclass's.
    asynchronous = inspect.iscoroutinefunction(factory) or inspect.iscoroutinefunction(type(factory).__call__)
    return AsyncPerLoop(factory, close) if asynchronous else PerLoop(factory, close)
