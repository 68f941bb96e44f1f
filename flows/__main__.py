"""The program `vetgate`, which is `python -m flows` too."""

import os
import sys
from contextlib import suppress


def main() -> int:
    """Run the command line; its exit code, which is 2 where the installation is not whole."""
    try:
        from flows.cli.commands import main as command_line
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        with suppress(OSError):
            os.write(2, f"error: expected vetgate whole, got {error!r}; install it again\n".encode(errors="replace"))
        return 2
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
