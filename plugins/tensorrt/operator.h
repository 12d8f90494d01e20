// What a plugin is made of: an operator's attributes and tensors, and a launch function of ../kernels.
#pragma once

#include "attributes.h"
#include "signature.h"

namespace ernie::plugin {

/// One call of a launch function, before it has its operator's names.
struct Invocation {
    const Attributes& attributes;
    Sizes sizes;
    Type type;
    const void* const* inputs;
    void* const* outputs;
    void* workspace;
    std::uint64_t workspace_bytes;
    std::uint32_t* faults;

    /// B·S; the plugin has seen to it that it is no larger than an int.
    std::int32_t tokens() const { return sizes['B'] * sizes['S']; }
    template <class T>
    const T* input(int index) const {
        return static_cast<const T*>(inputs[index]);
    }
};

/// An operator as data.  B and S in its signature are the batch and the new tokens.
struct Operator {
    const char* name;
    std::vector<Attribute> attributes;
    Signature (*signature)(const Attributes&);
    std::uint64_t (*workspace)(const Invocation&);
    Problem (*launch)(const Invocation&, cudaStream_t);
    const char* fault;  // what it means when the kernels set *faults; null: they never do
};

/// `call` makes the launch function's struct.
template <auto call>
Operator operator_of(const char* name, std::vector<Attribute> attributes, Signature (*signature)(const Attributes&),
                     const char* fault = nullptr) {
    return {name, std::move(attributes), signature,
            [](const Invocation& of) { return workspace(call(of)); },
            [](const Invocation& of, cudaStream_t stream) { return launch(call(of), stream); }, fault};
}

Operator moe_routing();
Operator moe_experts();
Operator quantized_linear();
Operator cached_attention();

}  // namespace ernie::plugin
