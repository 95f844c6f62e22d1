"""``python -m hysac.cli``, for torchrun."""

import sys

from hysac.cli import main

sys.exit(main())
