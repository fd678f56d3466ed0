"""`python -m pamkd`: the command line."""

import sys

from pamkd.cli import main

sys.exit(main())
