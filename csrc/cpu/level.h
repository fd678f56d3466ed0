// Run-time choice of the instruction set. Kernel files are compiled once per level with PAMKD_LEVEL set to the level's
// name, define their functions in namespace pamkd::PAMKD_LEVEL, and include no standard containers or algorithms: an
// inline function compiled with AVX-512 must never be the one that the linker keeps for everybody.
#pragma once

namespace pamkd {

enum class Level { baseline = 0, avx2 = 1, avx512 = 2 };

// The highest level that is both built and supported by this CPU, at most PAMKD_CPU_LEVEL where that is set. Raises where that is none.
Level cpu_level();
const char* level_name(Level level);

}  // namespace pamkd

// PAMKD_PICK(f): the implementation of f for the running CPU.
#define PAMKD_OF(level, f) static_cast<decltype(&::pamkd::baseline::f)>(&::pamkd::level::f)
#if defined(PAMKD_HAS_AVX512)
#define PAMKD_PICK(f)                                                          \
  (::pamkd::cpu_level() == ::pamkd::Level::avx512 ? PAMKD_OF(avx512, f) \
   : ::pamkd::cpu_level() == ::pamkd::Level::avx2 ? PAMKD_OF(avx2, f)   \
                                                  : PAMKD_OF(baseline, f))
#define PAMKD_DECLARE(...)                     \
  namespace pamkd::baseline { __VA_ARGS__ }    \
  namespace pamkd::avx2 { __VA_ARGS__ }        \
  namespace pamkd::avx512 { __VA_ARGS__ }
#else
#define PAMKD_PICK(f) PAMKD_OF(baseline, f)
#define PAMKD_DECLARE(...) \
  namespace pamkd::baseline { __VA_ARGS__ }
#endif
