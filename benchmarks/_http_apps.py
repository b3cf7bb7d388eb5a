"""The applications of the benchmark ``http``, the same for every server: by factory, or one object for all loops.

Three routes: one that computes for about a millisecond and answers with JSON, one that greets, and the second again as
bare ASGI, without Starlette.
"""

import html
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

type Scope = MutableMapping[str, Any]
type Channel = Callable[..., Awaitable[Any]]

#: Orders of a customer, and how many of them a page shows.
ORDERS, SHOWN = 1000, 100


def render(customer: str) -> dict[str, Any]:
    """A page of a customer's orders, as a handler makes it after its query: objects, a sort, sums, strings, escapes."""
    orders: list[dict[str, Any]] = [
        {"id": number, "item": f"<item {number * 7 % 17}>", "price": number * 13 % 101 + 0.25, "customer": customer}
        for number in range(ORDERS)
    ]
    orders.sort(key=lambda order: order["price"], reverse=True)
    totals: dict[str, float] = {}
    for order in orders:
        totals[order["item"]] = totals.get(order["item"], 0.0) + order["price"]
    rows: list[str] = []
    for order in orders[:SHOWN]:
        values = (str(order["id"]), html.escape(order["item"]), f"{order['price']:.2f}", customer)
        rows.append("<tr>" + "".join([f"<td>{value}</td>" for value in values]) + "</tr>")
    return {"customer": customer, "totals": totals, "table": "".join(rows)}


async def orders(request: Request) -> JSONResponse:
    """Computes."""
    return JSONResponse(render(request.path_params["customer"]))


async def hello(request: Request) -> PlainTextResponse:
    """Greets."""
    return PlainTextResponse(f"Hello, {request.path_params['name']}!")


async def raw(scope: Scope, receive: Channel, send: Channel) -> None:
    """Greets, without a framework."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!"})


class App:
    """Starlette, and beside it what does without."""

    def __init__(self) -> None:
        routes = [Route("/hello/{name}", hello), Route("/customers/{customer}/orders", orders)]
        self.starlette = Starlette(routes=[Mount("/api", routes=routes)])

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] == "/raw":
            await raw(scope, receive, send)
        else:
            await self.starlette(scope, receive, send)


def make() -> App:
    """The application, for those that want one of their own."""
    return App()


#: The one for those that share.
app = App()
