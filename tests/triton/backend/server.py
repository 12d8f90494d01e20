"""A server of the tests' own: it starts a model of the Python backend and sends it what a file asks for.

python server.py MODEL CONFIG REQUESTS ANSWERS.  REQUESTS is JSON: batches of [sequence, start, end, tokens].
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

model_folder, config, requests, answers = map(Path, sys.argv[1:])
spec = importlib.util.spec_from_file_location("model", model_folder / "1" / "model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "ernie_export.zip" in sys.modules["ernie_export"].__file__
model = module.TritonPythonModel()
arguments = {"model_config": config.read_text(), "model_repository": str(model_folder), "model_version": "1"}
try:
    model.initialize(arguments)
except triton.TritonModelException as error:
    sys.exit(f"UNAVAILABLE: {error}")
told = {}
for number, batch in enumerate(json.loads(requests.read_text())):
    asked = [
        triton.InferenceRequest(
            [
                triton.Tensor("input_ids", np.array([tokens], np.int64)),
                triton.Tensor("START", np.array([[start]], np.int32)),
                triton.Tensor("END", np.array([[end]], np.int32)),
                triton.Tensor("CORRID", np.array([[sequence]], np.uint64)),
            ]
        )
        for sequence, start, end, tokens in batch
    ]
    given = model.execute(asked)
    assert len(given) == len(asked)
    for at, response in enumerate(given):
        if response.error():
            told[f"{number}.{at}"] = np.array(response.error().message())
        else:
            (tensor,) = response.output_tensors()
            assert tensor.name() == "logits"
            told[f"{number}.{at}"] = tensor.as_numpy()
np.savez(answers, **told)
