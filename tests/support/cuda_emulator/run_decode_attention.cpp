// One call of the decode_attention kernels under emulator.h, for ctypes.
#include "shadow/decode_attention.cuh"

#include <cstring>
#include <limits>
#include <vector>

namespace {

namespace da = shadow::decode_attention;

template <typename T, int kHeadSize>
bool run(const shadow::DecodeAttentionParams& params, uint32_t seed) {
  const int num_blocks = (params.num_sequences + params.spare_pieces) * params.num_kv_heads;
  auto kernel = [&] { shadow::decode_attention_kernel<T, kHeadSize>(params); };
  return emulator::launch(kernel, num_blocks, 1, da::kWarps, sizeof(da::Shared<kHeadSize>), seed);
}

bool run(const shadow::DecodeAttentionParams& params, bool is_half, int head_size, uint32_t seed) {
  if (head_size == 64) return is_half ? run<__half, 64>(params, seed) : run<__nv_bfloat16, 64>(params, seed);
  return is_half ? run<__half, 128>(params, seed) : run<__nv_bfloat16, 128>(params, seed);
}

}  // namespace

// The kernel in front writes the query and what each sequence's last token has in the cache, and still reads what lay in out.
// Returns 0; 1 where the kernel hung; 2 where it wrote before the kernel in front had ended; 3 where arrivals are left.
// params.partial and params.arrivals are found here.
extern "C" int run_decode_attention(shadow::DecodeAttentionParams* params, bool is_half, int head_size, uint32_t seed) {
  const shadow::DecodeAttentionParams& p = *params;
  const int num_places = p.spare_pieces * p.num_kv_heads;
  constexpr int kRoom = 8;  // for kernels that take more than they may
  std::vector<float> partial(2 * kRoom * num_places * da::partial_floats(p.group_size, head_size),
                             std::numeric_limits<float>::quiet_NaN());
  std::vector<int> arrivals(kRoom * num_places);
  params->partial = partial.data(), params->arrivals = arrivals.data();
  std::vector<std::pair<char*, std::vector<char>>> written;  // by the kernel in front
  const auto add = [&](const void* place, size_t num_bytes) {
    char* bytes = static_cast<char*>(const_cast<void*>(place));
    written.emplace_back(bytes, std::vector<char>(bytes, bytes + num_bytes));
  };
  const int num_heads = p.group_size * p.num_kv_heads;
  for (int i = 0; i < p.num_sequences; ++i) {
    add(static_cast<const uint16_t*>(p.query) + i * p.query_stride, sizeof(uint16_t) * num_heads * head_size);
    const int last = p.lengths[i] - 1;
    if (last < 0) continue;
    const int64_t page = p.block_table[i * p.table_stride + (last >> p.page_shift)];
    const int64_t token = page * p.page_stride + (last & ((1 << p.page_shift) - 1)) * p.token_stride;
    for (int head = 0; head < p.num_kv_heads; ++head) {
      for (const void* cache : {p.keys, p.values}) {
        add(static_cast<const uint16_t*>(cache) + token + head * p.head_stride, sizeof(uint16_t) * head_size);
      }
    }
  }
  const size_t out_bytes = sizeof(uint16_t) * p.num_sequences * p.out_stride;
  std::vector<char> old_out(out_bytes);
  bool is_early = false;
  emulator::previous.start = [&] {
    for (auto& [place, bytes] : written) std::memset(place, 0xff, bytes.size());  // NaN
    std::memcpy(old_out.data(), p.out, out_bytes);
  };
  emulator::previous.end = [&] {
    is_early = is_early || std::memcmp(old_out.data(), p.out, out_bytes);
    for (auto& [place, bytes] : written) std::memcpy(place, bytes.data(), bytes.size());
  };
  emulator::shuffles_clusters = true;
  const bool has_ended = run(p, is_half, head_size, seed);
  emulator::shuffles_clusters = false;
  emulator::previous = {};
  const bool is_left = std::any_of(arrivals.begin(), arrivals.end(), [](int count) { return count != 0; });
  return !has_ended ? 1 : is_early ? 2 : is_left ? 3 : 0;
}
