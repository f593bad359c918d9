"""A run of precompute_features in a process of its own, to be killed.

`python -m tests.features.driver PAIRS STORE MODEL`
"""

import json
import logging
import sys
from pathlib import Path

from tests.features.stage import Stage


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    pairs, store, model = sys.argv[1:4]
    outcome = Stage(pairs, store, model).run()
    Path(store).with_name("outcome.json").write_text(
        json.dumps({"state": outcome.state, "subjects": outcome.subjects, "made": outcome.shards_made})
    )


if __name__ == "__main__":
    main()
