"""One file a source: each has `read(name, config, report)`, which yields Documents, and says which files it reads."""
