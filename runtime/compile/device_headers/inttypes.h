// <inttypes.h> for device code.
#pragma once

#include <cinttypes>
