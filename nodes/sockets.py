"""The pack's own wire types. Names are users' saved workflows and never change."""
from comfy_api.latest import io

Dit = io.Custom("W22_DIT")
LoraStack = io.Custom("W22_LORA_STACK")
Recipe = io.Custom("W22_RECIPE")
Job = io.Custom("W22_JOB")
Files = io.Custom("W22_FILE")
