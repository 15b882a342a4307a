"""The stages between reading and tokenising, one file each; `TEXT_STAGES` here is their order, and nothing
else names them.

A new stage is a subclass of `ShardStage` or `CorpusStage` (protocol.py) in a file of its own, its place in
TEXT_STAGES, and its settings in data_prep/stage_settings.py. near_duplicates.py is a part of deduplicate;
tokenise.py holds the settings of the stage behind the last of these.
"""

from data_prep.stages.boilerplate import Boilerplate
from data_prep.stages.decontaminate import Decontaminate
from data_prep.stages.deduplicate import Deduplicate
from data_prep.stages.deidentify import Deidentify
from data_prep.stages.language import Language
from data_prep.stages.mixture import Mixture
from data_prep.stages.normalise import Normalise
from data_prep.stages.protocol import CorpusStage, ShardStage
from data_prep.stages.quality import Quality
from data_prep.stages.split import Split

TEXT_STAGES: tuple[ShardStage | CorpusStage, ...] = (
    Normalise(),
    Boilerplate(),
    Language(),
    Quality(),
    Deduplicate(),
    Decontaminate(),
    Deidentify(),
    Split(),
    Mixture(),
)
