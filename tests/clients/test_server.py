"""Both clients over the server itself, with its fake engine and real sockets."""

import pytest

from shadow_client.error import ConflictError, UnprocessableError
from shadow_client.error_code import (
    AdapterExistsError,
    AdapterNotFoundError,
    AdapterPathForbiddenError,
    AdapterTensorInvalidError,
    AdminRequiredError,
)


@pytest.fixture
def client(connect):
    with connect() as client:
        yield client
        for adapter in client.adapters.list():
            client.adapters.delete(adapter.name)


def test_the_life_of_an_adapter(client, write_adapter, kind):
    name = f"support-{kind}"  # numbers of versions are never given twice
    folder = write_adapter(name, "one")
    first = client.adapters.publish(name, folder)
    assert (first.tenant, first.version, first.state) == ("acme", 1, "RESIDENT")
    write_adapter(name, "two")
    second = client.adapters.publish(name, str(folder), wait=False)
    assert second.replaced_digest == first.digest
    assert client.adapters.wait(name, timeout_seconds=10).version == 2
    answer = client.completions.create("hi there", adapter=name)
    assert answer.info.adapter_digest == second.digest
    assert answer.info.adapter_version == 2
    back = client.adapters.rollback(name)
    assert (back.version, back.digest) == (3, first.digest)
    assert [v.origin for v in client.adapters.versions(name)][-1] == "rollback"
    assert client.adapters.pin(name).pinned
    assert not client.adapters.unpin(f"acme/{name}").pinned
    assert client.adapters.get(f"{name}@2").digest == second.digest
    assert {model.id for model in client.models()} == {"fake-base", name}
    assert client.adapters.delete(name).is_gone
    with pytest.raises(AdapterNotFoundError):
        client.adapters.get(name)


def test_an_upload_with_its_progress(client, tmp_path):
    file = tmp_path / "adapter.txt"
    file.write_bytes(b"w" * (3 << 20))
    told = []
    made = client.adapters.upload("big", [file], on_progress=told.append)
    assert made.state == "RESIDENT"
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert (stages[0], stages[-1]) == ("uploading", "resident")
    assert {"reading", "validated", "loading", "registered"} < set(stages)
    sent = [p.num_bytes for p in told if p.stage == "uploading"]
    assert sent == sorted(sent)
    assert sent[-1] > 3 << 20
    assert len(sent) >= 12  # a quarter of a MiB each


def test_a_publish_that_fails_on_its_way(client, write_adapter):
    told = []
    with pytest.raises(AdapterTensorInvalidError) as caught:
        client.adapters.publish("x", write_adapter("x", "broken"), on_progress=told.append)
    assert isinstance(caught.value, UnprocessableError)
    assert caught.value.status == 422
    assert told[0].stage == "reading"


def test_refusals(client, write_adapter, tmp_path):
    write_adapter("a", "one")
    client.adapters.publish("a", "a")
    write_adapter("a", "two")
    with pytest.raises(AdapterExistsError) as caught:
        client.adapters.publish("a", "a", can_replace=False)
    assert isinstance(caught.value, ConflictError)
    with pytest.raises(AdapterPathForbiddenError):
        client.adapters.publish("b", tmp_path)
    with pytest.raises(AdminRequiredError):
        client.metrics()


def test_validation_of_good_and_bad_files(client, write_adapter, tmp_path):
    assert client.adapters.validate(write_adapter("good")).is_valid
    file = tmp_path / "adapter.txt"
    file.write_text("broken")
    report = client.adapters.validate_upload([file])
    assert not report.is_valid
    assert report.error.code == "adapter_tensor_invalid"
    assert report.tensors[0].name == "text"


def test_streams_and_usage(client, write_adapter):
    client.adapters.publish("a", write_adapter("a"))
    with client.completions.stream("one two", adapter="a") as stream:
        assert stream.info.adapter == "acme/a"
        assert stream.read_text().split()[1:] == ["one", "two"]
        assert stream.usage.completion_tokens == 3


def test_tenants_see_their_own(connect, client, write_adapter):
    client.adapters.publish("mine", write_adapter("mine"))
    with connect("ops") as admin:
        assert [a.name for a in admin.adapters.list(tenant="acme")] == ["acme/mine"]
        assert admin.adapters.get("acme/mine").tenant == "acme"
        assert admin.is_ready()
        assert "shadow_adapters" in admin.metrics()
    assert [a.name for a in client.adapters.list()] == ["mine"]
