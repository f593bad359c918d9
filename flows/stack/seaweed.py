"""SeaweedFS on the loopback interface: an S3 store that checks signatures and conditional puts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

SERVERS = ("s3", "master", "volume", "filer")
PORTS = tuple(name for server in SERVERS for name in (server, f"{server}.grpc"))
"""Names of the ports that it needs."""


def seaweed_command(program: str, data: Path, identities: Path, ports: Mapping[str, int]) -> tuple[str, ...]:
    """One process that is all of it. data: an existing folder. ports: by the names of PORTS."""
    options = [f"-{server}.port{part}={ports[server + part]}" for server in SERVERS for part in ("", ".grpc")]
    return (
        program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
        f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        # Few volumes make the third bucket fail with InternalError.
        "-master.volumeSizeLimitMB=256", "-volume.max=200", *options,
    )  # fmt: skip


def seaweed_identity(name: str, key: str, secret: str, actions: Sequence[str]) -> dict[str, object]:
    """One of the `identities` in the file that says who may do what."""
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": list(actions)}
