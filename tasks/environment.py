"""What every process of ours needs of its environment, whatever shell, container or user it was started from.

Libraries read these variables when they are imported, and children inherit them. What is set stays, save that the
addresses of this host are added to those that no proxy is asked for.
"""

from __future__ import annotations

import codecs
import locale
import os
import pwd
import socket
import sys
from collections.abc import Mapping

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")
# what getpass.getuser looks at
USER = ("LOGNAME", "USER", "LNAME", "USERNAME")


def settle() -> None:
    """Set what is missing in this process's environment; first thing in every program."""
    os.environ.update(missing(os.environ))


def missing(given: Mapping[str, str]) -> dict[str, str]:
    """The variables to set beside those that are given, or in their place."""
    return {**_without_proxy(given), **_user(given)}


def speak_utf8() -> None:
    """Start this program anew where text is not UTF-8: paths, names and files beyond ASCII could not be written.

    Its terminal is still written to in the terminal's own encoding, where that has the character.
    """
    if all(codecs.lookup(name).name == "utf-8" for name in (sys.getfilesystemencoding(), locale.getencoding())):
        return
    if sys.flags.utf8_mode:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:backslashreplace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _without_proxy(given: Mapping[str, str]) -> dict[str, str]:
    """The lists of hosts that no proxy is asked for, with this host in them: a proxy elsewhere cannot reach it."""
    # VETGATE_HOST is where our own servers listen
    own = [*LOOPBACK, socket.gethostname(), given.get("VETGATE_HOST") or "localhost"]
    names = [name for name in NO_PROXY if given.get(name)] or NO_PROXY
    return {name: _with(given.get(name, ""), own) for name in names}


def _with(listed: str, hosts: list[str]) -> str:
    there = [host.strip() for host in listed.split(",") if host.strip()]
    # `*` means all, and only when it stands alone
    return listed if there == ["*"] else ",".join(dict.fromkeys([*there, *hosts]))


def _user(given: Mapping[str, str]) -> dict[str, str]:
    """A name for a user number that the system has none for, as containers are given one; and a home for it."""
    try:
        pwd.getpwuid(os.getuid())
        return {}
    except KeyError:
        name = {} if any(given.get(variable) for variable in USER) else {"USER": f"uid-{os.getuid()}"}
        return name | ({} if given.get("HOME") else {"HOME": "/"})
