// Pinned host memory. It is kept apart and recognised; it is not locked, which would need rights.
#pragma once

#include <ATen/core/CachingHostAllocator.h>

namespace emulated {

at::HostAllocator* pinned_allocator();
bool is_pinned(const void* data);

}  // namespace emulated
