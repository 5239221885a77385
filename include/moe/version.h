// SPDX-License-Identifier: Apache-2.0
/// @file version.h  Version of the library, at compile time and at run time.
#ifndef MOE_VERSION_H
#define MOE_VERSION_H

#define MOE_VERSION_MAJOR  0
#define MOE_VERSION_MINOR  1
#define MOE_VERSION_PATCH  0
#define MOE_VERSION_NUMBER (MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH)

#if defined(__GNUC__) && defined(MOE_BUILDING)
#define MOE_API __attribute__((visibility("default")))
#else
#define MOE_API
#endif

#if defined(__GNUC__)
#define MOE_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define MOE_PRINTF(format_index, first)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// Returns MOE_VERSION_NUMBER of the library that runs, which may differ from the headers'.
/// Thread safety: reentrant. Since 0.1.
MOE_API int moe_version(void);

/// Returns "major.minor.patch" of the library that runs; static storage. Since 0.1.
MOE_API const char *moe_version_string(void);

#ifdef __cplusplus
}
#endif
#endif
