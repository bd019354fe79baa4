"""Labels that are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021, 1911.00068) on embeddings.

A linear classifier on the rows' embeddings says how probable each label is for a row that it has not seen (out of fold).
cleanlab compares that with the given label: a row whose label is improbable, and which is confidently of another class, is
shown to a person. Nothing is relabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals.task.checks.findings import Finding
from evals.task.checks.places import place, shortened
from evals.task.reading.formats import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 5
# A class's own probabilities need a few rows to learn it from in every fold.
MIN_ROWS = 2 * FOLDS
# Inverse regularisation strength, and a loose end: at 10,000 rows of 77 classes it ranks planted flips as well as a full fit
# at C = 10, in a fraction of its time. Discriminant analysis is faster yet, and flags twice as many rows for the same finds.
STRENGTH = 3.0
TOLERANCE = 1e-3
ITERATIONS = 25
# Of 384 dimensions the 128 widest hold 93% of the variance, cost a third, and find as many flips.
COMPONENTS = 128


def label_noise(
    rows: Sequence[Row], vectors: NDArray[np.float32], seed: int, pools: Sequence[str] | None = None
) -> list[Finding]:
    """Rows whose label is probably wrong, the worst first, then one sentence on all (`label_noise`).

    `vectors` (n, d) are unit embeddings of the rows' inputs, in their order; `pools` names the split of each (train where
    it is left out). Of a row's finding, `value` is the quality of its
    label in [0, 1]: the normalised margin (p(given) - p(best other) + 1) / 2, by probabilities out of fold. Rows of a group
    are kept in one fold, since a copy of a row with the same wrong label would vouch for it. Labels with few rows cannot be
    judged; how many rows that leaves out is said.
    """
    import numpy as np

    if not rows:
        return []
    names, given = np.unique([row.example.target.strip() for row in rows], return_inverse=True)
    enough = np.bincount(given)[given] >= MIN_ROWS
    probabilities, judged = _out_of_fold(_widest(vectors), given, enough, _groups(rows), len(names), seed)
    classes = np.unique(given[judged])
    if len(classes) < 2:
        message = f"label noise cannot be judged: it takes two labels with at least {MIN_ROWS} rows each"
        return [Finding("label_noise", "info", message, details={"rows": len(rows), "judged": 0})]
    at = np.flatnonzero(judged)
    likely = probabilities[np.ix_(at, classes)]
    likely /= np.maximum(likely.sum(axis=1, keepdims=True), 1e-12)
    labels = np.searchsorted(classes, given[at])
    flagged, share = _issues(labels, likely)
    found = []
    for index, quality in flagged.items():
        row, own = rows[at[index]], float(likely[index, labels[index]])
        best = int(likely[index].argmax())
        suggested, chance = str(names[classes[best]]), float(likely[index, best])
        message = (
            f"the label {shortened(row.example.target, 60)!r} has a probability of {own:.1%} among rows like this one, "
            f"{shortened(suggested, 60)!r} has {chance:.0%}"
        )
        details = {"given": row.example.target, "suggested": suggested, "probability": chance, "given_probability": own}
        found.append(
            Finding(
                "label_noise",
                "review",
                message,
                (place(pools[at[index]] if pools else "train", row),),
                quality,
                details=details,
            )
        )
    return [*found, _summary(len(rows), len(at), len(found), share)]


def _groups(rows: Sequence[Row]) -> NDArray[np.int64]:
    """A number for each row, the same for rows of one group or of one input."""
    import numpy as np

    return np.unique([row.example.group or row.example.text.strip() for row in rows], return_inverse=True)[1]


def _widest(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors in their principal components, `COMPONENTS` at most. Labels are not looked at, so no fold learns of another."""
    import numpy as np

    if vectors.shape[1] <= COMPONENTS:
        return vectors
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(centred @ directions[:, -COMPONENTS:])


def _out_of_fold(
    vectors: NDArray[np.float32],
    given: NDArray[np.int64],
    enough: NDArray[np.bool_],
    groups: NDArray[np.int64],
    classes: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities (n, classes) of each row by a model that has not seen its group, and which rows could be judged.

    A row is not judged where its label has too few rows, or none outside of its own fold (one group holds them all).
    """
    import numpy as np

    probabilities = np.zeros((len(given), classes))
    judged = np.zeros(len(given), dtype=bool)
    usable = np.flatnonzero(enough)
    if len(np.unique(given[usable])) < 2 or len(np.unique(groups[usable])) < FOLDS:
        return probabilities, judged
    for seen, unseen in _folds(given[usable], groups[usable], seed):
        train, held = usable[seen], usable[unseen]
        known = np.unique(given[train])
        if len(known) < 2:
            continue
        probabilities[np.ix_(held, known)] = _fitted(vectors[train], given[train]).predict_proba(vectors[held])
        judged[held] = np.isin(given[held], known)
    return probabilities, judged


def _folds(labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> Any:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if len(set(groups.tolist())) == len(groups):
        return StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    return StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups)


def _fitted(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # The last digits of a probability decide nothing here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=STRENGTH, tol=TOLERANCE, max_iter=ITERATIONS).fit(vectors, labels)


def _issues(labels: NDArray[np.int64], likely: NDArray[np.float64]) -> tuple[dict[int, float], float]:
    """Rows that a person should look at with the quality of their label, worst first, and the share that is estimated wrong.

    As many rows as the confident joint estimates, by the smallest margin of the given label over the best other one. Of
    labels flipped at random the given one's own probability finds a few more; of labels taken for one that looks alike,
    which is how people err, the margin finds far more (99 and 64 of the first 100 in the benchmark).
    """
    import numpy as np
    from cleanlab.count import estimate_joint
    from cleanlab.rank import get_label_quality_scores

    quality = get_label_quality_scores(labels, likely, method="normalized_margin")
    share = float(1 - np.trace(estimate_joint(labels, likely)))
    worst = np.argsort(quality, kind="stable")[: round(share * len(labels))]
    return {int(at): float(quality[at]) for at in worst if likely[at].argmax() != labels[at]}, share


def _summary(rows: int, judged: int, flagged: int, share: float) -> Finding:
    message = f"about {share:.1%} of the labels of {judged:,} rows are estimated to be wrong, {flagged:,} are worth a look"
    if judged < rows:
        message += (
            f"; {rows - judged:,} rows could not be judged (fewer than {MIN_ROWS} rows of their label, or all in one group)"
        )
    details = {"rows": rows, "judged": judged, "flagged": flagged}
    return Finding("label_noise", "info", message, value=share, details=details)
