"""Disk to disk: read, merge, measure, quantize, write. No ComfyUI here."""
