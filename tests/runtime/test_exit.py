"""How a program with a runtime ends: stuck threads, forgotten runtimes, exit codes, warnings."""

import pytest
from tests.runtime.helpers import run_program


def test_stuck_thread_and_task_are_named_and_the_process_ends() -> None:
    """A loop blocked in sync code and a task that swallows cancellation: both named with stacks, exit code kept."""
    ended = run_program(
        """
async def blocks():
    time.sleep(60)

async def swallows():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def main():
    rt = polyloop.current_runtime()
    rt.spawn(blocks, on=rt.workers[1])
    rt.spawn(swallows, on=rt.workers[2])
    await rt.spawn(asyncio.sleep, 0, on=rt.workers[2])
    return 3

began = time.monotonic()
code = polyloop.run(main(), loops=3, shutdown_timeout=0.2)
print("in time" if time.monotonic() - began < 10 else "late")
sys.exit(code)
"""
    )
    assert (ended.out, ended.code) == ("in time\n", 3)
    head, thread, *stack = ended.err.splitlines()
    assert head == "polyloop: <Runtime 'polyloop' closing loops=3>: left behind at shutdown:"
    assert thread == "  thread 'polyloop-1' on polyloop-1"
    assert "    <string>:5 in blocks" in stack
    assert "  task 'swallows' on polyloop-2\n    <string>:10 in swallows" in ended.err


def test_thread_stuck_in_a_c_call_does_not_hold_the_process() -> None:
    """A loop thread that waits in C for ever is left behind; the interpreter does not join it."""
    ended = run_program(
        """
lock = threading.Lock()
lock.acquire()

async def stuck():
    lock.acquire()

rt = polyloop.Runtime(loops=2, name="service").start()
rt.spawn(stuck, on=rt.workers[0])
rt.spawn(asyncio.sleep, 0, on=rt.workers[1]).result()
report = rt.close(timeout=0.1)
[item] = report.stuck
print(item.kind, item.name, item.where, item.stack[-1], report.clean)
"""
    )
    assert ended.out == "thread service-0 service-0 <string>:8 in stuck False\n"
    assert ended.code == 0


def test_call_left_on_an_offload_thread_does_not_hold_the_process() -> None:
    """``on_cancel="abandon"``: the thread is named, and left behind at exit."""
    ended = run_program(
        """
async def main():
    entered = threading.Event()
    def block():
        entered.set()
        time.sleep(60)
    call = asyncio.ensure_future(polyloop.to_thread(block, on_cancel="abandon"))
    await polyloop.to_thread(entered.wait)

polyloop.run(main(), loops=2)
print("ended")
"""
    )
    assert (ended.out, ended.code) == ("ended\n", 0)
    assert "left behind at shutdown:\n  thread 'polyloop-thread-2, abandoned in main.<locals>.block' on" in ended.err
    assert ended.err.endswith(" in block\n")


def test_a_thread_that_is_waited_for_in_vain_is_named() -> None:
    """The default policy, and a function that never asks: the end is bounded, and says where the thread is."""
    ended = run_program(
        """
async def main():
    entered = threading.Event()
    def stubborn():
        entered.set()
        time.sleep(60)
    call = asyncio.ensure_future(polyloop.to_thread(stubborn))
    await polyloop.to_thread(entered.wait)

polyloop.run(main(), loops=1, shutdown_timeout=0.2)
print("ended")
"""
    )
    assert (ended.out, ended.code) == ("ended\n", 0)
    assert "\n  thread 'polyloop-thread-2, cancelled in main.<locals>.stubborn' on polyloop-0\n" in ended.err


def test_thread_of_a_loops_own_executor_is_named() -> None:
    """``asyncio.to_thread`` runs on the loop's executor: ``run`` ends in time and names the thread."""
    ended = run_program(
        """
release = threading.Event()

async def main():
    entered = threading.Event()
    def block():
        entered.set()
        release.wait()
    call = asyncio.ensure_future(asyncio.to_thread(block))
    await polyloop.to_thread(entered.wait)

began = time.monotonic()
polyloop.run(main(), loops=2, shutdown_timeout=0.2)
print("in time" if time.monotonic() - began < 10 else "late")
release.set()
"""
    )
    assert (ended.out, ended.code) == ("in time\n", 0)
    assert "left behind at shutdown:\n  thread 'asyncio_0' on polyloop-0\n" in ended.err
    assert "\n    <string>:10 in block\n" in ended.err


def test_forgotten_runtime_is_closed_at_exit() -> None:
    """Nobody closed it: its tasks are cancelled and clean up before the interpreter goes."""
    ended = run_program(
        """
async def careful():
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        print("cleaned up")

rt = polyloop.Runtime(loops=2).start()
rt.spawn(careful, on=rt.workers[1])
rt.spawn(asyncio.sleep, 0, on=rt.workers[1]).result()
print("end of program")
"""
    )
    assert (ended.out, ended.err, ended.code) == ("end of program\ncleaned up\n", "", 0)


def test_forgotten_runtime_with_a_stuck_thread_ends_all_the_same() -> None:
    """The exit hook waits two seconds and a grace, names the thread and lets the interpreter go."""
    ended = run_program(
        """
entered = threading.Event()

async def blocks():
    entered.set()
    time.sleep(60)

rt = polyloop.Runtime(loops=1).start()
rt.spawn(blocks)
entered.wait()
sys.exit(4)
"""
    )
    assert ended.code == 4
    assert "left behind at shutdown:\n  thread 'polyloop-0' on polyloop-0\n" in ended.err


