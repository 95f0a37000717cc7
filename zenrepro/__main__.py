"""`python -m zenrepro` is the command line."""

import sys

from zenrepro.cli import main

sys.exit(main())
