"""Documents to rows of tokens, in the tokenise step (step.py) and in stages that count tokens before it.

A text, and a plain completion, is ended by the end-of-sequence token; a conversation by the token with which
its template ends a turn (chat_template.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report, Turn
from data_prep.tokens.chat_encoder import ChatEncoder
from data_prep.tokens.chat_template import ChatTemplate, Refused
from data_prep.tokens.encoder import TOKENIZERS, Ids, TextEncoder
from data_prep.tokens.row import Row
from data_prep.tokens.tokenizer_files import find_eos_token_id, read_special_tokens, template_of
from data_prep.user_error import UserError


class Tokeniser:
    """Turns documents into rows of tokens, with the tokenizer that `place_files` put into `folder`.

    Args:
        library: which encodes running text: what `encoder.choose` found.

    Attributes:
        overrides: whether the corpus names another chat template than the tokenizer's own.

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, config: CorpusConfig, folder: Path, library: str = TOKENIZERS) -> None:
        self.folder, self._config = folder, config
        self._encode = TextEncoder(folder / "tokenizer.json", library)
        self.vocab_size = self._encode.tokenizer.get_vocab_size()
        self.special_tokens = read_special_tokens(folder)
        self.eos_token_id = find_eos_token_id(self._encode.tokenizer, self.special_tokens)
        start = self._encode.tokenizer.encode("").ids
        self._start = (
            start[:-1] if start[-1:] == [self.eos_token_id] else start
        )  # of a sequence: [bos], or nothing
        own = template_of(Path(config.tokenizer.path)) if config.tokenizer.path else None
        self.overrides = own is not None and own != template_of(folder)

    @property
    def end_of_turn(self) -> tuple[str, int]:
        """Return the token with which the chat template ends an answer, and its id."""
        token = self._template.end_of_turn or self.special_tokens["eos_token"]
        token_id = self._encode.tokenizer.token_to_id(token)
        assert token_id is not None  # the template's control tokens are tokens of the vocabulary
        return token, token_id

    def rows(self, documents: list[Document], report: Report) -> Iterator[tuple[Document, list[Row]]]:
        """Yield each document with its rows, in order; a conversation that gives none is dropped."""
        texts = iter(self._encode([d.text for d in documents if not d.turns]))
        for document in documents:
            if not document.turns:
                yield document, [self._ended(next(texts))]
                continue
            try:
                rows = self._conversation(document, report)
            except Refused as fault:
                report.drop(document, fault.reason, str(fault))
                continue
            if rows := [row for row in rows if any(row.mask[1:])]:
                for row in rows:
                    # Never predicted; and a mask of ones alone is running text's, which may be cut anywhere.
                    row.mask[0] = 0
                yield document, rows
            else:
                report.drop(document, "no_supervised_tokens")

    def _ended(self, ids: Ids) -> Row:
        if not len(ids) or ids[-1] != self.eos_token_id:
            ids = np.append(ids, np.int32(self.eos_token_id))
        return Row(ids, np.ones(len(ids), np.int8))

    def _conversation(self, document: Document, report: Report) -> list[Row]:
        everything = self._config.chat.targets == "everything"
        if all(turn.role for turn in document.turns):
            turns = self._with_system(document, report)
            rows = self._template.rows(turns, self.eos_token_id, everything, report.counts)
            report.counts["by_another_template_than_the_tokenizers_own"] += self.overrides
            return rows
        report.counts["by_prompt_template"] += 1
        # Plain prompt and completion are tokenised apart, as at inference the prompt is all there is: no
        # token spans the two.
        prompt, completion = document.turns
        asked = [*self._start, *self._encoder.first(prompt.content)]
        answer = (
            self._encoder.following(completion.content) if asked else self._encoder.first(completion.content)
        )
        answered = [*answer, self.eos_token_id]
        return [Row(asked + answered, [int(everything)] * len(asked) + [1] * len(answered))]

    def _with_system(self, document: Document, report: Report) -> list[Turn]:
        """Put the system prompt in the document's written standard first, unless it brings its own."""
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
        chat, name = self._config.chat, self._config.tokenizer.path or f"corpus {self._config.name}"
        source = template_of(self.folder)
        if source is None:
            raise UserError(
                f"the tokenizer {name} has no chat template, and the corpus holds conversations or prompts: set "
                f"corpus.chat.template to a Jinja file, or to `default`; or, for prompts and instructions as plain text, name "
                f'their form as corpus.sources.NAME.options.prompt_template, e.g. "{{prompt}}\\n\\n"'
            )
        return ChatTemplate(
            source, self.special_tokens | chat.template_arguments, self._encoder, chat.template or name
        )
