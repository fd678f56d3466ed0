"""`python -m pamkd`, the same as the command `pamkd`."""

import sys

from pamkd.cli import main

sys.exit(main())
