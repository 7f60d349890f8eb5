"""`python -m opaq` is the command `opaq`."""

import sys

from .cli import main

sys.exit(main())
