// <stddef.h> for device code.
#pragma once

#include <cstddef>
