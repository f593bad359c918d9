"""A run of train_adapter in a process of its own, to be killed.

`python -m tests.training.driver FEATURES ROOT MODEL`
"""

import logging
import sys

from ezigen.config import TrainingClusterConfig
from tests.training.stage import Stage


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    # Plenty of restarts, so that whatever else is killed first, only the driver's own death or Ray's ends the run.
    Stage(*sys.argv[1:4]).run(cluster=TrainingClusterConfig(num_workers=1, max_failures=-1))


if __name__ == "__main__":
    main()
