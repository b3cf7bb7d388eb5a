"""What ``map`` returns: the iterator that its consumer holds."""

from types import TracebackType
from typing import Self, cast

from polyloop.tasks._map_stream import END, Stream


class MapResults[R]:
    """The results of ``polyloop.map``, to be iterated over once with ``async for``.

    Dropping it, as ``break`` in an ``async for`` does, cancels the calls that run, without waiting for them.
    ``async with`` around it, or ``aclose``, waits too.

    Thread safety: for tasks of one loop, one at a time.

    .. versionadded:: 0.3
    """

    _stream: Stream | None = None  # in case that the constructor raised

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        """The next result.

        Raises:
            StopAsyncIteration: there is none, or the map was closed.
            BaseException: what a call or the source raised; all that ran was cancelled, and has ended.
            RuntimeError: another task waits for the next result, or runs on another loop.
        Cancellation: cancels all calls, waits for their end, and closes the map.
        """
        stream = cast("Stream", self._stream)
        stream.enter()
        exc: BaseException | None = None
        try:
            number, result, exc = await stream.next()
            if number == END[0]:
                raise StopAsyncIteration
            if exc is not None and stream.raises(exc):
                raise exc
            return cast("R", result if exc is None else exc)
        except StopAsyncIteration:
            await stream.close()
            raise
        except BaseException as error:
            await stream.close(error)
            raise
        finally:
            stream.leave()
            del self, stream, exc  # what is raised holds this frame: no cycle through it

    async def aclose(self) -> None:
        """Cancel the calls that run and wait for their end. Closing again does nothing.

        Raises:
            RuntimeError: another task waits for the next result.
        Cancellation: goes on waiting, and raises then.
        """
        stream = cast("Stream", self._stream)
        if stream.closed:
            return
        stream.enter()
        try:
            await stream.close()
        finally:
            stream.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream = cast("Stream", self._stream)
        if not stream.closed:
            stream.enter()
            try:
                await stream.close(exc)
            finally:
                stream.leave()

    def __del__(self) -> None:
        if self._stream is not None:
            self._stream.abandon_soon()
