"""The pool at interpreter exit."""

import subprocess
import sys

PROGRAM = """
import atexit, threading

def report():
    print(sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("polyloop")))

atexit.register(report)  # before polyloop's own hooks, so it runs after them

import polyloop

async def main():
    meeting = threading.Barrier(4)
    await polyloop.gather(*(polyloop.to_thread(meeting.wait, 30) for _ in range(4)))
    print(polyloop.thread_pool().threads)

polyloop.run(main(), loops=2)
"""


def test_idle_threads_end_before_the_interpreter_is_taken_down() -> None:
    """A daemon thread that sleeps or wakes meanwhile can crash the interpreter."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n[]\n", "")
