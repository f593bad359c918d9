"""A run of build_pairs in a process of its own, to be killed: `python -m tests.pairs_run.driver INPUTS_JSON`."""

import json
import logging
import sys
from pathlib import Path

from ezigen.config import PairInputs
from tasks.storage.lease import Lease
from tests.pairs_run.conftest import Build


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    build = Build(PairInputs.model_validate_json(sys.argv[1]))
    with Lease(build.output, "test", ttl_s=5) as lease:
        outcome = build.run("local", lease=lease)
    Path(build.inputs.output_uri).with_name("outcome.json").write_text(
        json.dumps({"state": outcome.state, "built": outcome.built, "made": outcome.shards_made})
    )


if __name__ == "__main__":
    main()
