"""ComfyUI's door to the pack: where the frontend lies, and which nodes there are.

The nodes are imported inside the entry point so that importing the pack needs no ComfyUI
and costs ComfyUI's start nothing.
"""
WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    from .nodes import Extension

    return Extension()
