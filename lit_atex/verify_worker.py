"""math-verify in a process that can be killed: both ends of the pipe; knows no completions and no verdict records.

`Worker` is the near end. Run as a script, this file is the far end: it imports nothing of this package. It takes a file
descriptor (a duplex pipe) and a limit in seconds; after "ready" it answers each JSON request `[reference, answer]` with
`correct`, `wrong` or `unparsed`, until the pipe closes. POSIX.

The limit is of processor time, and ends the process by a signal that no Python code handles: a verdict, which is a
reward, should not hang on what else the machine does.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

_MEMORY = 2 * 1024**3  # bytes of address space; sympy and its caches need about a tenth
_DECIMAL = re.compile(r"-?\d*\.(\d+)")
_CLOCK = 10  # times the limit that the near end waits by the clock, should the far end get no processor at all
_START_LIMIT = 120.0  # seconds for the imports; they are not part of any answer's limit


_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def _unlock() -> None:
    """In a fork: who held a lock, another thread within a comparison, is not there to release it."""
    for worker in _WORKERS:
        worker._lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


class Worker:
    """The near end: at most one process, started when first needed, killed at the limit, started anew when next needed.

    May be shared between threads and used after a fork; a copy starts its own. It never keeps the interpreter alive.

    Args:
        timeout: Seconds of processor time for one comparison, > 0; ten times as many by the clock.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._lock = threading.Lock()
        _WORKERS.add(self)
        self._pipe: Connection | None = None
        self._process: subprocess.Popen | None = None
        self._owner = 0  # id of the process that started it: a fork must not talk into its parent's pipe
        self._stop: weakref.finalize | None = None

    def __reduce__(self) -> tuple[type[Worker], tuple[float]]:
        return Worker, (self.timeout,)

    def compare(self, reference: str, answer: str) -> str | None:
        """Ask the far end.

        Args:
            reference: The reference's answer in LaTeX, without delimiters.
            answer: The answer to judge, the same.

        Returns:
            "correct", "wrong" or "unparsed"; None if the limit was reached or the process died, e.g. of its memory.
        """
        reply = None
        with self._lock:
            try:
                pipe = self._running()
                pipe.send_bytes(json.dumps([reference, answer]).encode("ascii"))  # lone surrogates travel as \udXXX
                if pipe.poll(_CLOCK * self.timeout):
                    reply = pipe.recv_bytes().decode()
            except (OSError, EOFError):  # it died
                pass
            finally:  # also on Ctrl-C: a late reply must never be read as that to the next request
                if reply is None:
                    self._kill()
        return reply

    def close(self) -> None:
        """Kill the process if there is one; it starts anew when needed. Also happens on deletion and at exit."""
        with self._lock:
            self._kill()

    def _running(self) -> Connection:
        if self._pipe and self._process and self._owner == os.getpid():
            if self._process.poll() is None:
                return self._pipe
            self._kill()  # it died idle, so no answer is to blame
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            # A script, not multiprocessing: that runs the user's main module again, and is denied to daemons.
            # -P: else the script's folder, which has a types.py, would come before the standard library.
            self._process = subprocess.Popen(
                [sys.executable, "-P", os.path.abspath(__file__), str(theirs.fileno()), str(self.timeout)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer
                env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's orderings follow hashes
            )
        self._owner = os.getpid()
        self._stop = weakref.finalize(self, _end, self._process, self._pipe, self._owner)
        try:
            ready = self._pipe.poll(_START_LIMIT) and self._pipe.recv_bytes() == b"ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            warnings.warn("math-verify did not start: answers that need it time out", RuntimeWarning, stacklevel=2)
            raise EOFError
        return self._pipe

    def _kill(self) -> None:
        if self._stop is not None:
            self._stop()
        self._pipe = self._process = self._stop = None


def _end(process: subprocess.Popen, pipe: Connection, owner: int) -> None:
    pipe.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # a fork's copy of the handle; the process belongs to the parent


def _compare(reference: str, answer: str) -> str:
    """Strict where math-verify is lenient: the whole string must parse, a number is not fished out of prose."""
    from math_verify import LatexExtractionConfig, parse, verify

    def expressions(text: str) -> list:
        return parse(
            f"${text}$",
            [LatexExtractionConfig()],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,  # theirs is an alarm signal; our limit holds instead
        )

    expected, given = expressions(reference), expressions(answer)
    if not given:
        return "unparsed" if expected else "wrong"
    same = verify(expected, given, allow_set_relation_comp=True, timeout_seconds=None)
    if same and any(map(_DECIMAL.fullmatch, (reference.strip(), answer.strip()))):
        same = _is_rounded(answer, expected) and _is_rounded(reference, given)
    elif same:
        same = _are_near(expected[0], given[0])
    return "correct" if same else "wrong"


def _is_rounded(text: str, other: list) -> bool:
    """Whether a decimal is the other side, rounded to as many places if it has six, and four digits that count.

    True of anything but a decimal and a number.
    """
    from sympy import Rational

    number = _DECIMAL.fullmatch(text.strip())
    if number is None or not other or not getattr(other[0], "is_number", False) or other[0].is_real is False:
        return True
    exactly, places = Rational(number[0]), len(number[1])
    off = abs(other[0] - exactly).evalf(places + 15)
    rounded = places >= 6 and abs(exactly) * 10**places >= 1000
    near = bool(off <= Rational(1, 2 * 10**places if rounded else 10 ** (places + 10)))
    return near and (exactly != 0 or bool(other[0] == 0))


def _are_near(one: Any, other: Any) -> bool:
    """Whether two numbers are equal to forty digits, with decimals to twelve; True of anything else, and of 0.

    To math-verify 1/19! and 1/20! are equal. Where the difference is a fraction all digits count.
    """
    from sympy import Float

    if not all(getattr(side, "is_number", False) and side != 0 for side in (one, other)):
        return True
    difference = (one - other).doit()
    if difference.is_Rational:
        return bool(difference == 0)
    off, size = abs(one - other).evalf(60), abs(one).evalf(60)
    digits = 12 if (one - other).has(Float) else 40
    return not (off.is_Number and size.is_Number) or bool(off <= size / 10**digits)  # sympy leaves some unevaluated


def _bound(kind: int, limit: int) -> None:
    # Refused under a lower hard limit, or where the system has no such limit: the time is bounded in any case.
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def _serve() -> None:
    pipe, seconds = Connection(int(sys.argv[1])), float(sys.argv[2])
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_AS, _MEMORY)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may have handed down that it is ignored, or blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    logging.disable(logging.CRITICAL)
    _compare(r"\frac{1}{2}", "x^2")  # imports sympy and builds the parser's tables before any clock runs
    pipe.send_bytes(b"ready")
    while True:
        try:
            request = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = _compare(*json.loads(request))
        except MemoryError:
            raise
        except Exception:  # sympy raises anything on hostile text; an answer that cannot be compared is not equal
            reply = "wrong"
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(reply.encode())


if __name__ == "__main__":
    _serve()
