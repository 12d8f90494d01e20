#include "../kernels/experts.h"

#include "operator.h"

namespace ernie::plugin {
namespace {

Signature signature(const Attributes& attributes) {
    const std::int32_t bits = attributes.integer("bits"), block = attributes.integer("block_size");
    return {{{"hidden", Element::activation, {{'B'}, {'S'}, {'H'}}},
             {"indices", Element::int64, {{'B'}, {'S'}, {'k'}}},
             {"scores", Element::activation, {{'B'}, {'S'}, {'k'}}},
             {"gate_up", Element::codes, {{'E'}, {'I', 2}, {'H', bits, 8}}},
             {"gate_up_scales", Element::fp16, {{'E'}, {'I', 2}, {'H', 1, block}}},
             {"down", Element::codes, {{'E'}, {'H'}, {'I', bits, 8}}},
             {"down_scales", Element::fp16, {{'E'}, {'H'}, {'I', 1, block}}}},
            {{"y", Element::activation, {{'B'}, {'S'}, {'H'}}}}};
}

Experts call(const Invocation& of) {
    Experts call{};
    call.type = of.type;
    call.format = {of.attributes.integer("bits"), of.attributes.integer("block_size")};
    call.tokens = of.tokens();
    call.hidden = of.sizes['H'];
    call.width = of.sizes['I'];
    call.experts = of.sizes['E'];
    call.k = of.sizes['k'];
    call.x = of.inputs[0];
    call.indices = of.input<std::int64_t>(1);
    call.scores = of.inputs[2];
    call.gate_up = of.input<std::uint8_t>(3);
    call.gate_up_scales = of.inputs[4];
    call.down = of.input<std::uint8_t>(5);
    call.down_scales = of.inputs[6];
    call.y = of.outputs[0];
    call.faults = of.faults;
    call.workspace = of.workspace;
    call.workspace_bytes = of.workspace_bytes;
    return call;
}

}  // namespace

Operator moe_experts() {
    return operator_of<call>(
        "MoEExperts", {integer("num_experts", 'E'), integer("k", 'k'), integer("bits"), integer("block_size")},
        signature, "an index was no expert's, or a score was NaN; its tokens became NaN");
}

}  // namespace ernie::plugin
