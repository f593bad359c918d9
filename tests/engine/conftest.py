from tests.ezigen.conftest import adapters, dinov2, tiny_folder, tiny_stack, xl_adapters, xl_folder, xl_stack

__all__ = ["adapters", "dinov2", "tiny_folder", "tiny_stack", "xl_adapters", "xl_folder", "xl_stack"]
