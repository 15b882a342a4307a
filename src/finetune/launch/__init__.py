"""From a checked config to a job: submit, follow, cancel. Runs in the shell that submits, without torch."""
