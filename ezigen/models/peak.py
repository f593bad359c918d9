"""What a GPU could compute at most. Needs no torch until it is asked."""

DENSE_BF16_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
"""By a part of the GPU's name, from the data sheets, the longer names first; PCIe and power-capped cards reach less."""


def peak_flops(device_type: str, dtype: str) -> float | None:
    """Floating-point operations per second of this process's GPU in bf16 or fp16; None for anything unknown."""
    import torch

    if device_type != "cuda" or dtype not in ("bfloat16", "float16"):
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(gpu_name: str) -> float | None:
    """Of a GPU by its name."""
    return next((1e12 * tflops for known, tflops in DENSE_BF16_TFLOPS.items() if known in gpu_name), None)
