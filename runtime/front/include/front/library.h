// Ops that shared libraries declare in C++, by <opaq/op.h>. Thread-safe.
#pragma once

#include <opaq/declare.h>

#include <string>
#include <vector>

namespace opaq::front {

// What such a declaration says beside what the registry keeps: that which only Python uses.
struct LibraryOp {
  std::string name;     // "mylib::rms_norm"
  std::string library;  // path of its file
  std::string place;    // "rms_norm.cpp:12"
  std::string effects;  // "", "random", "ordered"
  std::vector<std::string> tags;
  std::string backward, saves;  // name of the backward op
  std::string reference;        // name of the op that gives the meaning
};

// Declares, implements and defines the ops of a block (opaq_declare). All are checked before the
// first is declared. Throws Declaration, beginning with the place; Missing without LibTorch.
void declare_block(const opaq_field& block, const void* inside);

std::vector<LibraryOp> library_ops();      // in the order of their declaration
std::vector<std::string> take_failures();  // messages of wrong declarations that nobody has shown

// Sets what is called when a block has been declared or refused; the Python module does. The
// function must not call Python: the loader's lock is held.
void on_block(void (*told)());

}  // namespace opaq::front
