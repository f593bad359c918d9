"""What a stack consists of and where its parts listen, decided once and kept in its folder."""

import contextlib
import functools
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Self

from ezigen import __version__
from ezigen.config import ConfigurationError
from flows.stack.seaweed import PORTS

FORMAT = 1
ROOT = Path(__file__).parents[2]
"""The checkout: deployments name the flows' files in it."""
BUCKET = "ezigen"
DEFAULT_NODES = 2
MARK = "EZIGEN_STACK"
"""Every process of a stack has its folder in this variable."""

Database = Literal["postgresql", "sqlite"]

_USUAL_PORTS = {"prefect": 4200, "ray-dashboard": 8265, "ray": 6379, "s3": 8333, "prometheus": 9090, "grafana": 3000}
_OTHER_PORTS = ("postgres", "worker", "ray-client", *PORTS)


@dataclass(frozen=True)
class Stack:
    """Settings of one stack. Secrets are made with it, and stay in files that only their owner may read."""

    folder: Path
    num_nodes: int
    database: Database
    ports: dict[str, int]
    prefect_password: str
    postgres_password: str
    ray_token: str
    s3_key: str
    s3_secret: str

    @classmethod
    def make(cls, folder: Path, num_nodes: int, database: Database | None = None) -> Self:
        """A new stack in an empty folder. database: PostgreSQL where it is installed, unless one is named."""
        is_installed = find_program("postgres") is not None and _can_leave_root()
        if database == "postgresql" and not is_installed:
            raise ConfigurationError(
                "PostgreSQL cannot be started here: it is not installed (apt-get install postgresql), or this is root "
                "where it cannot be anybody else (unshare --user); choose --database sqlite."
            )
        stack = cls(
            folder=folder.resolve(),
            num_nodes=num_nodes,
            database=database or ("postgresql" if is_installed else "sqlite"),
            ports=_choose_ports(),
            prefect_password=secrets.token_hex(16),
            postgres_password=secrets.token_hex(16),
            ray_token=secrets.token_hex(32),
            s3_key=secrets.token_hex(10),
            s3_secret=secrets.token_hex(20),
        )
        stack.save()
        return stack

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The stack of a folder; None where there is none. Raises ConfigurationError for a file of another version."""
        path = folder.resolve() / "stack.json"
        try:
            stored = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read ({error}); delete the folder and start anew.") from error
        names = {field.name for field in fields(cls)} - {"folder"}
        if stored.pop("format", None) != FORMAT or set(stored) != names:
            raise ConfigurationError(
                f"{path} was written by another version; end that stack with its own version, or delete the folder."
            )
        return cls(folder=folder.resolve(), **stored)

    def save(self) -> None:
        """Writes stack.json, and `environment` for a shell, readable by their owner alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        stored = {"format": FORMAT, **asdict(self)}
        del stored["folder"]
        write_privately(self.folder / "stack.json", json.dumps(stored, indent=2))
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items() if name != MARK]
        write_privately(self.folder / "environment", "".join(lines))

    @property
    def ray_folder(self) -> Path:
        """Where Ray keeps its sockets, whose names may have no more than 107 bytes: never in a deep folder."""
        return Path(tempfile.gettempdir()) / f"ezigen-ray-{self.ports['ray']}"

    @property
    def ray_address(self) -> str:
        """HOST:PORT of Ray's head."""
        return f"127.0.0.1:{self.ports['ray']}"

    @property
    def api_url(self) -> str:
        """Prefect's API."""
        return f"{self.url('prefect')}/api"

    @property
    def auth_string(self) -> str:
        """NAME:PASSWORD for Prefect's API and pages."""
        return f"admin:{self.prefect_password}"

    def url(self, part: str) -> str:
        """Of a part that speaks HTTP."""
        return f"http://127.0.0.1:{self.ports[part]}"

    @property
    def storage_options(self) -> dict[str, str]:
        """The stack's S3, for `Locations`."""
        return {"endpoint_url": self.url("s3"), "key": self.s3_key, "secret": self.s3_secret, "region": "us-east-1"}

    @property
    def environment(self) -> dict[str, str]:
        """What reaches the stack from a process, and what its own parts share."""
        return {
            MARK: str(self.folder),
            "EZIGEN_RAY_ADDRESS": self.ray_address,
            "EZIGEN_ROOT_URI": f"s3://{BUCKET}",
            "EZIGEN_ACCELERATOR": "auto",
            "EZIGEN_CODE": str(ROOT),
            "EZIGEN_VERSION": read_version(),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_AUTH_STRING": self.auth_string,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray_token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without it Ray listens on every interface, whatever it is told.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_ACCESS_KEY_ID": self.s3_key,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def write_privately(path: Path, text: str) -> None:
    """A file that was never readable by anybody else."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


@functools.cache
def read_version() -> str:
    """The commit of the checkout, or the project's version without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--tags"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or __version__


def as_no_root() -> tuple[str, ...]:
    """What to put before a command that refuses root: a user namespace gives root another number, and its rights."""
    return ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()


def _can_leave_root() -> bool:
    return subprocess.run([*as_no_root(), "true"], capture_output=True, check=False).returncode == 0


def find_program(name: str) -> str | None:
    """Its path: on PATH, beside this Python, or where Debian hides PostgreSQL's server."""
    hidden = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), *map(str, hidden)]
    return shutil.which(name, path=os.pathsep.join(places))


def _choose_ports() -> dict[str, int]:
    """The ports that people know where they are free, any others elsewhere; all different."""
    with contextlib.ExitStack() as until_all_are_chosen:

        def choose(usual: int) -> int:
            one = until_all_are_chosen.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", usual))
            except OSError:
                one.bind(("127.0.0.1", 0))
            return int(one.getsockname()[1])

        usual_ports = {**dict.fromkeys(_OTHER_PORTS, 0), **_USUAL_PORTS}
        return {name: choose(usual) for name, usual in usual_ports.items()}
