// Random numbers of a device: a generator of its own whose numbers CPU kernels draw.
#pragma once

#include <ATen/core/Generator.h>

namespace emulated {

at::Generator make_generator(c10::DeviceIndex device);
const at::Generator& default_generator(c10::DeviceIndex device);

// The CPU generator behind one of ours.
at::Generator behind(const at::Generator& generator);

}  // namespace emulated
