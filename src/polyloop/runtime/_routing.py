"""Routing: from what a caller says (``on=``, ``key=``, nothing) to the loop that gets the task. Any thread."""

from collections.abc import Callable, Hashable
from typing import Any

from polyloop._core._context import here, runs_a_loop
from polyloop._core._errors import WorkerDiedError
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port, current_port
from polyloop._core._worker import Worker
from polyloop.runtime._placement import Here, Placement, PlacementName, by_key, policy_for

type On = PlacementName | Placement | Worker


class Router:
    """Chooses loops for the tasks of one runtime.

    Args:
        owner: The runtime, which the workers carry as ``runtime``.
        placement: What applies to tasks that say nothing themselves.
    """

    def __init__(self, owner: object, workers: tuple[Worker, ...], placement: PlacementName | Placement) -> None:
        self._owner = owner
        self._workers = workers
        self._alive = workers  # replaced as a whole when a worker has died
        self._policy = policy_for(placement)
        self._named: dict[str, Placement] = {}  # policies of on= by name; each made once

    def route(self, on: On | None, key: Hashable | None) -> tuple[Port, bool]:
        """The loop for a new task, and whether an idle worker may steal it: only if the caller did not say where.

        Raises:
            ValueError, TypeError: ``on`` and ``key`` make no sense.
            WorkerDiedError: no worker is left.
        """
        if type(on) is Worker and key is None:
            if on.runtime is not self._owner:
                raise ValueError(f"{on!r} is no worker of {self._owner!r}; use one of its .workers")
            return on, False
        if key is not None:
            if on is not None:
                raise ValueError(f"both on={on!r} and key={key!r} say where to run; give one")
            return self._living(lambda workers: by_key(key, workers)), False
        policy = self._policy if on is None else self._policy_for(on)
        port = here.port
        mine = port if isinstance(port, Worker) and port.runtime is self._owner else None
        at_home = isinstance(policy, Here)
        if at_home and mine is None and runs_a_loop():  # "here", on a loop that is not of this runtime
            return current_port(), False
        return self._living(lambda workers: policy.choose(workers, mine)), on is None and not at_home

    def adopt(self, handle: TaskHandle[Any]) -> bool:
        """Find another worker for a task that waited on one that died."""
        try:
            port, _ = self.route("least_loaded", None)
        except WorkerDiedError:
            return False
        port.admit(handle, True)
        return True

    def _living(self, choice: Callable[[tuple[Worker, ...]], Worker]) -> Worker:
        """Ask for a worker; ask again, without the dead, if it has died."""
        alive = self._alive
        while not (worker := self._checked(choice(alive))).alive:
            if worker not in alive:  # dead when it was asked for; one among the living has died since
                raise WorkerDiedError(f"{worker!r} has died, and no other was chosen; the log says why it died")
            alive = tuple(other for other in self._workers if other.alive)
            if not alive:
                raise WorkerDiedError(
                    f"every worker of {self._owner!r} has died; the log says why; start a new Runtime"
                )
            self._alive = alive
        return worker

    def _checked(self, worker: object) -> Worker:
        """The answer of a placement policy, which may be the user's."""
        if not isinstance(worker, Worker) or worker.runtime is not self._owner:
            raise ValueError(
                f"the placement of a task chose {worker!r}; it must return one of the workers of {self._owner!r}"
            )
        return worker

    def _policy_for(self, on: On) -> Placement:
        if not isinstance(on, str):
            return policy_for(on)
        policy = self._named.get(on)
        if policy is None:
            policy = self._named.setdefault(on, policy_for(on))
        return policy
