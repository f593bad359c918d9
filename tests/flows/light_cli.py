"""The command line with workers that need no networks: `python -m tests.flows.light_cli personalize ...`."""

import functools

import tasks.catalog.run
from flows.command_line import main
from tests.run.light import LightWorker

if __name__ == "__main__":
    tasks.catalog.run.run_catalog = functools.partial(tasks.catalog.run.run_catalog, worker=LightWorker)
    main()
