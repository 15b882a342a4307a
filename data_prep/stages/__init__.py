"""The stages between reading and tokenisation, one module each; `TEXT_STAGES` defines their order.

To add a stage, write a subclass of `ShardStage` or `CorpusStage` (protocol.py) in a module of its
own, add it to TEXT_STAGES, and add its settings to data_prep/stage_settings.py. near_duplicates.py
is a part of deduplicate. tokenise.py has the settings of the tokenise stage, which follows the last
text stage.
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
