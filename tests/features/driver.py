"""A run of precompute_features in a process of its own, to be killed.

`python -m tests.features.driver PAIRS STORE MODEL`
"""

import logging
import sys

from tests.features.stage import Stage


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    Stage(*sys.argv[1:4]).run()


if __name__ == "__main__":
    main()
