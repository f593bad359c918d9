"""Inputs made from good ones by damage, and the watch over what reading them does.

In a usual run of the tests some fifty fixed examples of everything are tried. EZIGEN_FUZZ_EXAMPLES sets another
number, of random ones: `make fuzz`.
"""

import copy
import json
import os
import resource
import struct
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")

NUM_EXAMPLES = int(os.environ.get("EZIGEN_FUZZ_EXAMPLES", "0"))
MAX_CPU_S = 10.0
"""Of one example, on a slow machine; the longest good one takes a tenth of it."""
MAX_GROWTH_MIB = 1000
"""Of this process's memory by one example."""

_NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_FORMATS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u2028",
    "..",
    "../..",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "~root/x",
    "a/../../b",
    "file:///etc/passwd",
    "s3://other/x",
    "http://169.254.169.254/",
    "%2e%2e/%2e%2e",
    "=1+1",
    "-1",
    "1e999",
    "NaN",
    "[",
    "[[",
    "[0.5, 0.5]",
    "x" * 3000,
    "\u202e" * 9,
    "con",
    "a\nb",
    '"',
    "\\",
    "{}",
    "{0}",
    "%s",
    "0" * 5000,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    [], {}, [None], [[]], {"": None}, *_TEXTS,
)  # fmt: skip


def fuzzed(weight: float = 1.0) -> Callable[..., Any]:
    """Settings of a test; weight: by how much its examples are more, or fewer, than those of others."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=max(1, round((NUM_EXAMPLES or 50) * weight)),
        derandomize=not NUM_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=slow,
        print_blob=True,
    )


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes], repair: Callable[[bytes], bytes] | None = None) -> bytes:
    """One of the samples after some damage; half of the time with its checksums put right again by `repair`."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 5))):
        _damage(draw, data, samples)
    return repair(bytes(data)) if repair is not None and draw(st.booleans()) else bytes(data)


def _damage(draw: st.DrawFn, data: bytearray, samples: Sequence[bytes]) -> None:
    # Headers are short, and most of what can go wrong is there.
    span = min(len(data), draw(st.sampled_from([32, 256, 1 << 30])))
    at = draw(st.integers(0, span))
    length = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
    match draw(st.integers(0, 7)):
        case 0:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        case 1:
            number = draw(st.sampled_from(_NUMBERS))
            form = draw(st.sampled_from([form for form in _FORMATS if number < 256 ** struct.calcsize(form)]))
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        case 2:
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = bytes(data[at : at + length]) * draw(st.sampled_from([1, 2, 50]))
        case 5:
            del data[at:]
        case 6:
            other = draw(st.sampled_from(samples))
            data[at : at + length] = other[at : at + length]
        case 7:
            text = draw(st.sampled_from(_TEXTS))
            data[at:at] = text.encode("utf-8", "surrogatepass")


def with_png_checksums(data: bytes) -> bytes:
    """The checksum of every chunk that is still found put right."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


@st.composite
def edited(draw: st.DrawFn, documents: Sequence[Any]) -> Any:
    """One of the JSON documents with some of its values exchanged, removed, repeated or nested."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(document))
        if not places:
            break
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 4)):
            case 0 | 1:
                parent[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
            case 2:
                del parent[key]
            case 3:
                other, other_key = places[draw(st.integers(0, len(places) - 1))]
                parent[key] = copy.deepcopy(other[other_key])
            case 4 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case _:
                parent[key] = [parent[key]]
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value; containers that are shared by damage count again."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(items):
        yield value, key
        yield from _places(below)


def as_json(document: Any) -> bytes:
    """A document as a file; lone surrogates are written as escapes, numbers of any size in full."""
    return json.dumps(document).encode()


# ---- what reading may do

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {sys.prefix})
_SYSTEM = (
    "/dev/null",
    "/dev/urandom",
    "/proc/self",
    "/sys/",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/mime.types",
)
_REPOSITORY = str(Path(__file__).parent.parent.parent)
_opened: list[str] | None = None


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(arguments[0]))
    elif _opened is not None and event in ("os.system", "subprocess.Popen", "socket.connect", "os.posix_spawn"):
        _opened.append(f"{event} {arguments[:1]}")


sys.addaudithook(_on_event)


@contextmanager
def bounded(*folders: Path) -> Iterator[None]:
    """Reading within takes bounded time and memory, opens files in the folders alone, and starts nothing."""
    global _opened  # noqa: PLW0603 - an audit hook stays for ever
    started, before = time.process_time(), _peak_mib()
    _opened = opened = []
    try:
        yield
    finally:
        _opened = None
    assert time.process_time() - started < MAX_CPU_S
    assert _peak_mib() - before < MAX_GROWTH_MIB
    allowed = (*map(str, folders), *_LIBRARIES, *_SYSTEM, _REPOSITORY)
    # A folder that is walked through is opened by its name alone, after its parents were.
    outside = [path for path in opened if "/" in path.rstrip("/") and not path.startswith(allowed)]
    assert not outside, outside


def attempt(action: Callable[[], T], *documented: type[Exception]) -> tuple[T | None, Exception | None]:
    """What an action gives, or the documented error that it raises; any other one goes on."""
    try:
        return action(), None
    except documented as error:
        return None, error


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
