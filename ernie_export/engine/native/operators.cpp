// QuantizedLinear and MoEExperts of the domain `ernie` for ONNX Runtime on a CPU with AVX-512 VNNI.
//
// Registered, they take the place of the function bodies in a bundle's graph and read the weights where
// they lie in its mapped files: nothing is copied or reordered when the engine opens.
//
// Shapes: X tokens (B·S), H hidden size, E experts, k experts a token, I an expert's inner size.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <array>
#include <vector>

#include "gate.h"
#include "panel.h"

namespace {

using ernie::Activations;
using ernie::Buffer;
using ernie::Matrix;
using Types = std::vector<ONNXTensorElementDataType>;
constexpr auto F32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto F16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto U8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto I64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr int64_t FEW = 3;  // activations that are multiplied row by row; more of them by panels

std::vector<int64_t> shape(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Of `N` rows, those of one task: long runs of memory for few activations, and panels for many.
int64_t task_rows(int64_t N, int64_t M) {
  return M <= FEW ? divided(N, 16 * ernie::PANEL) * ernie::PANEL : 2 * ernie::PANEL;
}

template <class Task>
void parallel(const Ort::KernelContext& context, int64_t count, Task&& task) {
  if (count == 1) return task(0);
  const auto call = [](void* data, size_t index) { (*static_cast<std::remove_reference_t<Task>*>(data))(index); };
  context.ParallelFor(call, count, 0, &task);
}

template <class Task>
void of_bits_and_block(const Matrix& m, Task&& task) {
  const auto of_block = [&](auto bits) {
    if (m.block == 128) return task(bits, std::integral_constant<int, 128>());
    if (m.block == 64) return task(bits, std::integral_constant<int, 64>());
    task(bits, std::integral_constant<int, 32>());
  };
  m.bits == 4 ? of_block(std::integral_constant<int, 4>()) : of_block(std::integral_constant<int, 8>());
}

// out [M, width] = rows [begin, begin + width) of the matrix times all activations; lines of `out` are `stride` apart.
void multiply(const Matrix& m, int64_t begin, int64_t width, const Activations& x, float* out, int64_t stride) {
  of_bits_and_block(m, [&](auto bits, auto block) {
    constexpr int BITS = decltype(bits)::value, BLOCK = decltype(block)::value;
    if (x.M <= FEW)
      return ernie::few<BITS, BLOCK>(m, begin, begin + width, x, [&](int64_t row, int64_t token, float value) {
        out[token * stride + row - begin] = value;
      });
    ernie::many<BITS, BLOCK>(m, begin, begin + width, x, [&](int64_t row, int64_t there, const float* sums) {
      for (int64_t token = 0; token < x.M; ++token)
        std::copy(sums + token * ernie::PANEL, sums + token * ernie::PANEL + there, out + token * stride + row - begin);
    });
  });
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
            static_cast<const uint16_t*>(context.GetInput(scales).GetTensorRawData()), K, bits, block};
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
    const Activations rounded(X, K, form.bits, form.block);
    const float* values = x.GetTensorData<float>();
    parallel(context, X, [&](int64_t token) { rounded.set(token, values + token * K); });
    const int64_t rows = task_rows(N, X);
    parallel(context, divided(N, rows), [&](int64_t part) {
      const int64_t begin = part * rows;
      multiply(weight, begin, std::min(rows, N - begin), rounded, y + begin, N);
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
    Activations hidden, inner;
    Hit(int64_t expert, const std::vector<int64_t>& places, int64_t H, int64_t I, const Form& form)
        : expert(expert), places(places), hidden(places.size(), H, form.bits, form.block),
          inner(places.size(), I, form.bits, form.block) {}
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
    const std::vector<Hit> hits = hit(context.GetInput(1).GetTensorData<int64_t>(), X, H, I);
    rounded(context, hits, [&](const Hit& each, int64_t token) {
      each.hidden.set(token, hidden.GetTensorData<float>() + each.places[token] / k * H);
    });
    const Buffer<float> inner(X * k * I);
    gated(context, gate_up, hits, inner.data(), I);
    rounded(context, hits, [&](const Hit& each, int64_t token) {
      each.inner.set(token, inner.data() + each.places[token] * I);
    });
    summed(context, down, hits, context.GetInput(2).GetTensorData<float>(), y, X, H);
  }

  std::vector<Hit> hit(const int64_t* indices, int64_t X, int64_t H, int64_t I) const {
    std::vector<std::vector<int64_t>> places(E);
    for (int64_t place = 0; place < X * k; ++place) {
      if (indices[place] < 0 || indices[place] >= E) ORT_CXX_API_THROW("there is no such expert", ORT_INVALID_ARGUMENT);
      places[indices[place]].push_back(place);
    }
    std::vector<Hit> hits;
    for (int64_t expert = 0; expert < E; ++expert)
      if (!places[expert].empty()) hits.emplace_back(expert, places[expert], H, I, form);
    return hits;
  }

  template <class Set>
  static void rounded(const Ort::KernelContext& context, const std::vector<Hit>& hits, Set&& set) {
    parallel(context, hits.size(), [&](int64_t task) {
      for (int64_t token = 0; token < hits[task].hidden.M; ++token) set(hits[task], token);
    });
  }

  // inner [X·k, I] = silu(gate) · up
  static void gated(const Ort::KernelContext& context, const Matrix& gate_up, const std::vector<Hit>& hits,
                    float* inner, int64_t I) {
    std::vector<std::array<int64_t, 2>> tasks;
    for (size_t index = 0; index < hits.size(); ++index)
      for (int64_t begin = 0; begin < 2 * I; begin += task_rows(2 * I, hits[index].hidden.M))
        tasks.push_back({static_cast<int64_t>(index), begin});
    parallel(context, tasks.size(), [&](int64_t task) {
      const Hit& each = hits[tasks[task][0]];
      const int64_t begin = tasks[task][1], width = std::min(task_rows(2 * I, each.hidden.M), 2 * I - begin);
      thread_local Buffer<float> both;
      both.grow(each.hidden.M * width);
      multiply(gate_up.from(each.expert * 2 * I), begin, width, each.hidden, both.data(), width);
      for (int64_t token = 0; token < each.hidden.M; ++token)
        ernie::gate(both.data() + token * width, width / 2, inner + each.places[token] * I + begin / 2);
    });
  }

  // y [X, H] = the sum over a token's experts of score · down · inner, always in the order of the experts
  void summed(const Ort::KernelContext& context, const Matrix& down, const std::vector<Hit>& hits, const float* scores,
              float* y, int64_t X, int64_t H) const {
    const int64_t rows = task_rows(H, X);
    parallel(context, divided(H, rows), [&](int64_t part) {
      const int64_t begin = part * rows, width = std::min(rows, H - begin);
      thread_local Buffer<float> product;
      for (int64_t token = 0; token < X; ++token) std::fill_n(y + token * H + begin, width, 0.0f);
      for (const Hit& each : hits) {
        product.grow(each.inner.M * width);
        multiply(down.from(each.expert * H), begin, width, each.inner, product.data(), width);
        for (int64_t token = 0; token < each.inner.M; ++token) {
          const int64_t place = each.places[token];
          float* to = y + place / k * H + begin;
          for (int64_t i = 0; i < width; ++i) to[i] += scores[place] * product.data()[token * width + i];
        }
      }
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
