// The metadata of a cached image: fields that begin with their lengths, so that they can hold any
// text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "compile/image.h"

namespace opaq {

struct Record {
  std::vector<Entry> entries;
  std::string log;
  std::vector<std::string>
      files;  // what the compiler says it read beside the user's headers: path and stamp in turn
};

// Whether every file of the record still has its stamp.
bool files_unchanged(const Record& record);

std::string write_record(const Record& record);
// nullopt for anything that write_record does not write
std::optional<Record> read_record(std::string_view text);

}  // namespace opaq
