"""Subject adapters: the only trained part of EZIGen, put into a frozen UNet.

Importing this package costs no torch, so that a plan can ask for an adapter's fingerprint.
"""

from typing import TYPE_CHECKING

from ezigen.adapters.card import AdapterCard, adapter_fingerprint, read_card, resolve_adapter
from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.adapters.adapter import KeyValue, SubjectAdapter
    from ezigen.adapters.attach import AdapterSet, SubjectBlock, SubjectKV, attach_adapters, detach_adapters, detached
    from ezigen.adapters.encoders import add_subject_encoder
    from ezigen.adapters.weights import import_checkpoint, load_adapter, save_adapter

__all__ = [
    "AdapterCard",
    "AdapterSet",
    "KeyValue",
    "SubjectAdapter",
    "SubjectBlock",
    "SubjectKV",
    "adapter_fingerprint",
    "add_subject_encoder",
    "attach_adapters",
    "detach_adapters",
    "detached",
    "import_checkpoint",
    "load_adapter",
    "read_card",
    "resolve_adapter",
    "save_adapter",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AdapterSet": "attach",
        "KeyValue": "adapter",
        "SubjectAdapter": "adapter",
        "SubjectBlock": "attach",
        "SubjectKV": "attach",
        "add_subject_encoder": "encoders",
        "attach_adapters": "attach",
        "detach_adapters": "attach",
        "detached": "attach",
        "import_checkpoint": "weights",
        "load_adapter": "weights",
        "save_adapter": "weights",
    },
)
