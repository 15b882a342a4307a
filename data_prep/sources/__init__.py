"""One file a format. A reader has

    files(config)                        the raw files of a source, in a fixed order
    read(name, config, report, paths)    the documents of those of the files (all of them without `paths`), in order; what is no
                                         document goes into the report

Reading is cut into tasks by file, a large file alone or some small ones together, so `read` may keep nothing from one file to the
next, and what it says of a file must not depend on which others are read with it.
"""
