#include "../kernels/linear.h"

#include "operator.h"

namespace ernie::plugin {
namespace {

Signature signature(const Attributes& attributes) {
    const std::int32_t bits = attributes.integer("bits"), block = attributes.integer("block_size");
    return {{{"x", Element::activation, {{'B'}, {'S'}, {'K'}}},
             {"weight", Element::codes, {{'N'}, {'K', bits, 8}}},
             {"scales", Element::fp16, {{'N'}, {'K', 1, block}}}},
            {{"y", Element::activation, {{'B'}, {'S'}, {'N'}}}}};
}

Linear call(const Invocation& of) {
    Linear call{};
    call.type = of.type;
    call.format = {of.attributes.integer("bits"), of.attributes.integer("block_size")};
    call.tokens = of.tokens();
    call.n = of.sizes['N'];
    call.k = of.sizes['K'];
    call.x = of.inputs[0];
    call.weight = of.input<std::uint8_t>(1);
    call.scales = of.inputs[2];
    call.y = of.outputs[0];
    return call;
}

}  // namespace

Operator quantized_linear() {
    return operator_of<call>("QuantizedLinear",
                             {integer("N", 'N'), integer("K", 'K'), integer("bits"), integer("block_size")}, signature);
}

}  // namespace ernie::plugin
