// Files that travel with a wrapper: found in the package's folder (elsewhere: where they were
// written), checked by digest when loaded.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

// SHA-256 as in FIPS 180-4, 64 hex digits.
[[gnu::cold, gnu::noinline]] inline std::string opaq_sha256(const std::string& bytes) {
  static constexpr uint32_t K[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2};
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto rotate = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  const auto block = [&](const unsigned char* data) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t{data[4 * i]} << 24 | data[4 * i + 1] << 16 | data[4 * i + 2] << 8 |
             data[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      w[i] = w[i - 16] + w[i - 7] +
             (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
             (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    }
    uint32_t v[8];
    std::memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; ++i) {
      const uint32_t a = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) +
                         ((v[4] & v[5]) ^ (~v[4] & v[6])) + K[i] + w[i];
      const uint32_t b = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) +
                         ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
      std::memmove(v + 1, v, 7 * sizeof *v);
      v[4] += a;
      v[0] = a + b;
    }
    for (int i = 0; i < 8; ++i) state[i] += v[i];
  };
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const size_t whole = bytes.size() / 64 * 64, rest = bytes.size() - whole;
  for (size_t i = 0; i < whole; i += 64) block(data + i);
  unsigned char tail[128] = {};
  std::memcpy(tail, data + whole, rest);
  tail[rest] = 0x80;
  const size_t length = rest < 56 ? 64 : 128;
  for (int i = 0; i < 8; ++i)
    tail[length - 1 - i] = static_cast<unsigned char>(uint64_t{bytes.size()} * 8 >> (8 * i));
  for (size_t i = 0; i < length; i += 64) block(tail + i);
  std::string hex;
  for (uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

using opaq_folder = std::optional<std::string>;  // of the package

// A package's wrapper names files alone; one that stays on the machine, where they were written.
inline std::string opaq_path(const char* file, const opaq_folder& folder) {
  return file[0] == '/' || !folder || folder->empty() ? file
                                                      : opaq_text("%s/%s", folder->c_str(), file);
}

// `what`: "mylib::scale: the code of `scale<float>` for sm_90a".
[[gnu::cold, gnu::noinline]] inline std::string opaq_read(const std::string& path,
                                                          const char* sha256,
                                                          const std::string& what) {
  std::FILE* in = std::fopen(path.c_str(), "rb");
  if (!in)
    opaq_raise("%s is missing: %s cannot be read; package or compile the model again", what.c_str(),
               path.c_str());
  std::string bytes;
  char part[4096];
  while (const size_t size = std::fread(part, 1, sizeof part, in)) bytes.append(part, size);
  std::fclose(in);
  if (const std::string found = opaq_sha256(bytes); found != sha256) {
    opaq_raise("%s is damaged: %s has SHA-256 %s; expected %s; package or compile the model again",
               what.c_str(), path.c_str(), found.c_str(), sha256);
  }
  return bytes;
}
