"""uvicorn's protocol on httptools, with a bound to the heads of requests; that on h11 has one.

httptools hands on what it has parsed and keeps what it has not: for as long as a client sends a head, both grow. And
while a request is in flight nobody looks at the time that the next head takes. So bytes are counted here.

This module needs httptools, and is imported only where that is used. The class is made by its import: one that is made
for each server would, on a free-threaded 3.13, never go away again.
"""

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn import Config
    from uvicorn.server import ServerState

#: Most bytes of a head, or of the trailers of a body: h11's limit, as uvicorn sets it.
LIMIT = 64 * 1024


class BoundedHttpTools(HttpToolsProtocol):
    """Answers 400, and closes, when a head is longer than ``LIMIT``.

    A head that comes whole is measured; one that does not end is refused when it is certain to be too long, which it
    is after two ``LIMIT`` at the latest.

    Attributes:
        head_begun: Whether a part of a head has come, and not yet all of it.
    """

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: "asyncio.AbstractEventLoop | None" = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.head_begun = False
        self._fed = 0  # bytes that the parser was given last, at most LIMIT
        # While a head comes, or what may be trailers: bytes since then, with all that the parser got along with the
        # first of them, so at most LIMIT too many. Else 0.
        self._head = 0

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._fed = size = len(data)
        if size > LIMIT:
            self._in_parts(memoryview(data))
            return
        if self._head:
            self._head += size
        super().data_received(data)
        if self._head > 2 * LIMIT and not self.transport.is_closing():
            message = "Request head is too long."
            self.logger.warning(message)
            self.send_400_response(message)

    def _in_parts(self, whole: Any) -> None:
        for at in range(0, len(whole), LIMIT):
            self.data_received(whole[at : at + LIMIT])
            # Closed, or a WebSocket now: uvicorn takes nothing of the rest then.
            if self.transport.is_closing() or self not in self.connections:
                return

    # What the parser calls

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        self.head_begun = True
        self._head = self._fed
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The last byte of a head."""
        if self._head > LIMIT and self._length() > LIMIT:
            raise ValueError("the head is too long")  # uvicorn answers what the parser makes of it, with 400
        self.head_begun = False
        self._head = 0
        super().on_headers_complete()

    def _length(self) -> int:
        """Bytes of this head, but for its first line's method and version."""
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def on_chunk_header(self) -> None:
        """A chunk of a body: if it is the last, which nothing says, trailers may follow."""
        self._head = self._fed

    def on_body(self, body: bytes) -> None:
        """So it was not the last."""
        self._head = 0
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        """The end of a chunk, or of the trailers."""
        self._head = 0
