"""A filter in the kernel that refuses, for ever, the system calls by which a process reaches beyond itself.

What is refused fails with EPERM, as it would for lack of a right; nothing is killed. Threads are allowed, new processes
and programs are not. A call through another table of the kernel (32-bit, x32) is refused whatever it is.

Source    Linux, Documentation/userspace-api/seccomp_filter.rst; numbers from asm/unistd_64.h and asm-generic/unistd.h.
Deviates  Refuses a list, where a list of what is allowed would be safer, and would break with each new libc or torch.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

from tasks.sandbox.prctl import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl

# by architecture: the word by which the kernel names its table, and the place of its numbers in those below
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
X32_FIRST = 0x40000000
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # sockets of any family: of the network, and those by which services of this host are asked
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201), "connect": (42, 203),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    # into the memory and the files of others
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # signals that tell no process by its number
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    # namespaces and file systems
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "swapon": (167, 224), "swapoff": (168, 225),
    # memory that no process is seen to hold, and that may outlive it
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
    # wide doors into the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116),
    "acct": (163, 89), "fanotify_init": (300, 262), "iopl": (172, None), "ioperm": (173, None),
    # the clock and the name of the host
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
# allowed about the process itself, which is their first argument
ABOUT_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}
# allowed to ask what a limit is: root could raise one again
SETRLIMIT, PRLIMIT = (160, 164), (302, 261)
CLONE, CLONE3 = (56, 220), (435, 435)
CLONE_THREAD, CLONE_NEW = 0x10000, 0x7E020000

LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, FIRST_AT, THIRD_AT = 0, 4, 16, 32
FILTER_MODE = 2
Step = tuple[int, int, int, int]


def refuse_system_calls(*, limits_change: bool = False) -> None:
    """Put the filter on this process, once it is alone with one thread; raises OSError where the kernel refuses it.

    With `limits_change` the process may still set its own limits.
    """
    install(program(platform.machine(), os.getpid(), limits_change=limits_change))


def install(steps: Sequence[Step]) -> None:
    """Have the kernel run the steps before each system call of this thread and of what it starts; raises OSError."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    # struct sock_fprog: how many steps, and where they are
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, FILTER_MODE, ctypes.addressof(header))


def program(machine: str, pid: int, *, limits_change: bool = False) -> list[Step]:
    """The steps of the filter for process `pid`; raises OSError for a machine whose numbers are not known."""
    if machine not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise OSError(errno.ENOSYS, f"expected a machine of {known} for a filter of system calls, got {machine}")
    word, place = ARCHITECTURES[machine]
    refuse, allow = _end(REFUSE | errno.EPERM), _end(ALLOW)
    steps = [(LOAD, 0, 0, ARCHITECTURE_AT), (EQUAL, 1, 0, word), refuse, (LOAD, 0, 0, NUMBER_AT)]
    if machine == "x86_64":
        steps += [(AT_LEAST, 0, 1, X32_FIRST), refuse]
    for numbers in REFUSED.values():
        if (number := numbers[place]) is not None:
            steps += _if_number(number, [refuse])
    # its flags are where no filter can read them; the C library then takes clone
    steps += _if_number(CLONE3[place], [_end(REFUSE | errno.ENOSYS)])
    thread = [(AND, 0, 0, CLONE_NEW | CLONE_THREAD), (EQUAL, 0, 1, CLONE_THREAD), allow, refuse]
    steps += _if_number(CLONE[place], [(LOAD, 0, 0, FIRST_AT), *thread])
    for numbers in ABOUT_ITSELF.values():
        steps += _if_number(numbers[place], [(LOAD, 0, 0, FIRST_AT), (EQUAL, 0, 1, pid), allow, refuse])
    if not limits_change:
        # both halves of the address of a new limit are 0 when there is none
        no_new = [
            (LOAD, 0, 0, THIRD_AT),
            (EQUAL, 0, 3, 0),
            (LOAD, 0, 0, THIRD_AT + 4),
            (EQUAL, 0, 1, 0),
            allow,
            refuse,
        ]
        steps += _if_number(PRLIMIT[place], no_new) + _if_number(SETRLIMIT[place], [refuse])
    return [*steps, allow]


def _if_number(number: int, then: Sequence[Step]) -> list[Step]:
    return [(EQUAL, 0, len(then), number), *then]


def _end(what: int) -> Step:
    return RETURN, 0, 0, what
