// The tensors of an operator: their dtypes, and their shapes in letters.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <vector>

#include "../kernels/launch.h"

namespace ernie::plugin {

/// What a tensor holds.  Codes are packed weights, bytes that are declared as int8 or int32, since TensorRT gives
/// plugins no uint8; activations are of one type, fp16 or bf16, throughout an operator.
enum class Element { activation, codes, fp16, fp32, int32, int64 };

/// Of a tensor's shape: the size that the letter stands for, times `times`, over `over`.
struct Axis {
    char letter;
    std::int32_t times = 1;
    std::int32_t over = 1;
};

struct Tensor {
    const char* name;
    Element element;
    std::vector<Axis> shape;
    int alias = -1;  // of an output: the input in whose memory it may be
};

struct Signature {
    std::vector<Tensor> inputs, outputs;
};

/// The sizes that letters stand for, as far as they are known.
class Sizes {
  public:
    Sizes() { sizes_.fill(-1); }
    bool known(char letter) const { return (*this)[letter] >= 0; }
    std::int32_t operator[](char letter) const { return sizes_[static_cast<unsigned char>(letter)]; }
    void set(char letter, std::int32_t size) { sizes_[static_cast<unsigned char>(letter)] = size; }

  private:
    std::array<std::int32_t, 128> sizes_;
};

/// What TensorRT tells of a tensor.
struct Given {
    nvinfer1::DataType type;
    nvinfer1::TensorFormat format;
    const nvinfer1::Dims* dims;
};

/// That a tensor has the dtype: of codes either, of activations `activation`, which is fp16 or bf16.
Problem check_type(const Tensor& tensor, nvinfer1::DataType type, nvinfer1::DataType activation);

/// That a tensor is as the operator takes it; learns the sizes of letters that are not known yet.
Problem check(const Tensor& tensor, const Given& given, nvinfer1::DataType activation, Sizes& sizes);

bool takes(Element element, nvinfer1::DataType type, nvinfer1::DataType activation);

}  // namespace ernie::plugin
