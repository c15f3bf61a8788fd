"""How the demo's base model and adapters are made: words, tasks, tokenizer, training, evaluation.

Not part of the wheel. `server/demo/make_demo.py` is the entry point.
"""
