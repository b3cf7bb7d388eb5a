"""``create_datagram_server``: a UDP endpoint on each loop, all on one address."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from polyloop._core._completion import Completion, all_done
from polyloop._core._errors import RuntimeClosedError
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port
from polyloop.runtime._runtime import Runtime
from polyloop.serve._accepted import AcceptedSocket
from polyloop.serve._listen import bind_again, check_socket, explained, resolve, set_reuse_port
from polyloop.serve._places import places, start_on

type DatagramFactory = Callable[[], asyncio.DatagramProtocol]


async def create_datagram_server(
    protocol_factory: DatagramFactory,
    local_addr: tuple[str, int] | None = None,
    *,
    family: int = socket.AF_UNSPEC,
    reuse_port: bool = True,
    allow_broadcast: bool = False,
    sock: socket.socket | None = None,
    runtime: Runtime | None = None,
) -> "DatagramServer":
    """``loop.create_datagram_endpoint`` over all loops, for servers: one endpoint on each, all on the same address.

    The kernel chooses the endpoint by a hash of both addresses, so all that one peer sends is received on one loop, in
    its order, as long as no loop ends.

    Args:
        protocol_factory: Called once on each loop; several loops call it at once. What a protocol sends comes from the
            common address.
        local_addr: Host and port to receive on; port 0 has the system choose one.
        family: ``socket.AF_INET`` or ``AF_INET6``; by default as ``local_addr`` says.
        reuse_port: Whether the loops share the address, by ``SO_REUSEPORT``. If not, one loop serves alone: the
            caller's, if it is one of them.
        allow_broadcast: Whether messages may be sent to a broadcast address.
        sock: A socket that is bound, instead of ``local_addr``; it belongs to the server then. To be shared, it must
            have had ``SO_REUSEPORT`` set before it was bound.
        runtime: Whose loops; the caller's by default. Without a runtime the caller's loop serves alone.
    Raises:
        OSError: the address cannot be had.
        TypeError, ValueError: an argument makes no sense, or the system lacks ``SO_REUSEPORT``.
        RuntimeClosedError: the runtime is closing.
    Cancellation: nothing is left open.
    Thread safety: any loop.

    .. versionadded:: 0.4
    """
    if (local_addr is None) == (sock is None):
        raise ValueError(f"one of local_addr and sock must say where to receive; got {local_addr!r} and {sock!r}")
    ports = places(runtime)
    if not reuse_port:
        ports = tuple(port for port in ports if port.is_current()) or ports[:1]
    shared = len(ports) > 1
    if shared and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError(
            "several loops on one address need SO_REUSEPORT, which this system lacks; use reuse_port=False"
        )
    if sock is not None:
        need = "a datagram server needs a datagram socket (SOCK_DGRAM)"
        first = check_socket(sock, socket.SOCK_DGRAM, need, shared=shared)
    else:
        assert local_addr is not None
        first = await _bind(local_addr, family, shared)
    sockets = [first]
    try:
        first.setblocking(False)
        sockets += [_twin(first) for _ in ports[1:]]
        if allow_broadcast:
            for one in sockets:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    server = DatagramServer(ports, sockets)
    await server._open(protocol_factory)
    return server


async def _bind(address: tuple[str, int], family: int, shared: bool) -> socket.socket:
    """A socket on the first address that ``address`` stands for and that can be had."""
    host, port = address[:2]
    found = await resolve(host, port, socket.SOCK_DGRAM, family=family)
    errors: list[OSError] = []
    for kind, _, proto, _, where in found:
        try:
            sock = socket.socket(kind, socket.SOCK_DGRAM, proto)
        except OSError as exc:  # of a family that is switched off
            errors.append(exc)
            continue
        try:
            if shared:
                set_reuse_port(sock)
            sock.bind(where)
        except OSError as exc:
            errors.append(exc)
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise explained(errors[0], f"{host}:{port}") from errors[0]


def _twin(sock: socket.socket) -> socket.socket:
    twin = bind_again(sock)
    twin.setblocking(False)
    return twin


class DatagramServer:
    """Endpoints on one UDP address; see ``create_datagram_server``, which returns it.

    As a context manager it is closed at the end.

    Thread safety: everything may be called from any thread; what is awaited, on any loop.

    .. versionadded:: 0.4
    """

    def __init__(self, ports: Sequence[Port], sockets: Sequence[socket.socket]) -> None:
        self._name = str(sockets[0].getsockname())
        self._endpoints = tuple(_Endpoint(port, sock) for port, sock in zip(ports, sockets, strict=True))
        self._handles: list[TaskHandle[None]] = []  # filled before anybody has the server
        self._closing = False

    def __repr__(self) -> str:
        state = "closed" if self._closing else "serving"
        return f"<DatagramServer {self._name} {state} loops={len(self._endpoints)}>"

    async def _open(self, factory: DatagramFactory) -> None:
        for endpoint in self._endpoints:
            handle = start_on(endpoint.port, endpoint.run(factory), f"datagram server {self._name}")
            handle._add_waiter(partial(endpoint.over, handle))
            self._handles.append(handle)
        try:
            for endpoint in self._endpoints:
                await endpoint.ready
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Receive no more; what was given to the transports is still sent."""
        self._closing = True
        for endpoint in self._endpoints:
            endpoint.port.post(endpoint.end.set)

    async def wait_closed(self) -> None:
        """Wait until the endpoints are closed.

        Cancellation: the server is as it was.
        """
        await all_done(self._handles)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The open sockets, one for each loop: to be looked at, not used. Empty when the server is closed."""
        return () if self._closing else tuple(one.sock for one in self._endpoints if one.sock.fileno() >= 0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()


class _Endpoint:
    """One loop's part: a task that ends with the server, with its runtime, or when its protocol closes the transport.

    Everything is the loop's own thread's, but for ``over``.
    """

    def __init__(self, port: Port, sock: socket.socket) -> None:
        self.port = port
        self.sock = AcceptedSocket(sock, self._closed)
        self.ready = Completion[None]()
        self.end = asyncio.Event()
        self._gone = asyncio.Event()

    def _closed(self, sock: AcceptedSocket) -> None:
        if self.sock.held:  # else it is closed by a thread that knows
            self.end.set()
            self._gone.set()

    async def run(self, factory: DatagramFactory) -> None:
        protocol = factory()
        self.sock.held = True
        transport, _ = await self.port.loop.create_datagram_endpoint(lambda: protocol, sock=self.sock)
        try:
            self.ready._complete(None)
            await self.end.wait()
            transport.close()
            await self._gone.wait()
        finally:
            transport.abort()

    def over(self, handle: TaskHandle[None]) -> None:
        """The task has ended, in whatever way. Any thread."""
        if not self.sock.held:
            self.sock.close()
        if not self.ready.done():
            exc = None if handle.cancelled() else handle._exception_for_me()
            self.ready._complete(None, exc or RuntimeClosedError(f"{self.port.name} ended before it could serve"))
