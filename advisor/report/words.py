"""What a recommendation and a verdict are called wherever people read them."""

from __future__ import annotations

ACTIONS = {
    "prompt": "Prompt the model as it is; do not train.",
    "optimised_prompt": "Prompt the model with the instruction that the search found; do not train.",
    "tools": "Let the model call tools; do not train.",
    "no_llm": "Use no language model at all.",
    "rag": "Retrieve: put passages of the documents before the question; do not train.",
    "fine_tune": "Fine-tune.",
    "rag_on_tuned": "Fine-tune, and put passages of the documents before each question.",
    "fine_tune_with_context": "Fine-tune with passages in the training rows, so that the model learns to read them.",
    "preference": "Train on the preference pairs (DPO).",
    "reinforcement": "Reinforce right answers by a reward that a program can check (GRPO).",
    "bigger_model": "Take a bigger model: this one does not carry the task.",
    "collect_data": "Collect data first: more labelled rows, or better ones.",
    "undecided": "Undecided: the evidence does not settle it.",
}
SURE = {
    True: "Sure: what was measured leaves no other measured way a likely advantage.",
    False: "Not sure: another measured way may be as good or better; the sentences below say which.",
}
VERDICTS = {
    "pass": "PASS: every rule of the gate holds.",
    "fail": "FAIL: a rule of the gate is broken.",
    "inconclusive": "INCONCLUSIVE: the evidence does not carry every rule of the gate.",
    "not_applicable": "Not applicable: no weights were changed.",
}
