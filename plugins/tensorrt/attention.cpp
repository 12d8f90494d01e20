#include "../kernels/attention.h"

#include "operator.h"

namespace ernie::plugin {
namespace {

enum Input { query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k };

/// The cache is one buffer of P rows, written in place where past and present are bound to the same memory.
/// total_sequence_length, at most P, is not read: seqlens_k says the same for each row of the batch.
Signature signature(const Attributes& attributes) {
    const std::int32_t heads = attributes.integer("num_heads"), kv_heads = attributes.integer("kv_num_heads");
    const std::vector<Axis> cache{{'B'}, {'G'}, {'P'}, {'D'}}, of_keys{{'B'}, {'S'}, {'D', kv_heads}};
    return {{{"query", Element::activation, {{'B'}, {'S'}, {'D', heads}}},
             {"key", Element::activation, of_keys},
             {"value", Element::activation, of_keys},
             {"past_key", Element::activation, cache},
             {"past_value", Element::activation, cache},
             {"cos", Element::fp32, {{'R'}, {'D', 1, 2}}},
             {"sin", Element::fp32, {{'R'}, {'D', 1, 2}}},
             {"position_ids", Element::int64, {{'B'}, {'S'}}},
             {"seqlens_k", Element::int32, {{'B'}}},
             {"total_sequence_length", Element::int32, {}}},
            {{"output", Element::activation, {{'B'}, {'S'}, {'D', heads}}},
             {"present_key", Element::activation, cache, past_key},
             {"present_value", Element::activation, cache, past_value}}};
}

Attention call(const Invocation& of) {
    Attention call{};
    call.type = of.type;
    call.batch = of.sizes['B'];
    call.tokens = of.sizes['S'];
    call.heads = of.attributes.integer("num_heads");
    call.kv_heads = of.sizes['G'];
    call.head_dim = of.sizes['D'];
    call.past_rows = call.rows = of.sizes['P'];
    call.positions = of.sizes['R'];
    call.scale = of.attributes.real("scale");
    call.query = of.inputs[query];
    call.key = of.inputs[key];
    call.value = of.inputs[value];
    call.past_key = of.inputs[past_key];
    call.past_value = of.inputs[past_value];
    call.cos = of.input<float>(cos);
    call.sin = of.input<float>(sin);
    call.position_ids = of.input<std::int64_t>(position_ids);
    call.seqlens_k = of.input<std::int32_t>(seqlens_k);
    call.output = of.outputs[0];
    call.present_key = of.outputs[1];
    call.present_value = of.outputs[2];
    call.faults = of.faults;
    call.workspace = of.workspace;
    call.workspace_bytes = of.workspace_bytes;
    return call;
}

}  // namespace

Operator cached_attention() {
    return operator_of<call>("CachedAttention",
                             {integer("num_heads"), integer("kv_num_heads", 'G'), real("scale")}, signature,
                             "a position was outside cos and sin, or a row outside the cache; its tokens became NaN");
}

}  // namespace ernie::plugin
