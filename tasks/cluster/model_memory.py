"""How much main memory a worker with a model takes, for choosing the number of workers."""

from pathlib import Path

_WORKER_OVERHEAD_BYTES = 1200 * 2**20
_BYTES_PER_WEIGHT_BYTE = 1.5


def worker_memory_bytes(model: str) -> int:
    """Bytes of main memory that a worker with this model takes; 0 if it cannot be told."""
    if model == "mini":
        return _WORKER_OVERHEAD_BYTES
    stored = stored_memory_bytes(model)
    return _WORKER_OVERHEAD_BYTES + stored if stored else 0


def stored_memory_bytes(folder_name: str) -> int:
    """Bytes that the weights in a folder take when they are loaded; 0 for what is no folder."""
    folder = Path(folder_name).expanduser()
    if not folder.is_dir():
        return 0
    return int(_BYTES_PER_WEIGHT_BYTE * sum(path.stat().st_size for path in folder.rglob("*.safetensors")))
