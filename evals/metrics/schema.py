"""JSON answers that keep to a JSON Schema (draft 2020-12)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evals.errors import AdvisorError
from evals.metrics.options import JsonSchema
from evals.metrics.structured import NOTHING, parse_value
from evals.task.example import Example


@dataclass(frozen=True)
class Schema:
    """1 where the answer is JSON, read as strictly as the other metrics do, that keeps to the schema. The target is not looked at.

    An answer nested too deep to be checked scores 0. Raises AdvisorError where the schema itself cannot be followed. A
    `pattern` of the schema is searched for in this process and without a time limit: trust the schema as you do code.
    """

    options: JsonSchema
    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.options.label

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "json_schema", "schema": self.schema}

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> list[float]:
        return [float(self._keeps(answer)) for _, answer in pairs]

    def _keeps(self, answer: str) -> bool:
        from referencing.exceptions import Unresolvable

        value = parse_value(answer)
        if value is NOTHING:
            return False
        try:
            return bool(self._validator.is_valid(value))
        except RecursionError:
            return False
        except (Unresolvable, re.error) as error:
            raise AdvisorError(
                f"the schema cannot be followed: {str(error)[:200]}",
                where=f"metric {self.name}",
                do="mend the schema that `output.schema` names; it cannot refer to other files or addresses.",
            ) from error

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator
        from referencing import Registry

        # An empty registry: a schema that refers to an address is not fetched.
        return Draft202012Validator(self.schema, registry=Registry())
