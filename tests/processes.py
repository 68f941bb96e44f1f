"""Work done by several processes that begin it at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

FORK = multiprocessing.get_context("fork")
START_SECONDS = 60


def in_processes(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(i)` returns in each of `count` processes; raises what it raised, and EOFError where one was killed.

    No answer is waited for that cannot come.
    """
    start, ends, processes = FORK.Barrier(count), [], []
    for i in range(count):
        end, answer = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_run, args=(work, i, start, answer))
        process.start()
        answer.close()  # so that the end is seen where the process dies without a word
        ends.append(end)
        processes.append(process)
    try:
        said = [end.recv() for end in ends]
    finally:
        for process in processes:
            process.join()
    for error in (told for good, told in said if not good):
        raise error
    return [told for _, told in said]


def _run(work: Callable[[int], Any], i: int, start: Barrier, answer: Connection) -> None:
    start.wait(START_SECONDS)
    try:
        answer.send((True, work(i)))
    except Exception as error:
        answer.send((False, error))
        raise
