"""Signals: what asyncio.run does with them, on every loop, whichever thread the kernel picks."""

import signal
import sys
from collections import deque

import pytest
from tests.runtime.helpers import Program, run_program

from polyloop._core._mailbox import Mailbox

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

CAREFUL = """
async def careful(name):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        os.write(1, f"{name} cleaned up\\n".encode())  # one piece, whatever the other loops write
        raise

def everywhere(rt):
    return [rt.spawn(careful, worker.name, on=worker) for worker in rt.workers]

async def started(rt):
    for worker in rt.workers:
        await rt.spawn(asyncio.sleep, 0, on=worker)
    print("ready")
"""


#: Waits until the main thread is blocked in ``result()``, so that the signal does not come a step before.
MAIN_WAITS = """
async def main_waits():
    ident = threading.main_thread().ident
    while "_park_main" not in [frame.name for frame in traceback.extract_stack(sys._current_frames()[ident])]:
        await asyncio.sleep(0)
"""


def test_sigint_cancels_main_and_cleans_up_on_every_loop() -> None:
    """One Ctrl-C: the main task is cancelled, every finally block runs, KeyboardInterrupt leaves ``run``."""
    program = Program(
        CAREFUL
        + """
async def main():
    rt = polyloop.current_runtime()
    tasks = everywhere(rt)
    await started(rt)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("main cancelled")
        raise

polyloop.run(main(), loops=3)
"""
    )
    program.wait_for("ready")
    program.send(signal.SIGINT)
    ended = program.end()
    lines = ended.out.splitlines()
    assert lines[:2] == ["ready", "main cancelled"]
    assert sorted(lines[2:]) == [f"polyloop-{index} cleaned up" for index in range(3)]
    assert ended.last_line == "KeyboardInterrupt"
    assert ended.code == -signal.SIGINT  # what a shell shows as 130


def test_sigint_can_be_caught_around_run() -> None:
    """``except KeyboardInterrupt`` around ``run`` works as around ``asyncio.run``."""
    program = Program(
        """
async def main():
    print("ready")
    await asyncio.sleep(60)
try:
    polyloop.run(main(), loops=2)
except KeyboardInterrupt:
    print("stopped by the user")
"""
    )
    program.wait_for("ready")
    program.send(signal.SIGINT)
    ended = program.end()
    assert (ended.out, ended.err, ended.code) == ("ready\nstopped by the user\n", "", 0)


def test_second_sigint_raises_at_once() -> None:
    """A main task that swallowed the first Ctrl-C does not survive the second."""
    program = Program(
        CAREFUL
        + """
async def main():
    rt = polyloop.current_runtime()
    tasks = everywhere(rt)
    await started(rt)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("swallowed")
        await asyncio.sleep(60)
    print("never")

polyloop.run(main(), loops=2)
"""
    )
    program.wait_for("ready")
    program.send(signal.SIGINT)
    program.wait_for("swallowed")
    program.send(signal.SIGINT)
    ended = program.end(timeout=8)  # the deadline of the wind-down is not needed
    assert sorted(ended.out.splitlines()[2:]) == ["polyloop-0 cleaned up", "polyloop-1 cleaned up"]
    assert ended.last_line == "KeyboardInterrupt"
    assert ended.code == -signal.SIGINT


def test_sigint_during_the_wind_down_makes_the_deadline_now() -> None:
    """A Ctrl-C while stubborn tasks are waited for: they are named and left, KeyboardInterrupt leaves ``run``."""
    program = Program(
        """
async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("ignored", flush=True)

async def main():
    rt = polyloop.current_runtime()
    rt.spawn(stubborn, on=rt.workers[1])
    await rt.spawn(asyncio.sleep, 0, on=rt.workers[1])

polyloop.run(main(), loops=2, shutdown_timeout=60)
"""
    )
    program.wait_for("ignored")
    program.send(signal.SIGINT)
    ended = program.end(timeout=15)
    assert "left behind at shutdown:\n  task 'stubborn' on polyloop-1\n" in ended.err
    assert "\nKeyboardInterrupt\n" in ended.err
    assert ended.code == -signal.SIGINT


