"""The models of a server: what its index says of those that are loaded, unloaded, and can't be."""

from __future__ import annotations

import asyncio

import pytest
from onnx import TensorProto, helper, save

from lamella_serve.model import Settings
from lamella_serve.refusals import Refusal
from lamella_serve.repository import Repository


def write(path):
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", tensors[:1], tensors[1:])
    path.parent.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_the_index_tells_why_a_model_is_not_there(tmp_path):
    write(tmp_path / "good" / "1" / "model.onnx")
    repository = Repository([tmp_path], Settings())
    (tmp_path / "broken" / "7").mkdir(parents=True)
    (tmp_path / "broken" / "7" / "model.onnx").write_bytes(b"nothing")
    ready = {"name": "good", "version": "1", "state": "READY"}
    assert repository.index() == [{"name": "broken"}, ready]
    with pytest.raises(Refusal, match="model 'broken' can't be loaded"):
        asyncio.run(repository.load("broken"))
    broken = repository.index()[0]
    assert "onnx" in broken.pop("reason")
    assert broken == {"name": "broken", "version": "7", "state": "UNAVAILABLE"}
    assert repository.index(ready=True) == [ready]
    (tmp_path / "good" / "1" / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="model 'good' can't be loaded"):
        asyncio.run(repository.load("good"))
    assert repository.index()[1] == ready  # what was loaded stays
    asyncio.run(repository.unload("good"))
    assert repository.index()[1] == {"name": "good", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
