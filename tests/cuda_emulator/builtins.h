// CUDA's built-in functions and the arithmetic of the inline PTX that we know.
#pragma once

#include <math.h>

#define EMU_MIN_MAX(type)                                   \
  inline type min(type a, type b) { return a < b ? a : b; } \
  inline type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
EMU_MIN_MAX(float)
#undef EMU_MIN_MAX

template <class T> T __ldg(const emu::P<T>& p) { return *p; }

#define EMU_ATOMIC(name, expression)                                                         \
  template <class T> T name(const emu::P<T>& p, typename emu::Same<T>::type value) {         \
    unsigned char* at = emu::atomic(p.region, p.offset, sizeof(T), alignof(T));              \
    T old, next;                                                                             \
    memcpy(&old, at, sizeof(T));                                                             \
    next = (expression);                                                                     \
    memcpy(at, &next, sizeof(T));                                                            \
    return old;                                                                              \
  }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicMax, old < value ? value : old)
EMU_ATOMIC(atomicMin, old < value ? old : value)
EMU_ATOMIC(atomicExch, value)
#undef EMU_ATOMIC

inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return (unsigned)(((unsigned long long)a * b) >> 32);
}
inline long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float a) { return (int)rintf(a); }

namespace emu {

inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = ((uint64_t)b << 32) | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t s = selector >> (4 * i);
    uint32_t byte = (bytes >> (8 * (s & 7))) & 0xff;
    if (s & 8) byte = (byte & 0x80) ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}

inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return out;
}

inline int saturate(int v, int bits, bool is_signed) {
  int lo = is_signed ? -(1 << (bits - 1)) : 0;
  int hi = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  return v < lo ? lo : v > hi ? hi : v;
}

// cvt.pack: b in the lowest bits, a above it, the low bits of c above both.
inline uint32_t cvt_pack(int a, int b, uint32_t c, int bits, bool is_signed) {
  uint32_t mask = (1u << bits) - 1;
  uint32_t pair = ((uint32_t)saturate(a, bits, is_signed) & mask) << bits;
  pair |= (uint32_t)saturate(b, bits, is_signed) & mask;
  return bits == 16 ? pair : (c << (2 * bits)) | pair;
}

inline uint32_t dp4a(uint32_t a, bool a_signed, uint32_t b, bool b_signed, uint32_t c) {
  for (int i = 0; i < 4; ++i) {
    int x = a_signed ? (int)(int8_t)(a >> 8 * i) : (int)(uint8_t)(a >> 8 * i);
    int y = b_signed ? (int)(int8_t)(b >> 8 * i) : (int)(uint8_t)(b >> 8 * i);
    c += (uint32_t)(x * y);
  }
  return c;
}

// PTX clamps shift amounts, where C++ leaves them undefined.
inline uint32_t shl32(uint32_t a, uint32_t n) { return n > 31 ? 0 : a << n; }
inline uint32_t shr_u32(uint32_t a, uint32_t n) { return n > 31 ? 0 : a >> n; }
inline uint32_t shr_s32(uint32_t a, uint32_t n) { return (uint32_t)((int32_t)a >> (n > 31 ? 31 : n)); }

inline uint32_t shared_address(const P<void>& p) {
  if (!p.region || p.region->space != Region::kShared)
    fail("__cvta_generic_to_shared of a pointer that is not to shared memory");
  return (uint32_t)address_of(p.region, p.offset);
}

enum ShuffleMode { kIndex, kUp, kDown, kXor };
inline uint32_t shuffle32(uint32_t mask, uint32_t value, uint32_t operand, int width, int mode) {
  if (mask != 0xffffffffu) fail("a shuffle of some lanes of a warp (mask 0x%08x) is not modelled", mask);
  static const char* const names[] = {"shfl.idx", "shfl.up", "shfl.down", "shfl.bfly"};
  lane->in[0] = value;
  lane->in[1] = operand;
  collective(Collective{names[mode], shuffle, {mode, width}});
  return lane->out[0];
}

}  // namespace emu

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) { return emu::prmt(a, b, s); }
inline int __dp4a(int a, int b, int c) { return (int)emu::dp4a(a, true, b, true, c); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return emu::dp4a(a, false, b, false, c); }
inline uint32_t __cvta_generic_to_shared(const emu::P<void>& p) { return emu::shared_address(p); }

#define EMU_SHUFFLE(name, mode)                                                        \
  inline int name(uint32_t mask, int v, uint32_t operand, int width = 32) {            \
    return (int)emu::shuffle32(mask, (uint32_t)v, operand, width, mode);               \
  }                                                                                    \
  inline unsigned name(uint32_t mask, unsigned v, uint32_t operand, int width = 32) {  \
    return emu::shuffle32(mask, v, operand, width, mode);                              \
  }                                                                                    \
  inline float name(uint32_t mask, float v, uint32_t operand, int width = 32) {        \
    return emu::as_float(emu::shuffle32(mask, emu::reg32(v), operand, width, mode));   \
  }
EMU_SHUFFLE(__shfl_sync, emu::kIndex)
EMU_SHUFFLE(__shfl_up_sync, emu::kUp)
EMU_SHUFFLE(__shfl_down_sync, emu::kDown)
EMU_SHUFFLE(__shfl_xor_sync, emu::kXor)
#undef EMU_SHUFFLE
