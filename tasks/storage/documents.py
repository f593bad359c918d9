"""JSON files that people send each other: read with every field checked, written so that people can read them too."""

from typing import TypeVar

import msgspec

from ezigen.config import ConfigurationError
from tasks.storage.filesystems import describe_error, with_retries
from tasks.storage.locations import Locations, locate

T = TypeVar("T", bound=msgspec.Struct)

MAX_NAME_CHARS = 80


def read_document(uri: str, kind: type[T], what: str, locations: Locations) -> T:
    """A JSON file as a struct. Raises ConfigurationError that names the file, and the place in it that is wrong."""
    location = locate(uri)
    filesystem = locations.filesystem(location)
    try:
        data = bytes(with_retries(lambda: filesystem.cat_file(location.path), f"reading {location.uri}"))
    except OSError as error:
        raise ConfigurationError(f"{location.uri} cannot be read ({describe_error(error)}); check the path.") from error
    return decode_document(data, location.uri, kind, what)


def decode_document(data: bytes, name: str, kind: type[T], what: str) -> T:
    """The bytes of a JSON file as a struct. Raises ConfigurationError like `read_document`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{name} is not {what} ({error}); export or copy it again.") from error


def encode_document(value: msgspec.Struct) -> bytes:
    """Indented JSON; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def check_name(name: str, where: str) -> str:
    """The name of a person as it is shown, without outer white space. Raises ConfigurationError if it cannot be."""
    bare = name.strip()
    if not 0 < len(bare) <= MAX_NAME_CHARS or not bare.isprintable():
        raise ConfigurationError(f"{where} needs a printable name of at most {MAX_NAME_CHARS} characters.")
    return bare
