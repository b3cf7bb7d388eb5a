"""TLS, with a real chain of certificates, and clients that do it wrong."""

import asyncio
import logging
import socket
import ssl
from typing import Any

import pytest
from tests.serve.clients import (
    Answer,
    Client,
    address,
    answer,
    close_all,
    connected,
    counts,
    fate,
    on_loops,
    plain,
    serving,
    until,
)
from tests.serve.conftest import Certificates

from polyloop import create_server, start_server, start_unix_server


def test_a_client_verifies_the_chain(certificates: Certificates) -> None:
    """It knows the root alone; the server shows the certificate between."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0, ssl=certificates.for_server())) as server:
            clients = [await Client.to(address(server), certificates.for_client()) for _ in range(8)]
            assert len({await client.ask() for client in clients}) == 4
            assert counts(server) == [2] * 4
            assert clients[0].writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
            await close_all(clients)
            await until(lambda: not any(counts(server)))

    on_loops(main)


@pytest.mark.parametrize("reuse_port", [False, True])
def test_protocols_over_tls(certificates: Certificates, reuse_port: bool) -> None:
    """``create_server``; also where each loop accepts by itself."""

    async def main() -> None:
        async with serving(
            create_server(Answer, "127.0.0.1", 0, ssl=certificates.for_server(), reuse_port=reuse_port)
        ) as server:
            clients = [await Client.to(address(server), certificates.for_client()) for _ in range(4)]
            for client in clients:
                await client.ask()
            await close_all(clients)

    on_loops(main)


def test_tls_on_a_unix_socket(certificates: Certificates, tmp_path: Any) -> None:
    """``start_unix_server``."""
    path = str(tmp_path / "tls.sock")

    async def main() -> None:
        async with serving(start_unix_server(answer, path, ssl=certificates.for_server())):
            streams = await asyncio.open_unix_connection(
                path, ssl=certificates.for_client(), server_hostname="localhost"
            )
            async with Client(*streams) as client:
                await client.ask()

    on_loops(main)


def test_wrong_clients_fail_cleanly(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    """One that does not trust the root, one without TLS, one that leaves: no error here, and others are served."""
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0, ssl=certificates.for_server())) as server:
            for _ in range(4):
                with pytest.raises(ssl.SSLCertVerificationError):
                    await Client.to(address(server), ssl.create_default_context())
                async with await Client.to(address(server)) as client:
                    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
                    await client.reader.read()
                await (await Client.to(address(server))).close()
            await until(lambda: not any(counts(server)))
            async with await Client.to(address(server), certificates.for_client()) as client:
                await client.ask()

    on_loops(main)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_client_that_never_ends_its_handshake_is_dropped(certificates: Certificates) -> None:
    """After ``ssl_handshake_timeout``; its place is free then."""

    async def main() -> None:
        async with (
            serving(
                start_server(
                    answer,
                    "127.0.0.1",
                    0,
                    ssl=certificates.for_server(),
                    ssl_handshake_timeout=0.2,
                    max_connections=1,
                )
            ) as server,
            await Client.to(address(server)) as silent,
        ):
            await until(lambda: sum(counts(server)) == 1)
            async with await Client.to(address(server), certificates.for_client()) as client:
                await client.ask()
            assert await silent.end() in ("eof", "reset")

    on_loops(main)


@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
def test_one_in_its_handshake_is_closed_with_the_others(certificates: Certificates, how: str) -> None:
    """A server that closes need not wait for the timeout of the handshake."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0, ssl=certificates.for_server())) as server:
            silent = [await Client.to(address(server)) for _ in range(8)]
            await until(lambda: sum(counts(server)) == 8)
            getattr(server, how)()
            for client in silent:
                assert await client.end() in ("eof", "reset")
                await client.close()
            await until(lambda: not any(counts(server)))

    on_loops(main)


def test_one_in_its_handshake_ends_with_the_runtime(certificates: Certificates) -> None:
    """Its socket is closed with the loop; the fixture around each test looks for it."""
    clients: list[socket.socket] = []

    async def main() -> None:
        server = await start_server(answer, "127.0.0.1", 0, ssl=certificates.for_server())
        clients.extend(plain(address(server), b"") for _ in range(8))
        await until(lambda: sum(counts(server)) == 8)

    on_loops(main)
    for sock in clients:
        assert fate(sock) in ("eof", "reset")
        sock.close()


def test_plain_connections_beside(certificates: Certificates) -> None:
    """Two servers, one runtime."""

    async def main() -> None:
        tls = certificates.for_server()
        async with (
            serving(start_server(answer, "127.0.0.1", 0)) as plain,
            serving(start_server(answer, "127.0.0.1", 0, ssl=tls)) as secure,
        ):
            await close_all(await connected(address(plain), 4))
            async with await Client.to(address(secure), certificates.for_client()) as client:
                await client.ask()

    on_loops(main)
