"""The token that ends a turn, declared as an end of sequence in what is saved: a model trained on
conversations stops by itself.

A base's own end of sequence is often not the token with which its chat template ends a turn (ChatML on a base
model). A model that learned to end its answers with that token would go on behind it: `generate` stops at the
ids of generation_config.json only.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from data_prep.shards import TokenizerInfo

GENERATION, CONFIG, TOKENIZER, SPECIAL_TOKENS = (
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
TEMPLATE = "chat_template.jinja"

logger = logging.getLogger(__name__)


def new_stop(tokenizer: TokenizerInfo, model: Any) -> str | None:
    """Return the end of turn that a model was taught and does not stop at yet; None if there is none.

    Args:
        tokenizer: the corpus manifest's.
        model: the trained model, or PEFT's around it.
    """
    if tokenizer.end_of_turn_id in (None, *_stops(_plain(model))):
        return None
    return tokenizer.end_of_turn


def declare(folder: Path, tokenizer: TokenizerInfo, model: Any) -> None:
    """Make the end of turn an end of sequence in the configs and the tokenizer of a saved folder.

    Beside an adapter, which is saved without its base's configs, the generation config is written for those
    who load it by hand.
    """
    token = new_stop(tokenizer, model)
    if token is None:
        if not (folder / CONFIG).is_file() and tokenizer.end_of_turn_id is not None:
            _write_generation_config(folder, _plain(model), _stops(_plain(model)))
        return
    assert tokenizer.end_of_turn_id is not None
    stops = [*_stops(_plain(model)), tokenizer.end_of_turn_id]
    _write_generation_config(folder, _plain(model), stops)
    if (folder / CONFIG).is_file():
        config = _read(folder / CONFIG)
        for part in (config, config.get("text_config") or {}):
            if part is config or "eos_token_id" in part:
                part["eos_token_id"] = stops
        _write(folder / CONFIG, config)
    if "eos_token" in _template(folder):
        logger.info("the chat template uses eos_token: the tokenizer keeps its own")
    else:
        for name in (TOKENIZER, SPECIAL_TOKENS):
            if (folder / name).is_file():
                _write(folder / name, {**_read(folder / name), "eos_token": token})
    logger.info("%s, the end of a turn, is an end of sequence in what is saved (%s)", token, GENERATION)


def inherit(model: Any, adapter: Path) -> None:
    """Let a model into which an adapter was merged stop where the adapter's generation config says."""
    if not (adapter / GENERATION).is_file():
        return
    stops = _as_list(_read(adapter / GENERATION).get("eos_token_id"))
    merged = [*_stops(model), *(stop for stop in stops if stop not in _stops(model))]
    if merged != _stops(model):
        model.config.eos_token_id = merged
        if model.generation_config is not None:
            model.generation_config.eos_token_id = merged


def _write_generation_config(folder: Path, model: Any, stops: list[int]) -> None:
    """Write the model's generation config with these stops. It may contradict itself, as some that are
    published do."""
    path = folder / GENERATION
    if not path.is_file():
        with tempfile.TemporaryDirectory() as temporary:
            try:
                model.generation_config.save_pretrained(temporary)
                shutil.copyfile(Path(temporary) / GENERATION, path)
            except (ValueError, AttributeError) as fault:
                logger.warning(
                    "%s has the ends of sequence alone: %s", GENERATION, str(fault).splitlines()[0]
                )
                _write(path, {})
    _write(path, {**_read(path), "eos_token_id": stops if len(stops) > 1 else stops[0]})


def _stops(model: Any) -> list[int]:
    """Return the ids at which a model stops."""
    generation = getattr(model, "generation_config", None)
    stops = _as_list(getattr(generation, "eos_token_id", None))
    return stops or _as_list(getattr(model.config, "eos_token_id", None))


def _plain(model: Any) -> Any:
    """Return the model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [int(token) for token in ids] if isinstance(ids, list) else [int(ids)]


def _template(folder: Path) -> str:
    """Return the text of all chat templates of a folder."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    if not (folder / TOKENIZER).is_file():
        return ""
    return json.dumps(_read(folder / TOKENIZER).get("chat_template", ""))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
