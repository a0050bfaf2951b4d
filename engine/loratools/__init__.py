"""Tools that read LoRAs and write LoRAs: convert between dialects, merge into one, extract from two checkpoints."""
