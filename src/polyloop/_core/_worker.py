"""A worker: one thread that owns one loop for the life of the runtime.

Work reaches a worker in three queues, besides those of tasks that migrate (``_crew``). ``mailbox`` holds callables:
wake-ups, cancellations, word of other tasks. ``pinned`` holds tasks that were placed on this worker by name or key.
``unstarted`` holds tasks that any worker may start; their owner takes them from the left, and so does a thief, so the
one that has waited longest starts first. A deque's ``popleft`` is atomic, so a task is started by exactly one worker.

A worker ends in one of two ways. ``wind_down`` (shutdown) cancels what runs, waits for it within a deadline and stops
the loop. Death is everything else that ends ``run_forever``: user code stopped the loop, or the loop itself raised.
Either way ``bury`` completes every handle that is left, so nobody waits for a task of a loop that is gone.
"""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat, starmap
from typing import Any

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._context import here
from polyloop._core._crew import Crew, Member
from polyloop._core._ending import Stuck, cancel_all, finish_loop, stuck_task
from polyloop._core._errors import RuntimeClosedError, WorkerDiedError, copy_exception
from polyloop._core._handle import TaskHandle
from polyloop._core._loop import WorkerLoop
from polyloop._core._port import Port, logger
from polyloop._core._selector import WorkerSelector
from polyloop._core._spin import SpinPolicy
from polyloop._core._steal import StartBudget, steal_count

#: Sleeping peers that a busy worker looks for when a task arrives; bounds the cost of a spawn on many workers.
_THIEVES_ASKED = 8

#: Seconds that the tasks of a loop that died get to clean up.
_DEATH_TIMEOUT = 1.0

#: Held while a worker looks whether a peer has the same loop, and takes it if not.
_bind_lock = _prims.Lock()

type LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Worker(Port):
    """One thread with one event loop.

    Attributes:
        index: Position in ``Runtime.workers``.
        ended: Done when the loop is closed and the thread is about to end.
        stealing: Whether idle workers take unstarted tasks from each other.
    """

    crew: Crew  # pyright: ignore[reportIncompatibleVariableOverride] - every worker has one

    def __init__(
        self,
        name: str,
        index: int,
        *,
        spin_ns: int = 0,
        stealing: bool = False,
        loop_factory: LoopFactory | None = None,
        debug: bool | None = None,
    ) -> None:
        self.unstarted: deque[TaskHandle[Any]] = deque()  # appended by any thread, popped by any worker
        super().__init__(name)
        self.index = index
        self.join(Crew((self,)))  # until the runtime makes it one of several
        self.ended = Completion[None]()
        self.ready = Completion[None]()
        self.stealing = stealing
        self.thread: _prims.Thread | None = None  # the one that start_thread started
        self.peers: Sequence[Worker] = ()  # all workers of the runtime; set before the loop runs
        self.runtime: object = None  # set by the runtime that made it
        self.adopt: Callable[[TaskHandle[Any]], bool] | None = None  # takes waiting tasks of a worker that died
        self.on_close: Callable[[float], object] | None = None  # ends this worker instead of begin_wind_down
        self.on_fatal: Callable[[BaseException], object] | None = None  # takes SystemExit and KeyboardInterrupt
        self.selector: WorkerSelector | None = None  # None for a foreign loop
        self.stuck: list[Stuck] = []  # what would not end; written by the loop's thread
        self.stolen = 0  # tasks taken from peers; written by the loop's thread
        self._loop_factory = loop_factory
        self._spin_ns = spin_ns
        self._debug = debug
        self._budget = StartBudget()
        self._stopping = False  # the loop may end; owner thread only
        self._winding: asyncio.Task[None] | None = None  # owner thread only, as is the deadline
        self.wind_down_by = 0.0
        self._cancelled: set[asyncio.Task[Any]] = set()  # by the wind-down; the loop's thread drops them in bury()
        self._next_victim = 0
        self._thread_name = ""  # set when the loop is taken over, for a thread that is not ours

    @property
    def thread_name(self) -> str:
        """Name of the thread that runs the loop: the caller's own for the first worker of ``polyloop.run``."""
        return self._thread_name if self.thread is None else self.thread.name

    @property
    def load(self) -> int:
        """Tasks that run or wait here. Any thread; a snapshot."""
        return len(self.live) + len(self.unstarted) + len(self.pinned) + self.crew_member.load

    @property
    def alive(self) -> bool:
        """Whether tasks may still be placed here. Any thread."""
        return self._refusal is None

    def join(self, crew: Crew) -> None:
        """Share tasks that migrate with others. Before the loop runs."""
        self.crew = crew  # pyright: ignore[reportIncompatibleVariableOverride]
        self.crew_member = member = Member(self, crew)
        self.runnable, self.bound = member.runnable, member.bound

    # Admission: any thread

    def admit(self, handle: TaskHandle[Any], stealable: bool) -> None:
        """Queue a handle to be started here (or, if stealable, by whoever is idle). Any thread."""
        if not stealable:
            super().admit(handle, stealable)
            return
        handle._port = self
        self.unstarted.append(handle)
        if not (self.mailbox.tokens and self.mailbox.signal()):
            self._call_a_thief()
        if self._refusal is not None:  # read after the append, and set before the sweep: one of the two sees the other
            self._refuse_unstarted()

    def _call_a_thief(self) -> None:
        """This worker is awake, so perhaps busy: wake one that sleeps, which takes the task if it still waits."""
        peers = self.peers
        if not self.stealing or len(peers) < 2:
            return
        for step in range(1, min(len(peers), _THIEVES_ASKED + 1)):
            mailbox = peers[(self.index + step) % len(peers)].mailbox
            if mailbox.tokens and mailbox.signal():
                return

    # Serving: the loop's thread

    def serve(self) -> None:
        """Run what was posted and start waiting tasks. Called by the selector at each tick."""
        self.mailbox.drain()
        waiting = self.unstarted
        if waiting:
            if self._refusal is not None:
                self._refuse_unstarted()
            count = self._budget.allow(len(waiting), _prims.monotonic_ns()) if self.stealing else len(waiting)
            for _ in range(count):
                try:
                    handle = waiting.popleft()
                except IndexError:  # a thief was faster
                    break
                handle._start(self)
        if self.runnable or self.bound:
            self.crew_member.run()

    def on_idle(self) -> bool:
        """Nothing to do here: take waiting tasks from a peer. Called by the selector before a sleep; must not raise."""
        if not self.stealing:
            return False
        if self.crew_member.steal():
            return True
        if self._refusal is not None:
            return False
        peers = self.peers
        first = self._next_victim
        for step in range(len(peers)):
            victim = peers[(first + step) % len(peers)]
            if victim.unstarted and victim is not self and self._take_from(victim):
                self._next_victim = victim.index
                return True
        return False

    def _take_from(self, victim: "Worker") -> int:
        # A KeyboardInterrupt comes between two calls, so each way of the tasks is one call, and they are always known.
        taken: deque[TaskHandle[Any]] = deque()
        mine = self.unstarted
        try:
            with contextlib.suppress(IndexError):
                taken.extend(starmap(victim.unstarted.popleft, repeat((), steal_count(len(victim.unstarted)))))
            for handle in taken:
                handle._port = self
        finally:
            mine += taken
        self.stolen += len(taken)
        return len(taken)

    # A foreign loop has no selector of ours: posts reach it by one call_soon_threadsafe a batch

    def _wake(self) -> None:
        if self.selector is not None:
            self.selector.wake()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody there waits
            self.loop.call_soon_threadsafe(self._serve_foreign, context=self.context)

    def _serve_foreign(self) -> None:
        self.mailbox.tokens.append(None)  # before the drain: a post from now on schedules the next one
        try:
            self.serve()
        finally:  # a SystemExit may have ended the drain early
            if self.mailbox.items or self.unstarted or self.runnable or self.bound or self.on_idle():
                self.mailbox.signal()

    # Life: the worker's own thread

    def start_thread(self) -> None:
        """Start the thread; ``ready`` is done when its loop runs, or failed if it could not be made."""
        self.thread = _prims.start_thread(self._main, self.name)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Make this worker's loop and take it over, on the thread that will run it."""
        loop = self._new_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"loop_factory must return a new event loop, got {loop!r} from {self._loop_factory!r}")
        with _bind_lock:
            if any(getattr(peer, "loop", None) is loop for peer in self.peers):
                raise TypeError(
                    f"loop_factory must return a new event loop, got {loop!r} twice from {self._loop_factory!r}"
                )
            self.bind(loop)
            self.crew_member.loop = loop
        self._thread_name = _prims.current_thread().name
        if self._debug is not None:
            loop.set_debug(self._debug)
        if self.selector is None:
            self.mailbox.tokens.append(None)  # a token stands for "no drain is scheduled"
            if self.mailbox.items or self.pinned or self.unstarted:  # posted before there was a token to take
                self.mailbox.signal()
        return loop

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop_factory is not None:
            return self._loop_factory()
        if sys.platform == "win32":  # pragma: no cover - the proactor has no selector: served like a foreign loop
            return asyncio.ProactorEventLoop()
        self.selector = WorkerSelector(SpinPolicy(self._spin_ns))
        self.selector.attach(self)
        loop = WorkerLoop(self.selector)
        loop.on_task_factory = self._take_task_factory
        loop.port = self
        self.plain_tasks = True
        return loop

    def _take_task_factory(self, factory: object) -> None:
        self.plain_tasks = factory is None

    def _main(self) -> None:
        try:
            loop = self.new_loop()
        except BaseException as exc:
            self.leave_behind(WorkerDiedError(f"{self!r} never ran: its loop_factory raised {exc!r}"))
            self.ready._complete(None, exc)
            self.ended._complete(None)
            return
        try:
            if self._refusal is None:  # else it was given up while its loop was being made: see abandon
                loop.call_soon(self.ready._complete, None)
                self._run_until_stopped(loop)
        finally:
            self.bury()
            if not self.ready.done():  # the loop ended in its first step
                self.ready._complete(None, self._refusal)
            self.ended._complete(None)

    def _run_until_stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as exc:
                # asyncio lets these two out of run_forever; the loop itself is whole and goes on.
                if self.on_fatal is not None:
                    self.on_fatal(exc)
                continue
            except BaseException as exc:
                self._die(loop, f"its event loop raised {exc!r}", exc)
            else:
                if self._winding is None:  # else it ends soon, whatever a task stops while it is being cancelled
                    self._die(loop, "its event loop was stopped from inside; loop.stop() is not for a loop of polyloop")

    def _die(self, loop: asyncio.AbstractEventLoop, reason: str, cause: BaseException | None = None) -> None:
        """The loop ended on its own: complete what it owned, then let its tasks clean up for a moment."""
        self._stopping = True
        refusal = WorkerDiedError(f"{self!r} died: {reason}")
        refusal.__cause__ = cause
        self.close_doors(refusal)
        logger.critical("polyloop: %s", refusal, exc_info=cause)
        self.crew_member.close(refusal)
        self.forsake()
        cleanup = cancel_all(loop, _prims.monotonic() + _DEATH_TIMEOUT, (), self._cancelled)
        with contextlib.suppress(BaseException):
            loop.run_until_complete(cleanup)
        cleanup.close()  # a loop beyond use has never begun it

    def close_doors(self, refusal: BaseException) -> None:
        """Start nothing from now on; what waits is refused, or handed over if this worker died. Loop thread."""
        if self._refusal is None:
            self._refusal = refusal
        self._refuse_unstarted()
        self._refuse_pinned()

    def _refuse_unstarted(self) -> None:
        """Pass on what will not be started here. Any thread that finds the doors closed."""
        refusal = self._refusal
        assert refusal is not None
        while True:
            try:
                handle = self.unstarted.popleft()
            except IndexError:
                return
            if self.adopt is None or not isinstance(refusal, WorkerDiedError) or not self.adopt(handle):
                self._refuse(handle)

    def _refuse(self, handle: TaskHandle[Any]) -> None:
        """Complete a handle that nobody will start. Any thread that popped it."""
        handle._refuse(self._reason_for(handle))

    def _reason_for(self, handle: TaskHandle[Any]) -> BaseException:
        """The refusal, as an object of this handle's own: two threads must not raise one exception at once."""
        refusal = self._refusal
        assert refusal is not None
        if not isinstance(refusal, WorkerDiedError):
            handle._watched = True  # that a close cuts tasks short is no news to the log
        return copy_exception(refusal)

    def begin_wind_down(self, refusal: BaseException, deadline: float) -> None:
        """Wind down and stop the loop. Posted by whoever closes the runtime; runs on the loop.

        A second call may bring the deadline forward.
        """
        if self._stopping:  # it has died, and is cleaning up
            return
        if self.on_close is not None:
            self.on_close(deadline)
        elif self._winding is None:
            self.close_doors(refusal)
            self._winding = self.loop.create_task(self._wind_down_and_stop(refusal, deadline))
        else:
            self.hurry(deadline)

    async def _wind_down_and_stop(self, refusal: BaseException, deadline: float) -> None:
        try:
            await self.wind_down(refusal, deadline)
        finally:
            self._stopping = True
            self.loop.stop()

    async def wind_down(self, refusal: BaseException, deadline: float) -> None:
        """Refuse what waits, cancel what runs, close what asyncio closes; name in ``stuck`` what would not end.

        A task of its own. Cancelling it only makes it look at the deadline again: ``hurry`` does that, and so does user
        code that cancels every task it finds.
        """
        self._winding = asyncio.current_task()
        self.wind_down_by = deadline
        self.close_doors(refusal)
        self.crew_member.crew.end()
        while True:
            try:
                names = {handle._task: handle.name for handle in self.live}
                pending = await cancel_all(self.loop, self.wind_down_by, names, self._cancelled)
                self.stuck = [stuck_task(task, names.get(task) or task.get_name(), self.name) for task in pending]
                self.stuck += await self.crew_member.crew.wait_empty(self.wind_down_by)
                self.stuck += await finish_loop(self.loop, self.wind_down_by, self.name)
            except asyncio.CancelledError:
                continue
            return

    def hurry(self, deadline: float) -> None:
        """Bring the deadline of a wind-down forward. Loop thread, signal handlers included."""
        if self._winding is not None and deadline < self.wind_down_by:
            self.wind_down_by = deadline
            self._winding.cancel()

    def forsake(self) -> None:
        """Complete every handle that runs here with the refusal. Any thread, once the loop will not do it."""
        refusal = self._refusal
        assert refusal is not None
        while True:
            try:
                handle = self.live.pop()  # atomic: whoever takes a handle out of live completes it
            except KeyError:
                return
            if self.is_current():
                handle._task = None  # dropped on its own thread
            handle._fail(self._reason_for(handle))

    def bury(self) -> None:
        """The loop will not run again: close it and complete what is left. The loop's thread."""
        self._cancelled.clear()
        try:
            if not self.loop.is_closed():
                self.loop.close()
        except Exception:
            logger.exception("polyloop: the event loop of %r could not be closed", self)
        finally:
            self.leave_behind(RuntimeClosedError(f"{self!r} has ended"))
            if here.port is self:
                here.port = None

    def leave_behind(self, refusal: BaseException) -> None:
        """Complete every handle that this worker owns, and refuse what comes. Any thread, once the loop is lost."""
        self.close_doors(refusal)
        self.crew_member.close(refusal)
        self.forsake()
        self.close_mailbox()

    def abandon(self, refusal: BaseException) -> None:
        """Leave a worker behind whose thread is stuck; should it come back, it ends. Any thread."""
        self.leave_behind(refusal)
        if self.ident:  # else its loop is still being made: _main sets ident, and then looks at the refusal
            with contextlib.suppress(RuntimeError):  # it came back and closed its loop just now
                self.loop.call_soon_threadsafe(self.begin_wind_down, refusal, 0.0)

    def cut_off(self, refusal: BaseException) -> None:
        """In a forked child: share nothing with the parent's loop any more. Before any worker is left behind."""
        # The waker's descriptor is shared with the parent: without a token nobody writes to it.
        self.mailbox.tokens.clear()
        self._refusal = refusal
        if self.selector is not None:
            self.selector.cut_off(refusal)
