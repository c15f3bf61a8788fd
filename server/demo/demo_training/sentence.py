"""Sentences: a small grammar, a seeded sampler, and the split into training and held-out."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from demo_training.lexicon import (
    ACTORS,
    ADJECTIVES,
    DETERMINERS,
    NOUNS,
    PREPOSITIONS,
    THINGS,
    VERBS,
)

ARROW = " ->"
"""What follows the sentence in every prompt."""

_HELD_OUT_ONE_IN = 16

# "the" and "a" are what one types first, so they are drawn more often than the other determiners.
_DETERMINER_WEIGHTS = [4 if word in ("the", "a") else 1 for word in DETERMINERS]


@dataclass(frozen=True, slots=True)
class Sentence:
    """Subject, verb, object and an optional place; no word occurs twice in a sentence.

    Attributes:
        subject: determiner, at most one adjective, actor.
        verb: one transitive verb in the third person.
        target: determiner, at most one adjective, noun.
        place: empty, or preposition, determiner, thing.
    """

    subject: tuple[str, ...]
    verb: str
    target: tuple[str, ...]
    place: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All words in order."""
        return (*self.subject, self.verb, *self.target, *self.place)

    @property
    def text(self) -> str:
        """The words joined by single spaces."""
        return " ".join(self.words)

    @property
    def prompt(self) -> str:
        """What the model is given: the sentence and the arrow."""
        return self.text + ARROW


def parse(text: str) -> Sentence:
    """Cut a sentence of the grammar into its parts.

    Args:
        text: words joined by single spaces.

    Raises:
        ValueError: no verb, or a word that the grammar does not know.
    """
    words = tuple(text.split(" "))
    verb_at = next((i for i, word in enumerate(words) if word in VERBS), None)
    if verb_at is None:
        raise ValueError(f"no verb in {text!r}")
    rest = words[verb_at + 1 :]
    place_at = next((i for i, word in enumerate(rest) if word in PREPOSITIONS), len(rest))
    return Sentence(words[:verb_at], words[verb_at], rest[:place_at], rest[place_at:])


DEMO_SENTENCES: tuple[str, ...] = (
    "the old fox sees a small dog",
    "my brave knight follows the dragon",
    "a young wizard hides your big treasure",
    "the baker sells a good cake",
    "this kind giant carries my small boat",
    "every king wants a new castle",
    "the poor fisherman finds a pretty mirror",
    "a nasty wolf watches the fat rabbit",
    "your cat hears a ghost in the castle",
    "the young prince paints my handsome horse",
    "his old farmer helps the duck",
    "a monkey takes the bread with your hat",
)
"""The prompts that the demo shows; held out from every training like the hashed sixteenth."""


def is_held_out(text: str) -> bool:
    """Whether a sentence is reserved for evaluation: neither base nor adapter is trained on it."""
    digest = hashlib.sha256(text.encode()).digest()
    return text in DEMO_SENTENCES or digest[0] % _HELD_OUT_ONE_IN == 0


def sample_training(rng: random.Random) -> Sentence:
    """Draw a sentence that is not held out."""
    return _sample_until(rng, held_out=False)


def sample_held_out(rng: random.Random) -> Sentence:
    """Draw a sentence that no training sees."""
    return _sample_until(rng, held_out=True)


def _sample_until(rng: random.Random, *, held_out: bool) -> Sentence:
    while True:
        sentence = _sample(rng)
        if is_held_out(sentence.text) == held_out:
            return sentence


def _sample(rng: random.Random) -> Sentence:
    used: set[str] = set()
    subject = _noun_phrase(rng, list(ACTORS), used)
    verb = rng.choice(list(VERBS))
    target = _noun_phrase(rng, list(NOUNS), used)
    place = _place(rng, used) if rng.random() < 0.25 else ()
    return Sentence(subject, verb, target, place)


def _noun_phrase(rng: random.Random, nouns: list[str], used: set[str]) -> tuple[str, ...]:
    determiner = _unused(rng, list(DETERMINERS), used, _DETERMINER_WEIGHTS)
    adjective = (_unused(rng, list(ADJECTIVES), used),) if rng.random() < 0.55 else ()
    return (determiner, *adjective, _unused(rng, nouns, used))


def _place(rng: random.Random, used: set[str]) -> tuple[str, ...]:
    determiner = _unused(rng, list(DETERMINERS), used, _DETERMINER_WEIGHTS)
    return (rng.choice(list(PREPOSITIONS)), determiner, _unused(rng, list(THINGS), used))


def _unused(
    rng: random.Random, words: list[str], used: set[str], weights: list[int] | None = None
) -> str:
    while True:
        word = rng.choices(words, weights)[0]
        if word not in used:
            used.add(word)
            return word
