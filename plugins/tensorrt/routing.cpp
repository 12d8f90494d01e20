#include "../kernels/routing.h"

#include "operator.h"

namespace ernie::plugin {
namespace {

Signature signature(const Attributes&) {
    return {{{"hidden", Element::activation, {{'B'}, {'S'}, {'H'}}},
             {"weight", Element::fp32, {{'E'}, {'H'}}},
             {"bias", Element::fp32, {{'E'}}}},
            {{"indices", Element::int64, {{'B'}, {'S'}, {'k'}}},
             {"scores", Element::activation, {{'B'}, {'S'}, {'k'}}}}};
}

Routing call(const Invocation& of) {
    Routing call{};
    call.type = of.type;
    call.tokens = of.tokens();
    call.hidden = of.sizes['H'];
    call.experts = of.sizes['E'];
    call.k = of.sizes['k'];
    call.norm_min = of.attributes.real("norm_min");
    call.x = of.inputs[0];
    call.weight = of.input<float>(1);
    call.bias = of.input<float>(2);
    call.indices = static_cast<std::int64_t*>(of.outputs[0]);
    call.scores = of.outputs[1];
    call.workspace = of.workspace;
    call.workspace_bytes = of.workspace_bytes;
    return call;
}

}  // namespace

Operator moe_routing() {
    return operator_of<call>("MoERouting", {integer("k", 'k'), real("norm_min")}, signature);
}

}  // namespace ernie::plugin
