"""An ONNX Runtime backend for a Triton that has none: its Python backend runs this for every model of the repository.

Requests that Triton hands over together are joined, run once and split again. A model with bfloat16, which NumPy lacks,
runs one request at a time, on onnxruntime's own arrays.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = onnxruntime.InferenceSession(path)
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.bfloat16 = "tensor(bfloat16)" in {one.type for one in (*self.inputs.values(), *self.session.get_outputs())}
        self.joins = config["max_batch_size"] > 0 and not self.bfloat16

    def execute(self, requests):
        groups = [requests] if self.joins else [[request] for request in requests]
        return [response for group in groups for response in self.responses(group)]

    def responses(self, requests):
        try:
            feeds = [{tensor.name(): self.value(tensor) for tensor in request.inputs()} for request in requests]
            if self.bfloat16:
                values = self.session.run_with_ort_values(self.outputs, feeds[0])
                return [triton.InferenceResponse(list(map(triton.Tensor.from_dlpack, self.outputs, values)))]
            if len(feeds) == 1:
                parts = [self.session.run(self.outputs, feeds[0])]
            else:
                joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
                ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
                parts = zip(*(np.split(output, ends) for output in self.session.run(self.outputs, joined)), strict=True)
            return [triton.InferenceResponse(list(map(self.tensor, self.outputs, part))) for part in parts]
        except Exception as error:
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]

    def tensor(self, name, array):
        return triton.Tensor(name, np.asarray(array))  # a scalar of NumPy is no array

    def value(self, tensor):
        if self.bfloat16:
            return onnxruntime.OrtValue.from_dlpack(tensor.to_dlpack())
        array = tensor.as_numpy()
        if array.dtype == object:  # bytes; onnxruntime takes text
            array = np.array([text.decode() for text in array.flat], object).reshape(array.shape)
        return array if self.inputs[tensor.name()].shape else array.reshape(())  # Triton has no scalars
