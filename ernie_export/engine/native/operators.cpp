// QuantizedLinear, MoEExperts and CachedAttention of the domain `ernie` for ONNX Runtime on a CPU with AVX-512 VNNI.
//
// Registered, they take the place of the function bodies in a bundle's graph and read the weights where
// they lie in its mapped files: nothing is copied or reordered when the engine opens.  The KV cache is fp16.
//
// Shapes: X tokens (B·S), H hidden size, E experts, k experts a token, I an expert's inner size; of attention,
// B rows, S new tokens, P rows of the past cache, L of the present one, D a head's width.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <array>
#include <vector>

#include "attention.h"
#include "gate.h"
#include "panel.h"

namespace {

using ernie::Activations;
using ernie::Buffer;
using ernie::Matrix;
using ernie::Queries;
using Types = std::vector<ONNXTensorElementDataType>;
constexpr auto F32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto F16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto U8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto I32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
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

// query [B,S,heads·D], key and value [B,S,kv·D], past keys and values [B,kv,P,D], cos and sin [positions, D/2],
// position_ids [B,S], seqlens_k [B] (rows of the cache that are then in use, less one), total
//   → output [B,S,heads·D], present keys and values [B,kv,L,D], L = max(P, total)
// New rows go in at max(seqlens_k + 1 − S, 0); where present is past, in the same memory, nothing else is written.
struct Attention {
  static constexpr const char* name = "CachedAttention";
  static inline const Types inputs{F32, F32, F32, F16, F16, F32, F32, I64, I32, I32}, outputs{F32, F16, F16};
  static constexpr int64_t TILE = 16;   // tokens whose queries are answered together
  static constexpr int64_t SPAN = 512;  // keys of a task, where there is no second tile

  int64_t heads, kv_heads;
  float scale;
  explicit Attention(const Ort::ConstKernelInfo& info)
      : heads(info.GetAttribute<int64_t>("num_heads")), kv_heads(info.GetAttribute<int64_t>("kv_num_heads")),
        scale(info.GetAttribute<float>("scale")) {}

  // The cache of one call, and where the new tokens stand in it.
  struct Cache {
    int64_t B, S, L, D;
    uint16_t *keys, *values;
    std::vector<int64_t> starts;  // [B]: the rows that were there before
  };

  struct Rope {
    const float *cos, *sin;
    const int64_t* positions;
    int64_t D;
    template <class To>
    void operator()(const float* x, int64_t token, float factor, To* to) const {
      const int64_t at = positions[token] * D / 2;
      ernie::rotate(x, cos + at, sin + at, factor, D, to);
    }
  };

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context(raw);
    const auto query_shape = shape(context.GetInput(0)), past_shape = shape(context.GetInput(3));
    Cache cache{query_shape[0], query_shape[1], std::max<int64_t>(past_shape[2], *context.GetInput(9).GetTensorData<int32_t>()),
                past_shape[3], nullptr, nullptr, {}};
    const int32_t* last = context.GetInput(8).GetTensorData<int32_t>();
    for (int64_t b = 0; b < cache.B; ++b) {
      if (last[b] < 0) ORT_CXX_API_THROW("a row has no last token", ORT_INVALID_ARGUMENT);
      cache.starts.push_back(std::max<int64_t>(last[b] + 1 - cache.S, 0));
    }
    const Rope rope{context.GetInput(5).GetTensorData<float>(), context.GetInput(6).GetTensorData<float>(),
                    context.GetInput(7).GetTensorData<int64_t>(), cache.D};
    require(cache, rope, shape(context.GetInput(5))[0], query_shape[2]);
    float* output = context.GetOutput(0, query_shape).GetTensorMutableData<float>();
    cache.keys = present(context, 3, 1, cache);
    cache.values = present(context, 4, 2, cache);
    if (!cache.B || !cache.S) return;
    append(context, cache, rope);
    attend(context, cache, rope, output);
  }

  void require(const Cache& cache, const Rope& rope, int64_t positions, int64_t width) const {
    if (cache.D % 16 || width != heads * cache.D || heads % kv_heads)
      ORT_CXX_API_THROW("heads must be a multiple of 16 wide, and of the key-value heads in number", ORT_INVALID_ARGUMENT);
    for (int64_t token = 0; token < cache.B * cache.S; ++token)
      if (rope.positions[token] < 0 || rope.positions[token] >= positions)
        ORT_CXX_API_THROW("a position is beyond the context", ORT_INVALID_ARGUMENT);
    for (const int64_t start : cache.starts)
      if (start + cache.S > cache.L) ORT_CXX_API_THROW("the cache is too short for its new rows", ORT_INVALID_ARGUMENT);
  }

