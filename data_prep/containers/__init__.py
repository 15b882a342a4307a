"""Reading of compressed files and archives (gzip, zstd, bzip2, xz, tar, zip), also nested ones.

archives.py opens a file and yields its members. streams.py reads their content within limits.
sniff.py detects a file's kind from its first bytes, and checks names.
"""
