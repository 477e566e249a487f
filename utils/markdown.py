"""Tables for people: on the terminal, in results.md and in notebooks."""

from collections.abc import Sequence


def table(lines: Sequence[Sequence[object]]) -> str:
    """Markdown; the first line is the head, the first column text, the others numbers."""
    head, *rest = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([head, "|---|" + "---:|" * (len(lines[0]) - 1), *rest])
