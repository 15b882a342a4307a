"""The command line, one verb a file. It runs on a login node or a laptop, without torch."""
