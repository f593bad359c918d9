"""The variables that Ray and its workers live by, and what of this process's environment goes to them."""

import contextlib
import functools
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_SECRET_PREFIXES = ("AWS_",)
_SECRET_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_FORWARDED = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_TELEMETRY")
_THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class SecretVariables:
    """Credentials on their way to a worker. They travel as an argument of the actor, because Ray writes the
    environment of a job into its logs and shows it in its dashboard; printing this object shows names alone.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"SecretVariables({', '.join(sorted(self.values)) or 'none'})"

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> "SecretVariables":
        """What this process knows of AWS and the model hub."""
        return cls(
            {
                name: value
                for name, value in environment.items()
                if name.startswith(_SECRET_PREFIXES) or name in _SECRET_NAMES
            }
        )

    def apply(self) -> None:
        """Set them in this process, before anything opens a store."""
        os.environ.update(self.values)


def worker_variables(num_threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of every worker process; nothing in it is secret."""
    forwarded = {name: environment[name] for name in _FORWARDED if name in environment}
    threads = dict.fromkeys(_THREAD_COUNTS, str(num_threads))
    return {"TOKENIZERS_PARALLELISM": "false", **threads, **forwarded}


@contextlib.contextmanager
def private_ray_variables() -> Iterator[None]:
    """While it lasts, a Ray that this process starts is its own: loopback only, a token, no reports to anybody.

    What the user has set stays. Afterwards the environment is as before.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        # A head process that was killed is noticed by the run itself; Ray alone would spin for a minute.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        # Workers do the work, so they are no background processes (Ray: nice 15), and may start slowly.
        "RAY_worker_niceness": "0",
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        defaults["RAY_AUTH_TOKEN"] = _own_token()
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    _refresh_ray()
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        _refresh_ray()


@functools.cache
def _own_token() -> str:
    return secrets.token_hex(32)


def _refresh_ray() -> None:
    """Ray reads some variables once, when it is imported, which may have been long before."""
    if "ray" not in sys.modules:
        return
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1") != "0"
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
