"""Which loop the tasks of a context run on.

One thread at a time can be in a context, and asyncio enters it at every step: a step that finds another thread in it is
lost, and its task never runs again. So the tasks that share a context share a loop: the first that one of them is
placed on, until that loop is gone.

Theory. The claims on a context are numbered. The first thread to set claim 0 owns the context (``dict.setdefault`` is
one critical section); whoever finds that owner gone goes on to claim 1. A loop that is gone does not come back, so all
threads agree on the first claim that holds.
"""

import contextvars
import itertools
import weakref

from polyloop._core._port import Port

type _Claims = dict[int, Port | None]  # None: the claimant is gone

#: By the identity of the context, which no other has until the callback of the reference has run.
_contexts: dict[int, tuple[_Claims, weakref.ref[contextvars.Context]]] = {}


def claim_context(context: contextvars.Context, port: Port) -> Port:
    """The port that owns ``context``; it is ``port`` if nobody owned it. Any thread."""
    claims = _claims_on(context)
    for number in itertools.count():
        owner = claims.setdefault(number, port)
        if owner is port:
            return port
        if owner is not None and not _is_gone(owner):
            return owner
        claims[number] = None  # keeps no loop alive that has ended
    raise AssertionError


def context_owner(context: contextvars.Context) -> Port | None:
    """The port that owns ``context``, if any. Any thread."""
    known = _contexts.get(id(context))
    if known is not None:
        for owner in known[0].copy().values():
            if owner is not None and not _is_gone(owner):
                return owner
    return None


def _claims_on(context: contextvars.Context) -> _Claims:
    key = id(context)
    known = _contexts.get(key)
    if known is None:
        reference = weakref.ref(context, lambda _: _contexts.pop(key, None))
        known = _contexts.setdefault(key, ({}, reference))
    return known[0]


def _is_gone(port: Port) -> bool:
    """Whether nothing runs on the loop any more. For good."""
    return port.mailbox.closed or port.loop.is_closed()
