"""What the stages of one run share: the engine and the embedder, each loaded when first asked for."""

from __future__ import annotations

from functools import cached_property

from evals.engines.cache import ResponseCache
from evals.engines.embed import Embedder
from evals.engines.endpoint import EndpointEngine
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.machine import cache_folder
from evals.errors import AdvisorError
from evals.events import OnEvent
from evals.task.load import Task


class Session:
    def __init__(self, task: Task, on_event: OnEvent) -> None:
        self.task = task
        self.on_event = on_event

    @cached_property
    def engine(self) -> HfEngine | EndpointEngine:
        model = self.task.spec.model
        if model.base_url is not None:
            return EndpointEngine(
                model.base_url,
                model.model_name_or_path,
                self.on_event,
                api_key_env=model.api_key_env,
                max_concurrency=model.max_concurrency,
                request_timeout=model.request_timeout,
                context_length=model.context_length,
                cache=self.responses,
            )
        name = self.task.located(model.model_name_or_path)
        handle = ModelHandle(name, model.dtype, self.on_event, trust_remote_code=model.trust_remote_code)
        return HfEngine(handle, cache=self.responses)

    @cached_property
    def responses(self) -> ResponseCache:
        """Answers of all runs of this user, so that no model is asked the same thing twice."""
        return ResponseCache(cache_folder() / "responses.sqlite", on_event=self.on_event)

    def require_weights(self) -> None:
        """Raises AdvisorError where the model is served: it cannot be trained."""
        _ = self.weights

    @property
    def weights(self) -> HfEngine:
        """The engine, where its weights are here to be trained. Raises AdvisorError where the model is served."""
        if isinstance(self.engine, HfEngine):
            return self.engine
        raise AdvisorError(
            "a served model cannot be trained: its weights are not here",
            where=f"{self.task.name}, model {self.engine.name}",
            do="name the weights: `model: {engine: hf, model_name_or_path: …}`, a Hub name, a folder or a GGUF file.",
        )

    @cached_property
    def embedder(self) -> Embedder:
        return Embedder(self.task.located(self.task.spec.embeddings.model_name_or_path), self.on_event)
