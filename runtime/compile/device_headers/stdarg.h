// <stdarg.h> for device code.
#pragma once

#include <cstdarg>
