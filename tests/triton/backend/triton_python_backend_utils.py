"""A double of the module that Triton's Python backend brings: what a model asks of it, and no more."""


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceRequest:
    def __init__(self, tensors):
        self.tensors = {tensor.name(): tensor for tensor in tensors}


class TritonError:
    def __init__(self, message):
        self._message = message

    def message(self):
        return self._message


class TritonModelException(Exception):
    pass


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._tensors

    def error(self):
        return self._error


def get_input_tensor_by_name(request, name):
    return request.tensors.get(name)
