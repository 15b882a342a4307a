"""Settings of runs and of sites: their meanings, defaults and checks."""
