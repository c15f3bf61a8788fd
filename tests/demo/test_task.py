"""The demo's grammar and tasks: pure functions, checked against answers written by hand."""

import random

import pytest
from demo_training.lexicon import ADJECTIVES, NOUNS, PARTICIPLES, VERBS
from demo_training.sentence import (
    DEMO_SENTENCES,
    is_held_out,
    parse,
    sample_held_out,
    sample_training,
)
from demo_training.task import TASKS, story, tagged_prompt

from shadow_server.demo import demo_prompts

_ANSWERS = {
    "shout": " YOUR CAT HEARS A GHOST IN THE CASTLE!",
    "french": " ton chat entend un fantôme dans le château",
    "reverse": " castle the in ghost a hears cat your",
    "json": ' {"who": "your cat", "does": "hears", "what": "a ghost in the castle"}',
    "passive": " a ghost is heard by your cat in the castle",
}


@pytest.mark.parametrize("name", TASKS)
def test_task_gives_the_answer_written_by_hand(name: str):
    sentence = parse("your cat hears a ghost in the castle")
    assert TASKS[name](sentence) == _ANSWERS[name]


def test_shipped_answers_are_those_of_the_tasks():
    for prompt in demo_prompts():
        sentence = parse(prompt.prompt.removesuffix(" ->"))
        assert prompt.expected == {name: task(sentence) for name, task in TASKS.items()}


def test_shipped_prompts_are_the_held_out_demo_sentences():
    assert [prompt.prompt for prompt in demo_prompts()] == [f"{s} ->" for s in DEMO_SENTENCES]
    assert all(is_held_out(sentence) for sentence in DEMO_SENTENCES)


def test_samplers_never_cross_the_split():
    rng = random.Random(5)
    assert not any(is_held_out(sample_training(rng).text) for _ in range(500))
    assert all(is_held_out(sample_held_out(rng).text) for _ in range(50))


def test_sampled_sentences_parse_back_and_repeat_no_word():
    rng = random.Random(6)
    for _ in range(500):
        sentence = sample_training(rng)
        assert parse(sentence.text) == sentence
        assert len(set(sentence.words)) == len(sentence.words)


def test_untagged_pretraining_text_holds_no_task_answer():
    sentence = parse(DEMO_SENTENCES[0])
    told = story(sentence, random.Random(7))
    assert told not in [task(sentence) for task in TASKS.values()]
    assert tagged_prompt(sentence, "shout") != sentence.prompt


def test_sentence_without_a_verb_is_refused():
    with pytest.raises(ValueError, match="no verb"):
        parse("the old fox")


def test_every_verb_has_a_participle():
    assert set(PARTICIPLES) == set(VERBS)


def test_french_needs_no_elision():
    after_determiner = (ADJECTIVES | NOUNS).values()
    assert not [word for word in after_determiner if word[0] in "aâeéêiouyh"]
