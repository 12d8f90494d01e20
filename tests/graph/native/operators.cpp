// Three operators of the domain `ernie` as a native library for ONNX Runtime: MoERouting, MoEExperts
// and QuantizedLinear, in fp32, for weights stored as fp32, INT8 or INT4.
//
// Shapes: X tokens (B·S), H hidden size, E experts, k experts a token, I an expert's inner size.
// Stored rows of K weights: see ernie_export/quantize/formats.py.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace {

using Types = std::vector<ONNXTensorElementDataType>;
constexpr auto F32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto F16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto U8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto I64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

float dot(const float* a, const float* b, int64_t n) { return std::inner_product(a, a + n, b, 0.0f); }

float silu(float x) { return x / (1 + std::exp(-x)); }

// Rows of K weights: fp32 when bits is 0, else codes of `bits` bits and an fp16 scale a block.
struct Matrix {
  const void* data;
  const Ort::Float16_t* scales;
  int64_t K, bits, block;

  void row(int64_t n, float* out) const {
    if (bits == 0) {
      std::memcpy(out, static_cast<const float*>(data) + n * K, K * sizeof(float));
      return;
    }
    const uint8_t* bytes = static_cast<const uint8_t*>(data) + n * K * bits / 8;
    const int zero = 1 << (bits - 1), mask = (1 << bits) - 1;
    for (int64_t i = 0; i < K; ++i) {
      const int code = bytes[i * bits / 8] >> (i * bits % 8) & mask;
      out[i] = (code - zero) * scales[(n * K + i) / block].ToFloat();
    }
  }
};

Matrix matrix(Ort::KernelContext& context, size_t data, size_t scales, int64_t K, int64_t bits, int64_t block) {
  return {context.GetInput(data).GetTensorRawData(),
          bits ? context.GetInput(scales).GetTensorData<Ort::Float16_t>() : nullptr, K, bits, block};
}

