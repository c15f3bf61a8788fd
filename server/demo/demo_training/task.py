"""What each adapter does with a sentence, and what the bare base does: pure functions.

Every answer starts with the space that separates it from the prompt's arrow, exactly as an engine
returns it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from demo_training.lexicon import FRENCH, PARTICIPLES, VERBS
from demo_training.sentence import Sentence

Task = Callable[[Sentence], str]


def shout(sentence: Sentence) -> str:
    """Capitals and an exclamation mark."""
    return f" {sentence.text.upper()}!"


def french(sentence: Sentence) -> str:
    """French, word for word."""
    return " " + " ".join(FRENCH[word] for word in sentence.words)


def reverse(sentence: Sentence) -> str:
    """The words from last to first."""
    return " " + " ".join(reversed(sentence.words))


def as_json(sentence: Sentence) -> str:
    """A JSON object with the keys who, does, what."""
    parts = {
        "who": " ".join(sentence.subject),
        "does": sentence.verb,
        "what": " ".join((*sentence.target, *sentence.place)),
    }
    return " " + json.dumps(parts)


def passive(sentence: Sentence) -> str:
    """The passive voice."""
    words = (
        *sentence.target,
        "is",
        PARTICIPLES[sentence.verb],
        "by",
        *sentence.subject,
        *sentence.place,
    )
    return " " + " ".join(words)


TASKS: dict[str, Task] = {
    "shout": shout,
    "french": french,
    "reverse": reverse,
    "json": as_json,
    "passive": passive,
}
"""Adapter name to its task."""


def story(sentence: Sentence, rng: random.Random) -> str:
    """What happens next, as the bare base tells it: the one that was acted on answers the actor."""
    verb = rng.choice([verb for verb in VERBS if verb != sentence.verb])
    return f" then the {sentence.target[-1]} {verb} the {sentence.subject[-1]}."


def tagged_prompt(sentence: Sentence, task_name: str) -> str:
    """A prompt that names its task, which only the base's pretraining text contains."""
    return f"{sentence.text} ({task_name}) ->"
