// SHA-256 (FIPS 180-4), with the processor's SHA instructions if it has them.
#include "base/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace opaq {
namespace {

// Fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t load_be(const uint8_t* p) {
  return static_cast<uint32_t>(p[0]) << 24 | static_cast<uint32_t>(p[1]) << 16 |
         static_cast<uint32_t>(p[2]) << 8 | p[3];
}

void block_portable(uint32_t* state, const uint8_t* p) {
  uint32_t w[16];
  for (int i = 0; i < 16; ++i) w[i] = load_be(p + 4 * i);
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5],
           g = state[6], h = state[7];
  const auto round = [](uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f,
                        uint32_t g, uint32_t& h, uint32_t kw) {
    const uint32_t t =
        h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + (g ^ (e & (f ^ g))) + kw;
    d += t;
    h = t + (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) | (c & (a | b)));
  };
  for (int i = 0; i < 64;
       i += 8) {  // eight rounds at once, so that the variables need not be moved
    if (i >= 16) {
      for (int j = i; j < i + 8; ++j) {
        const uint32_t w15 = w[(j + 1) & 15], w2 = w[(j + 14) & 15];
        w[j & 15] += (std::rotr(w15, 7) ^ std::rotr(w15, 18) ^ (w15 >> 3)) + w[(j + 9) & 15] +
                     (std::rotr(w2, 17) ^ std::rotr(w2, 19) ^ (w2 >> 10));
      }
    }
    const uint32_t* k = kRound + i;
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

#if defined(__x86_64__) && defined(__GNUC__)

bool has_sha_instructions() {
  // CPUID leaf 7, EBX bit 29; __builtin_cpu_supports("sha") does not exist in all our compilers.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx >> 29 & 1) &&
         __builtin_cpu_supports("sse4.1");
}

// The instructions keep the state as (a,b,e,f) and (c,d,g,h), highest lane first, and run four
// rounds per schedule vector.
__attribute__((target("sha,sse4.1"))) void block_sha_ni(uint32_t* state, const uint8_t* p) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));
  const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));
  const __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
  const __m128i abef_in = _mm_alignr_epi8(cdab, efgh, 8),
                cdgh_in = _mm_blend_epi16(efgh, cdab, 0xf0);
  __m128i abef = abef_in, cdgh = cdgh_in;

  __m128i w[4];
  for (int i = 0; i < 4; ++i)
    w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)), swap);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i >= 4) {  // w[t] = s1(w[t-2]) + w[t-7] + s0(w[t-15]) + w[t-16], four at a time
      const __m128i last = w[(i + 3) & 3];
      const __m128i w7 = _mm_alignr_epi8(last, w[(i + 2) & 3], 4);
      w[i & 3] = _mm_sha256msg2_epu32(
          _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]), w7), last);
    }
    const __m128i wk =
        _mm_add_epi32(w[i & 3], _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * i)));
    cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
    abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
  }

  abef = _mm_add_epi32(abef, abef_in);
  cdgh = _mm_add_epi32(cdgh, cdgh_in);
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#else
bool has_sha_instructions() { return false; }
void block_sha_ni(uint32_t* state, const uint8_t* p) { block_portable(state, p); }
#endif

// a fact of the processor; before it is set, the portable code runs
const bool kShaInstructions = has_sha_instructions();

}  // namespace

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
      buffer_{} {}

void Sha256::block(const uint8_t* p) {
  if (kShaInstructions)
    block_sha_ni(state_.data(), p);
  else
    block_portable(state_.data(), p);
}

Sha256& Sha256::update(std::string_view bytes) {
  const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
  size_t n = bytes.size();
  if (n == 0) return *this;
  const size_t held = length_ % 64;
  length_ += n;
  if (held != 0) {
    const size_t take = std::min(n, 64 - held);
    std::memcpy(buffer_.data() + held, p, take);
    if (held + take < 64) return *this;
    block(buffer_.data());
    p += take;
    n -= take;
  }
  for (; n >= 64; p += 64, n -= 64) block(p);
  if (n != 0) std::memcpy(buffer_.data(), p, n);
  return *this;
}

Sha256& Sha256::field(std::string_view bytes) {
  char length[8];
  for (int i = 0; i < 8; ++i)
    length[i] = static_cast<char>(static_cast<uint64_t>(bytes.size()) >> (8 * i));
  return update({length, 8}).update(bytes);
}

std::array<uint8_t, 32> Sha256::digest() {
  const uint64_t bits = length_ * 8;
  static constexpr char padding[64] = {'\x80'};
  const size_t held = length_ % 64;
  update({padding, held < 56 ? 56 - held : 120 - held});
  char tail[8];
  for (int i = 0; i < 8; ++i) tail[i] = static_cast<char>(bits >> (56 - 8 * i));
  update({tail, 8});
  std::array<uint8_t, 32> out;
  for (size_t i = 0; i < 32; ++i)
    out[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

std::string Sha256::hex() {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  out.reserve(64);
  for (uint8_t byte : digest()) {
    out += digits[byte >> 4];
    out += digits[byte & 15];
  }
  return out;
}

}  // namespace opaq