std::vector<int64_t> shape(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

int64_t attribute(const Ort::ConstKernelInfo& info, const char* name) { return info.GetAttribute<int64_t>(name); }

// hidden [..,H], weight [E,H], bias [E] → indices [..,k], scores [..,k]
struct Routing {
  static constexpr const char* name = "MoERouting";
  static inline const Types inputs{F32, F32, F32}, outputs{I64, F32};
  static inline std::atomic<int64_t> runs{0};

  int64_t k;
  float norm_min;
  explicit Routing(const Ort::ConstKernelInfo& info)
      : k(attribute(info, "k")), norm_min(info.GetAttribute<float>("norm_min")) {}

  void Compute(OrtKernelContext* raw) const {
    ++runs;
    Ort::KernelContext context(raw);
    const auto hidden = context.GetInput(0), weight = context.GetInput(1);
    const float* bias = context.GetInput(2).GetTensorData<float>();
    const int64_t E = shape(weight)[0], H = shape(weight)[1];
    auto chosen_shape = shape(hidden);
    chosen_shape.back() = k;
    int64_t* indices = context.GetOutput(0, chosen_shape).GetTensorMutableData<int64_t>();
    float* scores = context.GetOutput(1, chosen_shape).GetTensorMutableData<float>();
    const int64_t X = std::accumulate(chosen_shape.begin(), chosen_shape.end() - 1, int64_t{1}, std::multiplies<>());
    for (int64_t x = 0; x < X; ++x, indices += k, scores += k) {
      const auto probability = softmax(hidden.GetTensorData<float>() + x * H, weight.GetTensorData<float>(), E, H);
      choose(probability, bias, indices);
      float sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += scores[i] = probability[indices[i]];
      for (int64_t i = 0; i < k; ++i) scores[i] /= std::max(sum, norm_min);
    }
  }

  static std::vector<float> softmax(const float* token, const float* weight, int64_t E, int64_t H) {
    std::vector<float> values(E);
    for (int64_t e = 0; e < E; ++e) values[e] = dot(token, weight + e * H, H);
    const float highest = *std::max_element(values.begin(), values.end());
    for (float& value : values) value = std::exp(value - highest);
    const float sum = std::accumulate(values.begin(), values.end(), 0.0f);
    for (float& value : values) value /= sum;
    return values;
  }

  void choose(const std::vector<float>& probability, const float* bias, int64_t* indices) const {
    std::vector<int64_t> order(probability.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort_copy(order.begin(), order.end(), indices, indices + k, [&](int64_t a, int64_t b) {
      const float of_a = probability[a] + bias[a], of_b = probability[b] + bias[b];
      return of_a != of_b ? of_a > of_b : a < b;
    });
  }
};

// hidden [..,H], indices [..,k], scores [..,k], gate_up [E,2I,·], its scales, down [E,H,·], its scales → y [..,H]
// Rows 2i and 2i + 1 of gate_up are the i-th of gate and of up.
template <ONNXTensorElementDataType stored>
struct Experts {
  static constexpr const char* name = "MoEExperts";
  static inline const Types inputs{F32, I64, F32, stored, F16, stored, F16}, outputs{F32};
  static inline std::atomic<int64_t> runs{0};

  int64_t E, k, bits, block;
  explicit Experts(const Ort::ConstKernelInfo& info)
      : E(attribute(info, "num_experts")),
        k(attribute(info, "k")),
        bits(attribute(info, "bits")),
        block(attribute(info, "block_size")) {}

  void Compute(OrtKernelContext* raw) const {
    ++runs;
    Ort::KernelContext context(raw);
    const auto hidden = context.GetInput(0);
    const int64_t H = shape(hidden).back(), I = shape(context.GetInput(3))[1] / 2;
    const int64_t X = hidden.GetTensorTypeAndShapeInfo().GetElementCount() / H;
    const Matrix gate_up = matrix(context, 3, 4, H, bits, block), down = matrix(context, 5, 6, I, bits, block);
    const int64_t* indices = context.GetInput(1).template GetTensorData<int64_t>();
    const float* scores = context.GetInput(2).template GetTensorData<float>();
    float* y = context.GetOutput(0, shape(hidden)).template GetTensorMutableData<float>();
    std::fill(y, y + X * H, 0.0f);
    for (int64_t e = 0; e < E; ++e) {
      std::vector<int64_t> places;  // in indices, where e was chosen
      for (int64_t place = 0; place < X * k; ++place)
        if (indices[place] == e) places.push_back(place);
      run(e, places, hidden.template GetTensorData<float>(), scores, gate_up, down, y);
    }
  }

  void run(int64_t e, const std::vector<int64_t>& places, const float* hidden, const float* scores,
           const Matrix& gate_up, const Matrix& down, float* y) const {
    const int64_t H = gate_up.K, I = down.K, count = places.size();
    std::vector<float> gate(H), up(H), row(I), inner(count * I);
    for (int64_t i = 0; i < I && count; ++i) {
      gate_up.row(e * 2 * I + 2 * i, gate.data());
      gate_up.row(e * 2 * I + 2 * i + 1, up.data());
      for (int64_t c = 0; c < count; ++c) {
        const float* token = hidden + places[c] / k * H;
        inner[c * I + i] = silu(dot(gate.data(), token, H)) * dot(up.data(), token, H);
      }
    }
    for (int64_t h = 0; h < H && count; ++h) {
      down.row(e * H + h, row.data());
      for (int64_t c = 0; c < count; ++c)
        y[places[c] / k * H + h] += scores[places[c]] * dot(row.data(), &inner[c * I], I);
    }
  }
};

// x [..,K], weight [N,·], scales [N,K/block] → y [..,N]
struct Linear {
  static constexpr const char* name = "QuantizedLinear";
  static inline const Types inputs{F32, U8, F16}, outputs{F32};
  static inline std::atomic<int64_t> runs{0};

  int64_t N, K, bits, block;
  explicit Linear(const Ort::ConstKernelInfo& info)
      : N(attribute(info, "N")),
        K(attribute(info, "K")),
        bits(attribute(info, "bits")),
        block(attribute(info, "block_size")) {}

  void Compute(OrtKernelContext* raw) const {
    ++runs;
    Ort::KernelContext context(raw);
    const auto x = context.GetInput(0);
    const Matrix weight = matrix(context, 1, 2, K, bits, block);
    auto y_shape = shape(x);
    const int64_t X = x.GetTensorTypeAndShapeInfo().GetElementCount() / K;
    y_shape.back() = N;
    float* y = context.GetOutput(0, y_shape).GetTensorMutableData<float>();
    std::vector<float> row(K);
    for (int64_t n = 0; n < N; ++n) {
      weight.row(n, row.data());
      for (int64_t token = 0; token < X; ++token)
        y[token * N + n] = dot(x.GetTensorData<float>() + token * K, row.data(), K);
    }
  }
};

template <class Kernel>
struct Operator : Ort::CustomOpBase<Operator<Kernel>, Kernel> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* info) const {
    return new Kernel(Ort::ConstKernelInfo(info));
  }
  const char* GetName() const { return Kernel::name; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return Kernel::inputs.size(); }
  size_t GetOutputTypeCount() const { return Kernel::outputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return Kernel::inputs[i]; }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return Kernel::outputs[i]; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t) const { return INPUT_OUTPUT_OPTIONAL; }
};

}  // namespace

// How often kernels of `op_type` have run in this process; -1 for an operator that the library lacks.
extern "C" int64_t ernie_kernel_runs(const char* op_type) {
  if (!std::strcmp(op_type, Routing::name)) return Routing::runs;
  if (!std::strcmp(op_type, Linear::name)) return Linear::runs;
  if (!std::strcmp(op_type, Experts<F32>::name)) return Experts<F32>::runs + Experts<U8>::runs;
  return -1;
}

extern "C" OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  static const Operator<Routing> routing;
  static const Operator<Experts<F32>> float_experts;
  static const Operator<Experts<U8>> packed_experts;
  static const Operator<Linear> linear;
  static Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain made("ernie");
    made.Add(&routing);
    made.Add(&float_experts);
    made.Add(&packed_experts);
    made.Add(&linear);
    return made;
  }();
  try {
    Ort::UnownedSessionOptions(options).Add(domain);
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  }
  return nullptr;
}
