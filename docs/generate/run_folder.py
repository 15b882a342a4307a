"""The page of the run folder: each name of runs/layout.py with its content and writer."""

from __future__ import annotations

from dataclasses import dataclass

from docs.generate.markdown import code, table
from finetune.runs import layout


@dataclass(frozen=True)
class FileRow:
    """A file or folder on disk.

    Attributes:
        name: its name on disk, with `<…>` for parts that vary.
        writer: the process that writes it.
        content: its content or purpose.
    """

    name: str
    writer: str
    content: str


@dataclass(frozen=True)
class Section:
    """The files of one folder."""

    title: str
    rows: tuple[FileRow, ...]


SUBMITTER = "the process that submits"
RANK_0 = "rank 0"
EACH_RANK = "each rank"
BATCH_SCRIPT = "the batch script, on Slurm"
ANY = "the process that submits the point: a command, or a job at its end"

SECTIONS = (
    Section(
        "`runs/<run id>/`",
        (
            FileRow("config.yaml", SUBMITTER, "the resolved config, frozen at submission"),
            FileRow(
                "provenance.json",
                SUBMITTER,
                "command, time, versions, git revision and diff without secrets; a point's swept values",
            ),
            FileRow(
                "inputs.json",
                f"{SUBMITTER}, or {RANK_0} at the first start",
                "digests of the corpus and the base; a run refuses others",
            ),
            FileRow(
                "submission.json",
                SUBMITTER,
                "the job that works on the run: id, host, scheduler, code digest",
            ),
            FileRow(
                "attempt.json",
                "versions before November 2026",
                "the same, under its earlier name",
            ),
            FileRow("attempts.jsonl", BATCH_SCRIPT, "each start of the job and its ending"),
            FileRow(
                "started.json",
                RANK_0,
                "when and where rank 0 started, and how often Slurm had started the job",
            ),
            FileRow(
                "outcome.json",
                f"{RANK_0}, or the process that cancels the run",
                "the state in which the run ended",
            ),
            FileRow(
                "failure-rank-<rank>.json",
                "the rank that failed",
                "time, error, kind of failure, nodes to blame",
            ),
            FileRow(
                "failure.json",
                BATCH_SCRIPT,
                "the diagnosis of a run that will not be restarted",
            ),
            FileRow("plan/", RANK_0, "the pack plan, see below"),
            FileRow("checkpoints/", "all ranks", "checkpoints, see below"),
            FileRow(
                "metrics.jsonl", RANK_0, "every metric of every step, append-only ([Metrics](metrics.md))"
            ),
            FileRow("before.json", RANK_0, "held-out loss before the first step"),
            FileRow("skipped.json", RANK_0, "batches that rewinds left out (`on_bad_step=rewind`)"),
            FileRow("summary.json", RANK_0, "the result in figures"),
            FileRow(
                "model/",
                "all ranks",
                "the result of full fine-tuning, as transformers loads it",
            ),
            FileRow("adapter/", "all ranks", "the result of an adapter, as PEFT loads it"),
            FileRow(
                "merged_base/", RANK_0, "the base with earlier adapters merged into it, where it has any"
            ),
            FileRow(
                "exports/",
                "a command that names `run:ID@STEP`",
                "weights of checkpoints as model or adapter folders, `step-<step>`",
            ),
            FileRow("jobs/", "see below", "files of jobs, logs"),
            FileRow(
                "staged.json",
                "ranks, with `data.stage=true`",
                "folder of the corpus' copies on the nodes' own disks",
            ),
            FileRow(
                "turn.json",
                "the process that starts or follows a local run",
                "its host and process",
            ),
            FileRow(
                "stop",
                "`finetune cancel`, or Ctrl-C in the command that follows the run",
                "empty; asks the ranks to save and leave",
            ),
            FileRow(
                ".sent.json",
                "`sync`, `ui`, or a command that follows the run",
                "how far the metrics are in MLflow",
            ),
            FileRow(".lock", RANK_0, "lock; held while the run trains"),
            FileRow(".submit.lock", "commands", "lock; held while the run is started or cancelled"),
            FileRow(".export.lock", "commands", "lock; held while a checkpoint is exported"),
        ),
    ),
    Section(
        "`plan/`",
        (
            FileRow("<split>-<key>-rows.npy", RANK_0, "the rows of the corpus that are packed"),
            FileRow(
                "<split>-<key>-epoch-<epoch>.npy", RANK_0, "which segment is in which pack, for one epoch"
            ),
        ),
    ),
    Section(
        "`checkpoints/step-<step>/`",
        (
            FileRow("engine/", EACH_RANK, "DeepSpeed's files: weights or adapter, optimizer state"),
            FileRow("rng-<rank>.pt", EACH_RANK, "state of torch's random generator"),
            FileRow(
                "state.json",
                RANK_0,
                "step, losses and totals of the loop, held-out loss if known, ranks, ZeRO stage, digests",
            ),
            FileRow(
                "manifest.json",
                RANK_0,
                "every file above with size and sha256; a resume verifies them",
            ),
            FileRow(
                "held_out.json",
                RANK_0,
                "held-out loss, if it was measured after the checkpoint was published",
            ),
        ),
    ),
    Section(
        "`jobs/`",
        (
            FileRow(
                "<job>_<rank>_log.out",
                EACH_RANK,
                "log of a rank; that of rank 0 has the batch script's lines too",
            ),
            FileRow(
                "<job>_submitted.pkl",
                "submitit, in the process that submits",
                "an importable name and the run's path",
            ),
            FileRow(
                "waiting.pkl",
                SUBMITTER,
                "the same, of a point that waits for a place in Slurm's queue",
            ),
            FileRow("submit.sh", SUBMITTER, "the batch script of a single run, as submitted"),
            FileRow(
                "attached.sh",
                SUBMITTER,
                "the script of a run that was started within an allocation",
            ),
            FileRow(
                "controller.log",
                "the process that starts the ranks of a local run",
                "its output",
            ),
            FileRow("exits.json", "the same process", "exit statuses of the ranks of a local run"),
            FileRow(
                "present/",
                "one rank of each node",
                "an empty file for each node whose ranks reached the run folder",
            ),
            FileRow("preflight-token", RANK_0, "a random value that every node must read"),
            FileRow(
                "rendezvous-<job>-<restart>", EACH_RANK, "through it the ranks of an attempt find each other"
            ),
            FileRow("warnings-rank-<rank>.jsonl", "the rank", "its warnings"),
            FileRow("stacks-rank-<rank>.txt", "a rank that hangs", "a stack of each thread"),
            FileRow("next-of-<job>", BATCH_SCRIPT, "lock; held while the job is submitted again"),
        ),
    ),
    Section(
        "`runs/`",
        (
            FileRow("mlflow.db", "`sync`, `ui`, or a command that follows a run", "MLflow's SQLite database"),
            FileRow(
                "mlartifacts/",
                "the same",
                "MLflow's artefacts: each run's config and summary",
            ),
            FileRow(".mlflow.lock", "the same", "lock; one process at a time fills the database"),
            FileRow(".code/", SUBMITTER, "on Slurm, the code that jobs import, a folder a digest"),
            FileRow(".bases/", RANK_0, "merged bases that several runs share"),
            FileRow("sweeps/", SUBMITTER, "sweeps, see below"),
        ),
    ),
    Section(
        "`runs/sweeps/<id>/`",
        (
            FileRow(
                "points.tsv",
                "the process that submits; later `status`, `sync` and `wait=true`",
                "each run with its swept values, state and held-out loss, best first",
            ),
        ),
    ),
    Section(
        "`runs/sweeps/<id>/<n>/`, a submission of a sweep on Slurm",
        (
            FileRow("submit.sh", SUBMITTER, "the batch script of the array, as submitted"),
            FileRow("points/", SUBMITTER, "a link to `jobs/` of each point, by its index"),
            FileRow("waves.json", SUBMITTER, "the limits that hold; it exists while points wait"),
            FileRow(
                "paused.json", "`finetune status`, or a job at its end", "the same, while a sweep is paused"
            ),
            FileRow(
                "problem.txt",
                "the process that tried to submit the next points",
                "Slurm's refusal, or why the sweep is paused",
            ),
            FileRow(
                "waiting/",
                SUBMITTER,
                "a file for each point that waits, which holds its run's id",
            ),
            FileRow(
                "claimed/",
                ANY,
                "the same file, while a held job is being prepared for the point",
            ),
            FileRow("submitted/", ANY, "the same file, once the job was released"),
        ),
    ),
    Section(
        "`runs/sweeps/`",
        (
            FileRow(".waves.lock", ANY, "lock; one process at a time submits waiting points"),
            FileRow(
                ".ending/",
                "jobs at their end",
                "jobs that have submitted the points that follow them",
            ),
        ),
    ),
)
INTRODUCTION = """\
A run is its folder. Every process, on a login node, in a batch script or on a rank, reads and
writes these files and nothing else, so any process with access to the folder can show, stop and
resume the run. JSON files and folders are written under another name and then renamed, so a reader
finds either the old content or the new content.
"""


def body() -> str:
    """Return a table of the files of each folder."""
    described = {row.name.removesuffix("/") for section in SECTIONS for row in section.rows}
    missing = {name for name in layout_names() if name not in described}
    assert not missing, f"describe {missing} in docs/generate/run_folder.py"
    parts = [INTRODUCTION]
    for section in SECTIONS:
        rows = [(code(row.name), row.content, row.writer) for row in section.rows]
        parts.append(f"## {section.title}\n\n" + table(("file", "content", "written by"), rows))
    return "\n".join(parts)


def layout_names() -> set[str]:
    """Return the names of files and folders that layout.py declares as constants."""
    return {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}
