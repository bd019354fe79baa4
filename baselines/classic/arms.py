"""Which arms without a language model fit a task."""

from __future__ import annotations

from baselines.classic.fields import Fields
from baselines.classic.labels import Classifier
from baselines.classic.logistic import Logistic
from baselines.classic.neighbours import Neighbours
from baselines.classic.passage import BestPassage
from baselines.classic.spans import SpansLearnt
from baselines.classic.tfidf import TfidfLinear
from evals.candidate import Candidate
from evals.engines.embed import Embedder
from evals.task.load import Task


def classic_arms(task: Task, embedder: Embedder) -> list[Candidate]:
    """Classifiers where the answer is a label, or has label fields; spans where values of JSON answers stand in the input;
    the best passage where free text is asked about documents. Nothing is learnt before an arm is asked."""
    arms: list[Candidate] = []
    if task.output_type != "text" and Fields(task).labels:
        arms += [Classifier(task, learner) for learner in (TfidfLinear(), Neighbours(embedder), Logistic(embedder))]
    spans = SpansLearnt(task)
    if spans.patterns:
        arms.append(spans)
    passage = BestPassage(task, embedder)
    if task.output_type == "text" and passage.sentences:
        arms.append(passage)
    return arms
