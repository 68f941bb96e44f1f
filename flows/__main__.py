"""`python -m flows` is the command `vetgate`."""

import sys

from flows.cli import main

sys.exit(main())
