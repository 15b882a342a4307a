"""One file a source: `files(source)` lists what it reads, `read(name, source, report, paths)` yields Documents of some."""
