"""LiteLLM, unmodified, as a gateway calls this server: an adapter is a model's name, or the field of `extra_body`."""

import httpx
import pytest

TALK = [{"role": "user", "content": "hi there"}]
ADAPTER = "gateway"


@pytest.fixture(scope="module")
def litellm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import asks the network
        import litellm
    return litellm


@pytest.fixture
def arguments(fake):
    """What every call is made with: the tenant `plain` has the adapter `gateway`."""
    server, root, keys = fake
    (root / ADAPTER).mkdir(exist_ok=True)
    (root / ADAPTER / "adapter.txt").write_text("weights of the gateway's adapter")
    headers = {"authorization": f"Bearer {keys['plain']}"}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        body = {"name": ADAPTER, "path": ADAPTER}
        client.post("/v1/adapters", json=body).raise_for_status()
        yield {"api_base": f"{server.url}/v1", "api_key": keys["plain"], "max_retries": 0}
        client.delete(f"/v1/adapters/{ADAPTER}").raise_for_status()


def test_chat_by_an_adapter_s_name_whole_and_streamed(litellm, arguments):
    call = {"model": f"hosted_vllm/{ADAPTER}", "messages": TALK} | arguments
    answer = litellm.completion(**call)
    text = answer.choices[0].message.content
    assert text.startswith("[plain/gateway:")
    assert answer.usage.total_tokens > 0
    pieces = [chunk.choices[0].delta.content for chunk in litellm.completion(stream=True, **call)]
    assert "".join(filter(None, pieces)).split() == text.split()


def test_chat_with_the_field(litellm, arguments):
    call = {"model": "hosted_vllm/fake-base", "messages": TALK} | arguments
    base = litellm.completion(**call)
    assert base.choices[0].message.content.startswith("[base]")
    adapted = litellm.completion(extra_body={"adapter": ADAPTER}, **call)
    assert adapted.choices[0].message.content.startswith("[plain/gateway:")


def test_text_completion(litellm, arguments):
    call = {"model": f"text-completion-openai/{ADAPTER}", "prompt": "hi there"} | arguments
    text = litellm.text_completion(**call).choices[0].text
    assert text.startswith("[plain/gateway:")
    assert text.split()[1:] == ["hi", "there"]


def test_an_unknown_adapter_is_not_the_base_s_answer(litellm, arguments):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="hosted_vllm/nobody", messages=TALK, **arguments)
