"""A Dockerfile as tests see it: stages, each a list of instructions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in capitals, as RUN.
        text: the rest, continued lines joined.
    """

    name: str
    text: str

    @property
    def words(self) -> list[str] | None:
        """The words of an exec form, None for any other."""
        match = re.search(r"\[.*\]$", self.text)
        try:
            return None if match is None else [str(word) for word in json.loads(match[0])]
        except ValueError:
            return None


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: after AS.
        base: image or stage that it begins with.
        instructions: the rest, in order.
    """

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Return the instructions of a kind."""
        return [i for i in self.instructions if i.name == name]

    def last(self, name: str) -> Instruction:
        """Return the instruction of a kind that counts."""
        return self.all(name)[-1]


def read_stages(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """Return the defaults of the arguments in front of the first stage, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(path.read_text(encoding="utf-8")):
        if instruction.name == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(name, re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], base)))
        elif stages:
            stages[-1].instructions.append(instruction)
        else:
            name, _, default = instruction.text.partition("=")
            arguments[name] = default
    return arguments, stages


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [Instruction(name.upper(), rest) for name, rest in split]
