// CUDA's vector types, with CUDA's alignments.
#pragma once

#include <stdint.h>

#define EMU_VECTOR(type, name, align2, align4)                                          \
  struct alignas(sizeof(type)) name##1 { type x; };                                     \
  struct alignas(align2) name##2 { type x, y; };                                        \
  struct name##3 { type x, y, z; };                                                     \
  struct alignas(align4) name##4 { type x, y, z, w; };                                  \
  inline name##1 make_##name##1(type x) { return name##1{x}; }                          \
  inline name##2 make_##name##2(type x, type y) { return name##2{x, y}; }               \
  inline name##3 make_##name##3(type x, type y, type z) { return name##3{x, y, z}; }    \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return name##4{x, y, z, w}; }

EMU_VECTOR(signed char, char, 2, 4)
EMU_VECTOR(unsigned char, uchar, 2, 4)
EMU_VECTOR(short, short, 4, 8)
EMU_VECTOR(unsigned short, ushort, 4, 8)
EMU_VECTOR(int, int, 8, 16)
EMU_VECTOR(unsigned int, uint, 8, 16)
EMU_VECTOR(long long, longlong, 16, 16)
EMU_VECTOR(unsigned long long, ulonglong, 16, 16)
EMU_VECTOR(float, float, 8, 16)
#undef EMU_VECTOR
