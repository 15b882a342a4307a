"""Stages keep the names, the order and the form of settings that are recorded on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.config import as_settings
from data_prep.plan import STAGES, PlanFile, Preparation, stage_before
from data_prep.stages import TEXT_STAGES
from data_prep.stages.protocol import CorpusStage
from data_prep.stages.tokenise import Tokenise
from tests.data_prep.documents import make_config

FOLDERS = [
    "0-read", "1-normalise", "2-boilerplate", "3-language", "4-quality", "5-deduplicate",
    "6-decontaminate", "7-deidentify", "8-split", "9-mixture", "10-tokenise",
]  # fmt: skip


def test_stage_folders_keep_their_names(tmp_path: Path) -> None:
    """Renaming or moving a stage would rerun it in every folder that was prepared before."""
    plan = PlanFile(corpus=make_config(), folder="x", cwd="/", tasks=[], shard_characters=1)
    preparation = Preparation(tmp_path, plan)
    assert [preparation.stage_folder(stage).path.name for stage in STAGES] == FOLDERS
    assert [stage_before(stage) for stage in STAGES[1:]] == list(STAGES[:-1])
    with pytest.raises(AssertionError):
        stage_before("read")


def test_stages_that_need_the_whole_corpus_have_three_steps(tmp_path: Path) -> None:
    plan = PlanFile(corpus=make_config(), folder="x", cwd="/", tasks=[], shard_characters=1)
    steps = [step.name for step in Preparation(tmp_path, plan).steps()]
    for stage in TEXT_STAGES:
        own = [name for name in steps if name.partition(".")[0] == stage.name]
        expected = [stage.name]
        if isinstance(stage, CorpusStage):
            expected = [f"{stage.name}.collect", f"{stage.name}.decide", stage.name]
        assert own == expected


def test_settings_of_stages_are_plain_data() -> None:
    """Settings are hashed as JSON and written into the manifest."""
    for stage in (*TEXT_STAGES, Tokenise()):
        settings = as_settings(stage.settings(make_config()))
        assert json.loads(json.dumps(settings)) == settings
