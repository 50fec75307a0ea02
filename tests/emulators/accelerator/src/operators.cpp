// What runs on a device: memory and views natively, everything else by way of the CPU.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_dropout_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "allocator.hpp"
#include "generator.hpp"
#include "runtime.hpp"

namespace emulated {
namespace {

using OptionalDevice = std::optional<c10::Device>;

c10::Device with_index(const OptionalDevice& device) {
  return device && device->has_index() ? *device : c10::Device(kDevice, current_device());
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, OptionalDevice device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(with_index(device));
  return at::detail::empty_generic(size, allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   at::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         OptionalDevice device, std::optional<bool>) {
  c10::DeviceGuard guard(with_index(device));
  return at::detail::empty_strided_generic(size, stride, allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           at::dtype_or_default(dtype));
}

// The same memory, as a CPU tensor.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  check_usable(tensor.device().index());
  auto alias = at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(),
                             tensor.strides(), tensor.options().device(at::kCPU));
  alias._set_conj(tensor.is_conj());
  alias._set_neg(tensor.is_neg());
  return alias;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (to.numel() == 0) return to;
  if (to.device().type() == kDevice) to.mutable_data_ptr();  // lets go of a lazy copy
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

const at::Tensor& resize_on_device(const at::Tensor& self, c10::IntArrayRef size,
                                   std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(self.device());
  return at::native::resize_(self, size, format);
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) resize_on_device(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& tensor) { return on_cpu(tensor).item(); }

at::Tensor& fill(at::Tensor& self, const at::Scalar& value) {
  if (self.numel() > 0) on_cpu(self).fill_(value);
  return self;
}

at::Tensor& zero(at::Tensor& self) { return fill(self, 0); }

at::Tensor& set_to_storage(at::Tensor& self, c10::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, std::move(storage), 0, {count}, {1});
}

at::Tensor& set_to_part(at::Tensor& self, c10::Storage storage, int64_t offset,
                        c10::IntArrayRef size, c10::IntArrayRef stride) {
  c10::DeviceGuard guard(self.device());
  return at::native::set_storage_cpu_(self, std::move(storage), offset, size, stride);
}

at::Tensor& set_to_nothing(at::Tensor& self) {
  c10::DeviceGuard guard(self.device());
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, allocator()->allocate(0), allocator(),
                       true);
  return at::native::set_storage_cpu_(self, std::move(storage), 0, {0}, {});
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  allocator()->recordStream(self.storage().data_ptr(), stream);
}

// These take indices, lengths or step counts on the host also where the rest is on a device.
bool takes_host_tensors(std::string_view name) {
  static constexpr std::array<std::string_view, 9> kNames = {
      "aten::index",         "aten::_index_put",    "aten::_unsafe_index",
      "aten::_pack_padded",  "aten::_ctc_loss",     "aten::_fused",
      "aten::_foreach",      "aten::_copy_from",    "aten::_assert"};
  return std::any_of(kNames.begin(), kNames.end(),
                     [&](auto known) { return name.substr(0, known.size()) == known; });
}

// Finds the device of an operation and refuses tensors that lie on different ones, as CUDA does.
class CommonDevice {
 public:
  explicit CommonDevice(bool host_allowed) : host_allowed_(host_allowed) {}

  void see(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const auto device = tensor.device();
    const bool scalar = tensor.dim() == 0;
    if (device.type() != kDevice) {
      if (!scalar && !host_allowed_) host_ = device;
    } else if (!device_) {
      device_ = device;
      check_usable(device.index());
    } else if (device != *device_) {
      refuse(device);
    }
    if (host_ && device_) refuse(*host_);
  }
  void see(const c10::IValue& value) {
    if (value.isTensor()) see(value.toTensor());
    else if (value.isTensorList()) for (const at::Tensor& t : value.toTensorList()) see(t);
    else if (value.isOptionalTensorList())
      for (std::optional<at::Tensor> t : value.toOptionalTensorList()) { if (t) see(*t); }
    else if (value.isDevice() && value.toDevice().type() == kDevice && !device_)
      device_ = with_index(value.toDevice());
  }
  c10::Device get() const { return with_index(device_); }

 private:
  [[noreturn]] void refuse(c10::Device other) const {
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ",
                *device_, " and ", other, "!");
  }
  bool host_allowed_;
  OptionalDevice device_, host_;
};

// Random numbers come from the device's own generator.
void give_generator(const c10::OperatorHandle& op, torch::jit::Stack* stack, c10::Device device) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); i++) {
    auto type = arguments[i].type();
    if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
    if (type->kind() != c10::TypeKind::GeneratorType) continue;
    auto& value = torch::jit::peek(stack, i, arguments.size());
    value = behind(value.isNone() ? default_generator(device.index()) : value.toGenerator());
  }
}

void by_way_of_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  CommonDevice common(takes_host_tensors(op.schema().name()));
  for (const auto& value : torch::jit::last(stack, op.schema().arguments().size())) common.see(value);
  check_usable(common.get().index());
  c10::DeviceGuard guard(common.get());
  give_generator(op, stack, common.get());
  // A view made on the CPU would be a copy: better an error than a silent difference.
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_way_of_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("fill_.Scalar", fill);
  m.impl("zero_", zero);
  m.impl("resize_", resize_on_device);
  m.impl("set_", set_to_nothing);
  m.impl("set_.source_Storage", set_to_storage);
  m.impl("set_.source_Storage_storage_offset", set_to_part);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("record_stream", record_stream);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  // Composed of operations that draw from the device's generator.
  m.impl("native_dropout", at::native::native_dropout_cpu);
}

// Lazy conjugates and negatives are resolved by copying them, which must not ask for that again.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

}  // namespace
}  // namespace emulated
