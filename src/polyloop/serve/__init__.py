"""Servers over all loops on one port: TCP, unix sockets, UDP, and ASGI and aiohttp applications."""

from polyloop.serve._open import create_server, create_unix_server, start_server, start_unix_server
from polyloop.serve._server import LoopLoad, Server

__all__ = (
    "LoopLoad",
    "Server",
    "create_server",
    "create_unix_server",
    "start_server",
    "start_unix_server",
)
