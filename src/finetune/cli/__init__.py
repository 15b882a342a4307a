"""What a person types: one verb a file. Runs in a shell of a login node or laptop, without torch."""
