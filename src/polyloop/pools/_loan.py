"""``Loan``: what ``ResourcePool.acquire`` returns."""

from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from polyloop.runtime._migrate import pin

if TYPE_CHECKING:
    from polyloop.pools._desk import Desk, Slot


class Loan[R]:
    """One loan: ``async with`` it, or ``await`` it for the resource. For one task, once.

    Cancellation and errors: as ``ResourcePool.acquire`` says.

    .. versionadded:: 0.4
    """

    __slots__ = ("_desk", "_slot")

    def __init__(self, desk: "Desk[R]") -> None:
        self._desk = desk  # and not the pool: what loops share costs each of them more
        self._slot: Slot[R] | None = None

    def __await__(self) -> Generator[Any, Any, R]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> R:
        if self._slot is not None:
            raise RuntimeError("this loan was taken before; call acquire() for another")
        desk = self._desk
        if not desk.is_current():  # it was asked for on another loop
            desk = desk.here()
        slot = self._slot = desk.borrow_nowait(self) or await desk.borrow(self)
        if desk.port.stepping and desk.binds:  # a borrower that migrates stays, as what it has borrowed does
            slot.guest = pin()
        return slot.resource

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot = self._slot
        if slot is not None and slot.holder is self:
            desk = slot.desk
            if desk.resets or kind is GeneratorExit or not desk.is_current():
                await desk.end_loan(slot)
            else:
                desk.give_back(slot)
