"""What is printed of a run's result: its summary and held-out losses; and the help of `train` and `prepare`."""

from __future__ import annotations

import dataclasses
import os

from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from finetune.config.cluster import PrepareJobs
from finetune.config.points import describe
from finetune.config.train import DataConfig, TrainConfig, conf_dir
from finetune.runs.folder import RunFolder
from finetune.runs.summary import HeldOut, Summary, TokenUse
from finetune.terminal import console


def print_summary(run: RunFolder) -> None:
    """Print what came of a run: its model, speed, losses, what was lost of its tokens, and where the result lies."""
    summary, config = run.summary(), run.config()
    assert summary is not None
    out = console()
    kind = f"{config.adapter['peft_type']} adapter" if config.adapter else "full fine-tuning"
    origin = "from scratch (random weights)" if config.model.from_scratch else f"from {config.model.path}"
    speed = f"{summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else "no step left to do"
    point = f" ({describe(run.point())})" if run.point() else ""
    out.print(Text.assemble("\n", (run.id, "bold"), f"{point}: {kind}, {origin}"))
    out.print(f"  {summary.trainable_parameters:,} of {summary.parameters:,} parameters, {summary.steps} steps, {speed}")
    if summary.mfu is not None:
        limit = f"{summary.peak_flops_per_rank / 1e12:.2f} TFLOP/s a rank ({summary.peak_flops_origin})"
        out.print(f"  {summary.mfu:.0%} of {limit}, peak memory of a rank {summary.peak_memory_bytes / 2**30:.2f} GiB")
    total = summary.seconds["total"]
    parts = sorted(((s, n) for n, s in summary.seconds.items() if n != "total"), reverse=True)
    shares = ", ".join(f"{name} {seconds / total:.0%}" for seconds, name in parts if seconds > total / 200)
    out.print(f"  {total:.0f} s: {shares}")
    print_held_out(summary.before, summary.after, config.data)
    print_losses(summary.token_use)
    warnings = run.warnings() or summary.warnings
    for line in [*_result_lines(summary), *(f"warning: {message}" for message in warnings[:10])]:
        out.print(Text(f"  {line}", style="yellow" if line.startswith("warning") else ""), soft_wrap=True)
    if summary.new_stop:
        out.print(Text(f"  {_new_stop(summary.new_stop, bool(config.adapter))}"), soft_wrap=True)
    result = os.path.relpath(summary.result)
    shown = summary.result if result.startswith("..") else result
    out.print(f"  {'adapter' if config.adapter else 'model'}: {shown}")


def _new_stop(token: str, is_adapter: bool) -> str:
    """Report that generation stops at the end of a turn now, and what a user of an adapter must do for it."""
    line = f"{token} ends a turn, and is an end of sequence now in generation_config.json"
    if is_adapter:
        return f"{line} beside the adapter: PEFT loads the base's, so give generate() this one (GenerationConfig.from_pretrained)"
    return f"{line} and config.json"


def print_held_out(before: HeldOut | None, after: HeldOut | None, data: DataConfig | None = None) -> None:
    """Print losses before and after; with `data`, the sources that were trained on are marked if not all were."""
    if after is None:
        console().print("  no held-out loss: the corpus has no validation documents (corpus.split.validation_share)")
        return
    trained = {source for source in after.by_source if data and data.trains_on(source)}
    mark = trained if trained != set(after.by_source) else set()
    table = Table("  held-out loss (nats a token)", "before", "after", box=None)
    table.add_row("  all", _loss(before.loss if before else None), _loss(after.loss))
    for name, loss in after.by_language.items():
        table.add_row(f"  {name}", _loss(before.by_language.get(name) if before else None), _loss(loss))
    for name, loss in after.by_source.items():
        label = f"  {name} (trained on)" if name in mark else f"  {name}"
        table.add_row(label, _loss(before.by_source.get(name) if before else None), _loss(loss))
    table.add_row("  what token frequencies alone score", "", _loss(after.unigram_loss))
    console().print(table)


def print_losses(token_use: dict[str, TokenUse]) -> None:
    """Print what was dropped, cut off or left without any target, by split; nothing where all tokens are used."""
    table = Table("  not used", "source", "written standard", "documents", "tokens", "share", "changed by", box=None)
    for split, use in token_use.items():
        for loss in use.losses:
            numbers = f"{loss.documents:,}", f"{loss.tokens:,}", f"{loss.tokens / use.tokens:.1%}"
            table.add_row(f"  {split}: {loss.reason}", loss.source, loss.language, *numbers, loss.setting)
    if table.row_count:
        console().print(table)


def _result_lines(summary: Summary) -> list[str]:
    """Name the step that was saved, where it is not simply the last."""
    best, last, step = summary.best, summary.last, summary.result_step
    if best is None or last is None or best.step == last.step:
        return []
    other = "result=last saves the last" if step == best.step else "result=best saves the best"
    steps = f"best held-out loss {best.loss:.3f} at step {best.step}, {last.loss:.3f} at the last, {last.step}"
    return [f"saved: step {step} ({steps}; {other})"]


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _groups() -> str:
    """Every group with its files, the default one marked."""
    entries = [entry for entry in OmegaConf.load(conf_dir() / "train.yaml").defaults if not isinstance(entry, str)]
    defaults = {group: name for entry in entries for group, name in entry.items()}
    lines = []
    for folder in sorted(
        path for path in conf_dir().iterdir() if path.is_dir() and path.name[0] != "_" and path.name != "corpus"
    ):
        names = [path.stem + ("*" if path.stem == defaults.get(folder.name) else "") for path in sorted(folder.glob("*.yaml"))]
        lines.append(f"  {folder.name:<10} {', '.join(names)}\n")
    return "".join(lines)


