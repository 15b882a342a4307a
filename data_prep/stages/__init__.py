"""One file a stage. A text stage has VERSION (raise it when its output changes), `settings(config)`: all of the config it
depends on, and `run(documents, config, report)`: documents in, documents out, every drop and change in the report."""
