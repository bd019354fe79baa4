"""The task's documents as what continued pretraining learns from."""

from __future__ import annotations

from evals.errors import AdvisorError
from evals.task.example import Example
from evals.task.load import Task


def raw_text_rows(task: Task) -> tuple[Example, ...]:
    """Each document as a row without a question, whose target is its text; the trainer cuts what is too long.

    Raises AdvisorError where the task has no documents: of question-answer rows SFT learns more.
    """
    if not task.documents:
        raise no_documents(task, "continued pretraining learns from documents, and the task has none")
    return tuple(Example(one.id, (), one.text) for one in task.documents)


def no_documents(task: Task, what: str) -> AdvisorError:
    return AdvisorError(
        what,
        where=f"{task.name}, train.method",
        do="name a folder of them (`data: {documents: documents/}`), or train with `method: sft`.",
    )
