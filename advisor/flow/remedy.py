"""The next training that may forget less, where no scale of the trained weights passes: in a folder of its own, beside the first."""

from __future__ import annotations

from dataclasses import asdict, replace

from advisor.decision.repair import Offer, Repair, next_offer
from advisor.flow.repair import REMEDIES, finished_remedies, read_repair
from advisor.flow.run import Run
from advisor.flow.session import Session
from advisor.flow.tuned import expected, in_words, job_for, recipe_for
from evals.errors import AdvisorError
from evals.events import Note
from evals.records import write_json
from evals.task.load import Task
from trainer.launch import train


def remedy(task: Task, run: Run, session: Session) -> Offer:
    """Train the first remedy that repair has offered and that is not trained yet, into `remedies/<name>/`; one that was cut off goes on.

    `remedies/<name>/remedy.json` keeps what it sets otherwise. Its weights are arms of the next search. Raises AdvisorError where
    there is nothing to mend, and where all are tried.
    """
    offer = _next(run, read_repair(run.folder))

    def make() -> tuple[Offer, str, bool]:
        recipe = replace(recipe_for(task, session.weights), **offer.overrides)
        folder = run.path(REMEDIES) / offer.name
        job = job_for(task, session, recipe, task.train, folder, f"remedy {offer.name}")
        write_json(folder / "recipe.json", asdict(recipe))
        write_json(folder / "remedy.json", {"name": offer.name, "overrides": offer.overrides, "why": offer.why})
        run.on_event(Note(in_words(expected(task, session.weights, recipe, job.train, memory=True))))
        trained = train(job, run.on_event)
        loss = "" if trained.final_loss is None else f", loss {trained.final_loss:.3f}"
        return replace(offer, done=True), f"{trained.steps} steps, {trained.seconds:.0f} s{loss}", trained.reused

    return run.stage("remedy", f"Train otherwise ({offer.name})", make)


def _next(run: Run, found: Repair | None) -> Offer:
    if found is None:
        raise AdvisorError(
            "what the training of this run has cost is not measured yet",
            where=run.id,
            do="run `advisor evaluate` on it first: it measures forgetting, and says what may mend it.",
        )
    if not found.offers:
        why = f"{found.chosen} is chosen" if found.chosen else found.sentence
        raise AdvisorError(f"there is nothing to mend by training: {why}", where=run.id, do="look at its report.")
    # What is trained is what lies there, whatever the record said when it was written.
    there = finished_remedies(run.folder)
    offer = next_offer([replace(one, done=one.name in there) for one in found.offers])
    if offer is None:
        raise AdvisorError(
            f"all remedies are tried: {', '.join(one.name for one in found.offers)}",
            where=run.id,
            do="take what the report shows as the best of them, raise the margin (`gate.max_forgetting`), or keep the base and prompt it.",
        )
    return offer
