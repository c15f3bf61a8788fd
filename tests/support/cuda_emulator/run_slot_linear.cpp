// One call of the slot_linear kernels under emulator.h, for ctypes.
#include "shadow/slot_linear.cuh"

#include <cstring>
#include <vector>

namespace {

namespace sl = shadow::slot_linear;

template <typename T, typename C>
bool run(shadow::SlotLinearParams params, uint32_t seed) {
  auto kernel = [&] { sl::slot_linear_kernel<T, C>(params); };
  return emulator::launch(kernel, 1 + params.num_blocks, 1, sl::kWarps, sizeof(sl::Shared<C>), seed);
}

template <typename T>
bool run(const shadow::SlotLinearParams& params, int num_groups, int num_octets, uint32_t seed) {
  switch (10 * num_groups + num_octets) {
    case 12: return run<T, sl::Cut<1, 2>>(params, seed);
    case 22: return run<T, sl::Cut<2, 2>>(params, seed);
  }
  return false;
}

}  // namespace

// The kernel in front writes x, and still reads what lay in out. Returns 0; 1 where the kernel hung; 2 where it wrote before the
// kernel in front had ended.
extern "C" int run_slot_linear(const shadow::SlotLinearParams* params, const void* x, int64_t x_bytes, bool is_half,
                               int num_groups, int num_octets, uint32_t seed) {
  void* late_x = const_cast<void*>(params->x);
  const size_t out_bytes = sizeof(uint16_t) * params->num_tokens * params->num_outputs;
  std::vector<char> old_out(out_bytes);
  bool is_early = false;
  emulator::previous.start = [&] {
    std::memset(late_x, 0xff, x_bytes);  // NaN
    std::memcpy(old_out.data(), params->out, out_bytes);
  };
  emulator::previous.end = [&] {
    is_early = is_early || std::memcmp(old_out.data(), params->out, out_bytes);
    std::memcpy(late_x, x, x_bytes);
  };
  const bool has_ended = is_half ? run<__half>(*params, num_groups, num_octets, seed)
                                 : run<__nv_bfloat16>(*params, num_groups, num_octets, seed);
  emulator::previous = {};
  return !has_ended ? 1 : is_early ? 2 : 0;
}
