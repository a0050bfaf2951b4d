"""Tiny Wan models and LoRAs under the names of the published files, so that the example workflows run as they are."""
from comfy_server import Server
from graphs import HIGH, LIGHTNING, LOW, SINGLE, SINGLE_LORA, STYLE
from wan22_master.engine.synthetic import Sizes, write_lora, write_model

TINY = Sizes(dim=128, ffn=256, blocks=40, rank=8)
OTHER = Sizes(dim=256, ffn=256, blocks=2, rank=8)


def write_models(server: Server) -> None:
    """Tiny models and LoRAs into a server's folders, under the names that the example workflows hold."""
    models, loras = server.models(), server.models("loras")
    write_model(models / HIGH, TINY, "high")
    write_model(models / LOW, TINY, "low")
    write_model(models / SINGLE, TINY, "single")
    for name, dialect in ((LIGHTNING, "native"), (STYLE, "kohya")):
        for role in ("high", "low"):
            write_lora(loras / name.replace("high", role), TINY, dialect, f"{name} {role}")
    write_lora(loras / SINGLE_LORA, TINY, "native", "single")
    write_lora(loras / "other_width.safetensors", OTHER, "native", "other")
