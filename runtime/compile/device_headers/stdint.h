// <stdint.h> for device code.
#pragma once

#include <cstdint>
