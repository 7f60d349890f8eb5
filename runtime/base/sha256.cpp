// SHA-256 (FIPS 180-4), with the processor's SHA instructions if it has them.
#include "base/sha256.h"

#include <algorithm>
#include <cstring>

#include "standalone/sha256.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace opaq {
namespace {

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
    const __m128i wk = _mm_add_epi32(
        w[i & 3],
        _mm_load_si128(reinterpret_cast<const __m128i*>(standalone::kSha256Round + 4 * i)));
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
void block_sha_ni(uint32_t* state, const uint8_t* p) { standalone::sha256_block(state, p); }
#endif

// a fact of the processor; before it is set, the portable code runs
const bool kShaInstructions = has_sha_instructions();

}  // namespace

Sha256::Sha256() : state_(standalone::kSha256Start), buffer_{} {}

void Sha256::block(const uint8_t* p) {
  if (kShaInstructions)
    block_sha_ni(state_.data(), p);
  else
    standalone::sha256_block(state_.data(), p);
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

void Sha256::finish() {
  const uint64_t bits = length_ * 8;
  static constexpr char padding[64] = {'\x80'};
  const size_t held = length_ % 64;
  update({padding, held < 56 ? 56 - held : 120 - held});
  char tail[8];
  for (int i = 0; i < 8; ++i) tail[i] = static_cast<char>(bits >> (56 - 8 * i));
  update({tail, 8});
}

std::array<uint8_t, 32> Sha256::digest() {
  finish();
  std::array<uint8_t, 32> out;
  for (size_t i = 0; i < 32; ++i)
    out[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

std::string Sha256::hex() {
  finish();
  return standalone::sha256_hex(state_);
}

}  // namespace opaq
