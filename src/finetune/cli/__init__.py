"""The verbs of the command line. All but `evaluate` run without torch, as on a login node."""
