"""A team of threads that share the rows of a kernel: started in half a microsecond, and never waited for in vain.

    @kernel
    def double(first, last, x, out):                   # rows first to last - 1
        for n in range(first, last): out[n] = 2 * x[n]

    shared(double)(1000, x, out)                       # all 1000 rows, by however many threads are free

A decode step calls some 170 such kernels, of which many take 10 to 50 us, so how threads meet matters. The usual way,
OpenMP's, gives each thread its share beforehand and then waits for the last: 2 us a call, and where the system takes a
core away (for another program), everybody waits for that thread's share until it comes back, milliseconds later.

Here the rows are cut into chunks, and whoever is free takes the next one. The caller takes part. A thread that is
late finds nothing left to do, and nobody waits for it: only for chunks that were begun. Which thread does a row changes
nothing in the row, so results are the same bits every time.

    calling a kernel of no work      0.9 us, of which 0.6 are Python's and Numba's call; OpenMP 2.0
    while several programs run       a matrix of the 0.5B (4864 x 896) in 0.5 ms; OpenMP 1.0 to 2.2

How they meet: all looks go to a few words of memory. The caller writes the job, then the `TICKET`: how many chunks are
left, and in its upper bits a number that grows with each job. Taking a chunk is one compare-and-swap of the ticket, so
a job that is over can never be taken from, and one that was taken from cannot end before the chunk is reported in
`DONE`, which counts the chunks of all jobs: the caller need not take it back to start anew.
Threads that find nothing look again for about a millisecond, then ten times a millisecond, and after some more than
30 ms they sleep until the next call wakes them.

On a machine that is busy otherwise the threads may have to share one core, and then looking for work takes the time of
the one who has work. So whoever only looks or waits gives way now and then (`sched_yield`), and after a long wait for a
thread that was stopped in the middle of its chunk the caller works alone for eight times as long. With a third busy
program on two cores, decoding is then as fast as with one thread; with neither it was half as fast.

A second caller, from another Python thread, finds the team `BUSY` and does its rows itself: with as many callers as
cores that is the fastest way, and none of them ever waits for another.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable

import numba
import numpy as np

from backends.cpu.compiling import OPTIONS, UNCOUNTED, kept, kernel
from backends.cpu.shared_memory import as_task, breathe, change, clock, count, give_way, nap, read, run_task, write

# Words of the team's memory. Whoever sees a new ticket has the job with it, in one cache line (8 words). Lines that
# several write are what meeting costs, above all where cores have no common cache.
TICKET, TASK, ARGUMENTS, ROWS, CHUNKS, THREADS = range(6)
DONE, BUSY, ALONE = 8, 16, 24
CHUNK_BITS = 20  # of the ticket; the rest counts jobs

# Each thread gets a long stretch of rows, which the memory likes, and the rest in short ones for whoever is done first.
# Two cores, a decode step's products in bf16, GB/s: 8 equal chunks 28 to 31, 2 long and 2 short 30 to 31.
CHUNKS_PER_THREAD, LONG = 2, 4
PATIENCE = 40_000  # looks for work, one right after the other: one to two milliseconds
POLITENESS = 1000  # looks between two offers of the core: the one that is waited for may be waiting for just this core
NAPS = 300  # then so many looks with 0.1 ms of sleep between them, before a thread waits for the bell
STALL = (
    300_000  # ticks of the clock, 0.1 ms or more: a wait beyond a chunk's own time that a healthy thread never causes
)
LONGEST = 1000 * STALL  # wait that is counted: a machine that slept in the middle of a job is not alone for days


# ---- a job ---------------------------------------------------------------------------------------------------------


@kernel
def edge(n, chunks, rows):
    """Where chunk n begins: the first half of them are as long as each other, and have LONG times the rows of the rest.

    >>> [edge(n, 4, 100) for n in range(5)]
    [0, 40, 80, 90, 100]
    >>> [edge(n, 4, 32) for n in range(5)]
    [0, 13, 26, 29, 32]
    """
    half = chunks // 2
    long = (2 * rows * LONG + half * (LONG + 1)) // (2 * half * (LONG + 1))  # to the nearest
    begun = min(half * long, rows)
    return min(n * long, rows) if n < half else begun + (rows - begun) * (n - half) // half


@kernel
def take(state, member):
    """Take a chunk and do it; whether there may be more."""
    ticket = read(state, TICKET)
    left = ticket & ((1 << CHUNK_BITS) - 1)
    if left == 0 or member >= read(state, THREADS):
        return False
    if change(state, TICKET, ticket, ticket - 1):  # from here on the job cannot end or change before it is reported
        rows, chunks = read(state, ROWS), read(state, CHUNKS)
        n = chunks - left
        run_task(read(state, TASK), read(state, ARGUMENTS), edge(n, chunks, rows), edge(n + 1, chunks, rows))
        count(state, DONE)
    return True


@kernel
def alone(state):
    """Whether the caller should do without the others for now; they are asleep then, and leave it the core."""
    return clock() < read(state, ALONE)


def launcher(kernel):
    """The compiled half of `shared`, for kernels that do something else before: (state, threads, rows, *arrays)."""

    @numba.njit(**OPTIONS, **UNCOUNTED)
    def launch(state, threads, rows, *arguments):
        chunks, began = threads * CHUNKS_PER_THREAD, clock()
        if threads == 1 or rows < 2 or alone(state) or not change(state, BUSY, 0, 1):
            kernel(0, rows, *arguments)
            return
        task, address = as_task(kernel, arguments)
        for place, value in ((TASK, task), (ARGUMENTS, address), (ROWS, rows), (CHUNKS, chunks), (THREADS, threads)):
            write(state, place, value)
        end = read(state, DONE) + chunks
        write(state, TICKET, (((read(state, TICKET) >> CHUNK_BITS) + 1) << CHUNK_BITS) | chunks)
        own = 0
        while take(state, 0):
            own += 1
        ended, looked = clock(), 0
        while read(state, DONE) < end:
            looked += 1
            if looked % POLITENESS == 0:
                give_way()
            breathe()
        waited = clock() - ended
        if waited > 2 * (ended - began) // max(own, 1) + STALL:
            write(state, ALONE, clock() + 8 * min(waited, LONGEST))
        write(state, BUSY, 0)

    return kept(launch)


def with_team(launch) -> Callable:
    """A compiled function (state, threads, *arguments) as a Python function of the arguments."""

    @functools.wraps(launch.py_func)
    def share(*arguments):
        if TEAM.sleeping and not alone(TEAM.state):
            TEAM.wake()
        return launch(TEAM.state, CALLER.threads, *arguments)

    return share


def shared(kernel) -> Callable:
    """A function (rows, *arrays) that runs `kernel(first, last, *arrays)` over all rows, by several threads.

    >>> @numba.njit
    ... def double(first, last, x, out):
    ...     for n in range(first, last): out[n] = 2 * x[n]
    >>> out = np.empty(5, np.float32)
    >>> shared(double)(5, np.float32([1, 2, 3, 4, 5]), out); out
    array([ 2.,  4.,  6.,  8., 10.], dtype=float32)
    """
    return with_team(launcher(kernel))


class Caller(threading.local):
    """How many threads, itself included, work for the Python thread that asks: set by the backend that it runs."""

    threads = 1


CALLER = Caller()


def use(threads: int) -> None:
    """From now on, calls from this Python thread are shared by so many threads."""
    CALLER.threads = threads
    TEAM.grow(threads)


# ---- the team ------------------------------------------------------------------------------------------------------


@kernel
def look_for_work(state, member):
    looked = 0
    while looked < PATIENCE + NAPS:
        looked = 0 if take(state, member) else looked + 1
        if looked > PATIENCE:
            nap()
        elif looked % POLITENESS == POLITENESS - 1:
            give_way()
        else:
            breathe()


class Team:
    """Threads that look for work, and sleep when there is none. One team serves the process; it grows when asked to.

    Python's part is small: while its threads work or look they hold no lock of Python's.
    """

    def __init__(self):
        self.start_anew()

    def start_anew(self, threads: int = 1) -> None:
        """Forget all threads, and be so many, the caller counted."""
        words = np.zeros(64 + 8, np.int64)
        first = -words.ctypes.data % 64 // 8  # of the first whole cache line
        self.state = words[first : first + 64]
        self.members = 0
        self.sleeping = 0
        self.bell = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.grow(threads)

    def grow(self, threads: int) -> None:
        """Be at least so many, the caller counted."""
        with self.lock:
            while self.members < threads - 1:
                self.members += 1
                threading.Thread(target=self.serve, args=[self.members], daemon=True, name="kernel").start()

    def serve(self, member: int) -> None:
        while True:
            look_for_work(self.state, member)
            with self.lock:
                self.sleeping += 1
            self.bell.acquire()

    def wake(self) -> None:
        with self.lock:
            asleep, self.sleeping = self.sleeping, 0
        for _ in range(asleep):
            self.bell.release()


TEAM = Team()

if hasattr(os, "register_at_fork"):  # a forked process has no threads but the one that forked
    os.register_at_fork(after_in_child=lambda: TEAM.start_anew(TEAM.members + 1))
