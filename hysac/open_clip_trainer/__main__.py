"""``python -m hysac.open_clip_trainer``, also for torchrun."""

import sys

from hysac.open_clip_trainer.launcher import command

if __name__ == "__main__":
    sys.exit(command())