def train_help() -> str:
    return (
        "usage: finetune train [recipe=NAME] [key=value …] [-m] [--dry-run] [--config-dir FOLDER]\n\n"
        "  -m                   sweep: every combination of lr=1e-4,2e-4 and the like is a run of its own, queued\n"
        "  --dry-run            check everything as for a start, print the batch script, and write nothing\n"
        "  --config-dir FOLDER  more recipes and other files, in folders named as below\n"
        "  --cfg job            print the composed config and train nothing\n\n"
        f"Files to choose from, as group=name, * by default (model= also takes a folder, hub id or run:<id>):\n{_groups()}\n"
        f"Settings, as key=value, with what holds where no chosen file says otherwise:\n{_keys(TrainConfig, '')}"
    )


def prepare_help() -> str:
    corpora = ", ".join(sorted(path.stem for path in (conf_dir() / "corpus").glob("*.yaml")))
    return (
        "usage: finetune prepare corpus=NAME [key=value …] [--config-dir FOLDER]\n\n"
        f"Corpora: {corpora}. Write your own as FOLDER/corpus/NAME.yaml and give --config-dir FOLDER.\n\n"
        "  corpora_dir                         where corpus folders are written (corpora)\n"
        "  workers                             processes; the corpus is the same whatever their number (one a core)\n"
        "  shard_characters                    text that is lost when a process is killed; leaves no trace either (16,000,000)\n"
        "  downloads_dir                       where the raw sources of corpus=mixture lie (downloads)\n"
        "  corpus.sources.NAME.path            a file, folder or archive, packed or not\n"
        "  corpus.sources.NAME.reader          how it is read: jsonl, text, chat, table, lovdata, stortinget, pdf …\n"
        "  corpus.sources.NAME.fields          our name: the record's name (text, id, group, language, title, date, url)\n"
        "  corpus.sources.NAME.options         what the reader alone understands: records (the list in a JSON object, as\n"
        "                                      response.docs), delimiter of CSV … (data_prep/sources says which)\n"
        "  corpus.sources.NAME.mixture         how much of it, by written standard and years: weight or max_tokens\n"
        "  corpus.sources.NAME.limits          on what its files may unpack to\n"
        "  corpus.sources.NAME.max_broken_share  share of records that may be broken before preparation stops (0.01)\n"
        "  corpus.language.keep                written standards kept ([nob,nno])\n"
        "  corpus.boilerplate.min_share        share of a host's documents that hold a line of its frame (0.9)\n"
        "  corpus.boilerplate.min_documents    and at least so many of them (5)\n"
        "  corpus.boilerplate.sites            sources whose documents without a host are one site ([])\n"
        "  corpus.language.other_parts         cut paragraphs in Polish, Arabic … from Norwegian documents, or keep (cut)\n"
        "  corpus.deduplicate.near             whether near duplicates are sought, not only exact ones (true)\n"
        "  corpus.deduplicate.similarity       share of word 5-grams in common that makes two documents one (0.6)\n"
        "  corpus.deduplicate.tell_apart       whether similar ones with another title, other numbers or names are kept (true)\n"
        "  corpus.quality.skip_readers         readers whose sources the quality rules leave alone ([conllu])\n"
        "  corpus.split.validation_share       share of groups held out (0.1)\n"
        "  corpus.tokenizer.path               a model folder whose tokenizer to use; unset: train one\n"
        "  corpus.tokenizer.vocab_size         vocabulary of a trained tokenizer (8000)\n"
        "  corpus.chat.targets                 of conversations, learn answers or everything (answers)\n"
        "  corpus.chat.template                a Jinja chat template, or default; unset: the tokenizer's own\n"
        "  corpus.chat.template_arguments      variables for the template, as {enable_thinking: false}\n"
        "  corpus.chat.system                  system prompts by written standard, as {nno: …, nob: …}\n"
        "  corpus.shard_tokens                 tokens a shard (16,000,000)\n"
        "All keys and their meaning: data_prep/config.py.\n\n"
        "With cluster=NAME of a Slurm site its steps are job arrays, each after the one before:\n\n"
        f"{_keys(PrepareJobs, 'cluster.prepare.')}\n"
        "Run again after it was stopped or killed, it goes on where it was.\n\n"
        "corpora_dir/.NAME.stages keeps what each stage wrote and dropped; the first ones hold raw text, not de-identified.\n"
    )


def _keys(schema: type, prefix: str) -> str:
    lines = []
    for item in dataclasses.fields(schema):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            lines.append(_keys(type(default), f"{prefix}{item.name}."))
            continue
        kind = str(item.type).replace("str | None", "text").replace("str", "text").replace("dict[text, Any]", "mapping")
        shown = "required" if default == "???" else "unset" if default is None else default
        lines.append(f"  {prefix + item.name:<26} {item.metadata['help']}  [{kind}; {shown}]\n")
    return "".join(lines)
