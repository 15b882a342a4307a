"""Source files read as streams of named members: gzip, zstd, bzip2, xz, tar and zip, also nested.

archives.py opens files, streams.py reads their content within limits, sniff.py recognizes a file's
kind by its first bytes or its name.
"""
