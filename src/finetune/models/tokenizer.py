"""The tokenizer in a saved folder: AutoTokenizer must give the ids that training used.

transformers chooses a tokenizer's class by tokenizer_config.json and by the model's type. A class of its own
(LlamaTokenizer, Qwen2Tokenizer) takes only the vocabulary from tokenizer.json and splits text in its own way.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.runs import base_model

GENERIC = (
    "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is, for all but a few model types
)
CONFIG = "tokenizer_config.json"
FILES = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
SAMPLES = (
    "Kommunen vedtok 17. mai 2024 å gi kr 1 234 567,50 til «Bygda vår» – jf. § 3-1 første ledd (sak 24/1187).",
    "Eg veit ikkje kva dei skal gjere no; me får sjå korleis det går med Ålesund, Sør-Aukra og Bærum.\n\n- Fyrste\n\t- Andre",
    "Hva koster det?  Søknaden ble sendt til post@example.no, og svaret kom 3 uker etter: «Nei!» CO₂-utslepp: 12 % (2019–2023).",
    "Åtte ærlege øyfolk 👩‍⚕️ café, naïve, SÁMI: čállosat\r\nKjære alle! it's 100000 x 0.5\n",
)

logger = logging.getLogger(__name__)


def place(tokenizer: Path, folder: Path) -> None:
    """Copy a tokenizer's files into a folder with a model or an adapter, so that AutoTokenizer gives the same
    ids there.

    Where the class that tokenizer_config.json names gives others, the copy names the generic one.

    Raises:
        UserError: transformers gives other ids whatever the file says.
    """
    for name in FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    if find_difference(folder) is None:
        return
    stated = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else {}
    generic = {**stated, "tokenizer_class": GENERIC}
    (folder / CONFIG).write_text(json.dumps(generic, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if difference := find_difference(folder):
        raise UserError(
            f"the tokenizer saved with this model would not read back: {difference}; transformers takes this class for the "
            f"model's type: choose another model.from_scratch.model_type, or a corpus made with that model's own tokenizer "
            f"(corpus.tokenizer.path)"
        )
    logger.warning(
        "%s: tokenizer_class is %s now, not %s, which gives other ids than the corpus has",
        folder.name,
        GENERIC,
        stated.get("tokenizer_class"),
    )


def check(config: TrainConfig) -> None:
    """Refuse before a job starts what `place` would refuse when the result is saved.

    Raises:
        UserError: see place.
    """
    tokenizer = config.data.corpus_folder / "tokenizer"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if config.model.from_scratch:
            (folder / "config.json").write_text(json.dumps(config.model.from_scratch), encoding="utf-8")
        elif not config.adapter:
            assert config.model.path is not None
            source = base_model.resolve(config.model.path, config.runs_dir, config.model.revision)
            shutil.copyfile(source.folder / "config.json", folder / "config.json")
        place(tokenizer, folder)


def find_difference(folder: Path) -> str | None:
    """Compare the ids that the folder's tokenizer.json gives with those of AutoTokenizer; None if all samples
    agree."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    trained_with = Tokenizer.from_file(str(folder / "tokenizer.json"))
    trained_with.no_padding()
    trained_with.no_truncation()
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as fault:
        return f"AutoTokenizer cannot load it ({str(fault).splitlines()[0]})"
    named = [token.content for token in trained_with.get_added_tokens_decoder().values()][:8]
    for text in (*SAMPLES, "".join(f"{token}brukar\nHei {token}" for token in named)):
        for special in (False, True):
            ids = trained_with.encode(text, add_special_tokens=special).ids
            found = loaded(text, add_special_tokens=special).input_ids
            if ids != found:
                place = next(
                    (i for i, pair in enumerate(zip(ids, found, strict=False)) if pair[0] != pair[1]), 0
                )
                return (
                    f"{type(loaded).__name__} gives {found[place : place + 3]}… where the corpus has "
                    f"{ids[place : place + 3]}…, in {text[:40]!r}"
                )
    return None
