"""The Ray cluster that a run works on."""

from typing import Literal

from pydantic import Field

from ezigen.config.base import Config


class RayConfig(Config):
    """The Ray cluster, and what one worker on it takes."""

    address: str = Field(
        default="local", min_length=1, description='"local" starts Ray for this run; HOST:PORT joins a running cluster.'
    )
    num_workers: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Workers at a time; 0 uses every GPU, or every core where none is used.",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto takes GPUs when the cluster has any."
    )
    gpus_per_worker: float = Field(
        default=1.0, gt=0.0, le=8.0, description="GPUs (or a share of one) that a worker takes when GPUs are used."
    )
    cpus_per_worker: float = Field(
        default=1.0, gt=0.0, le=256.0, description="Cores that a worker takes; also its thread count."
    )
    start_timeout_s: float = Field(
        default=600.0,
        gt=0.0,
        le=86_400.0,
        description="Time for a worker to load its model before the run gives up on it.",
    )
    grace_period_s: float = Field(
        default=20.0,
        ge=0.0,
        le=3600.0,
        description="After a stop signal: time for items in flight to finish; Prefect's worker kills 30 s after it.",
    )
    lease_ttl_s: float = Field(
        default=60.0, ge=3.0, le=3600.0, description="A run that is silent for longer loses its hold on the output."
    )
