// Intel's matrix unit (AMX): what its formats in bytes.h (float32) and halves.h (bfloat16) share.
//
// A panel is a few rows of the left matrix or a few columns of the right one, in the order in which
// the unit reads them: tiles of 16 rows of 64 bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

#if defined(__linux__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BW__)
#define JAXLLADA_HAS_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int64_t TILE_BYTES = 1024;

// What was written is in memory: GCC does not know what the unit's loads read.
inline void settle() { asm volatile("" ::: "memory"); }

// What a thread holds while it uses the unit: all eight tiles are 16 rows of 64 bytes.
struct Tiles {
  Tiles() {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; ++i) config[16 + 2 * i] = 64, config[48 + i] = 16;
    asm volatile("" ::"r"(config) : "memory");  // for GCC, which takes it to read eight bytes
    _tile_loadconfig(config);
  }
  ~Tiles() { _tile_release(); }

  // Whether the system lets the unit be used.
  static bool are_allowed() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  }
};

inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Asks for memory a few lines at a time, in the order in which it lies.
struct Ahead {
  const char* from;
  int64_t lines;
  void fetch(int64_t count) {
    for (count = std::min(count, lines), lines -= count; count > 0; --count, from += LINE)
      __builtin_prefetch(from, 0, 2);
  }
};
#endif
