// What one file of an Inductor kernel includes, to be precompiled; see fast-g++.
#include <torch/csrc/inductor/cpp_prefix.h>
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>
