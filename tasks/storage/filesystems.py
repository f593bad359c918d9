"""Filesystems built in the process that uses them, and one answer to what goes wrong on all of them."""

import errno
import functools
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import fsspec

from ezigen.config import ConfigurationError
from tasks.storage.traffic import TRAFFIC

logger = logging.getLogger(__name__)

T = TypeVar("T")
Trouble = Literal["missing", "denied", "transient", "permanent"]

_TRANSIENT_ERRNO = {errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ECONNRESET, errno.ESTALE}
_MISSING_ERRNO = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
# By name, because botocore and aiohttp are loaded only when S3 is used.
_TRANSIENT_NAMES = {
    "ClientConnectionError",
    "ClientError",
    "ClientOSError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "ReadTimeoutError",
    "ResponseParserError",
    "ServerDisconnectedError",
}
_DENIED_NAMES = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "CredentialRetrievalError"}

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")

RETRY_DELAYS_S = (0.2, 0.6, 1.5, 4.0)
"""Seconds between tries. Whoever waits for a person's command gives up after some seconds."""
PATIENT_DELAYS_S = (8.0, 16.0, 32.0)
"""What a worker waits beyond: there, giving up costs an item, and a store that is away for a minute comes back."""

_is_patient = False


def be_patient() -> None:
    """For the processes of workers: trouble of storage is waited out for about a minute."""
    global _is_patient  # noqa: PLW0603 - of the process, as its filesystems are
    _is_patient = True


def open_filesystem(scheme: str, options: Mapping[str, Any] | None = None) -> Any:
    """The filesystem of a scheme, one per process and set of options. Never hand one to another process."""
    return _open_filesystem(os.getpid(), scheme, json.dumps(dict(options or {}), sort_keys=True))


@functools.lru_cache(maxsize=64)
def _open_filesystem(_pid: int, scheme: str, options_json: str) -> Any:
    options = json.loads(options_json)
    if scheme == "s3":
        return _open_s3(options)
    return fsspec.filesystem(scheme, skip_instance_cache=True)


def _open_s3(options: dict[str, Any]) -> Any:
    """S3 by the standard AWS variables, which `options` (endpoint_url, key, secret, token, region) override.

    Raises ConfigurationError for an endpoint with a password in it.
    """
    from tasks.storage.s3_session import StraightSession

    _check_endpoint(options.get("endpoint_url", ""))
    given = {name: value for name, value in options.items() if value not in (None, "") and name != "region"}
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    client_kwargs = {**given.pop("client_kwargs", {}), **({"region_name": region} if region else {})}
    filesystem = fsspec.filesystem(
        "s3",
        skip_instance_cache=True,
        # A listing of a minute ago would hide another process's results.
        use_listings_cache=False,
        client_kwargs=client_kwargs,
        # One loop of retries (`with_retries`) instead of three inside each other.
        config_kwargs={
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"mode": "standard", "max_attempts": 1},
            "http_session_cls": StraightSession,
        },
        **given,
    )
    filesystem.retries = 2
    return filesystem


def _check_endpoint(given: str) -> None:
    """Addresses of stores stand in messages and logs, so that a password in one would, too."""
    for name, url in (("endpoint_url", given), *((name, os.environ.get(name, "")) for name in _ENDPOINT_VARIABLES)):
        if "@" in urlsplit(url).netloc:
            raise ConfigurationError(
                f"{name}: an address of a store holds no user and no password; leave them out of it and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a Prefect block."
            )


def classify(error: BaseException) -> Trouble:
    """What kind of trouble a filesystem's exception means. Anything that may pass by itself is "transient"."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return "missing"
    if isinstance(error, PermissionError) or type(error).__name__ in _DENIED_NAMES:
        return "denied"
    if isinstance(error, TimeoutError | ConnectionError) or type(error).__name__ in _TRANSIENT_NAMES:
        return "transient"
    number = getattr(error, "errno", None)
    if number in _MISSING_ERRNO:
        return "missing"
    return "transient" if number in _TRANSIENT_ERRNO or http_status(error) in (429, 500, 502, 503, 504) else "permanent"


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an S3 exception, if there is one."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(response, Mapping):
        return None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


class StorageUnavailableError(OSError):
    """Storage kept failing in ways that usually pass. The message says what was being done."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBUSY, message)


def with_retries(action: Callable[[], T], what: str) -> T:
    """The action's value; transient trouble is tried again with growing, jittered pauses.

    Raises StorageUnavailableError when it does not pass, PermissionError when access is denied, both naming `what`;
    everything else as it comes.
    """
    for delay in (*RETRY_DELAYS_S, *(PATIENT_DELAYS_S if _is_patient else ()), None):
        try:
            return action()
        except Exception as error:
            trouble = classify(error)
            if trouble == "denied":
                raise PermissionError(errno.EACCES, f"{what}: {describe_error(error)}") from error
            if trouble != "transient":
                raise
            if delay is None:
                raise StorageUnavailableError(f"{what}, even after several tries: {describe_error(error)}") from error
            logger.warning("%s: %s; trying again in %.1f s", what, describe_error(error), delay)
            TRAFFIC.retried()
            time.sleep(delay * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


def describe_error(error: BaseException) -> str:
    """One line for people: the exception's name and its first line, without the credentials of an address."""
    if isinstance(error, StorageUnavailableError):
        return str(error.strerror)
    lines = hide_credentials(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def hide_credentials(text: str) -> str:
    """The text with *** for user and password of every address in it."""
    return _URL_CREDENTIALS.sub("***@", text)
