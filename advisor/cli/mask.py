"""Training rows as the model reads them, what is trained on marked."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from advisor.flow.mask import TrainingMask
from evals.errors import clean


def print_mask(console: Console, mask: TrainingMask) -> None:
    """In colour on a terminal, in [[ ]] elsewhere."""
    console.print("[bold]What would be trained on[/bold]: the marked tokens; the rest is read only")
    if mask.stand_ins:
        console.print(f"  {escape(mask.stand_ins)}", soft_wrap=True)
    for one in mask.rows:
        fits = ", longer than max_length: left out of training" if not one.fits else ", cut to max_length" if one.cut else ""
        which = f", {one.answer}" if one.answer else ""
        console.print(f"  row {escape(clean(one.row.example.id))}{which}: {one.trained_tokens} of {one.tokens} tokens{fits}")
        text = Text()
        for segment in one.segments:
            body = clean(segment.text)
            if console.is_terminal:
                text.append(body, style="black on green" if segment.trained else "dim")
            else:
                text.append(f"[[{body}]]" if segment.trained else body)
        for line in text.split(allow_blank=False):
            console.print(Text("    ") + line, soft_wrap=True)
