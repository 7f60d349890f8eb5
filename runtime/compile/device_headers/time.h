// <time.h> for device code.
#pragma once

#include <ctime>
