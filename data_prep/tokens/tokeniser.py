"""Conversion of documents to rows of tokens, for the tokenise step and stages that count tokens.

Running text and plain completions end with the end-of-sequence token. Conversations end with the
token with which their chat template ends a turn (chat_template.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report, Turn
from data_prep.tokens.chat_encoder import ChatEncoder
from data_prep.tokens.chat_template import ChatTemplate
from data_prep.tokens.encoder import TOKENIZERS, Ids, TextEncoder
from data_prep.tokens.row import Row
from data_prep.tokens.thoughts import UnusableChat
from data_prep.tokens.tokenizer_files import find_eos_token_id, read_chat_template, read_special_tokens
from data_prep.user_error import UserError


class Tokeniser:
    """A converter of documents to rows of tokens.

    Args:
        config: the settings of the corpus.
        folder: a folder into which `place_files` wrote the tokenizer and the chat template.
        library: the library that encodes running text, as `encoder.choose` returned it.

    Attributes:
        overrides: True if the corpus replaces the tokenizer's own chat template.

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, config: CorpusConfig, folder: Path, library: str = TOKENIZERS) -> None:
        self.folder = folder
        self._config = config
        self._encode = TextEncoder(folder / "tokenizer.json", library)
        self.vocab_size = self._encode.tokenizer.get_vocab_size()
        self.special_tokens = read_special_tokens(folder)
        self.eos_token_id = find_eos_token_id(self._encode.tokenizer, self.special_tokens)
        self._start = self._encode.tokenizer.encode("").ids  # [bos] or []
        if self._start[-1:] == [self.eos_token_id]:
            self._start = self._start[:-1]
        own = read_chat_template(Path(config.tokenizer.path)) if config.tokenizer.path else None
        self.overrides = own is not None and own != read_chat_template(folder)

    @property
    def end_of_turn(self) -> tuple[str, int]:
        """The token with which the chat template ends an answer, and its id.

        It is the end-of-sequence token if the template has no such token.
        """
        token = self._template.end_of_turn or self.special_tokens["eos_token"]
        token_id = self._encode.tokenizer.token_to_id(token)
        assert token_id is not None  # the template's control tokens are tokens of the vocabulary
        return token, token_id

    def rows(self, documents: list[Document], report: Report) -> Iterator[tuple[Document, list[Row]]]:
        """Yield each document with its rows, in order; drop conversations that cannot be used."""
        texts = iter(self._encode([d.text for d in documents if not d.turns]))
        for document in documents:
            if not document.turns:
                yield document, [self._text_row(next(texts))]
                continue
            try:
                rows = self._chat_rows(document, report)
            except UnusableChat as fault:
                report.drop(document, fault.reason, str(fault))
                continue
            rows = [row for row in rows if any(row.mask[1:])]
            if not rows:
                report.drop(document, "no_supervised_tokens")
                continue
            for row in rows:
                # The first token is never predicted. Besides, training treats a row whose mask has
                # only ones as running text, which it may split anywhere.
                row.mask[0] = 0
            yield document, rows

    def _text_row(self, ids: Ids) -> Row:
        """Return running text as a row that ends with the end-of-sequence token."""
        if not len(ids) or ids[-1] != self.eos_token_id:
            ids = np.append(ids, np.int32(self.eos_token_id))
        return Row(ids, np.ones(len(ids), np.int8))

    def _chat_rows(self, document: Document, report: Report) -> list[Row]:
        """Return the rows of a conversation, or the row of a plain prompt and completion."""
        everything = self._config.chat.targets == "everything"
        if all(turn.role for turn in document.turns):
            turns = self._add_system_prompt(document, report)
            rows = self._template.rows(turns, self.eos_token_id, everything, report.counts)
            report.counts["by_another_template_than_the_tokenizers_own"] += self.overrides
            return rows
        report.counts["by_prompt_template"] += 1
        # Prompt and completion are encoded separately, so that no token spans both: at inference,
        # the prompt is encoded alone.
        prompt, completion = document.turns
        prompt_ids = [*self._start, *self._encoder.encode_start(prompt.content)]
        encode = self._encoder.encode_continuation if prompt_ids else self._encoder.encode_start
        completion_ids = [*encode(completion.content), self.eos_token_id]
        mask = [int(everything)] * len(prompt_ids) + [1] * len(completion_ids)
        return [Row(prompt_ids + completion_ids, mask)]

    def _add_system_prompt(self, document: Document, report: Report) -> list[Turn]:
        """Return the turns, preceded by the system prompt in the document's language.

        Turns that already have a system prompt are returned unchanged.
        """
        prompts = self._config.chat.system
        if not prompts:
            return document.turns
        if any(turn.role in ("system", "developer") for turn in document.turns):
            report.counts["system_of_its_own"] += 1
            return document.turns
        if document.language not in prompts:
            report.counts[f"no_system_for_{document.language or 'unknown'}"] += 1
            return document.turns
        report.counts[f"system_{document.language}"] += 1
        return [Turn(role="system", content=prompts[document.language], target=False), *document.turns]

    @cached_property
    def _encoder(self) -> ChatEncoder:
        return ChatEncoder(self.folder / "tokenizer.json")

    @cached_property
    def _template(self) -> ChatTemplate:
        chat = self._config.chat
        name = self._config.tokenizer.path or f"corpus {self._config.name}"
        source = read_chat_template(self.folder)
        if source is None:
            raise UserError(
                f"tokenizer {name}: has no chat template, but the corpus has conversations or "
                "prompts; set corpus.chat.template to a Jinja file or to `default`. To train on "
                "prompts and instructions as plain text instead, set their form in "
                'corpus.sources.NAME.options.prompt_template, e.g. "{prompt}\\n\\n"'
            )
        return ChatTemplate(
            source, self.special_tokens | chat.template_arguments, self._encoder, chat.template or name
        )
