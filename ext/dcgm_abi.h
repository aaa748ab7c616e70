/* SPDX-License-Identifier: Apache-2.0 */
/* What libdcgm takes and gives: NVIDIA's public dcgm_structs.h and dcgm_fields.h, the part that is used here.
 *
 * The same in 3.3 and 4.6. A structure is passed with its version in its first word: its size in the low 24
 * bits, its number in the high 8; the library refuses any other with DCGM_ST_VER_MISMATCH.
 */
#ifndef FABRICTAP_DCGM_ABI_H
#define FABRICTAP_DCGM_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define FT_DCGM_VERSION(type, number) ((uint32_t)(sizeof(type) | ((uint32_t)(number) << 24)))

struct ft_dcgm_pair { /* dcgmGroupEntityPair_t */
	uint32_t group;
	uint32_t entity;
};
static_assert(sizeof(struct ft_dcgm_pair) == 8, "dcgmGroupEntityPair_t");

struct ft_dcgm_connect2 { /* dcgmConnectV2Params_v2 */
	uint32_t version;
	uint32_t persist;
	uint32_t timeout_ms;
	uint32_t is_unix;
};
static_assert(FT_DCGM_VERSION(struct ft_dcgm_connect2, 2) == 0x02000010, "dcgmConnectV2Params_v2");

struct ft_dcgm_connect3 { /* dcgmConnectV3Params_v1 */
	uint32_t version;
	uint32_t persist;
	uint32_t timeout_ms;
};
static_assert(FT_DCGM_VERSION(struct ft_dcgm_connect3, 1) == 0x0100000c, "dcgmConnectV3Params_v1");

#define FT_DCGM_STRING 256 /* DCGM_MAX_STR_LENGTH */

struct ft_dcgm_value { /* dcgmFieldValue_v2 */
	uint32_t version;
	uint32_t group;
	uint32_t entity;
	uint16_t field;
	uint16_t type; /* one of 'i', 'd', 's', 't', 'b' */
	int32_t status;
	uint32_t unused;
	int64_t time_us; /* since the epoch */
	union {
		int64_t i64;
		double dbl;
		char str[FT_DCGM_STRING];
		char blob[4096];
	};
};
static_assert(FT_DCGM_VERSION(struct ft_dcgm_value, 2) == 0x02001020, "dcgmFieldValue_v2");
static_assert(offsetof(struct ft_dcgm_value, group) == 4, "dcgmFieldValue_v2.entityGroupId");
static_assert(offsetof(struct ft_dcgm_value, entity) == 8, "dcgmFieldValue_v2.entityId");
static_assert(offsetof(struct ft_dcgm_value, field) == 12, "dcgmFieldValue_v2.fieldId");
static_assert(offsetof(struct ft_dcgm_value, type) == 14, "dcgmFieldValue_v2.fieldType");
static_assert(offsetof(struct ft_dcgm_value, status) == 16, "dcgmFieldValue_v2.status");
static_assert(offsetof(struct ft_dcgm_value, time_us) == 24, "dcgmFieldValue_v2.ts");
static_assert(offsetof(struct ft_dcgm_value, i64) == 32, "dcgmFieldValue_v2.value");

#define FT_DCGM_INSTANCES 448 /* DCGM_MAX_HIERARCHY_INFO: 32 GPUs, 14 instances each */

struct ft_dcgm_instance { /* dcgmMigHierarchyInfo_v2 */
	struct ft_dcgm_pair entity;
	struct ft_dcgm_pair parent;
	char gpu_uuid[128];
	uint32_t gpu_index;	   /* NVML's */
	uint32_t gpu_instance;	   /* NVML's, ~0 for a GPU */
	uint32_t compute_instance; /* NVML's, ~0 for a GPU and a GPU instance */
	uint32_t profile;
	uint32_t slices;
};
static_assert(sizeof(struct ft_dcgm_instance) == 164, "dcgmMigHierarchyInfo_v2");

struct ft_dcgm_hierarchy { /* dcgmMigHierarchy_v2 */
	uint32_t version;
	uint32_t count;
	struct ft_dcgm_instance instances[FT_DCGM_INSTANCES];
};
static_assert(FT_DCGM_VERSION(struct ft_dcgm_hierarchy, 2) == (0x02000000 | 73480), "dcgmMigHierarchy_v2");

struct ft_dcgm_build { /* dcgmVersionInfo_v2; "version:4.6.0;arch:x86_64;..." */
	uint32_t version;
	char text[512];
};
static_assert(FT_DCGM_VERSION(struct ft_dcgm_build, 2) == 0x02000204, "dcgmVersionInfo_v2");

/* A value from here on says that there is none: + 1 not found, + 2 not supported, + 3 not permitted. */
#define FT_DCGM_INT64_BLANK 0x7ffffffffffffff0LL
#define FT_DCGM_FP64_BLANK 140737488355328.0 /* 2 to the 47 */

typedef int (*ft_dcgm_void)(void);
typedef int (*ft_dcgm_handle)(uintptr_t);
typedef int (*ft_dcgm_connect_2)(const char *, struct ft_dcgm_connect2 *, uintptr_t *);
typedef int (*ft_dcgm_connect_3)(const char *, struct ft_dcgm_connect3 *, uintptr_t *);
typedef int (*ft_dcgm_entities)(uintptr_t, uint32_t, uint32_t *, int *, uint32_t);
typedef int (*ft_dcgm_group_create)(uintptr_t, uint32_t, const char *, uintptr_t *);
typedef int (*ft_dcgm_group_add)(uintptr_t, uintptr_t, uint32_t, uint32_t);
typedef int (*ft_dcgm_destroy)(uintptr_t, uintptr_t);
typedef int (*ft_dcgm_fields_create)(uintptr_t, int, uint16_t *, const char *, uintptr_t *);
typedef int (*ft_dcgm_watch)(uintptr_t, uintptr_t, uintptr_t, long long, double, int);
typedef int (*ft_dcgm_unwatch)(uintptr_t, uintptr_t, uintptr_t);
typedef int (*ft_dcgm_latest)(uintptr_t, struct ft_dcgm_pair *, uint32_t, uint16_t *, uint32_t, uint32_t,
			      struct ft_dcgm_value *);
typedef int (*ft_dcgm_hierarchy_get)(uintptr_t, struct ft_dcgm_hierarchy *);
typedef int (*ft_dcgm_build_get)(uintptr_t, struct ft_dcgm_build *);
typedef const char *(*ft_dcgm_text)(int);

#endif
