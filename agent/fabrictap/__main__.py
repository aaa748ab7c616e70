"""``python -m fabrictap``."""

import sys

from fabrictap.cli import main

sys.exit(main())
