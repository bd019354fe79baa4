"""A `model:` of a task file -> the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable

from evals.engines.cache import ResponseCache
from evals.engines.endpoint import EndpointEngine
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.events import OnEvent
from evals.task.model import ModelSpec


def open_engine(
    model: ModelSpec, located: Callable[[str], str], on_event: OnEvent, cache: ResponseCache | None
) -> HfEngine | EndpointEngine:
    """`located` turns a name into a path where it is one beside the task file. Nothing is loaded or asked yet."""
    if model.base_url is not None:
        return EndpointEngine(
            model.base_url,
            model.model_name_or_path,
            on_event,
            api_key_env=model.api_key_env,
            max_concurrency=model.max_concurrency,
            request_timeout=model.request_timeout,
            context_length=model.context_length,
            cache=cache,
        )
    name = located(model.model_name_or_path)
    return HfEngine(ModelHandle(name, model.dtype, on_event, trust_remote_code=model.trust_remote_code), cache=cache)
