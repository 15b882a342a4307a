"""The tokenizer of a saved model: AutoTokenizer must return the token ids that training used.

transformers chooses a tokenizer's class from tokenizer_config.json and the model's type. Some
classes, such as LlamaTokenizer and Qwen2Tokenizer, take only the vocabulary from tokenizer.json and
ignore its rules for splitting text. They may therefore return other token ids.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.runs import base_model

# This class uses all of tokenizer.json. For a few model types, transformers uses another class even
# if this one is named.
GENERIC_CLASS = "PreTrainedTokenizerFast"
CONFIG = "tokenizer_config.json"
FILES = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Texts on which the token ids are compared: Bokmål, Nynorsk, Sámi, symbols, whitespace.
SAMPLES = (
    "Kommunen vedtok 17. mai 2024 å gi kr 1 234 567,50 til «Bygda vår» – jf. § 3-1 første ledd "
    "(sak 24/1187).",
    "Eg veit ikkje kva dei skal gjere no; me får sjå korleis det går med Ålesund, Sør-Aukra og "
    "Bærum.\n\n- Fyrste\n\t- Andre",
    "Hva koster det?  Søknaden ble sendt til post@example.no, og svaret kom 3 uker etter: «Nei!» "
    "CO₂-utslepp: 12 % (2019–2023).",
    "Åtte ærlege øyfolk 👩‍⚕️ café, naïve, SÁMI: čállosat\r\nKjære alle! it's 100000 x 0.5\n",
)
MAX_SPECIAL_TOKENS = 8  # so many special tokens are compared too, in a text of their own

logger = logging.getLogger(__name__)


def copy_files(tokenizer: Path, folder: Path) -> None:
    """Copy a tokenizer's files into the folder of a model or adapter, for AutoTokenizer.

    If the class in tokenizer_config.json gives other token ids than tokenizer.json, the copied
    tokenizer_config.json names GENERIC_CLASS instead.

    Raises:
        UserError: AutoTokenizer still gives other token ids.
    """
    for name in FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    if find_difference(folder) is None:
        return
    settings = {}
    if (folder / CONFIG).is_file():
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    generic = {**settings, "tokenizer_class": GENERIC_CLASS}
    (folder / CONFIG).write_text(json.dumps(generic, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    difference = find_difference(folder)
    if difference:
        raise UserError(
            "data.corpus: transformers would load another tokenizer from the saved model: "
            f"{difference}, because it chooses the class by the model's type; choose another "
            "model.from_scratch.model_type, or a corpus made with that model's own tokenizer "
            "(corpus.tokenizer.path)"
        )
    logger.warning(
        "%s: tokenizer_class is set to %s, because %s gives other token ids than the corpus has",
        folder.name,
        GENERIC_CLASS,
        settings.get("tokenizer_class"),
    )


def check(config: TrainConfig) -> None:
    """Check before a job starts that a run's result can be saved with its tokenizer.

    Raises:
        UserError: the result could not be saved with its tokenizer. Without this check, copy_files
            would raise the same error at the end of the run.
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
        copy_files(tokenizer, folder)


def find_difference(folder: Path) -> str | None:
    """Compare the token ids of AutoTokenizer with those of the folder's tokenizer.json.

    Returns:
        A description of the first difference; None if there is none. The ids are compared on the
        texts in SAMPLES and on a text with the tokenizer's special tokens.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    trained_with = Tokenizer.from_file(str(folder / "tokenizer.json"))
    trained_with.no_padding()
    trained_with.no_truncation()
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as fault:
        return f"AutoTokenizer cannot load it ({str(fault).splitlines()[0]})"
    added = trained_with.get_added_tokens_decoder().values()
    special_tokens = [token.content for token in added][:MAX_SPECIAL_TOKENS]
    texts = (*SAMPLES, "".join(f"{token}brukar\nHei {token}" for token in special_tokens))
    for text, add_special_tokens in itertools.product(texts, (False, True)):
        expected = trained_with.encode(text, add_special_tokens=add_special_tokens).ids
        found = loaded(text, add_special_tokens=add_special_tokens).input_ids
        if expected != found:
            start = _first_difference(expected, found)
            return (
                f"{type(loaded).__name__} gives {found[start : start + 3]}… where the corpus has "
                f"{expected[start : start + 3]}…, in {text[:40]!r}"
            )
    return None


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the first index at which two sequences differ; 0 if one is a prefix of the other."""
    for index, pair in enumerate(zip(a, b, strict=False)):
        if pair[0] != pair[1]:
            return index
    return 0
