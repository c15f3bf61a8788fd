"""lm-eval's `local-completions` over this server gives what lm-eval computes with the reference packages."""

import json

import pytest

from reference_adapters import load_adapter_model, load_base
from running_server import ADAPTERS, BASE, PROMPTS
from shadow_server.demo import demo_model_path

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TASK = "which_language"
CHOICES = ("french", "shout", "reverse", "passive")
TASK_FILE = """
task: which_language
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """Return a function that evaluates a model: gives accuracy and each choice's log-likelihood."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("lm-eval")
    data = folder / "data.jsonl"
    docs = [
        {"prompt": p.prompt, "choices": [p.expected[c] for c in CHOICES], "label": 0}
        for p in PROMPTS
    ]
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "task.yaml").write_text(TASK_FILE.format(data=data))
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def evaluate(model, **arguments):
        found = simple_evaluate(
            model=model, tasks=[TASK], task_manager=manager, bootstrap_iters=0, **arguments
        )
        samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
        scores = [float(r[0][0]) for sample in samples for r in sample["resps"]]
        return found["results"][TASK]["acc,none"], scores

    return evaluate


@pytest.fixture(scope="module")
def served(real, evaluate):
    """Return a function that evaluates what the server calls `name`."""

    def served(name):
        arguments = {
            "model": name,
            "base_url": f"{real.process.url}/v1/completions",
            "tokenizer": str(demo_model_path()),
            "num_concurrent": 4,
            "max_retries": 1,
        }
        return evaluate("local-completions", model_args=arguments)

    return served


@pytest.fixture(scope="module")
def reference(evaluate):
    """Return a function that evaluates a reference model with lm-eval's Hugging Face backend."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    class Reference(HFLM):
        def _model_call(self, inps, attn_mask=None, labels=None):
            # shadow-peft's models take their input by name only.
            return self.model(input_ids=inps, use_cache=False).logits.detach()

    def reference(model):
        tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
        return evaluate(Reference(pretrained=model, tokenizer=tokenizer, batch_size=1))

    return reference


def test_base_and_adapter_score_as_the_references_do(served, reference):
    accuracy, scores = reference(load_base(demo_model_path()))
    base = served(BASE)
    assert base == (accuracy, pytest.approx(scores, abs=2e-3))
    model = load_adapter_model("paper_implicit", demo_model_path(), ADAPTERS["french"])
    accuracy, scores = reference(model)
    french = served("french")
    assert french == (accuracy, pytest.approx(scores, abs=2e-3))
    # The task can tell them apart: the adapter was trained on its answers.
    assert french[0] == 1.0
    assert base[0] < 0.5
