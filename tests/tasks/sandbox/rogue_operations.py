"""Operations that do inside the sandbox what a hostile file might."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import torch

from vetgate.errors import BadSubmission, NotUnderstood


class Truncated(NotUnderstood):
    """Known inside only."""


def look(payload, progress):
    """What the process sees."""
    torch.randn(256, 256) @ torch.randn(256, 256)
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "processes": sum(entry.isdigit() for entry in os.listdir("/proc")),
        "no_new_privileges": status["NoNewPrivs"],
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "parent_threads": len(os.listdir(f"/proc/{os.getppid()}/task")),
        "visible": {path: os.path.exists(path) for path in payload.get("paths", [])},
        "interfaces": [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]],
    }


def hog_tensors(payload, progress):
    return {"sum": float(torch.ones(payload["bytes"] // 4).sum())}


def hold(payload, progress):
    kept = bytearray(b"x" * 1) * payload["bytes"]
    time.sleep(60)
    return {"held": len(kept)}


def map_memory(payload, progress):
    """Addresses that nothing is written to."""
    with mmap.mmap(-1, payload["bytes"]) as mapped:
        time.sleep(1)
        return {"mapped": len(mapped)}


def start_threads(payload, progress):
    threading.stack_size(64 << 10)
    for _ in range(payload["count"]):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    time.sleep(60)


def open_files(payload, progress):
    opened = []
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    return {"opened": len(opened)}


def raise_limits(payload, progress):
    raised = []
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"):
        which = getattr(resource, name)
        try:
            resource.setrlimit(which, (resource.getrlimit(which)[1] + 1,) * 2)
            raised.append(name)
        except (ValueError, OSError):
            continue
    return {"raised": raised, "core": resource.getrlimit(resource.RLIMIT_CORE)}


def spin(payload, progress):
    Path(payload["running"]).touch() if "running" in payload else None
    while True:
        sum(range(10000))


def spin_deaf(payload, progress):
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    spin(payload, progress)


def spin_in_children(payload, progress):
    """None of them alone uses up what all may use together."""
    while True:
        children = [os.fork() for _ in range(2)]
        if 0 in children:
            os.setsid()
            work({"seconds": 0.4}, progress)
            os._exit(0)
        time.sleep(1.0)


def work(payload, progress):
    while time.process_time() < payload["seconds"]:
        sum(range(10000))
    return {"spent": time.process_time()}


def sleep(payload, progress):
    time.sleep(payload["seconds"])
    return {}


def write(payload, progress):
    with open(payload["path"], "wb") as file:
        for _ in range(payload["megabytes"]):
            file.write(bytes(1 << 20))
    time.sleep(payload.get("stay", 0))
    return {"size": os.path.getsize(payload["path"])}


def connect(payload, progress):
    socket.create_connection(("127.0.0.1", payload["port"]), timeout=5).close()
    return {}


def die(payload, progress):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), payload["signal"])
    time.sleep(10)


def leave(payload, progress):
    os._exit(payload["code"])


def kill_parent(payload, progress):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(10)


def trace_parent(payload, progress):
    libc = ctypes.CDLL(None, use_errno=True)
    attached = libc.ptrace(16, os.getppid(), None, None)
    if attached == 0:
        os.waitpid(os.getppid(), 0)
        libc.ptrace(17, os.getppid(), None, None)
    return {"attached": attached == 0}


def fail(payload, progress):
    kinds = {"Truncated": Truncated, "BadSubmission": BadSubmission, "TypeError": TypeError, "MemoryError": MemoryError}
    raise kinds[payload["kind"]](payload["message"])


def chatter(payload, progress):
    print("R" * 100_000, flush=True)
    os.write(1, b"R\x00\x00\x00\x01" * 1000)
    print("E" * 100_000, file=sys.stderr, flush=True)
    return {"said": True}


def count(payload, progress):
    for step in range(5):
        progress(step / 5)
        time.sleep(0.15)
    progress(7.0)
    return {}


def forge(payload, progress):
    """Write bytes to every descriptor there is."""
    body = payload["body"].encode()
    frame = struct.pack("!cII", payload["kind"].encode(), payload["request"], len(body)) + body
    for fd in range(3, 64):
        try:
            os.write(fd, payload["raw"].encode() if "raw" in payload else frame)
        except OSError:
            continue
    time.sleep(10)


def large(payload, progress):
    return {"text": "x" * payload["bytes"]}


def not_finite(payload, progress):
    return {"value": float("nan")}


def linger(payload, progress):
    """Leave a process of another session behind where that is allowed, and come back or go on."""
    try:
        forked = os.fork() == 0
    except PermissionError:
        forked = False
    if forked:
        os.setsid()
        if os.fork():
            os._exit(0)
        for fd in range(64):
            os.close(fd) if fd != payload.get("keep") else None
        ctypes.CDLL(None).prctl(15, b"left-behind", 0, 0, 0)
        time.sleep(600)
        os._exit(0)
    time.sleep(0.3)
    Path(payload["running"]).touch()
    if payload["stay"]:
        time.sleep(600)
    return {}


OPS = {
    op.__name__: op
    for op in (
        look,
        hog_tensors,
        hold,
        start_threads,
        open_files,
        raise_limits,
        spin,
        spin_deaf,
        spin_in_children,
        work,
        sleep,
        write,
        connect,
        die,
        leave,
        kill_parent,
        trace_parent,
        fail,
        chatter,
        count,
        forge,
        large,
        not_finite,
        linger,
    )
} | {"map": map_memory}
