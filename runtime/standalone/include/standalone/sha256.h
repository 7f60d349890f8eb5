// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace opaq::standalone {

// Fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
alignas(16) constexpr uint32_t kSha256Round[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::array<uint32_t, 8> kSha256Start = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

inline void sha256_block(uint32_t* state, const uint8_t* bytes) {
  const auto rotr = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  const auto round = [&](uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f,
                         uint32_t g, uint32_t& h, uint32_t kw) {
    const uint32_t t = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + (g ^ (e & (f ^ g))) + kw;
    d += t;
    h = t + (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) | (c & (a | b)));
  };
  uint32_t w[16];
  for (int i = 0; i < 16; ++i) {
    const uint8_t* p = bytes + 4 * i;
    w[i] = uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5],
           g = state[6], h = state[7];
  for (int i = 0; i < 64;
       i += 8) {  // eight rounds at once, so that the variables need not be moved
    if (i >= 16) {
      for (int j = i; j < i + 8; ++j) {
        const uint32_t w15 = w[(j + 1) & 15], w2 = w[(j + 14) & 15];
        w[j & 15] += (rotr(w15, 7) ^ rotr(w15, 18) ^ (w15 >> 3)) + w[(j + 9) & 15] +
                     (rotr(w2, 17) ^ rotr(w2, 19) ^ (w2 >> 10));
      }
    }
    const uint32_t* k = kSha256Round + i;
    const uint32_t* v = w + (i & 15);
    round(a, b, c, d, e, f, g, h, k[0] + v[0]);
    round(h, a, b, c, d, e, f, g, k[1] + v[1]);
    round(g, h, a, b, c, d, e, f, k[2] + v[2]);
    round(f, g, h, a, b, c, d, e, k[3] + v[3]);
    round(e, f, g, h, a, b, c, d, k[4] + v[4]);
    round(d, e, f, g, h, a, b, c, k[5] + v[5]);
    round(c, d, e, f, g, h, a, b, k[6] + v[6]);
    round(b, c, d, e, f, g, h, a, k[7] + v[7]);
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f,
      state[6] += g, state[7] += h;
}

// 64 hex digits
inline std::string sha256_hex(const std::array<uint32_t, 8>& state) {
  std::string hex;
  for (const uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

// Of the whole; 64 hex digits.
[[gnu::cold, gnu::noinline]] inline std::string sha256(const std::string& bytes) {
  std::array<uint32_t, 8> state = kSha256Start;
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  const size_t whole = bytes.size() / 64 * 64, rest = bytes.size() - whole;
  for (size_t i = 0; i < whole; i += 64) sha256_block(state.data(), data + i);
  uint8_t tail[128] = {};
  std::memcpy(tail, data + whole, rest);
  tail[rest] = 0x80;
  const size_t length = rest < 56 ? 64 : 128;
  for (int i = 0; i < 8; ++i)
    tail[length - 1 - i] = static_cast<uint8_t>(uint64_t{bytes.size()} * 8 >> (8 * i));
  for (size_t i = 0; i < length; i += 64) sha256_block(state.data(), tail + i);
  return sha256_hex(state);
}

}  // namespace opaq::standalone
