#include "cpu/level.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace pamkd {
namespace {

Level supported() {
#if defined(PAMKD_HAS_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return Level::avx512;
#endif
#if defined(PAMKD_HAS_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::avx2;
#endif
  return Level::baseline;
}

Level chosen() {
  const Level best = supported();
  const char* wish = std::getenv("PAMKD_CPU_LEVEL");
  if (!wish || !*wish) return best;
  for (Level level : {Level::baseline, Level::avx2, Level::avx512})
    if (std::strcmp(wish, level_name(level)) == 0) return level < best ? level : best;
  throw std::invalid_argument(std::string("PAMKD_CPU_LEVEL is ") + wish + "; needed is baseline, avx2 or avx512");
}

}  // namespace

const char* level_name(Level level) {
  switch (level) {
    case Level::avx512: return "avx512";
    case Level::avx2: return "avx2";
    default: return "baseline";
  }
}

Level cpu_level() {
  static const Level level = chosen();
  return level;
}

}  // namespace pamkd
