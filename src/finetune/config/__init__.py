"""Every setting of a run and of a site: its meaning, default and checks."""
