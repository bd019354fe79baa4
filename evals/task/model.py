"""`model:` of a task file: who answers, in this process or behind an address."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from evals.engines.endpoint import DEFAULT_KEY, checked_base_url
from evals.task.strict import Strict

# Keys of `model:` that mean something to one engine only.
SERVED_ONLY = {"base_url", "api_key_env", "max_concurrency", "request_timeout", "context_length"}
HERE_ONLY = {"dtype", "trust_remote_code"}


class ModelSpec(Strict):
    """Who answers. `engine: hf` runs weights in this process; `engine: endpoint` asks an OpenAI-compatible server at `base_url`.

    `model_name_or_path`: for `hf` the demo model's name, a Hub name, a local folder or a GGUF file; for `endpoint` the
    name that the server knows. `dtype: auto` measures the machine. `api_key_env` names the environment variable that
    holds the key, `request_timeout` is in seconds, `context_length` in tokens (the server is asked where it is left out).
    """

    model_name_or_path: str
    engine: Literal["hf", "endpoint"] = "hf"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    trust_remote_code: bool = False
    base_url: str | None = None
    api_key_env: str = DEFAULT_KEY
    max_concurrency: int = Field(default=8, ge=1, le=256)
    request_timeout: float = Field(default=120.0, gt=0, le=3600)
    context_length: PositiveInt | None = None

    @field_validator("base_url")
    @classmethod
    def _no_secret_inside(cls, value: str | None) -> str | None:
        return None if value is None else checked_base_url(value)

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        # Not repeated: what stands here by mistake is the key itself.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError("this is the name of an environment variable, such as OPENAI_API_KEY, never the key itself")
        return value

    @model_validator(mode="after")
    def _keys_of_its_engine(self) -> ModelSpec:
        foreign = sorted((SERVED_ONLY if self.engine == "hf" else HERE_ONLY) & self.model_fields_set)
        if foreign:
            other = "endpoint" if self.engine == "hf" else "hf"
            raise ValueError(f"{', '.join(foreign)}: only with `engine: {other}`")
        if self.engine == "endpoint" and self.base_url is None:
            raise ValueError("`engine: endpoint` needs `base_url:`, such as http://localhost:8000/v1")
        return self

    @property
    def served(self) -> bool:
        """Whether the weights are elsewhere: such a model can be asked, but not trained."""
        return self.engine == "endpoint"
