"""A process that publishes: `python -m tests.adapters.publisher URI NAME FOLDER ALIAS RUN [RUN ...]`."""

import sys
from pathlib import Path

from tasks.adapters import Registry

if __name__ == "__main__":
    uri, name, folder, alias, *runs = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    for run in runs:
        print(Registry(uri).publish(name, Path(folder), run=run, alias=alias).version, flush=True)
