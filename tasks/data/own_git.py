"""git on a repository of our own, whatever the user's git is set to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from vetgate.errors import StoreError

# of work that takes milliseconds: only a disk that hangs takes so long
SECONDS = 300


def git(root: Path, *arguments: str) -> str:
    """Run git on `root` with nothing of the user's: no settings, hooks, identity or outer repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    settings = {
        "user.name": "vetgate",
        "user.email": "vetgate@localhost",
        "commit.gpgsign": "false",
        "core.hooksPath": os.devnull,
        "safe.directory": str(root),
        "gc.auto": "0",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    try:
        done = subprocess.run(
            ["git", *options, *arguments],
            cwd=root,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
    except FileNotFoundError as error:
        raise StoreError(f"expected git and {root}, got {error}; install git") from error
    except subprocess.TimeoutExpired as error:
        raise StoreError(
            f"expected git {arguments[0]} in {root} to end within {SECONDS} s, got no end; the disk or this host is "
            "busy: run the command again later"
        ) from error
    if done.returncode:
        raise StoreError(f"git {arguments[0]} failed in {root}: {done.stderr.strip()}")
    return done.stdout.strip()
