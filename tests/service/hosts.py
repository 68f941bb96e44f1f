"""Another host for tests: a network namespace with a cable to this one, a name and a home of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import system
from tests.service.running import assert_nothing_left

# of each pair of addresses of a cable the first is this host's
NETWORK = "10.231.{0}.{1}"


@dataclass(frozen=True)
class Host:
    """The other host: its name, which is the namespace's too, its address, and ours as it reaches us."""

    name: str
    address: str
    ours: str
    home: Path

    def start(self, *line: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A process over there, its output in the log of its home."""
        named = f'echo {self.name} > /proc/sys/kernel/hostname && exec "$@"'
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", named, "sh", *line]
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(inside, env=dict(environment), stdout=log, stderr=log, start_new_session=True)


@contextmanager
def other_host(home: Path) -> Iterator[Host]:
    """Another host that shares nothing with this one but the disk; skips the test where none can be made."""
    system.require(system.IPROUTE2)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("making a network namespace takes root and unshare (util-linux)")
    number = os.getpid() % 250
    name, near, far = f"vetgate{number}", f"vg{number}a", f"vg{number}b"
    host = Host(name, NETWORK.format(number, 2), NETWORK.format(number, 1), home)
    home.mkdir(parents=True)
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _ip("address", "add", f"{host.ours}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "address", "add", f"{host.address}/30", "dev", far)
        for device in (far, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        yield host
        assert_nothing_left(home)
    finally:
        # the cable goes with the namespace that holds one of its ends
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
