// Runs one stencil kernel on the CPU: stencil KERNEL DTYPE STRIDE MODELS IMAGES CHANNELS HEIGHT WIDTH POOLS SEED [KERNEL DILATION]...
// [rows PITCH PAIRED] [without LINE]. KERNEL is forward, input or weight, DTYPE float, half or bfloat. Standard input: float32 values of
// x, weights and (not for forward) the outputs' gradient; standard output: float32 values of the result. With `rows`, for input, x has
// rows of PITCH values and dx too, what it is added to follows the gradient, and PAIRED is 1 where each convolution has its own x.
#include "cuda_host.h"

#include "cuda/stencil_forward.cuh"
#include "cuda/stencil_input.cuh"
#include "cuda/stencil_weight.cuh"

namespace pamkd {

__align__(16) unsigned char shared[48 * 1024];

namespace {

using cuda_host::machine;

// Exactly as large as its values, at a 16-byte boundary, NaN at first.
template <class T>
class Values {
 public:
  explicit Values(size_t size) : size_(size), data_(static_cast<T*>(operator new(size * sizeof(T), std::align_val_t(16)))) {
    std::memset(data_, 0xff, size * sizeof(T));
  }
  ~Values() { operator delete(data_, std::align_val_t(16)); }
  Values(const Values&) = delete;
  T* get() { return data_; }

  void read() {
    std::vector<float> values(size_);
    if (std::fread(values.data(), sizeof(float), size_, stdin) != size_) cuda_host::fail("standard input is too short");
    for (size_t i = 0; i < size_; i++) narrow(values[i], data_[i]);
  }
  void write() const {
    std::vector<float> values(size_);
    for (size_t i = 0; i < size_; i++) values[i] = widened(data_[i]);
    std::fwrite(values.data(), sizeof(float), size_, stdout);
  }

 private:
  size_t size_;
  T* data_;
};

void launch(dim3 grid, int bytes, const std::function<void()>& kernel) { machine.launch(grid, kThreads, shared, bytes, sizeof shared, kernel); }

template <class T, int S>
void run(const std::string& kernel, StencilShape shape, bool rows, bool paired) {
  shape.aligned = shape.channels % kVector<T> == 0 && shape.pitch % kVector<T> == 0;
  const size_t pixels = size_t(shape.models) * shape.images * shape.channels, own = paired ? shape.branches : 1;
  const size_t states = own * shape.models * shape.images * shape.height * shape.width * shape.pitch;
  Values<T> x(states), weights(size_t(shape.models) * shape.weights);
  Values<T> outputs(pixels * shape.to_height * shape.to_width * (shape.branches + 2 * shape.pools));
  x.read(), weights.read();
  if (kernel == "forward") {
    launch(stencil_grid<T>(shape, shape.to_height, shape.to_width, OutputTile<S>::kRows), kForwardShared<T, S>,
           [&] { stencil_forward<T, S>(shape, x.get(), weights.get(), outputs.get()); });
    return outputs.write();
  }
  outputs.read();
  if (kernel == "input") {
    Values<T> dx(states);
    if (rows) dx.read();
    dim3 grid = stencil_grid<T>(shape, shape.height, shape.width, kInputRows);
    grid.z *= own;
    launch(grid, kInputShared<T, S>, [&] { stencil_input<T, S>(shape, outputs.get(), x.get(), weights.get(), dx.get(), paired, rows); });
    return dx.write();
  }
  const int partials = stencil_partials<S>(shape);
  Values<float> workspace(size_t(shape.models) * partials * shape.weights);
  Values<T> dweights(size_t(shape.models) * shape.weights);
  launch(stencil_grid<T>(shape, shape.to_height, shape.to_width, OutputTile<S>::kRows), kWeightShared<T, S>,
         [&] { stencil_weight<T, S>(shape, outputs.get(), x.get(), workspace.get()); });
  launch(dim3(ceil_div(shape.weights, kSumColumns), shape.models), kSumShared,
         [&] { stencil_weight_sum<T>(workspace.get(), dweights.get(), partials, shape.weights); });
  dweights.write();
}

template <class T>
void run(const std::string& kernel, int stride, const StencilShape& shape, bool rows, bool paired) {
  stride == 1 ? run<T, 1>(kernel, shape, rows, paired) : run<T, 2>(kernel, shape, rows, paired);
}

}  // namespace
}  // namespace pamkd

int main(int count, char** words) {
  const std::vector<std::string> arguments(words + 1, words + count);
  const auto number = [&](size_t i) { return std::stoi(arguments.at(i)); };
  std::vector<int64_t> kernel, dilation;
  size_t i = 10;
  const auto more = [&](const char* word) { return i < arguments.size() && arguments[i] == word; };
  for (; i < arguments.size() && !more("rows") && !more("without"); i += 2) kernel.push_back(number(i)), dilation.push_back(number(i + 1));
  pamkd::StencilShape shape =
      pamkd::stencil_shape(number(3), number(4), number(5), number(6), number(7), number(2), number(8) != 0, false, kernel, dilation);
  const bool rows = more("rows"), paired = rows && number(i + 2);
  if (rows) shape.pitch = number(i + 1), i += 3;
  if (more("without")) cuda_host::machine.removed = {number(i + 1)};
  cuda_host::machine.seed(number(9));
  const std::string dtype = arguments.at(1);
  if (dtype == "float")
    pamkd::run<float>(arguments[0], number(2), shape, rows, paired);
  else if (dtype == "half")
    pamkd::run<__half>(arguments[0], number(2), shape, rows, paired);
  else
    pamkd::run<__nv_bfloat16>(arguments[0], number(2), shape, rows, paired);
}
