"""The demo's tokenizer: one token per word of the lexicon, single bytes for everything else."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from demo_training.lexicon import FRENCH, PARTICIPLES
from demo_training.task import TASKS

END = "<|end|>"
"""End of text, and padding."""

CHAT_TEMPLATE = "{{ messages[-1]['content'] }}{% if add_generation_prompt %} ->{% endif %}"
"""The last message is the sentence; the arrow asks for the answer."""

_PUNCTUATION = (
    *(" ->", " (", ")", "!", ".", "\n"),
    *(' {"', '":', ' "', '",', '"}'),
)
_OTHER_WORDS = ("is", "by", "then", "who", "does", "what")


def build_tokenizer() -> Tokenizer:
    """Byte-level tokenizer with a given vocabulary: a known word is one token, the rest is bytes.

    Returns:
        A tokenizer of fewer than 1,024 tokens that decodes what it encodes, whatever the text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    vocabulary = {END: 0} | {symbol: 1 + index for index, symbol in enumerate(alphabet)}
    for text in _known_texts():
        pieces = splitter.pre_tokenize_str(text)
        if len(pieces) != 1:
            raise ValueError(f"{text!r} is not one piece of text: {pieces}")
        vocabulary.setdefault(pieces[0][0], len(vocabulary))
    # ignore_merges looks a whole piece up before any merging, so that no merge table is needed.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def save_tokenizer(directory: Path, *, max_length: int) -> PreTrainedTokenizerFast:
    """Write the tokenizer's files for `AutoTokenizer`.

    Args:
        directory: where tokenizer.json and tokenizer_config.json go.
        max_length: the model's context, in tokens.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        eos_token=END,
        pad_token=END,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def _known_texts() -> list[str]:
    english = [*FRENCH, *PARTICIPLES.values(), *_OTHER_WORDS]
    spaced = [*english, *FRENCH.values(), *(word.upper() for word in FRENCH)]
    return [*_PUNCTUATION, *english, *TASKS, *(f" {word}" for word in spaced)]
