"""The report of an exception that nobody has looked at, made when its task is dropped."""

from polyloop._core._port import Port, logger


class UnseenError:
    """Reports, when it is dropped, an exception that nobody has looked at.

    Attributes:
        exc: The exception; cleared when somebody looks at it.
    """

    __slots__ = ("_name", "_port", "exc")

    def __init__(self, name: str, port: Port, exc: BaseException) -> None:
        self._name = name
        self._port = port
        self.exc: BaseException | None = exc

    def __del__(self) -> None:
        if self.exc is None:
            return
        message = f"polyloop: the exception of task {self._name!r} was never retrieved"
        if self._port.mailbox.closed or self._port.loop.is_closed():
            logger.error(message, exc_info=self.exc)
        else:
            self._port.post(self._port.loop.call_exception_handler, {"message": message, "exception": self.exc})
