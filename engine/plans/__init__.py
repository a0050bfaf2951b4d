"""Which layer is stored in which format, and where that choice comes from: presets, GGUF maps, patterns, lists, a size budget."""
