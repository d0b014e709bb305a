"""``python -m lamella`` is ``lamella``."""

import sys

from lamella.cli import main

sys.exit(main())
