"""Numbers in, numbers out: one module per format family. No files, no ComfyUI, no engine."""
