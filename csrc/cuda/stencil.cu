// pamkd::stencils_forward, stencils_backward and stencils_input on the GPU: checks and launches.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <climits>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "cuda/stencil_forward.cuh"
#include "cuda/stencil_input.cuh"
#include "cuda/stencil_weight.cuh"

namespace pamkd {
namespace {

const char* const kName = "stencils";

// Makes the tensor's device current, and knows the stream that PyTorch uses on it.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("stencils: the kernel was not launched: ") + cudaGetErrorString(error));
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

bool whole_vectors(const Tensor& tensor, int64_t channels) {
  return channels * int64_t(tensor.element_size()) % 16 == 0 && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
}

void check_convolutions(const std::vector<int64_t>& kernels, const std::vector<int64_t>& dilations, int64_t stride) {
  if (kernels.size() != dilations.size() || int64_t(kernels.size()) > kMaxBranches)
    invalid(kName, ": ", kernels.size(), " kernel sizes and ", dilations.size(), " dilations; needed is one each for at most ", kMaxBranches, " convolutions");
  for (size_t i = 0; i < kernels.size(); i++)
    if ((kernels[i] != 3 && kernels[i] != 5) || (dilations[i] != 1 && dilations[i] != 2))
      invalid(kName, ": kernel size ", kernels[i], " with dilation ", dilations[i], "; needed is 3 or 5 with 1 or 2");
  if (stride != 1 && stride != 2) invalid(kName, ": stride is ", stride, "; needed is 1 or 2");
}

// x [models, images, height, width, channels]; the limits keep offsets within one image, and the grid, in 32 bits.
StencilShape make_shape(const Tensor& x, const Tensor& weights, const std::vector<int64_t>& kernels, const std::vector<int64_t>& dilations,
                        int64_t stride, bool pools) {
  check_shape(kName, "x", x, {-1, -1, -1, -1, -1});
  check_same(kName, "weights", weights, x);
  check_convolutions(kernels, dilations, stride);
  if (x.size(0) * x.size(1) > 65535 || x.size(2) * x.size(3) * x.size(4) > INT_MAX)
    invalid(kName, ": x has shape ", shape_of(x), "; models times images may be 65535, and an image have 2^31 - 1 elements: use smaller batches");
  const StencilShape shape = stencil_shape(int(x.size(0)), int(x.size(1)), int(x.size(4)), int(x.size(2)), int(x.size(3)), int(stride), pools,
                                           whole_vectors(x, x.size(4)), kernels, dilations);
  check_shape(kName, "weights", weights, {x.size(0), shape.weights});
  return shape;
}

// f(T{}, std::integral_constant<int, stride>{}).
template <class F>
void dispatch(const Tensor& x, int64_t stride, const F& f) {
  const auto with_stride = [&](auto zero) {
    if (stride == 1)
      f(zero, std::integral_constant<int, 1>{});
    else
      f(zero, std::integral_constant<int, 2>{});
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: return with_stride(float{});
    case ScalarType::Half: return with_stride(__half{});
    case ScalarType::BFloat16: return with_stride(__nv_bfloat16{});
    default: invalid(kName, ": the CUDA kernel takes float32, float16 and bfloat16");
  }
}

Tensor forward(const Tensor& x_, const Tensor& weights_, std::vector<int64_t> kernels, std::vector<int64_t> dilations, int64_t stride, bool pools) {
  const Device device(x_);
  const Tensor x = dense(x_), weights = dense(weights_);
  StencilShape shape = make_shape(x, weights, kernels, dilations, stride, pools);
  const Tensor y = torch::stable::new_empty(
      x, {shape.branches + 2 * pools, shape.models, shape.images, shape.to_height, shape.to_width, shape.channels});
  if (y.numel() == 0) return y;
  dispatch(x, stride, [&](auto zero, auto step) {
    using T = decltype(zero);
    constexpr int S = decltype(step)::value;
    const dim3 grid = stencil_grid<T>(shape, shape.to_height, shape.to_width, OutputTile<S>::kRows);
    stencil_forward<T, S><<<grid, kThreads, kForwardShared<T, S>, device.stream>>>(shape, data<T>(x), data<T>(weights), data<T>(y));
    check_launch();
  });
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x_, const Tensor& weights_, std::vector<int64_t> kernels,
                                    std::vector<int64_t> dilations, int64_t stride, bool pools, bool need_x, bool need_weights) {
  const Device device(x_);
  const Tensor grad = dense(grad_), x = dense(x_), weights = dense(weights_);
  StencilShape shape = make_shape(x, weights, kernels, dilations, stride, pools);
  check_same(kName, "grad", grad, x);
  check_shape(kName, "grad", grad,
              {shape.branches + 2 * pools, shape.models, shape.images, shape.to_height, shape.to_width, shape.channels});
  shape.aligned = shape.aligned && whole_vectors(grad, shape.channels);
  const Tensor dx = need_x ? torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)})
                           : torch::stable::new_empty(x, {0});
  const Tensor dweights = need_weights ? torch::stable::new_empty(x, {shape.models, shape.weights}) : torch::stable::new_empty(x, {0});
  if (x.numel() == 0) return {dx, need_weights ? torch::stable::new_zeros(dweights, {shape.models, shape.weights}) : dweights};
  dispatch(x, stride, [&](auto zero, auto step) {
    using T = decltype(zero);
    constexpr int S = decltype(step)::value;
    if (need_x) {
      const dim3 grid = stencil_grid<T>(shape, shape.height, shape.width, kInputRows);
      stencil_input<T, S><<<grid, kThreads, kInputShared<T, S>, device.stream>>>(shape, data<T>(grad), data<T>(x), data<T>(weights), data<T>(dx), false, false);
      check_launch();
    }
    if (!need_weights || shape.weights == 0) return;
    const int rows = stencil_partials<S>(shape);
    const Tensor workspace = torch::stable::new_empty(x, {shape.models, rows, shape.weights}, ScalarType::Float);
    const dim3 grid = stencil_grid<T>(shape, shape.to_height, shape.to_width, OutputTile<S>::kRows);
    stencil_weight<T, S><<<grid, kThreads, kWeightShared<T, S>, device.stream>>>(shape, data<T>(grad), data<T>(x), data<float>(workspace));
    check_launch();
    stencil_weight_sum<T><<<dim3(ceil_div(shape.weights, kSumColumns), shape.models), kThreads, kSumShared, device.stream>>>(
        data<float>(workspace), data<T>(dweights), rows, shape.weights);
    check_launch();
  });
  return {dx, dweights};
}

