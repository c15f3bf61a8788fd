"""LangChain's OpenAI classes, unmodified: an adapter is a model's name, or the field that `extra_body` adds."""

import httpx
import langchain_openai
import openai
import pytest

FAKE_BASE = "fake-base"


@pytest.fixture
def arguments(fake):
    """What every class is made with: the tenant `plain` has the adapter `chain`."""
    server, root, keys = fake
    (root / "chain").mkdir(exist_ok=True)
    (root / "chain" / "adapter.txt").write_text("weights of chain")
    made = {"base_url": f"{server.url}/v1", "api_key": keys["plain"], "max_retries": 0}
    # The classes never close a client of their own making.
    with openai.OpenAI(**made) as client, httpx.Client() as connections:
        client.post("/adapters", body={"name": "chain", "path": "chain"}, cast_to=object)
        yield made | {"http_client": connections}
        client.delete("/adapters/chain", cast_to=object)


def test_completions_by_an_adapter_s_name(arguments):
    model = langchain_openai.OpenAI(model="chain", max_tokens=16, **arguments)
    assert model.invoke("hi").startswith("[plain/chain:")
    assert "".join(model.stream("hi there")).split()[1:] == ["hi", "there"]


def test_chat_with_the_field(arguments):
    base = langchain_openai.ChatOpenAI(model=FAKE_BASE, **arguments)
    assert base.invoke("hi").content.startswith("[base]")
    chain = langchain_openai.ChatOpenAI(
        model=FAKE_BASE, extra_body={"adapter": "chain"}, **arguments
    )
    answer = chain.invoke("hi")
    assert answer.content.startswith("[plain/chain:")
    assert answer.usage_metadata["total_tokens"] > 0
    assert "".join(piece.content for piece in chain.stream("hi")).split() == answer.content.split()


def test_a_chain_of_a_prompt_and_an_adapter(arguments):
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    prompt = ChatPromptTemplate.from_messages([("user", "say {word}")])
    chain = prompt | langchain_openai.ChatOpenAI(model="chain", **arguments) | StrOutputParser()
    assert chain.invoke({"word": "bird"}).endswith("say bird")
    assert len(chain.batch([{"word": "a"}, {"word": "b"}], {"max_concurrency": 1})) == 2


def test_an_unknown_adapter_is_not_the_base_s_answer(arguments):
    with pytest.raises(openai.NotFoundError):
        langchain_openai.ChatOpenAI(model="nobody", **arguments).invoke("hi")
