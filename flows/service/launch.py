"""Start one flow run as a fork of the worker's warm process: what a worker runs in place of `python -m prefect.engine`.

A script of its own that imports nothing beyond the standard library: `python -I -S launch.py SOCKET DIRECTORY
INTERPRETER`. It passes signals on and ends as the run does. Where the warm process does not answer, the run is started
as ever.
"""

import array
import json
import os
import select
import signal
import socket
import struct
import sys

ENGINE = "prefect.engine"


def main() -> None:
    """Hand over the environment and the standard streams, wait, and end alike."""
    name, directory, interpreter = sys.argv[1:4]
    os.chdir(directory)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        # only noted: who waits below passes it on
        signal.signal(number, lambda *_: None)
    try:
        connection = _asked(name, directory)
    except OSError as error:
        print(f"the warm process does not answer ({error}); this run starts without it", file=sys.stderr, flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execv(interpreter, [interpreter, "-m", ENGINE])
    _end(_status(connection, told))


def _asked(name: str, directory: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("\0" + name)
    request = {"environment": dict(os.environ), "directory": directory}
    body = json.dumps(request).encode("utf-8", "surrogateescape")
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    connection.sendmsg([struct.pack("!I", len(body))], streams)
    connection.sendall(body)
    return connection


def _status(connection: socket.socket, told: int) -> int:
    """How the run ended; SIGKILL when its parent is gone, which takes it along."""
    while True:
        ready, _, _ = select.select([connection.fileno(), told], [], [])
        if told in ready:
            connection.sendall(os.read(told, 64))
        if connection.fileno() in ready:
            answer = connection.recv(4)
            return struct.unpack("!I", answer)[0] if len(answer) == 4 else signal.SIGKILL


def _end(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
