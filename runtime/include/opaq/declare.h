// The C interface of libopaq.so, through which <opaq/op.h> declares ops. Use <opaq/op.h>.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// A named part of a declaration: a text, or a list of parts. Texts hold numbers in decimal; a flag
// is "1". Nothing is kept: everything may be freed when the call returns.
typedef struct opaq_field {
  const char* key;   // "" of the items of a list
  const char* text;  // `size` bytes
  size_t size;
  const struct opaq_field* fields;
  size_t count;
  void (*function)(void);  // of `function` and `call`: see kinds/linked_function.cpp
} opaq_field;

// Declares the ops of one OPAQ_OPS block; to be called while its library is loaded. `inside`: an
// address in that library. Wrong declarations end the process with a message on stderr, or raise
// opaq.DeclarationError in a process with Python. Then no op of the block is declared.
__attribute__((visibility("default"))) void opaq_declare(const opaq_field* block,
                                                         const void* inside);

#ifdef __cplusplus
}
#endif
