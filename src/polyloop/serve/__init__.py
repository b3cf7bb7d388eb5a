"""Servers over all loops on one port: TCP, unix sockets, UDP, and ASGI and aiohttp applications."""

from polyloop.serve._aiohttp_server import AiohttpServer, serve_aiohttp
from polyloop.serve._asgi_server import ASGIServer
from polyloop.serve._datagram import DatagramServer, create_datagram_server
from polyloop.serve._open import create_server, create_unix_server, start_server, start_unix_server
from polyloop.serve._options import ServeOptions
from polyloop.serve._report import ServeReport
from polyloop.serve._serve import serve
from polyloop.serve._server import LoopLoad, Server
from polyloop.serve._web import WebServer

__all__ = (
    "ASGIServer",
    "AiohttpServer",
    "DatagramServer",
    "LoopLoad",
    "ServeOptions",
    "ServeReport",
    "Server",
    "WebServer",
    "create_datagram_server",
    "create_server",
    "create_unix_server",
    "serve",
    "serve_aiohttp",
    "start_server",
    "start_unix_server",
)
