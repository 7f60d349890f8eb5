// Follows the errors of NVRTC to the files that they are in.
#include "device_code.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "device_headers.h"
#include "torch_headers.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

int number_at(std::string_view text, size_t at) {
  int number = 0;
  for (; at < text.size() && std::isdigit(static_cast<unsigned char>(text[at])); ++at)
    number = number * 10 + (text[at] - '0');
  return number;
}

// Of what the source and the user's headers include, what NVRTC goes without.
std::vector<std::string> host_headers_of(const std::string& source, const IncludeClosure& closure) {
  const auto is_users = [&](const std::string& path) { return closure.files.contains(path); };
  std::vector<std::string> names;
  for (const auto& [name, found] : closure.names) {
    if (is_host_header(name) &&
        (is_torch_header(name) || std::none_of(found.begin(), found.end(), is_users)))
      names.push_back(name);
  }
  if (names.empty()) return names;
  std::vector<std::string> files;
  for (const std::string& file : closure.files) files.push_back(file_text(file));
  std::vector<std::string_view> texts(files.begin(), files.end());
  texts.push_back(source);
  return ask_macros_of_host(texts) ? std::vector<std::string>() : names;
}

// The names by which this file, and no other, is included.
std::vector<std::string> names_of(const std::string& path, const IncludeClosure& closure) {
  std::vector<std::string> names;
  for (const auto& [name, found] : closure.names) {
    if (found.size() == 1 && *found.begin() == path) names.push_back(name);
    if (found.size() > 1 && found.contains(path)) return {};
  }
  return names;
}

}  // namespace

DeviceCode::DeviceCode(const std::string& source, std::string file, const IncludeClosure& closure)
    : closure_(closure),
      file_(std::move(file)),
      source_(source),
      host_headers_(host_headers_of(source, closure)) {}

void DeviceCode::leave_out_obvious() {
  source_.leave_out_obvious();
  for (const std::string& path : closure_.files) {
    if (names_of(path, closure_).empty()) continue;
    HostCodeFilter code(file_text(path));
    if (code.leave_out_obvious()) headers_.try_emplace(path, std::move(code));
  }
}

HostCodeFilter* DeviceCode::code_of(const std::string& file) {
  if (file == file_) return &source_;
  if (!closure_.files.contains(file) || names_of(file, closure_).empty()) return nullptr;
  const auto found = headers_.find(file);
  if (found != headers_.end()) return &found->second;
  return &headers_.try_emplace(file, file_text(file)).first->second;
}

bool DeviceCode::leave_out(std::string_view log) {
  bool any = false;
  for (const auto& [file, lines] : lines_of_errors(log)) {
    if (HostCodeFilter* code = code_of(file)) any |= code->leave_out(lines);
  }
  return any;
}

std::vector<std::string> DeviceCode::headers() const {
  std::vector<std::string> list;
  for (const std::string& name : host_headers_) {
    list.push_back(name);
    list.emplace_back(device_part(name));
  }
  for (const auto& [path, code] : headers_) {
    for (const std::string& name : names_of(path, closure_)) {
      list.push_back(name);
      list.push_back("#line 1 \"" + path + "\"\n" + code.text());
    }
  }
  return list;
}

std::vector<std::string> DeviceCode::dirs() const {
  std::set<std::string> found;
  for (const auto& [path, code] : headers_) found.insert(fs::path(path).parent_path().string());
  return {found.begin(), found.end()};
}

std::set<std::string> DeviceCode::names() const {
  std::set<std::string> all = source_.names();
  for (const auto& [path, code] : headers_) all.insert(code.names().begin(), code.names().end());
  return all;
}

std::map<std::string, std::set<int>> lines_of_errors(std::string_view log) {
  constexpr std::string_view kAtLine = " at line ", kOf = " of ";
  std::map<std::string, std::set<int>> found;
  bool within_error = false;
  std::string last;  // the file of the error
  for (size_t at = 0; at < log.size();) {
    const size_t end = std::min(log.find('\n', at), log.size());
    const std::string_view line = log.substr(at, end - at);
    at = end + 1;
    size_t colon = line.find("): error");
    if (colon == std::string_view::npos) colon = line.find("): catastrophic error");
    const size_t used = line.find(kAtLine);
    if (colon != std::string_view::npos) {
      const size_t open = line.rfind('(', colon);
      if (open == std::string_view::npos) continue;
      last = line.substr(0, open);
      found[last].insert(number_at(line, open + 1));
      within_error = true;
    } else if (line.find("): warning") != std::string_view::npos) {
      within_error = false;
    } else if (within_error && used != std::string_view::npos) {
      // "detected during instantiation of ... at line 12 of k.cu", or without a file if it is the
      // one of the line before
      const size_t of = line.find(kOf, used + kAtLine.size());
      if (of != std::string_view::npos) last = line.substr(of + kOf.size());
      found[last].insert(number_at(line, used + kAtLine.size()));
    }
  }
  return found;
}

}  // namespace opaq
