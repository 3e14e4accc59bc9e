"""The team of threads: every row is done, once, whoever calls and however the threads come and go."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.cpu import team
from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.team import ALONE, TEAM, launcher, shared, use, with_team

CROWD = 5  # more threads than cores: they are stopped at every possible place


@shared
@inner
def count_rows(first, last, count_N):
    for n in range(first, last):
        count_N[n] += 1


@shared
@inner
def add_slowly(first, last, rounds, x_N, out_N):
    for n in range(first, last):
        total = 0.0
        for r in range(rounds):
            total += x_N[n] / (r + 1)
        out_N[n] = total


@pytest.fixture(autouse=True)
def a_crowd():
    before = team.CALLER.threads
    use(CROWD)
    yield
    use(before)


@given(st.integers(0, 300), st.integers(1, CROWD))
def test_every_row_is_done_once(rows, threads):
    use(threads)
    count_N = np.zeros(rows, np.int64)
    try:
        count_rows(rows, count_N)
    finally:
        use(CROWD)
    assert (count_N == 1).all()


def test_twenty_thousand_jobs_in_a_row_lose_nothing():
    """Short jobs of changing size: threads come late, leave early, and take from the next job what was of the last."""
    count_N, expected_N = np.zeros(64, np.int64), np.zeros(64, np.int64)
    for job in range(20_000):
        rows = job * 7 % 64
        count_rows(rows, count_N)
        expected_N[:rows] += 1
    np.testing.assert_array_equal(count_N, expected_N)


def test_callers_at_once_each_get_their_own_result():
    wrong = []

    def call(seed):
        use(CROWD)
        x_N = np.random.default_rng(seed).random(50)
        expected_N, out_N = np.empty(50), np.empty(50)
        for n in range(50):
            expected_N[n] = sum(x_N[n] / (r + 1) for r in range(20))
        for _ in range(400):
            out_N[:] = 0
            add_slowly(50, 20, x_N, out_N)
            if not np.allclose(out_N, expected_N, rtol=1e-12):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=[seed]) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_other_threads_do_take_part():
    @kernel
    def note_who(first, last, seconds_N):
        for n in range(first, last):
            total = 0.0
            for r in range(3_000_000):
                total += 1.0 / (r + seconds_N[n])
            seconds_N[n] = total

    many = shared(note_who)
    seen = set()
    for _ in range(20):
        before = {thread: clock for thread, clock in cpu_seconds().items()}
        many(2 * CROWD, np.ones(2 * CROWD))
        seen |= {thread for thread, clock in cpu_seconds().items() if clock > before.get(thread, 0)}
        if len(seen) > 1:
            return
    pytest.fail("only the caller worked")


def cpu_seconds() -> dict[str, int]:
    """Clock ticks that each thread of this process has used."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system does not tell what its threads do")
    ticks = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/stat") as file:
            ticks[thread] = int(file.read().rpartition(")")[2].split()[11])
    return ticks


def test_threads_sleep_when_there_is_nothing_to_do_and_wake_for_the_next_job(monkeypatch):
    count_N, woken = np.zeros(100, np.int64), []
    wake = TEAM.wake
    monkeypatch.setattr(TEAM, "wake", lambda: (woken.append(TEAM.sleeping), wake()))
    for _ in range(3):
        deadline = time.monotonic() + 20
        while TEAM.sleeping < TEAM.members and time.monotonic() < deadline:
            time.sleep(0.01)
        assert TEAM.sleeping == TEAM.members >= CROWD - 1
        TEAM.state[ALONE] = 0  # a caller that waited long on a busy machine wakes nobody for a while, and rightly so
        count_rows(100, count_N)
    assert woken == [TEAM.members] * 3
    assert (count_N == 3).all()


def test_a_kernel_may_prepare_something_first():
    @inner
    def add(first, last, x_N, twice_N):
        for n in range(first, last):
            twice_N[n] += x_N[n]

    launch = launcher(add)

    @with_team
    @kernel
    @allocating
    def double(state, threads, x_N, twice_N):
        twice_N[:] = x_N
        launch(state, threads, len(x_N), x_N, twice_N)

    out_N = np.empty(30)
    double(np.arange(30.0), out_N)
    np.testing.assert_array_equal(out_N, 2 * np.arange(30.0))


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_starts_a_team_of_its_own():
    count_N = np.zeros(100, np.int64)
    count_rows(100, count_N)
    child = os.fork()
    if child == 0:
        try:
            count_rows(100, count_N)
            os._exit(0 if (count_N == 2).all() and TEAM.members == CROWD - 1 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
