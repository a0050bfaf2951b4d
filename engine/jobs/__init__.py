"""From a recipe to files: plan, the line that every tensor takes, writing, checking, resuming, reporting."""
