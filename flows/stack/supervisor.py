"""Keeps a stack's programs running: Supervisor, configured and spoken to."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from ezigen.config import ConfigurationError
from flows.stack.parts import Part
from flows.stack.settings import MARK, ROOT, Stack, write_privately

START_TIMEOUT_S = 300.0
MAX_STARTS = 8
"""Of a part that never becomes healthy. Ray gives up its own start after 15 s, which a busy machine may need often."""
POLL_S = 0.25
LOG_BYTES = "20MB"
_LOST_TIMEOUT_S = 10.0


class PartFailedError(RuntimeError):
    """A part did not become healthy; what it said last is in the message."""


class Supervisor:
    """The one of a stack's folder, whether it runs or not."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._socket = _socket_path(stack)
        self._starts: dict[str, set[int]] = {}

    # ---- start

    def start(self, parts: Iterable[Part]) -> None:
        """Starts Supervisor itself, with no part running yet. What an earlier one lost is ended first."""
        parts = list(parts)
        self.end_strays()
        logs = self.stack.folder / "logs"
        logs.mkdir(exist_ok=True)
        path = self.stack.folder / "supervisord.conf"
        write_privately(path, _configuration(self.stack, parts))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(path)],
            env={**environment, **self.stack.environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ConfigurationError(f"Supervisor did not start: {(done.stderr or done.stdout).strip()}")
        _wait(self.runs, START_TIMEOUT_S)

    def start_parts(self, parts: Sequence[Part]) -> Iterator[tuple[str, float]]:
        """Starts each as soon as those that it needs are healthy: names with seconds, as they become healthy.

        Raises PartFailedError with the last words of one that does not.
        """
        started: dict[str, float] = {}
        healthy: set[str] = set()
        while len(healthy) < len(parts):
            for part in parts:
                if part.name in healthy or not healthy.issuperset(part.after):
                    continue
                if part.name not in started:
                    part.prepare()
                    self.start_part(part.name)
                    started[part.name] = time.monotonic()
                if part.is_healthy():
                    healthy.add(part.name)
                    yield part.name, time.monotonic() - started[part.name]
                else:
                    self._check_start(part.name, time.monotonic() - started[part.name])
            time.sleep(POLL_S)

    def start_part(self, name: str) -> None:
        """Starts one, unless it runs, and does not wait for it."""
        with contextlib.suppress(Fault):
            self._call("startProcess", name, False)

    def _check_start(self, name: str, seconds: float) -> None:
        """Raises PartFailedError for one that is not worth waiting for."""
        starts = self._starts.setdefault(name, set())
        starts.add(int(self._call("getProcessInfo", name)["start"]))
        if len(starts) > MAX_STARTS or seconds > START_TIMEOUT_S:
            reason = "ends again and again" if len(starts) > 1 else f"is not healthy after {seconds:.0f} s"
            raise PartFailedError(f"{name} {reason}. Its last words:\n{self.last_words(name)}")

    # ---- while it runs

    def runs(self) -> bool:
        """Whether it answers."""
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except (OSError, HTTPException, Fault):
            return False

    def states(self) -> dict[str, str]:
        """By part: RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL."""
        return {info["name"]: info["statename"] for info in self._call("getAllProcessInfo")}

    def pid_of(self, name: str) -> int:
        """The process of a part; 0 while it has none."""
        return int(self._call("getProcessInfo", name)["pid"])

    def stop_part(self, name: str) -> None:
        """Ends one in order, and returns when it has ended."""
        self._call("stopProcess", name, True)

    def last_words(self, name: str, num_lines: int = 12) -> str:
        """The end of a part's log."""
        path = self.stack.folder / "logs" / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(lines[-num_lines:]) or f"(nothing in {path})"

    def _call(self, method: str, *arguments: Any) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        with ServerProxy("http://127.0.0.1", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    # ---- end

    def shut_down(self, timeout_s: float) -> None:
        """Ends every part in order, the last one first, and then itself; then what they left."""
        if self.runs():
            pid = int(self._call("getPID"))
            self._call("shutdown")
            with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(pid).wait(timeout_s)
        self.end_strays()
        self._socket.unlink(missing_ok=True)
        shutil.rmtree(self.stack.ray_folder, ignore_errors=True)

    def end_strays(self) -> int:
        """Ends processes of this stack that nobody supervises, as a killed Supervisor leaves them: how many."""
        strays = [] if self.runs() else self.processes()
        for process in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(strays, timeout=_LOST_TIMEOUT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_LOST_TIMEOUT_S)
        return len(strays)

    def processes(self) -> list[psutil.Process]:
        """Every process of the stack: parts, flow runs, Ray's workers. All carry its folder in a variable."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(MARK) == str(self.stack.folder):
                    found.append(process)
        return found


def _socket_path(stack: Stack) -> Path:
    """Beside Ray's sockets and for the same reason: such a name has at most 107 bytes."""
    return stack.ray_folder.with_name(f"{stack.ray_folder.name}.supervisor")


def _configuration(stack: Stack, parts: Iterable[Part]) -> str:
    sections: dict[str, dict[str, str]] = {
        "unix_http_server": {"file": _quoted(str(_socket_path(stack))), "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "supervisord": {
            "logfile": _quoted(str(stack.folder / "logs" / "supervisord.log")),
            "pidfile": _quoted(str(stack.folder / "supervisord.pid")),
            "umask": "077",
            **({"user": "root"} if os.geteuid() == 0 else {}),
        },
    }
    for place, part in enumerate(parts):
        environment = ",".join(f'{name}="{_quoted(value)}"' for name, value in part.environment.items())
        sections[f"program:{part.name}"] = {
            "command": _quoted(shlex.join(part.command)),
            "directory": _quoted(str(ROOT)),
            "environment": environment,
            "priority": str(place),
            # In their order, each when the one before is healthy; after that Supervisor keeps them up.
            "autostart": "false",
            "autorestart": "true",
            "startsecs": "3",
            "startretries": "30",
            "stopsignal": part.stop_signal,
            "stopwaitsecs": str(part.stop_timeout_s),
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": _quoted(str(stack.folder / "logs" / f"{part.name}.log")),
            "stdout_logfile_maxbytes": LOG_BYTES,
            "stdout_logfile_backups": "2",
        }
    lines: list[str] = []
    for name, options in sections.items():
        lines += [f"[{name}]", *(f"{option}={value}" for option, value in options.items()), ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Supervisor puts values in for %(...)s."""
    if "\n" in text or " ;" in text:
        raise ConfigurationError(f"{text!r}: a stack's folder must have no line break and no semicolon after a space.")
    return text.replace("%", "%%")


def _wait(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Supervisor does not answer within {timeout_s:.0f} s")
        time.sleep(POLL_S)
