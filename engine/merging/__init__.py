"""What is done to one tensor: deltas, gates, passes, and how far it moves."""
