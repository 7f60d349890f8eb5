// SHA-256 (FIPS 180-4) for content hashes and cache digests.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace opaq {

class Sha256 {
 public:
  Sha256();
  Sha256& update(std::string_view bytes);
  Sha256& field(std::string_view bytes);  // length first, so that fields cannot run into each other
  std::array<uint8_t, 32> digest();
  std::string hex();  // 64 digits; ends the computation, as digest() does

 private:
  void finish();
  void block(const uint8_t* p);
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_;
  uint64_t length_ = 0;
};

}  // namespace opaq
