"""Readers of source files, one module a format.

A reader module has

    list_files(source)                   return the source's files in a fixed order
    read(name, source, report, paths)    yield the documents of some of these files in order, and note
                                         records that are not documents in the report

It may also have FIELDS, the names that a corpus file's `fields` may map, and a dataclass Options of
its own settings, which `finetune prepare --help` lists.

Files are read in parallel tasks: one large file, or several small ones, each. `read` must therefore
keep no state from one file to the next, and its report about a file must not depend on the other
files of the task.
"""
