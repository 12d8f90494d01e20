// What the plugins say, through the logger of the registry that loaded them.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace ernie::plugin {

/// Where setLoggerFinder() was never called, to standard error.
void say_error(const std::string& message) noexcept;

}  // namespace ernie::plugin
