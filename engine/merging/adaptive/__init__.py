"""Adaptive injection: what a LoRA changes that the base does itself is gated, what is new passes."""
