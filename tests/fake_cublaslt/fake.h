// What the fake cuBLASLt has been told: each product with its descriptors, as attributes by number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fake_cublaslt {

struct Layout {
  int32_t type;
  uint64_t rows, columns;
  int64_t ld;
  std::map<int32_t, std::string> attributes;  // bytes
};
struct Product {
  int32_t compute, scale_type;
  std::map<int32_t, std::string> attributes;
  Layout a, b, c, d;
  std::string alpha, beta;  // bytes, 8 of each
  const void *at_a, *at_b, *at_c;
  void *at_d, *workspace, *stream;
  size_t workspace_bytes;
  uint64_t algorithm;  // its first word: how many had been asked for
};
struct Record {
  std::vector<Product> products;
  int heuristics = 0;                         // how often an algorithm was asked for
  int checks = 0;                             // how often whether an algorithm serves
  std::map<int32_t, std::string> preference;  // of the last time
  int created = 0;
  int requested = 0;        // algorithms, the last time
  size_t workspace = 4096;  // that algorithms need
  bool has_algorithm = true;
};

}  // namespace fake_cublaslt

// The one record of the process.
extern "C" fake_cublaslt::Record* fake_cublaslt_record();
