"""How every benchmark says what it measured: one JSON line per figure."""

import json
import platform
import subprocess
import sys
from pathlib import Path


def device_name() -> str:
    """The GPU, or the CPU and its number of cores."""
    torch = sys.modules.get("torch")  # benchmarks of memory do without it
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]} ({len(models)} cores)" if models else platform.machine()


def show(name: str, value: float, unit: str, baseline: float | None = None, *, wanted: str = "") -> None:
    """One line; `ratio` is value over baseline, of the same run. wanted: what the project asks for, in words."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line: dict[str, object] = {"name": name, "value": round(value, 4), "unit": unit}
    if baseline is not None:
        line |= {"baseline": round(baseline, 4), "ratio": round(value / baseline, 3)}
    if wanted:
        line["wanted"] = wanted
    print(json.dumps(line | {"commit": revision.stdout.strip(), "device": device_name()}), flush=True)