  // The present cache of an output, its first rows those of the past.
  static uint16_t* present(const Ort::KernelContext& context, size_t input, size_t output, const Cache& cache) {
    const auto past = context.GetInput(input);
    auto dims = shape(past);
    const int64_t P = dims[2];
    dims[2] = cache.L;
    auto* to = static_cast<uint16_t*>(context.GetOutput(output, dims).GetTensorMutableRawData());
    const auto* from = static_cast<const uint16_t*>(past.GetTensorRawData());
    if (from == to) return to;
    for (int64_t head = 0; head < dims[0] * dims[1]; ++head) {
      std::copy_n(from + head * P * cache.D, P * cache.D, to + head * cache.L * cache.D);
      std::fill_n(to + (head * cache.L + P) * cache.D, (cache.L - P) * cache.D, 0);
    }
    return to;
  }

  void append(const Ort::KernelContext& context, const Cache& cache, const Rope& rope) const {
    const float *keys = context.GetInput(1).GetTensorData<float>(), *values = context.GetInput(2).GetTensorData<float>();
    const int64_t D = cache.D;
    parallel(context, divided(cache.B * cache.S, TILE), [&](int64_t tile) {
      for (int64_t token = tile * TILE; token < std::min((tile + 1) * TILE, cache.B * cache.S); ++token)
        for (int64_t head = 0; head < kv_heads; ++head) {
          const int64_t b = token / cache.S, from = (token * kv_heads + head) * D;
          const int64_t to = ((b * kv_heads + head) * cache.L + cache.starts[b] + token % cache.S) * D;
          rope(keys + from, token, 1.0f, cache.keys + to);
          for (int64_t d = 0; d < D; d += 16) ernie::store(cache.values + to + d, ernie::load(values + from + d));
        }
    });
  }

  // Each task: the queries of a tile of tokens and a group of heads, over a span of the cache.
  void attend(const Ort::KernelContext& context, const Cache& cache, const Rope& rope, float* output) const {
    const float* queries = context.GetInput(0).GetTensorData<float>();
    const int64_t group = heads / kv_heads, tiles = divided(cache.S, TILE), D = cache.D;
    const int64_t longest = *std::max_element(cache.starts.begin(), cache.starts.end()) + cache.S;
    const int64_t spans = tiles > 1 ? 1 : divided(longest, SPAN), most = std::min(TILE, cache.S) * group;
    const Buffer<float> found(tiles * cache.B * kv_heads * spans * most * (D + 2));  // sums of values, weights; most
    const auto run = [&](int64_t task, auto&& with) {  // the longest first
      const int64_t head = task % kv_heads, b = task / kv_heads % cache.B, tile = tiles - 1 - task / kv_heads / cache.B;
      const int64_t first = b * cache.S + tile * TILE, tokens = std::min(TILE, cache.S - tile * TILE);
      with(head, b, tile * TILE, first, tokens * group);
    };
    // Of the m-th query of a tile, whose first token of all is `first`: where it lies in `queries` and `output`.
    const auto place = [&](int64_t first, int64_t head, int64_t m) {
      return ((first + m / group) * heads + head * group + m % group) * D;
    };
    parallel(context, tiles * cache.B * kv_heads * spans, [&](int64_t task) {
      run(task / spans, [&](int64_t head, int64_t b, int64_t token, int64_t first, int64_t M) {
        thread_local Queries each;
        each.begin(M, D);
        for (int64_t m = 0; m < M; ++m) rope(queries + place(first, head, m), first + m / group, scale, each.query(m));
        const int64_t seen = cache.starts[b] + token + 1, begin = task % spans * SPAN;  // by the first of the tokens
        const int64_t end = seen + (M - 1) / group, at = (b * kv_heads + head) * cache.L * D;
        each.attend(cache.keys + at, cache.values + at, begin, spans > 1 ? std::min(end, begin + SPAN) : end,
                    [&](int64_t m) { return seen + m / group; });
        float* to = found.data() + task * most * (D + 2);
        std::copy_n(each.out(), M * D, to);
        std::copy_n(each.sums(), M, to + most * D);
        std::copy_n(each.most(), M, to + most * (D + 1));
      });
    });
    parallel(context, tiles * cache.B * kv_heads, [&](int64_t task) {
      run(task, [&](int64_t head, int64_t, int64_t, int64_t first, int64_t M) {
        const float* from = found.data() + task * spans * most * (D + 2);
        for (int64_t m = 0; m < M; ++m) ernie::join(from, spans, most, m, D, output + place(first, head, m));
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
  static const Operator<Attention> attention;
  static Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain made("ernie");
    made.Add(&linear);
    made.Add(&experts);
    made.Add(&attention);
    return made;
  }();
  try {
    Ort::UnownedSessionOptions(options).Add(domain);
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  }
  return nullptr;
}
