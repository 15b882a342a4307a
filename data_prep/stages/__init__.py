"""One file a stage. A stage has

    VERSION                              raise it when the output changes
    settings(config)                     all of the config it depends on, as plain data
    run(documents, config, report)       documents of ONE SHARD in, documents out, in order; every drop and change in the report

`run` sees one shard (some megabytes of one source) and may keep nothing from one shard to the next: shards run in any order, in
any number of processes. A stage that must know the whole corpus before it can judge a document has two functions more, and its
`run` a fourth argument:

    collect(documents, config)           a pa.Table of what must be known of one shard, as small as will do
    decide(collected, config)            a pa.Table over all shards; `collected` are the shards' Parquet files, in shard order.
                                         Read only the columns needed, file by file: here alone all of a corpus is seen at once
    run(documents, config, report, decided)   as above. Of a decision with a column `shard` (a shard's place in `collected`),
                                         each shard is given its own rows only; any other decision is given whole. What JSON
                                         the schema's metadata hold under `counts` is added to the counts of the stage
"""
