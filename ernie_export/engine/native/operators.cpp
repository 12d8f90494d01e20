// QuantizedLinear and MoEExperts of the domain `ernie` for ONNX Runtime on a CPU with AVX-512 VNNI.
//
// Registered, they take the place of the function bodies in a bundle's graph and read the weights where
// they lie in its mapped files: nothing is copied or reordered when the engine opens.
//
// Shapes: X tokens (B·S), H hidden size, E experts, k experts a token, I an expert's inner size.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <cmath>
#include <vector>

#include "matrix.h"

namespace {

using ernie::Activations;
using ernie::Chunk;
using ernie::Matrix;
using Types = std::vector<ONNXTensorElementDataType>;
constexpr auto F32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto F16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto U8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto I64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr int64_t ROWS = 64;  // of a matrix in one task

std::vector<int64_t> shape(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

template <class Task>
void parallel(const Ort::KernelContext& context, int64_t count, Task&& task) {
  if (count == 1) return task(0);
  const auto call = [](void* data, size_t index) { (*static_cast<std::remove_reference_t<Task>*>(data))(index); };
  context.ParallelFor(call, count, 0, &task);
}

struct Form {
  int64_t bits, block;
  explicit Form(const Ort::ConstKernelInfo& info)
      : bits(info.GetAttribute<int64_t>("bits")), block(info.GetAttribute<int64_t>("block_size")) {
    if ((bits != 4 && bits != 8) || (block != 32 && block != 64 && block != 128))
      ORT_CXX_API_THROW("weights of 4 or 8 bits in blocks of 32, 64 or 128 are known", ORT_INVALID_ARGUMENT);
  }

  Matrix matrix(const Ort::KernelContext& context, size_t data, size_t scales, int64_t K) const {
    if (K % ernie::CHUNK) ORT_CXX_API_THROW("rows must be a multiple of 128", ORT_INVALID_ARGUMENT);
    return {context.GetInput(data).GetTensorData<uint8_t>(),
            static_cast<const uint16_t*>(context.GetInput(scales).GetTensorRawData()), K, static_cast<int>(bits),
            static_cast<int>(block)};
  }

  template <class Put>
  void multiply(const Matrix& m, int64_t begin, int64_t end, const std::vector<const Chunk*>& tokens, Put&& put) const {
    const int64_t count = tokens.size();
    if (bits == 4)
      ernie::multiply<4>(m, begin, end, tokens.data(), count, put);
    else
      ernie::multiply<8>(m, begin, end, tokens.data(), count, put);
  }

  Activations rounded(const Ort::KernelContext& context, const float* x, int64_t rows, int64_t K) const {
    constexpr int64_t TOGETHER = 8;
    Activations made(rows, K);
    parallel(context, (rows + TOGETHER - 1) / TOGETHER, [&](int64_t part) {
      for (int64_t row = part * TOGETHER; row < std::min((part + 1) * TOGETHER, rows); ++row)
        made.set(row, x + row * K, bits);
    });
    return made;
  }
};

// x [..,K], weight [N,·], scales [N,K/block] → y [..,N]
struct Linear {
  static constexpr const char* name = "QuantizedLinear";
  static inline const Types inputs{F32, U8, F16}, outputs{F32};

  Form form;
  int64_t N, K;
  explicit Linear(const Ort::ConstKernelInfo& info)
      : form(info), N(info.GetAttribute<int64_t>("N")), K(info.GetAttribute<int64_t>("K")) {}

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context(raw);
    const auto x = context.GetInput(0);
    const Matrix weight = form.matrix(context, 1, 2, K);
    auto y_shape = shape(x);
    const int64_t X = x.GetTensorTypeAndShapeInfo().GetElementCount() / K;
    y_shape.back() = N;
    float* y = context.GetOutput(0, y_shape).GetTensorMutableData<float>();
    if (!X) return;
    const Activations rounded = form.rounded(context, x.GetTensorData<float>(), X, K);
    std::vector<const Chunk*> tokens(X);
    for (int64_t token = 0; token < X; ++token) tokens[token] = rounded.row(token);
    parallel(context, (N + ROWS - 1) / ROWS, [&](int64_t part) {
      form.multiply(weight, part * ROWS, std::min((part + 1) * ROWS, N), tokens,
                    [&](int64_t row, int64_t token, float value) { y[token * N + row] = value; });
    });
  }
};

// hidden [..,H], indices [..,k], scores [..,k], gate_up [E,2I,·], its scales, down [E,H,·], its scales → y [..,H]
// Rows 2i and 2i + 1 of gate_up are the i-th of gate and of up.
struct Experts {
  static constexpr const char* name = "MoEExperts";
  static inline const Types inputs{F32, I64, F32, U8, F16, U8, F16}, outputs{F32};

