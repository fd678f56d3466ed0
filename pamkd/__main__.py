import sys

from pamkd.cli import main

sys.exit(main())
