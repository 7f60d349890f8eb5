// <ctype.h> for device code: it is the host's. What names it in functions of the host is left out.
#pragma once