KILL_WORKER_THREAD = """
def interrupt(signum, ident):
    signal.pthread_kill(ident, signum)

async def send(signum):  # runs on a worker: the signal lands on that thread while the main thread sleeps
    interrupt(signum, threading.get_ident())
"""


def test_sigint_on_a_workers_thread_wakes_an_idle_main_at_once() -> None:
    """The handler runs on the main thread, which sleeps in its selector: the wake-up descriptor ends that sleep."""
    ended = run_program(
        KILL_WORKER_THREAD
        + """
async def main():
    rt = polyloop.current_runtime()
    rt.spawn(send, signal.SIGINT, on=rt.workers[1])
    await asyncio.get_running_loop().create_future()

began = time.monotonic()
try:
    polyloop.run(main(), loops=2)
except KeyboardInterrupt:
    print("at once" if time.monotonic() - began < 5 else "late")
"""
    )
    assert (ended.out, ended.err, ended.code) == ("at once\n", "", 0)


def test_sigint_still_wakes_main_after_the_users_own_handlers_came_and_went() -> None:
    """asyncio gives the wake-up descriptor up with its last handler; the runtime takes it back."""
    ended = run_program(
        KILL_WORKER_THREAD
        + """
async def main():
    rt = polyloop.current_runtime()
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, got.set)
    rt.spawn(send, signal.SIGUSR1, on=rt.workers[1])
    await got.wait()
    print("own handler ran")
    loop.remove_signal_handler(signal.SIGUSR1)
    rt.spawn(send, signal.SIGINT, on=rt.workers[1])
    await loop.create_future()

began = time.monotonic()
try:
    polyloop.run(main(), loops=2)
except KeyboardInterrupt:
    print("at once" if time.monotonic() - began < 5 else "late")
print(signal.set_wakeup_fd(-1))
"""
    )
    assert (ended.out, ended.err, ended.code) == ("own handler ran\nat once\n-1\n", "", 0)


def test_plain_signal_handler_runs_at_once_when_main_is_idle() -> None:
    """``signal.signal`` handlers, too, are heard although the kernel chose a worker's thread."""
    ended = run_program(
        KILL_WORKER_THREAD
        + """
async def main():
    rt = polyloop.current_runtime()
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon(future.set_result, "heard"))
    rt.spawn(send, signal.SIGUSR1, on=rt.workers[1])
    print(await asyncio.wait_for(future, 20))

polyloop.run(main(), loops=2)
"""
    )
    assert (ended.out, ended.err, ended.code) == ("heard\n", "", 0)


def test_sigterm_ends_the_process_as_under_asyncio() -> None:
    """Nobody handles SIGTERM: the process dies of it."""
    program = Program(
        """
async def main():
    print("ready")
    await asyncio.sleep(60)

polyloop.run(main(), loops=2)
"""
    )
    program.wait_for("ready")
    program.send(signal.SIGTERM)
    ended = program.end()
    assert (ended.code, ended.err) == (-signal.SIGTERM, "")


def test_sigterm_with_a_handler_in_main_ends_in_order() -> None:
    """``loop.add_signal_handler`` on the main task's loop works as under ``asyncio.run``."""
    program = Program(
        CAREFUL
        + """
async def main():
    rt = polyloop.current_runtime()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = everywhere(rt)
    await started(rt)
    await stop.wait()
    return 3

sys.exit(polyloop.run(main(), loops=2))
"""
    )
    program.wait_for("ready")
    program.send(signal.SIGTERM)
    ended = program.end()
    assert sorted(ended.out.splitlines()[1:]) == ["polyloop-0 cleaned up", "polyloop-1 cleaned up"]
    assert (ended.code, ended.err) == (3, "")


