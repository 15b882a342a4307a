"""From a checked config to a job: submit, follow, cancel, in the user's shell and without torch."""
