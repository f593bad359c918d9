"""What an exception of the networks says about the device they ran on. Needs no torch by itself."""

import sys


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of its device was too small."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and (
        isinstance(error, torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def is_device_fault(error: BaseException) -> bool:
    """Whether a CUDA device has failed. After most such errors every further call of this process fails."""
    torch = sys.modules.get("torch")
    if torch is None or isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
