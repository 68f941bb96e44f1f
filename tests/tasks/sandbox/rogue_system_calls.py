"""Operations that reach beyond the process they run in; each answers with the name of the error that it got."""

import ctypes
import errno
import mmap
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import torch

from tasks.sandbox.seccomp import ABOUT_ITSELF, ARCHITECTURES, REFUSED

LIBC = ctypes.CDLL(None, use_errno=True)
PLACE = ARCHITECTURES[os.uname().machine][1] if os.uname().machine in ARCHITECTURES else 0
FAMILIES = ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK")


def tried(action):
    """The name of the error of what is tried, "" if there is none."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""


def called(number, *arguments):
    """The same of a system call by its number."""
    ctypes.set_errno(0)
    given = [ctypes.c_long(each) for each in arguments]
    return errno.errorcode[ctypes.get_errno()] if LIBC.syscall(ctypes.c_long(number), *given) == -1 else ""


def open_sockets(payload, progress):
    kinds = {"AF_NETLINK": socket.SOCK_RAW, "AF_PACKET": socket.SOCK_RAW}
    seen = {
        family: tried(lambda f=family: socket.socket(getattr(socket, f), kinds.get(f, socket.SOCK_STREAM)).close())
        for family in FAMILIES
    }
    return seen | {"a pair": tried(socket.socketpair)}


def start_others(payload, progress):
    def fork():
        if os.fork() == 0:
            os._exit(0)

    program = shutil.which("true", path="/usr/bin:/bin")
    return {
        "program in its place": tried(lambda: os.execv(program, [program, "--version"])),
        "program beside it": tried(lambda: subprocess.run([program], check=True)),
        "shell": tried(lambda: subprocess.run(f"{program}; exit 0", shell=True, check=True)),
        "itself": tried(lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
        "fork": tried(fork),
    }


def meet_others(payload, progress):
    parent = os.getppid()
    return {
        "signal": tried(lambda: os.kill(parent, 0)),
        "signal to the host": tried(lambda: os.kill(payload["host"], 0)),
        "signal to all": tried(lambda: os.kill(-1, 0)),
        "signal by descriptor": tried(lambda: signal.pidfd_send_signal(os.pidfd_open(parent), 0)),
        "its limits": tried(lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0))),
    }


def call_all(payload, progress):
    """Every system call that is said to be refused, with arguments that mean nothing."""
    numbers = {name: of[PLACE] for name, of in (REFUSED | ABOUT_ITSELF).items() if of[PLACE] is not None}
    return {name: called(number, -1, -1, -1, -1, -1, -1) for name, number in numbers.items()}


def enter_by_other_tables(payload, progress):
    """getpid by the number that another table of the kernel has for it."""
    return {"x32": called(0x40000000 + 39)}


def enter_by_interrupt(payload, progress):
    """getpid of the 32-bit table: mov eax, 20; int 0x80; ret."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return {"result": ctypes.CFUNCTYPE(ctypes.c_int)(start)()}


def leave_memory(payload, progress):
    return {"anonymous file": tried(lambda: os.close(os.memfd_create("left"))), "segment": called_shmget()}


def called_shmget():
    return called(REFUSED["shmget"][PLACE], 0, 4096, 0o600)


def work_on(payload, progress):
    """What a detector does."""
    heard = []
    thread = threading.Thread(target=lambda: heard.append(True))
    thread.start()
    thread.join()
    os.kill(os.getpid(), 0)
    with tempfile.TemporaryFile() as file:
        file.write(b"text")
    torch.set_num_threads(2)
    return {"heard": heard, "norm": float((torch.ones(300, 300) @ torch.ones(300, 300)).mean()), "status": _status()}


def _status():
    with open("/proc/self/status") as status:
        return dict(
            line.rstrip("\n").split(":\t", 1) for line in status if line.startswith(("Seccomp:", "NoNewPrivs:"))
        )


OPS = {
    op.__name__: op
    for op in (
        open_sockets,
        start_others,
        meet_others,
        call_all,
        enter_by_other_tables,
        enter_by_interrupt,
        leave_memory,
        work_on,
    )
}
