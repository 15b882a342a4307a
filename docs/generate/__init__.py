"""The reference pages, generated from the code: settings, verbs, files, metrics, states and exit codes."""
