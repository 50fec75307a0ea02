#include "generator.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GeneratorImpl.h>

#include <array>
#include <mutex>

#include "runtime.hpp"

namespace emulated {
namespace {

struct DeviceGenerator final : c10::GeneratorImpl {
  DeviceGenerator(c10::DeviceIndex device, at::Generator numbers)
      : GeneratorImpl({kDevice, device}, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        numbers_(std::move(numbers)) {}

  void set_current_seed(uint64_t seed) override { numbers_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { numbers_.set_offset(offset); }
  uint64_t get_offset() const override { return numbers_.unsafeGetGeneratorImpl()->get_offset(); }
  uint64_t current_seed() const override { return numbers_.current_seed(); }
  uint64_t seed() override {
    auto numbers = numbers_;
    return numbers.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    numbers_.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return numbers_.unsafeGetGeneratorImpl()->get_state();
  }
  DeviceGenerator* clone_impl() const override {
    return new DeviceGenerator(device().index(), numbers_.clone());
  }

  at::Generator numbers_;
};

}  // namespace

at::Generator make_generator(c10::DeviceIndex device) {
  const auto index = device < 0 ? current_device() : device;
  return at::make_generator<DeviceGenerator>(index, at::detail::createCPUGenerator());
}

const at::Generator& default_generator(c10::DeviceIndex device) {
  static auto* all = new std::array<at::Generator, kMostDevices>;
  static std::mutex mutex;
  const auto index = device < 0 ? current_device() : device;
  TORCH_CHECK(index < device_count(), "device ", int(index), " does not exist; there are ",
              device_count());
  std::lock_guard guard(mutex);
  auto& generator = all->at(index);
  if (!generator.defined()) generator = make_generator(index);
  return generator;
}

at::Generator behind(const at::Generator& generator) {
  TORCH_CHECK(generator.device().type() == kDevice,
              "Expected a '", c10::get_privateuse1_backend(), "' device type for generator but found '",
              generator.device().type(), "'");
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->numbers_;
}

}  // namespace emulated
