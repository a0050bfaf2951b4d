"""The pack's own wire types. Names are users' saved workflows and never change.

Nor do ids of nodes, inputs and outputs. A workflow stores the values of widgets by position (`widgets_values`) and links by the
position of a node's outputs: a new widget or output is only ever appended at the end, and none is taken away or moved.
"""
from comfy_api.latest import io

Dit = io.Custom("W22_DIT")
LoraStack = io.Custom("W22_LORA_STACK")
Recipe = io.Custom("W22_RECIPE")
Job = io.Custom("W22_JOB")
Files = io.Custom("W22_FILE")
Plan = io.Custom("W22_PLAN")
Scales = io.Custom("W22_SCALES")
Calib = io.Custom("W22_CALIB")