def test_runtime_forgotten_by_a_program_that_fails_keeps_its_exit_code() -> None:
    """An exception in the program is reported as ever."""
    ended = run_program(
        """
rt = polyloop.Runtime(loops=2).start()
raise LookupError("mine")
"""
    )
    assert (ended.last_line, ended.code) == ("LookupError: mine", 1)


def test_runtime_that_was_never_started_leaves_no_trace() -> None:
    """Making one starts nothing."""
    ended = run_program(
        """
rt = polyloop.Runtime(loops=4)
print([t.name for t in threading.enumerate()])
"""
    )
    assert (ended.out, ended.err, ended.code) == ("['MainThread']\n", "", 0)


@pytest.mark.parametrize("on", ["rt.workers[0]", "rt.workers[1]"])
def test_sys_exit_in_a_task_on_any_loop_leaves_run(on: str) -> None:
    """As under ``asyncio.run``: SystemExit of any task ends the program with its code, after the clean-up."""
    ended = run_program(
        f"""
async def quit():
    sys.exit(9)

async def main():
    rt = polyloop.current_runtime()
    rt.spawn(quit, on={on})
    try:
        await asyncio.sleep(60)
    finally:
        print("main cleaned up")

polyloop.run(main(), loops=2)
"""
    )
    assert (ended.out, ended.code) == ("main cleaned up\n", 9)


def test_sys_exit_in_a_task_that_is_being_cancelled() -> None:
    """Its code is the program's, and the other loops still wind down in order."""
    ended = run_program(
        """
async def quits_late():
    try:
        await asyncio.sleep(60)
    finally:
        sys.exit(9)

async def careful():
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        print("cleaned up")

async def main():
    rt = polyloop.current_runtime()
    rt.spawn(quits_late, on=rt.workers[1])
    rt.spawn(careful, on=rt.workers[2])
    for worker in rt.workers:
        await rt.spawn(asyncio.sleep, 0, on=worker)

polyloop.run(main(), loops=3)
"""
    )
    assert (ended.out, ended.code) == ("cleaned up\n", 9)
    assert "left behind" not in ended.err


def test_keyboard_interrupt_raised_by_a_task_on_another_loop() -> None:
    """It leaves ``run`` as KeyboardInterrupt."""
    ended = run_program(
        """
async def interrupt():
    raise KeyboardInterrupt

async def main():
    rt = polyloop.current_runtime()
    rt.spawn(interrupt, on=rt.workers[1])
    await asyncio.sleep(60)

try:
    polyloop.run(main(), loops=2)
except KeyboardInterrupt:
    print("out of run")
"""
    )
    assert (ended.out, ended.code) == ("out of run\n", 0)


def test_sys_exit_of_a_group_child_on_another_loop() -> None:
    """A TaskGroup passes it on bare, as asyncio's does."""
    ended = run_program(
        """
async def quit():
    sys.exit(9)

async def main():
    async with polyloop.TaskGroup() as group:
        group.create_task(quit(), on=polyloop.current_runtime().workers[1])
        await asyncio.sleep(60)

polyloop.run(main(), loops=2)
"""
    )
    assert ended.code == 9
    assert "ExceptionGroup" not in ended.err


def test_error_of_main_is_the_programs_error() -> None:
    """Traceback and exit code of an uncaught exception."""
    ended = run_program(
        """
async def main():
    raise LookupError("mine")

polyloop.run(main(), loops=2)
"""
    )
    assert (ended.last_line, ended.code) == ("LookupError: mine", 1)


def test_coroutine_that_the_user_never_awaited_is_pythons_warning() -> None:
    """polyloop neither hides nor doubles it."""
    ended = run_program(
        """
async def work():
    pass

async def main():
    work()

polyloop.run(main(), loops=2)
"""
    )
    assert ended.err.count("RuntimeWarning: coroutine 'work' was never awaited") == 1
    assert ended.code == 0


def test_rejected_coroutines_are_closed_without_a_warning() -> None:
    """What the runtime refuses it closes, on every way in."""
    ended = run_program(
        """
async def work():
    pass

def refused(call):
    try:
        call()
    except (RuntimeError, ValueError, TypeError) as exc:
        print(type(exc).__name__)

new = polyloop.Runtime(loops=1)
refused(lambda: new.submit(work()))
refused(lambda: new.run(work()))
with polyloop.Runtime(loops=2) as rt:
    refused(lambda: rt.submit(work(), on="nowhere"))
    refused(lambda: rt.submit(work(), on=rt.workers[0], key=1))
    refused(lambda: rt.spawn(work(), 1))
    async def inside():
        refused(lambda: rt.run(work()))
        refused(lambda: polyloop.run(work()))
    rt.run(inside())
refused(lambda: rt.submit(work()))
refused(lambda: polyloop.run(work(), loops=0))
"""
    )
    assert ended.err == ""
    assert ended.out.split() == [
        "RuntimeClosedError",
        "RuntimeClosedError",
        "ValueError",
        "ValueError",
        "TypeError",
        "BlockingCallError",
        "RuntimeError",
        "RuntimeClosedError",
        "ValueError",
    ]
