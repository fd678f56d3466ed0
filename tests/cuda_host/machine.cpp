// Small kernels that show what cuda_host.h notices: machine KERNEL SEED. Standard output: the kernel's integers.
#include "cuda_host.h"

namespace {

__align__(16) unsigned char shared[1024];
int results[64];

__global__ void shuffle() {
  int sum = threadIdx.x;
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
  const int below = __shfl_down_sync(~0u, int(threadIdx.x), 1), first = __shfl_sync(~0u, int(threadIdx.x), 0);
  __syncwarp();
  results[threadIdx.x] = sum * 10000 + below * 100 + first;
}

__global__ void count() {
  int* total = reinterpret_cast<int*>(shared);
  if (threadIdx.x == 0) *total = 0;
  __syncthreads();
  atomicAdd(total, int(threadIdx.x) + 1);
  __syncthreads();
  results[threadIdx.x] = *total;
}

__global__ void neighbour(bool wait) {
  int* values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = threadIdx.x;
  if (wait) __syncthreads();
  results[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

__global__ void divergent() {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __syncthreads();
}

__global__ void early_return() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}

__global__ void half_a_warp() { __shfl_xor_sync(threadIdx.x % 32 < 16 ? ~0u : 0xffff0000u, 0, 1); }

__global__ void beyond() { shared[256 + threadIdx.x] = 0; }

}  // namespace

int main(int, char** words) {
  const std::string kernel = words[1];
  cuda_host::machine.seed(std::stoi(words[2]));
  const auto launch = [](const std::function<void()>& body) { cuda_host::machine.launch(dim3(1), 64, shared, 256, sizeof shared, body); };
  if (kernel == "shuffle") launch(shuffle);
  if (kernel == "count") launch(count);
  if (kernel == "neighbour") launch([] { neighbour(true); });
  if (kernel == "unwaited") launch([] { neighbour(false); });
  if (kernel == "divergent") launch(divergent);
  if (kernel == "early_return") launch(early_return);
  if (kernel == "half_a_warp") launch(half_a_warp);
  if (kernel == "beyond") launch(beyond);
  for (const int result : results) std::printf("%d ", result);
}
