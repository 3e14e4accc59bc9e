"""Runs programs that a model wrote, each in a process of its own with little time and memory, and says what they earn.

Run as a script: jobs as JSON on standard input, a number for each on standard output. A job is an answer, the program
in it, and either `tests`, which run after the program, or `check`, which defines check(answer) -> bool or number.

This stops accidents: loops without end, memory, files written, processes started, the network. It is no prison for code
that is written to break out; run nothing here that you would not run anyway. Where there is no `fork` (Windows), it
refuses.
"""

import contextlib
import json
import os
import sys

MEMORY_BYTES = 512 * 1024 * 1024
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill",
             "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "shutil.",
             "ctypes.", "os.truncate", "os.putenv")  # fmt: skip


def refuse(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes or event.startswith(FORBIDDEN):
        raise PermissionError(f"not here: {event}")


def limit(seconds):
    import resource
    import signal

    whole = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends a process that sleeps


def earned(job):
    names = {"__name__": "__main__"}
    if "tests" in job:
        exec(job["program"], names)
        exec(job["tests"], names)
        return 1.0
    exec(job["check"], names)
    value = float(names["check"](job["answer"]))
    return min(1.0, max(0.0, value))  # NaN becomes 0


def run(job):
    """The reward of one job: a child writes it into a pipe, if it lives so long."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        with contextlib.suppress(BaseException):  # whatever an answer does: it has not earned anything
            limit(job["seconds"])
            sys.addaudithook(refuse)
            value = earned(job)
            os.write(write, repr(value).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read(64)
    os.waitpid(child, 0)
    try:
        return float(said)
    except ValueError:  # it ended before it said anything
        return 0.0


if __name__ == "__main__":
    json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)
