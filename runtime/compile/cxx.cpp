// Runs and identifies the system's C++ compiler, and reads what it says it has read.
#include "cxx.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "files.h"
#include "private_folder.h"
#include "process.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

// What tells this compiler from another, without running it where its file can be seen.
std::string find_identity() {
  const std::vector<std::string> compiler = cxx_command();
  if (compiler.empty()) return "";
  std::string identity = join(compiler, " ");
  std::error_code error;
  for (const std::string& word : compiler) {
    if (word.find('/') == std::string::npos) continue;
    const std::string real = fs::canonical(word, error).string();
    identity += " " + (error ? word : real) + " " + file_stamp(word);
  }
  if (compiler.back().find('/') == std::string::npos) {
    PrivateFolder folder;
    std::vector<std::string> arguments = compiler;
    arguments.emplace_back("--version");
    if (run_process(arguments, folder.path()).start_error == 0)
      identity += file_text(folder.path() + "/log");
  }
  return identity;
}

// The files of a make rule "target: a b\ c \<newline> d".
std::vector<std::string> read_dependencies(const std::string& rule) {
  std::vector<std::string> files;
  std::string file;
  size_t i = rule.find(": ");
  for (i = i == std::string::npos ? rule.size() : i + 2; i <= rule.size(); ++i) {
    const char c = i < rule.size() ? rule[i] : ' ';
    const char next = i + 1 < rule.size() ? rule[i + 1] : '\0';
    if (c == '\\' && (next == ' ' || next == '#' || next == '\\')) {
      file += next;
      ++i;
    } else if (c == '$' && next == '$') {
      file += c;
      ++i;
    } else if (c == ' ' || c == '\n' || (c == '\\' && next == '\n')) {
      if (!file.empty()) files.push_back(std::move(file));
      file.clear();
    } else {
      file += c;
    }
  }
  return files;
}

}  // namespace

std::vector<std::string> cxx_command() {
  const std::string& text = settings().cxx;
  std::error_code error;
  if (fs::is_regular_file(text, error)) return {text};
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size();) {
    const size_t end = std::min(text.find(' ', i), text.size());
    if (end > i) out.push_back(text.substr(i, end - i));
    i = end + 1;
  }
  return out;
}

const std::string& cxx_identity() {
  constinit static Lazy<std::string> identity;
  return identity.get(find_identity);  // of settings().cxx, which does not change
}

std::vector<std::string> outside_files(const std::string& rule, const std::set<std::string>& known,
                                       const std::vector<std::string>& known_folders) {
  std::vector<std::string> out;
  for (const std::string& file : read_dependencies(rule)) {
    if (known.contains(file)) continue;
    std::error_code error;
    const std::string path = fs::absolute(file, error).string();
    if (std::any_of(known_folders.begin(), known_folders.end(),
                    [&](const std::string& folder) { return path.starts_with(folder + '/'); }))
      continue;
    out.push_back(path);
    out.push_back(file_stamp(path));
  }
  return out;
}

std::string lack_of_space(const std::string& folder) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error || space.available >= (uintmax_t{1} << 20)) return "";
  return "\nonly " + std::to_string(space.available / 1024) + " KB are free in " +
         fs::path(folder).parent_path().string() +
         ": free space there, or name another folder in OPAQ_CACHE_DIR or TMPDIR";
}

void write_source(const std::string& path, const std::string& text, const std::string& what) {
  if (std::ofstream stream(path, std::ios::binary); !(stream << text << std::flush)) {
    fail(ErrorKind::Compile,
         what + " cannot be compiled: writing " + path + " failed: " + std::strerror(errno) +
             "; free space there, or name another folder in OPAQ_CACHE_DIR or TMPDIR");
  }
}

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace opaq
