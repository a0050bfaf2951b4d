"""What the inputs of a model's layers are while it samples: recorded, kept on disk, added up, and what follows for quantizing."""
