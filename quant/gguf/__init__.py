"""The types of GGUF files: weights in blocks of 32 or 256, encoded and decoded here in row bands."""
