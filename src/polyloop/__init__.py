"""asyncio on every core of a free-threaded Python.

The layers, each of which imports only what stands below it::

    cli/       polyloop run | serve | doctor | bench        testing/   paused loops, blocked-detector, fake clock
    serve/     start_server, serve: TCP, ASGI and aiohttp servers over all loops on one port
    pools/     ResourcePool, per_loop; connections of asyncpg, psycopg, redis, httpx and others under one cap
    tasks/     TaskGroup, gather, map, as_completed, race
    offload/   to_thread, offload, async_wrap: sync code on threads, or on any executor
    distributed/  an executor on a Dask cluster; imported when it is asked for
    runtime/   Runtime, run, placement, signals, shutdown
    queues/    Queue, LifoQueue, PriorityQueue, SimpleQueue, channels
    sync/      Lock, RLock, Event, Condition, Semaphore, Barrier …, CapacityLimiter
    _core/     mailbox, worker, parking, handle, context, pool of threads; the one seam over threading and time

Everyday names are here; each folder without an underscore is a topic of its own. Start with ``polyloop.run``.
"""

from polyloop import from_thread
from polyloop._core._errors import (
    BlockingCallError,
    BrokenBarrierError,
    DeadlockError,
    ForeignLoopError,
    GilEnabledWarning,
    NoRuntimeError,
    PolyloopError,
    PoolBusyError,
    PoolClosedError,
    QueueEmpty,
    QueueFull,
    QueueShutDown,
    RuntimeClosedError,
    ServerStartError,
    UnreliableLoopError,
    WorkerDiedError,
)
from polyloop.offload import async_wrap, offload, sleep_sync, thread_pool, to_thread
from polyloop.pools import ResourcePool, per_loop
from polyloop.queues import LifoQueue, PriorityQueue, Queue, SimpleQueue
from polyloop.runtime import Runtime, ShutdownReport, Worker, checkpoint, current_runtime, pinned, run, sleep, spawn
from polyloop.serve import (
    ASGIServer,
    create_datagram_server,
    create_server,
    create_unix_server,
    serve,
    serve_aiohttp,
    start_server,
    start_unix_server,
)
from polyloop.sync import Barrier, BoundedSemaphore, CapacityLimiter, Condition, Event, Lock, RLock, Semaphore
from polyloop.tasks import (
    TaskGroup,
    TaskHandle,
    as_completed,
    first_success,
    gather,
    map,  # noqa: A004 - what it is called everywhere
    race,
)

__version__ = "0.1.0"

__all__ = (
    "ASGIServer",
    "Barrier",
    "BlockingCallError",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "CapacityLimiter",
    "Condition",
    "DeadlockError",
    "Event",
    "ForeignLoopError",
    "GilEnabledWarning",
    "LifoQueue",
    "Lock",
    "NoRuntimeError",
    "PolyloopError",
    "PoolBusyError",
    "PoolClosedError",
    "PriorityQueue",
    "Queue",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "RLock",
    "ResourcePool",
    "Runtime",
    "RuntimeClosedError",
    "Semaphore",
    "ServerStartError",
    "ShutdownReport",
    "SimpleQueue",
    "TaskGroup",
    "TaskHandle",
    "UnreliableLoopError",
    "Worker",
    "WorkerDiedError",
    "as_completed",
    "async_wrap",
    "checkpoint",
    "create_datagram_server",
    "create_server",
    "create_unix_server",
    "current_runtime",
    "first_success",
    "from_thread",
    "gather",
    "map",
    "offload",
    "per_loop",
    "pinned",
    "race",
    "run",
    "serve",
    "serve_aiohttp",
    "sleep",
    "sleep_sync",
    "spawn",
    "start_server",
    "start_unix_server",
    "thread_pool",
    "to_thread",
)
