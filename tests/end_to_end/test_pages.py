"""The commands of README.md and of the tutorials run, and their output is as shown on the pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import walk
from docs.walk import Command, File, Shell, missing_line, read_page
from finetune.runs.folder import RunFolder
from slurm.testcluster.cluster import unavailable_reason

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TUTORIAL = ROOT / "docs/tutorial"
VENV = Path(sys.executable).parent.parent
LETTERS = ROOT / "data_prep/sample/letters.jsonl"


def commands_of(page: str) -> list[str]:
    return [step.text for step in read_page(page) if isinstance(step, Command)]


def test_the_readmes_commands_for_a_users_own_text_run(
    sample: tuple[Path, RunFolder, RunFolder], tmp_path: Path
) -> None:
    _, base, _ = sample
    page = README[README.index("## Your own text") :]
    replace = {"/data/letters.jsonl": str(LETTERS), "/models/normistral-7b": str(base.model)}
    shell = Shell(folder=tmp_path, environment=walk.environment())
    try:
        faults, _ = walk.walk(shell, page, replace=replace)
    finally:
        shell.close()
    assert not faults, "\n".join(faults)
    run = RunFolder.find(next((tmp_path / "runs").glob("run-*")).name, tmp_path / "runs")
    assert run.adapter.is_dir()


def test_the_readme_begins_with_make_run_and_make_test() -> None:
    first, second, *others = [command.partition("#")[0].strip() for command in commands_of(README)]
    assert (first, second) == ("make run", "make test")
    assert not any(command.startswith("make ") for command in others)
    assert (ROOT / ".ci/run").read_text("utf-8").rstrip().endswith("make test")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_make_run_prints_what_the_readme_shows(tmp_path: Path) -> None:
    for name in ("Makefile", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    # --old-file: do not run pip, because this environment has all packages
    command = ["make", f"--old-file={VENV}/.run", f"VENV={VENV}", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=walk.environment()
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert shown
    by_place = sorted(shown[1].splitlines(), key=lambda line: not line.startswith("corpus"))
    assert missing_line(by_place, printed) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_tutorials_print_what_they_show(tmp_path: Path) -> None:
    """Run all tutorials in one shell and folder, in the order of the tutorials' index."""
    names = re.findall(r"\]\(([\w-]+)\.md\)", (TUTORIAL / "index.md").read_text("utf-8"))
    assert sorted(names) == sorted(path.stem for path in TUTORIAL.glob("*.md") if path.stem != "index")
    if reason := unavailable_reason():
        names.remove("sweep-on-slurm")
    shell = Shell(folder=tmp_path, environment=walk.environment())
    try:
        for name in names:
            page = (TUTORIAL / f"{name}.md").read_text("utf-8")
            faults, _ = walk.walk(shell, page, replace={"/path/to/finetune": str(ROOT)})
            assert not faults, "\n".join(faults)
    finally:
        shell.run(f"{sys.executable} {ROOT}/slurm/testcluster/cluster.py down || true")
        shell.close()
    if reason:
        pytest.skip(f"sweep-on-slurm.md was not run: {reason}")


@pytest.mark.parametrize("page", sorted(TUTORIAL.glob("*.md")), ids=lambda page: page.stem)
def test_every_command_block_is_executed(page: Path) -> None:
    """Blocks with commands must have the language `console`; the tests above execute no others."""
    text = page.read_text("utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language != "console":
            assert not re.search(r"^(\$ |finetune |make |pip )", block, re.MULTILINE), block


def test_a_page_that_shows_wrong_output_is_detected(tmp_path: Path) -> None:
    shell = Shell(folder=tmp_path)
    file = "```yaml\n# my/file.yaml\na: 1\n```\n"
    page = file + "```console\n$ cat my/file.yaml\na: 1\n$ echo two \\\n> 3\n{}\n```\n"
    try:
        assert walk.walk(shell, page.format("two 4"))[0] == []  # numbers are not compared
        assert walk.walk(shell, page.format("three 3"))[0][0].startswith(
            "echo two \\\n3: did not print: three 3"
        )
        assert "exit code 1" in walk.walk(shell, "```console\n$ false | true\n$ echo later\n```")[0][0]
        written = page.format("two 3").replace("$ cat my/file.yaml\n", "$ cat my/file.yaml\n# my/file.yaml\n")
        assert walk.walk(shell, page.format("wrong"), write=True) == ([], written)
    finally:
        shell.close()
    assert read_page(page)[0] == File("my/file.yaml", "# my/file.yaml\na: 1\n")
