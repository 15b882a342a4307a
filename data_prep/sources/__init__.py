"""Readers of raw files, one file a format: each lists a source's files and yields its documents.

A reader has

    files(source)                        the raw files of a source, in a fixed order
    read(name, source, report, paths)    the documents of those of the files, in order; what is no document
    goes into the report

and may have FIELDS, what a corpus file's `fields` may map, and a dataclass Options, its own settings, which
`finetune prepare --help` lists.

Reading is cut into tasks by file, a large file alone or some small ones together, so `read` may keep nothing
from one file to the next, and what it says of a file must not depend on which others are read with it.
"""