@pytest.mark.parametrize("target", ["process", "worker"])
def test_sigint_while_the_main_thread_is_blocked_in_runtime_run(target: str) -> None:
    """``rt.run`` on the main thread: Ctrl-C cancels the coroutine, waits for it, closes, KeyboardInterrupt."""
    program = Program(
        CAREFUL
        + MAIN_WAITS
        + KILL_WORKER_THREAD
        + f"""
async def main(rt):
    try:
        await main_waits()
        await started(rt)
        if {target!r} == "worker":
            rt.spawn(send, signal.SIGINT, on=rt.workers[1])
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("main cancelled")
        raise

with polyloop.Runtime(loops=2) as rt:
    tasks = everywhere(rt)
    rt.run(main(rt))
"""
    )
    program.wait_for("ready")
    if target == "process":
        program.send(signal.SIGINT)
    ended = program.end()
    lines = ended.out.splitlines()
    assert lines[:2] == ["ready", "main cancelled"]
    assert sorted(lines[2:]) == ["polyloop-0 cleaned up", "polyloop-1 cleaned up"]
    assert ended.last_line == "KeyboardInterrupt"
    assert ended.code == -signal.SIGINT


def test_second_sigint_in_runtime_run_does_not_wait_for_the_coroutine() -> None:
    """A coroutine that swallows its cancellation is left to ``close``, which names it."""
    program = Program(
        MAIN_WAITS
        + """
async def stubborn():
    await main_waits()
    print("ready")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("ignored")

with polyloop.Runtime(loops=2, shutdown_timeout=0.2) as rt:
    rt.run(stubborn())
"""
    )
    program.wait_for("ready")
    program.send(signal.SIGINT)
    program.wait_for("ignored")
    program.send(signal.SIGINT)
    ended = program.end()
    assert "left behind at shutdown:\n  task 'stubborn' on polyloop-" in ended.err
    assert "\nKeyboardInterrupt\n" in ended.err
    assert ended.code == -signal.SIGINT


def test_ctrl_c_between_taking_a_token_and_the_wake_still_wakes() -> None:
    """A KeyboardInterrupt in the posting thread does not leave a loop asleep beside its work."""

    class Interrupted(deque[None]):
        def pop(self) -> None:  # type: ignore[override]
            super().pop()
            raise KeyboardInterrupt

    woken: list[str] = []
    mailbox = Mailbox(lambda: woken.append("woken"), print)
    mailbox.tokens = Interrupted([None])
    with pytest.raises(KeyboardInterrupt):
        mailbox.signal()
    assert woken == ["woken"]


def test_off_the_main_thread_nothing_is_installed() -> None:
    """``polyloop.run`` in a thread leaves handlers and the wake-up descriptor alone."""
    ended = run_program(
        """
before = signal.getsignal(signal.SIGINT)
async def main():
    return signal.getsignal(signal.SIGINT) is before

def work():
    print(polyloop.run(main(), loops=2))

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(signal.set_wakeup_fd(-1))
"""
    )
    assert (ended.out, ended.err, ended.code) == ("True\n-1\n", "", 0)


def test_ctrl_c_at_the_first_step_of_the_wind_down() -> None:
    """A KeyboardInterrupt before the workers were told: they are told all the same, and nothing hangs at exit."""
    ended = run_program(
        """
begin = polyloop.Runtime._begin_end
calls = []

def interrupted(self, *args):
    calls.append(1)
    if len(calls) == 1:
        raise KeyboardInterrupt
    begin(self, *args)

polyloop.Runtime._begin_end = interrupted

async def main():
    rt = polyloop.current_runtime()
    rt.spawn(asyncio.sleep, 60, on=rt.workers[1])
    await rt.spawn(asyncio.sleep, 0, on=rt.workers[1])

try:
    polyloop.run(main(), loops=2)
except KeyboardInterrupt:
    print("interrupted", [thread.name for thread in threading.enumerate()])
"""
    )
    assert (ended.out, ended.err, ended.code) == ("interrupted ['MainThread']\n", "", 0)


def test_exit_does_not_wait_for_a_closer_that_was_interrupted() -> None:
    """Somebody took the right to close and never came to an end: said, and left."""
    ended = run_program(
        """
from polyloop.runtime import _hooks
_hooks.EXIT_TIMEOUT = 0.1
rt = polyloop.Runtime(loops=2).start()
rt._claim_close()
"""
    )
    assert ended.err == "polyloop: <Runtime 'polyloop' closing loops=2>: whoever closes it has not come to an end\n"
    assert ended.code == 0
