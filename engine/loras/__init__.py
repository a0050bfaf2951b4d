"""LoRA files: their spellings, their adapters, and where each of their keys goes."""
