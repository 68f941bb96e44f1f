"""`python -m flows` is the command `vetgate`."""

import sys

from flows.cli.commands import main

sys.exit(main())
