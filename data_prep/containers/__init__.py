"""Files from outside as streams of named members, whatever they are packed in: gzip, zstd, bzip2, xz, tar,
zip, in each other.

archives.py opens them, streams.py reads them within limits, sniff.py says what a file is by its first bytes
or its name.
"""
