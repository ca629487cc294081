"""A Ray cluster of this machine for the tests of a file, and what it may not leave behind."""

import os
import signal
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from fixtures_server import wait_until


@contextmanager
def started(make, busy):
    """What `make()` gives inside a `with`, a cluster around it; `busy` is what is raised where Ray does not start."""
    handler = signal.getsignal(signal.SIGTERM)
    with ExitStack() as cluster:
        for tries_left in (2, 1, 0):
            before = processes_of_ray()
            try:
                made = cluster.enter_context(make())
                break
            except busy as error:  # on a busy machine Ray may miss its own limit of 30 seconds
                if not tries_left:
                    cannot_start(error)
        yield made
    assert signal.getsignal(signal.SIGTERM) == handler
    wait_until(lambda: not processes_of_ray() - before)


def cannot_start(error):
    """Skip where Ray itself does not start here, which says nothing of the engine; fail where it has to."""
    if os.environ.get("ARBITER_REQUIRE_RAY"):
        raise error
    pytest.skip(f"Ray does not start on this machine ({error}); ARBITER_REQUIRE_RAY=1 makes this a failure")


def processes_of_ray() -> set[int]:
    """Ids of Ray's processes that descend from this one, without those that ended and were not waited for."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.NoSuchProcess:  # a zombie too
            continue
        if any("/ray/" in word or word.startswith("ray::") for word in words):
            found.add(process.pid)
    return found
