// The number types that a .cu instantiates its kernels for: the one that the build names, which makes an object for
// each so that many cores have work, or all.
#pragma once

#ifdef ADL_ONLY_NUMBER
#define ADL_EACH_NUMBER(f) f(ADL_ONLY_NUMBER)
#define ADL_EACH_NUMBER_BUT_DOUBLE(f) f(ADL_ONLY_NUMBER)
#else
#define ADL_EACH_NUMBER(f) ADL_EACH_NUMBER_BUT_DOUBLE(f) f(double)
#define ADL_EACH_NUMBER_BUT_DOUBLE(f) f(adl::BFloat) f(adl::Half) f(float)
#endif
