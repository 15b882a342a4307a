"""Readers of source files: one module for each format.

A reader module has two functions:

    list_files(source)                   return the source's files in a fixed order
    read(name, source, report, paths)    yield the documents of some of these files in order;
                                         quarantine unreadable records, that is, leave them out
                                         and list them in the report

It may also have FIELDS, the names that `fields` in a corpus file may map to other keys or columns,
and a dataclass Options with the reader's own settings. `finetune prepare --help` lists both.

Files are read in parallel tasks, each with one large file or several small ones. `read` must
therefore keep no state from one file to the next, and its report about a file must not depend on
the other files of the task.
"""
