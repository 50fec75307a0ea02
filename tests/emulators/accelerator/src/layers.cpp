// Layers for which torch has a kernel of its own on each kind of device but the CPU.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>

namespace emulated {
namespace {

// Recurrent cells that torch takes to be fused everywhere but on the CPU, which lacks them. Composed
// of differentiable operations, so they need no backward of their own and no workspace.
std::tuple<at::Tensor, at::Tensor> gates(const at::Tensor& input, const at::Tensor& hidden,
                                         const std::optional<at::Tensor>& input_bias,
                                         const std::optional<at::Tensor>& hidden_bias) {
  return {input_bias ? input + *input_bias : input, hidden_bias ? hidden + *hidden_bias : hidden};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cell,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  const auto [i, h] = gates(input, hidden, input_bias, hidden_bias);
  const auto parts = (i + h).chunk(4, 1);
  auto next = parts[1].sigmoid() * cell + parts[0].sigmoid() * parts[2].tanh();
  auto out = parts[3].sigmoid() * next.tanh();
  return {out, next, at::empty({0}, input.options())};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& state,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  const auto [i, h] = gates(input, hidden, input_bias, hidden_bias);
  const auto from = i.chunk(3, 1), back = h.chunk(3, 1);
  const auto reset = (from[0] + back[0]).sigmoid(), update = (from[1] + back[1]).sigmoid();
  const auto fresh = (from[2] + reset * back[2]).tanh();
  return {fresh + update * (state - fresh), at::empty({0}, input.options())};
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  const auto host_bias = bias && bias->defined() ? std::optional(bias->cpu()) : std::nullopt;
  return at::convolution(input.cpu(), weight.cpu(), host_bias, stride, padding, dilation, transposed,
                         output_padding, groups)
      .to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  const auto channels = transposed ? weight.size(1) * groups : weight.size(0);
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      grad.cpu(), input.cpu(), weight.cpu(), at::IntArrayRef{channels}, stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  const auto back = [&](const at::Tensor& t) { return t.defined() ? t.to(input.device()) : t; };
  return {back(of_input), back(of_weight), back(of_bias)};
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_gru_cell", gru_cell);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_gru_cell", gru_cell);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

}  // namespace
}  // namespace emulated
