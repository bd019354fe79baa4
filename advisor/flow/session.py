"""What the stages of one run share: the engine and the embedder, each loaded when first asked for."""

from __future__ import annotations

from functools import cached_property

from evals.engines.embed import Embedder
from evals.engines.hf import HfEngine, ModelHandle
from evals.events import OnEvent
from evals.task.load import Task


class Session:
    def __init__(self, task: Task, on_event: OnEvent) -> None:
        self.task = task
        self.on_event = on_event

    @cached_property
    def engine(self) -> HfEngine:
        model = self.task.spec.model
        name = self.task.located(model.model_name_or_path)
        return HfEngine(ModelHandle(name, model.dtype, self.on_event, trust_remote_code=model.trust_remote_code))

    @cached_property
    def embedder(self) -> Embedder:
        return Embedder(self.task.located(self.task.spec.embeddings.model_name_or_path), self.on_event)
