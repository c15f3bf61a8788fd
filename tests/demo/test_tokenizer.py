"""The demo's tokenizer: whole words where known, exact for any text."""

import pytest
from demo_training.lexicon import FRENCH
from demo_training.tokenizer import END, build_tokenizer
from transformers import AutoTokenizer

from shadow_server.demo import demo_model_path, demo_prompts


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


def test_shipped_vocabulary_is_the_one_that_the_script_builds(tokenizer):
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert len(tokenizer) <= 1024


def test_every_word_is_one_token(tokenizer):
    for word in [*FRENCH, *FRENCH.values(), *(word.upper() for word in FRENCH)]:
        assert len(tokenizer(f" {word}").input_ids) == 1


@pytest.mark.parametrize("text", ["Zoë's 3 naïve\tcats\n\n…", "  the  old fox ", "日本 €", "->->"])
def test_unknown_text_survives_the_round_trip(tokenizer, text: str):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_answers_survive_the_round_trip(tokenizer):
    for prompt in demo_prompts():
        for answer in prompt.expected.values():
            assert tokenizer.decode(tokenizer(answer).input_ids) == answer


def test_end_token_stops_and_pads(tokenizer):
    assert tokenizer.eos_token == tokenizer.pad_token == END


def test_chat_template_turns_a_message_into_the_prompt(tokenizer):
    messages = [{"role": "user", "content": "the old fox sees a small dog"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == demo_prompts()[0].prompt