// Elements from one pixel of a map [..., height, width, channels] to the next; its pixels must follow each other evenly.
int64_t pitch_of(const char* name, const Tensor& map) {
  const int64_t last = map.dim() - 1, pitch = map.stride(last - 1);
  int64_t expected = pitch;
  bool even = map.stride(last) == 1 || map.size(last) == 1;
  for (int64_t i = last - 1; i >= 0; i--) {
    even = even && (map.size(i) == 1 || map.stride(i) == expected);
    expected *= map.size(i);
  }
  if (!even) invalid(kName, ": ", name, " has shape ", shape_of(map), " with pixels that do not follow each other evenly; needed is a slice of channels");
  return pitch;
}

// The gradient of x, into dx or onto it; schema in pamkd/ops/stencils.py. `paired` has no pools.
void input(const Tensor& grad_, const Tensor& x, const Tensor& weights, std::vector<int64_t> kernels, std::vector<int64_t> dilations,
                   std::vector<int64_t> offsets, int64_t stride, bool pools, bool paired, bool add, Tensor dx) {
  const Device device(x);
  const Tensor grad = dense(grad_);
  check_convolutions(kernels, dilations, stride);
  check_same(kName, "weights", weights, x), check_same(kName, "grad", grad, x), check_same(kName, "dx", dx, x);
  const int64_t d = paired, branches = int64_t(kernels.size());
  if (x.dim() != 5 + d || shape_of(x) != shape_of(dx) || (paired && x.size(0) != branches) || int64_t(offsets.size()) != branches || (paired && pools))
    invalid(kName, ": x has shape ", shape_of(x), " and dx ", shape_of(dx), " for ", branches, " convolutions and ", offsets.size(), " offsets");
  const int64_t models = x.size(d), images = x.size(d + 1), channels = x.size(d + 4), pitch = pitch_of("x", x);
  StencilShape shape = stencil_shape(int(models), int(images), int(channels), int(x.size(d + 2)), int(x.size(d + 3)), int(stride), pools, false,
                                     kernels, dilations);
  if ((paired ? branches : 1) * models * images > 65535 || x.size(d + 2) * x.size(d + 3) * pitch > INT_MAX)
    invalid(kName, ": x has shape ", shape_of(x), "; models times images may be 65535, and an image have 2^31 - 1 elements: use smaller batches");
  if (pitch_of("dx", dx) != pitch) invalid(kName, ": a pixel of dx has ", pitch_of("dx", dx), " elements and one of x ", pitch, "; needed is one number");
  check_shape(kName, "grad", grad, {branches + 2 * pools, models, images, shape.to_height, shape.to_width, channels});
  check_shape(kName, "weights", weights, {models, -1});
  for (int64_t i = 0; i < branches; i++) {
    if (offsets[i] < 0 || offsets[i] + channels * kernels[i] * kernels[i] > weights.size(1))
      invalid(kName, ": weights ", i, " begin at ", offsets[i], " of ", weights.size(1));
    shape.offset[i] = int(offsets[i]);
  }
  shape.pitch = int(pitch), shape.parameters = int(weights.stride(0));
  shape.aligned = whole_vectors(x, channels) && whole_vectors(x, pitch) && whole_vectors(dx, channels) && whole_vectors(grad, channels);
  if (x.numel() == 0) return;
  dispatch(x, stride, [&](auto zero, auto step) {
    using T = decltype(zero);
    constexpr int S = decltype(step)::value;
    dim3 grid = stencil_grid<T>(shape, shape.height, shape.width, kInputRows);
    if (paired) grid.z *= unsigned(branches);
    stencil_input<T, S><<<grid, kThreads, kInputShared<T, S>, device.stream>>>(shape, data<T>(grad), data<T>(x), data<T>(weights), data<T>(dx), paired, add);
    check_launch();
  });
}

}  // namespace
}  // namespace pamkd

STABLE_TORCH_LIBRARY_IMPL(pamkd, CUDA, m) {
  m.impl("stencils_forward", TORCH_BOX(&pamkd::forward));
  m.impl("stencils_backward", TORCH_BOX(&pamkd::backward));
  m.impl("stencils_input", TORCH_BOX(&pamkd::input));
}
