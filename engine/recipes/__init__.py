"""What a person asks for, as JSON: ours, the original's, and the one inside a finished file."""
