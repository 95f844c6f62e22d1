"""``python -m hysac``, the ``hysac`` command."""

import sys

from hysac.cli import main

if __name__ == "__main__":
    sys.exit(main())
