"""The end-of-turn token, declared as an end of sequence in saved models.

A model trained on conversations ends its answers with the chat template's end-of-turn token. Often
that is not an end of sequence of the base, e.g. with ChatML on a base model. `generate` stops only
at the ids in generation_config.json, so without the declaration it would not stop after an answer.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from data_prep.shards import TokenizerInfo

GENERATION = "generation_config.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"

logger = logging.getLogger(__name__)


def find_new_stop(tokenizer: TokenizerInfo, model: Any) -> str | None:
    """Return the corpus' end-of-turn token if the base does not stop at it; None otherwise.

    Args:
        tokenizer: from the corpus manifest.
        model: the trained model, or PEFT's wrapper around it.
    """
    if tokenizer.end_of_turn_id in (None, *_stop_ids(_unwrap(model))):
        return None
    return tokenizer.end_of_turn


def declare(folder: Path, tokenizer: TokenizerInfo, model: Any) -> None:
    """Declare the end-of-turn token as an end of sequence in a saved model or adapter.

    The declaration is written to the configs and tokenizer files in `folder`. The folder of an
    adapter lacks the base's configs. It gets a generation_config.json, for users who load the
    adapter with their own code.

    Args:
        tokenizer: from the corpus manifest.
        model: the trained model, or PEFT's wrapper around it.
    """
    base = _unwrap(model)
    token = find_new_stop(tokenizer, model)
    has_config = (folder / CONFIG).is_file()
    if token is None:
        if not has_config and tokenizer.end_of_turn_id is not None:
            _write_generation_config(folder, base, _stop_ids(base))
        return
    assert tokenizer.end_of_turn_id is not None
    stop_ids = [*_stop_ids(base), tokenizer.end_of_turn_id]
    _write_generation_config(folder, base, stop_ids)
    if has_config:
        config = _read_json(folder / CONFIG)
        config["eos_token_id"] = stop_ids
        text_config = config.get("text_config") or {}
        if "eos_token_id" in text_config:
            text_config["eos_token_id"] = stop_ids
        _write_json(folder / CONFIG, config)
    if "eos_token" in _read_template(folder):
        logger.info("the chat template uses eos_token, so the tokenizer's eos_token is not changed")
    else:
        for name in (TOKENIZER, SPECIAL_TOKENS):
            if (folder / name).is_file():
                _write_json(folder / name, {**_read_json(folder / name), "eos_token": token})
    logger.info("the end-of-turn token %s is an end of sequence in %s", token, GENERATION)


def inherit(model: Any, adapter: Path) -> None:
    """Add the end-of-sequence tokens of a merged adapter to those at which the model stops.

    Args:
        adapter: folder of the adapter.
    """
    if not (adapter / GENERATION).is_file():
        return
    adapter_ids = _as_list(_read_json(adapter / GENERATION).get("eos_token_id"))
    own_ids = _stop_ids(model)
    new_ids = [token for token in adapter_ids if token not in own_ids]
    if new_ids:
        model.config.eos_token_id = [*own_ids, *new_ids]
        if model.generation_config is not None:
            model.generation_config.eos_token_id = [*own_ids, *new_ids]


def _write_generation_config(folder: Path, model: Any, stop_ids: list[int]) -> None:
    """Write the model's generation_config.json with these end-of-sequence tokens.

    transformers rejects the generation config of some published models. For these, the file
    contains only the end-of-sequence tokens.
    """
    path = folder / GENERATION
    if not path.is_file():
        with tempfile.TemporaryDirectory() as temporary:
            try:
                model.generation_config.save_pretrained(temporary)
                shutil.copyfile(Path(temporary) / GENERATION, path)
            except (ValueError, AttributeError) as fault:
                reason = str(fault).splitlines()[0]
                logger.warning("%s: only the ends of sequence are written: %s", GENERATION, reason)
                _write_json(path, {})
    eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    _write_json(path, {**_read_json(path), "eos_token_id": eos_token_id})


def _stop_ids(model: Any) -> list[int]:
    """Return the token ids at which a model stops."""
    generation_config = getattr(model, "generation_config", None)
    stop_ids = _as_list(getattr(generation_config, "eos_token_id", None))
    return stop_ids or _as_list(getattr(model.config, "eos_token_id", None))


def _unwrap(model: Any) -> Any:
    """Return the model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    if isinstance(ids, list):
        return [int(token) for token in ids]
    return [int(ids)]


def _read_template(folder: Path) -> str:
    """Return the chat templates in a folder as one string; "" if it has none."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    if not (folder / TOKENIZER).is_file():
        return ""
    return json.dumps(_read_json(folder / TOKENIZER).get("chat_template", ""))


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