  // An expert that some token chose, and the places in `indices` where it is.
  struct Hit {
    int64_t expert;
    std::vector<int64_t> places;
    std::vector<const Chunk*> hidden, inner;
  };

  Form form;
  int64_t E, k;
  explicit Experts(const Ort::ConstKernelInfo& info)
      : form(info), E(info.GetAttribute<int64_t>("num_experts")), k(info.GetAttribute<int64_t>("k")) {}

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context(raw);
    const auto hidden = context.GetInput(0);
    const int64_t H = shape(hidden).back(), I = shape(context.GetInput(3))[1] / 2;
    const int64_t X = hidden.GetTensorTypeAndShapeInfo().GetElementCount() / H;
    const Matrix gate_up = form.matrix(context, 3, 4, H), down = form.matrix(context, 5, 6, I);
    float* y = context.GetOutput(0, shape(hidden)).GetTensorMutableData<float>();
    if (!X) return;
    const Activations tokens = form.rounded(context, hidden.GetTensorData<float>(), X, H);
    std::vector<Hit> hits = hit(context.GetInput(1).GetTensorData<int64_t>(), X, tokens);
    std::vector<float> inner(X * k * I);
    gated(context, gate_up, hits, inner.data(), I);
    const Activations rounded = form.rounded(context, inner.data(), X * k, I);
    for (Hit& each : hits)
      for (int64_t place : each.places) each.inner.push_back(rounded.row(place));
    summed(context, down, hits, context.GetInput(2).GetTensorData<float>(), y, X, H);
  }

  std::vector<Hit> hit(const int64_t* indices, int64_t X, const Activations& tokens) const {
    std::vector<Hit> every(E);
    for (int64_t place = 0; place < X * k; ++place) {
      if (indices[place] < 0 || indices[place] >= E) ORT_CXX_API_THROW("there is no such expert", ORT_INVALID_ARGUMENT);
      Hit& each = every[indices[place]];
      each.expert = indices[place];
      each.places.push_back(place);
      each.hidden.push_back(tokens.row(place / k));
    }
    std::vector<Hit> hits;
    for (Hit& each : every)
      if (!each.places.empty()) hits.push_back(std::move(each));
    return hits;
  }

  // inner [X·k, I] = silu(gate) · up
  void gated(const Ort::KernelContext& context, const Matrix& gate_up, const std::vector<Hit>& hits, float* inner,
             int64_t I) const {
    const int64_t parts = (2 * I + ROWS - 1) / ROWS;
    parallel(context, parts * hits.size(), [&](int64_t task) {
      const Hit& each = hits[task / parts];
      const int64_t begin = task % parts * ROWS, end = std::min(begin + ROWS, 2 * I), width = end - begin;
      std::vector<float> both(each.places.size() * width);
      form.multiply(gate_up.from(each.expert * 2 * I), begin, end, each.hidden,
                    [&](int64_t row, int64_t token, float value) { both[token * width + row - begin] = value; });
      for (size_t token = 0; token < each.places.size(); ++token)
        for (int64_t i = 0; i < width; i += 2) {
          const float gate = both[token * width + i], up = both[token * width + i + 1];
          inner[each.places[token] * I + (begin + i) / 2] = gate / (1 + std::exp(-gate)) * up;
        }
    });
  }

  // y [X, H] = the sum over a token's experts of score · down · inner, always in the order of the experts
  void summed(const Ort::KernelContext& context, const Matrix& down, const std::vector<Hit>& hits, const float* scores,
              float* y, int64_t X, int64_t H) const {
    parallel(context, (H + ROWS - 1) / ROWS, [&](int64_t part) {
      const int64_t begin = part * ROWS, end = std::min(begin + ROWS, H);
      for (int64_t token = 0; token < X; ++token) std::fill(y + token * H + begin, y + token * H + end, 0.0f);
      for (const Hit& each : hits)
        form.multiply(down.from(each.expert * H), begin, end, each.inner,
                      [&](int64_t row, int64_t token, float value) {
                        const int64_t place = each.places[token];
                        y[place / k * H + row] += scores[place] * value;
                      });
    });
  }
};

template <class Kernel>
struct Operator : Ort::CustomOpBase<Operator<Kernel>, Kernel> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* info) const { return new Kernel(Ort::ConstKernelInfo(info)); }
  const char* GetName() const { return Kernel::name; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return Kernel::inputs.size(); }
  size_t GetOutputTypeCount() const { return Kernel::outputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return Kernel::inputs[i]; }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return Kernel::outputs[i]; }
};

}  // namespace

extern "C" OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  static const Operator<Linear> linear;
  static const Operator<Experts> experts;
  static Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain made("ernie");
    made.Add(&linear);
    made.Add(&experts);
    return made;
  }();
  try {
    Ort::UnownedSessionOptions(options).Add(domain);
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  }
  return nullptr;
}
