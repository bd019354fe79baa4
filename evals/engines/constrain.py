"""Answers that cannot leave their form: which tokens may come next under a JSON schema, a regular expression or a choice.

llguidance walks the grammar over a trie of the vocabulary and gives one bit a token. `docs/inference.md` says why it was chosen.
Its own torch helper compiles on first use, which takes a compiler and half a minute, so the bits are spread here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals.engines.engine import Constraint
from evals.errors import AdvisorError

if TYPE_CHECKING:
    from llguidance import LLMatcher

WORD_BITS = 32
MAX_GRAMMARS = 64
# One optional space after a comma or colon, as `json.dumps` and compact writers have it, and no other whitespace: small
# models that may write more go round in it until the token limit. `lenient` would drop keywords that are not understood.
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?", "lenient": False}
KINDS = {"json_schema": "JSON schema", "regex": "regular expression", "choice": "list of choices"}


class Matcher:
    """Where one answer stands in its grammar. Made by `GrammarTokens.matcher`, one for each request."""

    def __init__(self, state: LLMatcher, constraint: Constraint, stop_ids: frozenset[int]) -> None:
        self.state = state
        self.constraint = constraint
        self._stop_ids = stop_ids

    def accept(self, token_id: int) -> None:
        """Go on by the token that was chosen. Raises AdvisorError where it is not one that `GrammarTokens.mask` left."""
        # Nothing comes after the end, but a loop that still decodes its other rows may say so once more.
        if self.finished and token_id in self._stop_ids:
            return
        if not self.state.consume_token(token_id):
            self.raise_error()

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing but a stop token could follow."""
        return self.state.is_stopped() and not self.state.is_error()

    def raise_error(self) -> None:
        """Raise what broke off the match. The grammars' own limits and characters that no token writes end here."""
        raise AdvisorError(
            f"an answer cannot be kept to its {KINDS[self.constraint.kind]}: {_first_line(self.state.get_error())}",
            where=_shown(self.constraint),
            do="make the form simpler, and name only characters that the model's tokeniser can write.",
        )


class GrammarTokens:
    """The vocabulary of one tokeniser, ready for any constraint. Built once (0.3 s for 49,152 tokens) and used by all requests.

    `vocab_size` is the width of the logits, which may be larger than the tokeniser's vocabulary: what lies beyond is never
    allowed. Any of `stop_ids` may end an answer, where its form is complete. Needs a fast tokeniser; raises AdvisorError
    for one that cannot be read.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: Sequence[int]) -> None:
        from llguidance import LLExecutor, LLParserLimits
        from llguidance.hf import from_tokenizer

        self.vocab_size = vocab_size
        self.stop_ids = frozenset(stop_ids)
        try:
            self._tokens = from_tokenizer(tokenizer, vocab_size, sorted(self.stop_ids))
        except ValueError as error:
            raise AdvisorError(
                f"answers of this model cannot be constrained: {_first_line(str(error))}",
                where=str(getattr(tokenizer, "name_or_path", "")),
                do="take a model with a fast tokeniser and a stop token, or ask without a constraint.",
            ) from error
        # Verbose errors would quote the parser's state, answer included.
        self._limits = LLParserLimits(verbose_errors=False)
        self._executor = LLExecutor()
        self._grammars: dict[Constraint, LLMatcher] = {}

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the start of its answer. A constraint is compiled once (about a millisecond) and copied from then on.

        Raises AdvisorError where it cannot be compiled. A regular expression has the syntax of Rust's `regex` crate: no
        look-around and no back-references; it matches the whole answer, with or without `^` and `$` at its ends.
        """
        compiled = self._grammars.get(constraint)
        if compiled is None:
            compiled = self._compile(constraint)
            if len(self._grammars) >= MAX_GRAMMARS:
                self._grammars.pop(next(iter(self._grammars)))
            self._grammars[constraint] = compiled
        return Matcher(compiled.deep_copy(), constraint, self.stop_ids)

    def mask(self, matchers: Sequence[Matcher | None], logits: Any) -> None:
        """Set to minus infinity, in place, every logit of a token that would leave its row's form.

        `logits` is a floating tensor (rows, vocab_size) on any device, `matchers` one for each row; rows without one are left as
        they are. A row whose answer is whole has only the stop tokens left. Raises AdvisorError where a grammar met one of its limits.
        """
        import torch

        if tuple(logits.shape) != (len(matchers), self.vocab_size):
            raise ValueError(f"logits of shape {tuple(logits.shape)} for {len(matchers)} rows of {self.vocab_size} tokens")
        active = [(matcher, row) for row, matcher in enumerate(matchers) if matcher is not None]
        if not active:
            return
        words = -(-self.vocab_size // WORD_BITS)
        bits = torch.full((len(matchers), words), -1, dtype=torch.int32)
        states = [(matcher.state, row) for matcher, row in active]
        self._executor.unsafe_compute_mask_ptr(states, bits.data_ptr(), words * WORD_BITS // 8, len(matchers))
        for matcher, _ in active:
            if matcher.state.is_error():
                matcher.raise_error()
        logits.masked_fill_(_forbidden(bits.to(logits.device), self.vocab_size), float("-inf"))

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokens, _grammar(constraint), log_level=0, limits=self._limits)
            reason = matcher.get_error()
        except (ValueError, RecursionError) as error:
            reason = str(error)
        if reason:
            raise AdvisorError(
                f"this {KINDS[constraint.kind]} cannot be enforced: {_first_line(reason)}",
                where=_shown(constraint),
                do="change what is named here, or ask without a constraint.",
            )
        return matcher


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own terms. Raises ValueError where the source is not what its kind says."""
    from llguidance import LLMatcher

    if constraint.kind == "json_schema":
        schema = json.loads(constraint.source)
        if not isinstance(schema, dict):
            raise ValueError("a JSON schema is an object")
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_FORM)  # type: ignore[arg-type]
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.source)
    return LLMatcher.grammar_from_lark(_choice_grammar(constraint.source))


def _choice_grammar(source: str) -> str:
    """A Lark grammar of one terminal, so that of "card" and "card lost" the lexer need not choose before the answer has."""
    choices = json.loads(source)
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) for one in choices):
        raise ValueError("choices are a JSON list of at least one string")
    for one in choices:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{one!a} holds half a character, which no model can write") from error
    # Lark's strings are JSON's, so quotes and backslashes of a choice stay inside it.
    return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, dict.fromkeys(choices)))


def _forbidden(bits: Any, vocab_size: int) -> Any:
    """Bool tensor (rows, vocab_size), true where the bit of `bits` (rows, words of 32 tokens, int32) is not set."""
    import torch

    # Bytes rather than words: a quarter of the memory to write.
    octets = bits.view(torch.uint8)
    if sys.byteorder == "big":
        octets = octets.view(len(bits), -1, 4).flip(-1).view(len(bits), -1)
    places = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=bits.device)
    return ((octets[:, :, None] & places) == 0).view(len(bits), -1)[:, :vocab_size]


def _first_line(text: str) -> str:
    """The gist of a library's message, on one line: its later lines point into our own grammar."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (told or lines or ["no reason was given"])[0][:300]


def _shown(constraint: Constraint) -> str:
    source = " ".join(constraint.source.split())
    return source if len(source) <= 80 else f"{source[:79]}…"
