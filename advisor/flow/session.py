"""What the stages of one run share: the engine and the embedder, each loaded when first asked for."""

from __future__ import annotations

from functools import cached_property

from evals.engines.cache import ResponseCache
from evals.engines.embed import Embedder
from evals.engines.endpoint import EndpointEngine
from evals.engines.hf import HfEngine
from evals.engines.machine import cache_folder
from evals.engines.open import open_engine
from evals.errors import AdvisorError
from evals.events import OnEvent
from evals.metrics.metric import Metric
from evals.scores import task_metrics
from evals.task.load import Task
from evals.task.model import ModelSpec


class Session:
    def __init__(self, task: Task, on_event: OnEvent) -> None:
        self.task = task
        self.on_event = on_event

    @cached_property
    def engine(self) -> HfEngine | EndpointEngine:
        return self.engine_of(self.task.spec.model)

    @cached_property
    def proposer(self) -> HfEngine | EndpointEngine:
        """Who writes instructions that are tried: the model that the task file names for it, or the task's own."""
        named = self.task.spec.optimise.proposer
        return self.engine if named is None else self.engine_of(named)

    def close(self) -> None:
        """Let go of the engine with its weights; where it is asked for again, it is opened anew."""
        self.__dict__.pop("engine", None)

    def engine_of(self, model: ModelSpec) -> HfEngine | EndpointEngine:
        """The engine of a `model:`; the task's own is opened once, also where it judges."""
        if model == self.task.spec.model and "engine" in self.__dict__:
            return self.engine
        return open_engine(model, self.task.located, self.on_event, self.responses)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's metrics, with what they need."""
        return task_metrics(self.task, self.on_event, embedder=lambda: self.embedder, engine=self.engine_of)

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
