// <stdio.h> for device code.
#pragma once

#include <cstdio>
