"""Exceptions of calls: they come back as they were."""

import threading
import traceback
from typing import Any

import pytest
from tests.distributed import jobs

from polyloop.distributed import ClusterError, DaskOffload


def frames(exc: BaseException | None) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__ if exc else None)]


def test_an_exception_comes_back_whole(offload: DaskOffload) -> None:
    """Type, arguments, attributes, notes, cause, and the frames of the worker for it and for its cause."""
    with pytest.raises(jobs.Refused, match="7: unknown") as caught:
        offload.submit(jobs.refuse).result()
    error = caught.value
    assert (error.args, error.reason, error.__notes__) == (("7: unknown",), "unknown", ["a note"])
    assert frames(error)[-1] == "refuse"
    assert isinstance(error.__cause__, KeyError)
    assert frames(error.__cause__) == ["refuse", "look_up"]
    shown = "".join(traceback.format_exception(error))
    assert "jobs.py" in shown
    assert 'raise KeyError("inner")' in shown


def test_a_group_brings_its_members(offload: DaskOffload) -> None:
    """With their frames."""

    def several() -> None:
        errors: list[Exception] = []
        for fail in (jobs.look_up, jobs.refuse):
            try:
                fail()
            except Exception as exc:
                errors.append(exc)
        raise ExceptionGroup("two", errors)

    with pytest.raises(ExceptionGroup) as caught:
        offload.submit(several).result()
    assert [type(exc) for exc in caught.value.exceptions] == [KeyError, jobs.Refused]
    assert [frames(exc)[-1] for exc in caught.value.exceptions] == ["look_up", "refuse"]


def test_system_exit_is_the_callers_and_leaves_the_worker_alone(offload: DaskOffload) -> None:
    """From an async function here."""
    with pytest.raises(SystemExit) as caught:
        offload.submit(jobs.fail_async).result()
    assert caught.value.code == 3
    assert "fail_async" in frames(caught.value)
    assert offload.submit(jobs.square, 2).result() == 4


def test_an_exception_that_does_not_pickle_is_stood_in_for_by_its_nearest_builtin(offload: DaskOffload) -> None:
    """Which says so."""
    with pytest.raises(LookupError, match="carries a lock") as caught:
        offload.submit(jobs.raise_unpicklable).result()
    assert type(caught.value) is LookupError
    assert "jobs.Unpicklable that does not pickle" in caught.value.__notes__[0]
    assert frames(caught.value)[-1] == "raise_unpicklable"


def test_an_exception_that_cannot_be_loaded_here_is_described(offload: DaskOffload) -> None:
    """With its traceback as text."""

    def fail() -> None:
        import sys
        import types

        module = types.ModuleType("only_there")
        sys.modules["only_there"] = module
        exec("class OnlyThere(Exception): pass", module.__dict__)
        raise module.OnlyThere("strange")

    with pytest.raises(ClusterError, match=r"cannot be loaded here: only_there\.OnlyThere: strange") as caught:
        offload.submit(fail).result()
    assert "in fail" in caught.value.__notes__[0]


def test_a_result_whose_class_is_not_here_fails_its_call(offload: DaskOffload) -> None:
    """With what the import raises, and a note that says where."""

    def make() -> object:
        import sys
        import types

        module = types.ModuleType("only_there")
        sys.modules["only_there"] = module
        exec("class Thing: pass", module.__dict__)
        thing: object = module.Thing()
        return thing

    with pytest.raises(ModuleNotFoundError, match="only_there") as caught:
        offload.submit(make).result()
    assert "result of 'make' was unpickled" in caught.value.__notes__[0]


@pytest.mark.parametrize(("fn", "args"), [(len, [threading.Lock()]), (threading.Lock, [])], ids=["argument", "result"])
def test_what_does_not_pickle_fails_its_own_call_only(offload: DaskOffload, fn: Any, args: list[Any]) -> None:
    """On the way there and on the way back."""
    before, after = offload.submit(jobs.square, 2), offload.submit(fn, *args)
    with pytest.raises(TypeError, match="cannot pickle"):
        after.result()
    assert before.result() == 4
    assert offload.submit(jobs.square, 3).result() == 9


def test_code_that_is_not_on_the_workers_is_said_to_be_missing(
    offload: DaskOffload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the module, and that it is the worker which lacks it."""
    monkeypatch.setattr(jobs.square, "__module__", "polyloop_not_there")
    monkeypatch.setitem(__import__("sys").modules, "polyloop_not_there", jobs)
    with pytest.raises(ModuleNotFoundError, match="polyloop_not_there") as caught:
        offload.submit(jobs.square, 1).result()
    assert "must be installed there" in caught.value.__notes__[0]
