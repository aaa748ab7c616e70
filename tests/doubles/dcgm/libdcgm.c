// SPDX-License-Identifier: Apache-2.0
/*
 * A STAND-IN for NVIDIA's libdcgm and the host engine behind it. No GPU, no engine, no socket: it answers
 * from a file that a test maps too (control.h), named by FABRICTAP_DCGM_DOUBLE. Layouts and version words
 * are written down here by themselves, from NVIDIA's public headers, and not taken from ext/.
 *
 * -DMAJOR=3 leaves out what DCGM 3 does not have.
 */
#include <assert.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "control.h"

#ifndef MAJOR
#define MAJOR 4
#endif

#define WORD(type, number) (unsigned int)(sizeof(type) | ((unsigned long)(number) << 24U))

typedef uintptr_t dcgmHandle_t;

typedef struct {
	unsigned int entityGroupId;
	unsigned int entityId;
} dcgmGroupEntityPair_t;

typedef struct {
	unsigned int version;
	unsigned int persistAfterDisconnect;
	unsigned int timeoutMs;
	unsigned int addressIsUnixSocket;
} dcgmConnectV2Params_v2;
static_assert(sizeof(dcgmConnectV2Params_v2) == 16 && WORD(dcgmConnectV2Params_v2, 2) == 0x02000010, "");

typedef struct {
	unsigned int version;
	unsigned int persistAfterDisconnect;
	unsigned int timeoutMs;
} dcgmConnectV3Params_v1;
static_assert(sizeof(dcgmConnectV3Params_v1) == 12 && WORD(dcgmConnectV3Params_v1, 1) == 0x0100000c, "");

typedef struct {
	unsigned int version;
	unsigned int entityGroupId;
	unsigned int entityId;
	unsigned short fieldId;
	unsigned short fieldType;
	int status;
	unsigned int unused;
	int64_t ts;
	union {
		int64_t i64;
		double dbl;
		char str[256];
		char blob[4096];
	} value;
} dcgmFieldValue_v2;
static_assert(sizeof(dcgmFieldValue_v2) == 4128 && WORD(dcgmFieldValue_v2, 2) == 0x02001020, "");
static_assert(offsetof(dcgmFieldValue_v2, fieldId) == 12 && offsetof(dcgmFieldValue_v2, fieldType) == 14, "");
static_assert(offsetof(dcgmFieldValue_v2, status) == 16 && offsetof(dcgmFieldValue_v2, ts) == 24, "");
static_assert(offsetof(dcgmFieldValue_v2, value) == 32, "");

typedef struct {
	dcgmGroupEntityPair_t entity;
	dcgmGroupEntityPair_t parent;
	struct {
		char gpuUuid[128];
		unsigned int nvmlGpuIndex;
		unsigned int nvmlInstanceId;
		unsigned int nvmlComputeInstanceId;
		unsigned int nvmlMigProfileId;
		unsigned int nvmlProfileSlices;
	} info;
} dcgmMigHierarchyInfo_v2;

typedef struct {
	unsigned int version;
	unsigned int count;
	dcgmMigHierarchyInfo_v2 entityList[32 * 14];
} dcgmMigHierarchy_v2;
static_assert(sizeof(dcgmMigHierarchy_v2) == 73480, "");

typedef struct {
	unsigned int version;
	char rawBuildInfoString[512];
} dcgmVersionInfo_v2;
static_assert(WORD(dcgmVersionInfo_v2, 2) == 0x02000204, "");

enum {
	OK = 0,
	BADPARAM = -1,
	NOT_CONFIGURED = -5,
	NOT_SUPPORTED = -6,
	INIT_ERROR = -7,
	UNINITIALIZED = -10,
	VER_MISMATCH = -12,
	UNKNOWN_FIELD = -13,
	NO_DATA = -14,
	NOT_WATCHED = -16,
	CONNECTION_NOT_VALID = -21,
	MAX_LIMIT = -24,
	DUPLICATE_KEY = -26,
	INSUFFICIENT_SIZE = -31,
};

#define FE_GPU 1
#define FE_GPU_I 4
#define FE_GPU_CI 5
#define INT64_BLANK 0x7ffffffffffffff0LL
#define FP64_BLANK 140737488355328.0
#define MAX_GROUPS 64
#define MAX_WATCHES 256

static struct control *control;

struct group {
	uintptr_t id;
	uint32_t count;
	dcgmGroupEntityPair_t pairs[1024];
};

struct fields {
	uintptr_t id;
	uint32_t count;
	unsigned short ids[128];
	char name[256];
};

static struct {
	uintptr_t handle; /* 0: not connected */
	uint32_t generation;
	struct group groups[MAX_GROUPS];
	struct fields fields[MAX_GROUPS];
	struct {
		uintptr_t group;
		uintptr_t fields;
	} watches[MAX_WATCHES];
} connection;

static uintptr_t next_id = 1;
static int initialized;

/* Says stand-in to whoever looks for it. */
__attribute__((visibility("default"))) const char fabrictap_standin[] = "stand-in of libdcgm";

__attribute__((visibility("default"))) size_t standin_control_size(void)
{
	return sizeof(struct control);
}

/* Counts a call, hangs if told to, and gives the code that was ordered for it; OK: go on. */
static int called(enum call call)
{
	const struct timespec moment = { 0, 1000000 };

	if (!control)
		return INIT_ERROR;
	control->calls[call]++;
	if (control->hang == (uint32_t)call + 1) {
		control->hanging++;
		while (*(volatile uint32_t *)&control->hang == (uint32_t)call + 1)
			nanosleep(&moment, NULL);
		control->hanging--;
	}
	if (control->answer[call] != OK) {
		int code = control->answer[call];

		if (control->answers[call] && --control->answers[call] == 0)
			control->answer[call] = OK;
		return code;
	}
	return OK;
}

static int connected(dcgmHandle_t handle)
{
	if (!connection.handle || handle != connection.handle)
		return BADPARAM;
	return connection.generation == control->generation ? OK : CONNECTION_NOT_VALID;
}

#define ENTER(call)                                                                                                    \
	do {                                                                                                           \
		int code_ = called(call);                                                                              \
		if (code_ != OK)                                                                                       \
			return code_;                                                                                  \
	} while (0)
#define ENTER_CONNECTED(call, handle)                                                                                  \
	do {                                                                                                           \
		ENTER(call);                                                                                           \
		int connected_ = connected(handle);                                                                    \
		if (connected_ != OK)                                                                                  \
			return connected_;                                                                             \
	} while (0)
#define API __attribute__((visibility("default")))

static void unmap(void)
{
	munmap(control, sizeof(*control));
	control = NULL;
}

API int dcgmInit(void)
{
	const char *path = getenv("FABRICTAP_DCGM_DOUBLE");
	struct stat status;
	int fd;

	if (!control) {
		fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
		if (fd < 0)
			return INIT_ERROR;
		if (fstat(fd, &status) == 0 && status.st_size == sizeof(struct control))
			control = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
		if (!control || control == MAP_FAILED || control->size != sizeof(struct control)) {
			control = NULL;
			return INIT_ERROR;
		}
	}
	int code = called(CALL_INIT);

	if (code == OK) {
		initialized++;
		control->libraries++;
	} else if (!initialized) {
		unmap();
	}
	return code;
}

API int dcgmShutdown(void)
{
	ENTER(CALL_SHUTDOWN);
	if (!initialized)
		return UNINITIALIZED;
	control->libraries--;
	if (--initialized == 0)
		unmap();
	return OK;
}

static int connect_engine(const char *address, dcgmHandle_t *handle)
{
	if (!initialized)
		return UNINITIALIZED;
	if (!address || !handle)
		return BADPARAM;
	strncpy(control->address, address, sizeof(control->address) - 1);
	if (control->refuse != OK)
		return control->refuse;
	if (connection.handle)
		return MAX_LIMIT; /* the real one takes more; the agent must not need them */
	memset(&connection, 0, sizeof(connection));
	connection.handle = *handle = 0x7fff00000000 + next_id++;
	connection.generation = control->generation;
	control->connections++;
	return OK;
}

API int dcgmConnect_v2(const char *address, dcgmConnectV2Params_v2 *params, dcgmHandle_t *handle)
{
	ENTER(CALL_CONNECT_V2);
	if (!params)
		return BADPARAM;
	if (params->version != 0x02000010)
		return VER_MISMATCH;
	control->timeout_ms = params->timeoutMs;
	control->is_unix = params->addressIsUnixSocket;
	control->persist = params->persistAfterDisconnect;
	return connect_engine(address, handle);
}

#if MAJOR >= 4
API int dcgmConnect_v3(const char *address, dcgmConnectV3Params_v1 *params, dcgmHandle_t *handle)
{
	ENTER(CALL_CONNECT_V3);
	if (!params || !strstr(address, "://"))
		return BADPARAM;
	if (params->version != 0x0100000c)
		return VER_MISMATCH;
	control->timeout_ms = params->timeoutMs;
	control->persist = params->persistAfterDisconnect;
	return connect_engine(address, handle);
}
#endif

API int dcgmDisconnect(dcgmHandle_t handle)
{
	uint32_t left = 0;

	ENTER(CALL_DISCONNECT);
	if (!connection.handle || handle != connection.handle)
		return BADPARAM;
	for (int i = 0; i < MAX_WATCHES; i++)
		left += connection.watches[i].group != 0;
	control->watches -= left;
	for (int i = 0; i < MAX_GROUPS; i++) {
		control->groups -= connection.groups[i].id != 0;
		control->field_groups -= connection.fields[i].id != 0;
		left += (connection.groups[i].id != 0) + (connection.fields[i].id != 0);
	}
	control->abandoned += left;
	control->connections--;
	connection.handle = 0;
	return OK;
}

API int dcgmGetEntityGroupEntities(dcgmHandle_t handle, unsigned int group, unsigned int *ids, int *count,
				   unsigned int flags)
{
	int found = 0;

	(void)flags;
	ENTER_CONNECTED(CALL_ENTITIES, handle);
	if (!ids || !count)
		return BADPARAM;
	for (uint32_t i = 0; i < control->entity_count; i++) {
		if (control->entities[i].group != group)
			continue;
		if (found < *count)
			ids[found] = control->entities[i].id;
		found++;
	}
	if (found > *count) {
		*count = found;
		return INSUFFICIENT_SIZE;
	}
	*count = found;
	return OK;
}

static int exists(unsigned int group, unsigned int id)
{
	for (uint32_t i = 0; i < control->entity_count; i++)
		if (control->entities[i].group == group && control->entities[i].id == id)
			return 1;
	return 0;
}

API int dcgmGroupCreate(dcgmHandle_t handle, int type, const char *name, uintptr_t *made)
{
	ENTER_CONNECTED(CALL_GROUP_CREATE, handle);
	if (!name || !*name || !made || type != 1)
		return BADPARAM;
	for (int i = 0; i < MAX_GROUPS; i++) {
		if (connection.groups[i].id)
			continue;
		connection.groups[i].count = 0;
		connection.groups[i].id = *made = 0x100000000 + next_id++;
		control->groups++;
		return OK;
	}
	return MAX_LIMIT;
}

static struct group *group_of(uintptr_t id)
{
	for (int i = 0; i < MAX_GROUPS; i++)
		if (id && connection.groups[i].id == id)
			return &connection.groups[i];
	return NULL;
}

static struct fields *fields_of(uintptr_t id)
{
	for (int i = 0; i < MAX_GROUPS; i++)
		if (id && connection.fields[i].id == id)
			return &connection.fields[i];
	return NULL;
}

API int dcgmGroupAddEntity(dcgmHandle_t handle, uintptr_t id, unsigned int group, unsigned int entity)
{
	struct group *found;

	ENTER_CONNECTED(CALL_GROUP_ADD, handle);
	found = group_of(id);
	if (!found)
		return NOT_CONFIGURED;
	if (!exists(group, entity))
		return BADPARAM;
	if (found->count >= control->entity_limit)
		return MAX_LIMIT;
	found->pairs[found->count++] = (dcgmGroupEntityPair_t){ group, entity };
	return OK;
}

static int known(unsigned short field)
{
	return field < control->known_fields && !(field >= control->unknown_first && field <= control->unknown_last);
}

API int dcgmGroupDestroy(dcgmHandle_t handle, uintptr_t id)
{
	struct group *found;

	ENTER_CONNECTED(CALL_GROUP_DESTROY, handle);
	found = group_of(id);
	if (!found)
		return NOT_CONFIGURED;
	found->id = 0;
	control->groups--;
	return OK;
}

API int dcgmFieldGroupCreate(dcgmHandle_t handle, int count, const unsigned short *ids, const char *name,
			     uintptr_t *made)
{
	ENTER_CONNECTED(CALL_FIELDS_CREATE, handle);
	if (count < 1 || count > 128 || !ids || !name || !made)
		return BADPARAM;
	for (int i = 0; i < count; i++)
		if (!known(ids[i]))
			return BADPARAM;
	for (int i = 0; i < MAX_GROUPS; i++)
		if (connection.fields[i].id && strcmp(connection.fields[i].name, name) == 0)
			return DUPLICATE_KEY;
	for (int i = 0; i < MAX_GROUPS; i++) {
		if (connection.fields[i].id)
			continue;
		memcpy(connection.fields[i].ids, ids, sizeof(*ids) * count);
		connection.fields[i].count = count;
		strncpy(connection.fields[i].name, name, sizeof(connection.fields[i].name) - 1);
		strncpy(control->last_name, name, sizeof(control->last_name) - 1);
		connection.fields[i].id = *made = 0x200000000 + next_id++;
		control->field_groups++;
		return OK;
	}
	return MAX_LIMIT;
}

API int dcgmFieldGroupDestroy(dcgmHandle_t handle, uintptr_t id)
{
	struct fields *found;

	ENTER_CONNECTED(CALL_FIELDS_DESTROY, handle);
	found = fields_of(id);
	if (!found)
		return NO_DATA;
	found->id = 0;
	control->field_groups--;
	return OK;
}

API int dcgmWatchFields(dcgmHandle_t handle, uintptr_t group, uintptr_t fields, long long interval_us, double keep,
			int samples)
{
	struct fields *wanted;
	int code = OK;

	ENTER_CONNECTED(CALL_WATCH, handle);
	wanted = fields_of(fields);
	if (!group_of(group) || !wanted || interval_us <= 0)
		return BADPARAM;
	control->last_interval_us = interval_us;
	control->last_keep = keep;
	control->last_samples = samples;
	for (uint32_t i = 0; i < wanted->count; i++)
		for (uint32_t j = 0; j < control->refused_count; j++)
			if (control->refused[j].field == wanted->ids[i] && code == OK)
				code = control->refused[j].code;
	for (int i = 0; i < MAX_WATCHES; i++) {
		if (connection.watches[i].group)
			continue;
		connection.watches[i].group = group;
		connection.watches[i].fields = fields;
		control->watches++;
		return code; /* the watch stays, as it does at the real engine, though the call failed */
	}
	return MAX_LIMIT;
}

API int dcgmUnwatchFields(dcgmHandle_t handle, uintptr_t group, uintptr_t fields)
{
	ENTER_CONNECTED(CALL_UNWATCH, handle);
	for (int i = 0; i < MAX_WATCHES; i++) {
		if (connection.watches[i].group != group || connection.watches[i].fields != fields)
			continue;
		connection.watches[i].group = 0;
		control->watches--;
		return OK;
	}
	return BADPARAM;
}

static int watched(unsigned int group, unsigned int entity, unsigned short field)
{
	for (int i = 0; i < MAX_WATCHES; i++) {
		struct group *entities;
		struct fields *fields;
		int has_entity = 0, has_field = 0;

		if (!connection.watches[i].group)
			continue;
		entities = group_of(connection.watches[i].group);
		fields = fields_of(connection.watches[i].fields);
		if (!entities || !fields)
			continue;
		for (uint32_t j = 0; j < entities->count; j++)
			has_entity |= entities->pairs[j].entityGroupId == group && entities->pairs[j].entityId == entity;
		for (uint32_t j = 0; j < fields->count; j++)
			has_field |= fields->ids[j] == field;
		if (has_entity && has_field)
			return 1;
	}
	return 0;
}

static void blank(dcgmFieldValue_v2 *out)
{
	if (out->fieldType == 'd')
		out->value.dbl = FP64_BLANK;
	else if (out->fieldType == 's')
		strcpy(out->value.str, "<<<NULL>>>");
	else
		out->value.i64 = INT64_BLANK;
}

static void answer(dcgmFieldValue_v2 *out, unsigned int group, unsigned int entity, unsigned short field, int live)
{
	const struct value *value = NULL;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	out->version = 0x02001020;
	out->entityGroupId = group;
	out->entityId = entity;
	out->fieldId = field;
	out->fieldType = 'i';
	out->status = OK;
	out->ts = 0;
	for (uint32_t i = 0; i < control->value_count && !value; i++)
		if (control->values[i].group == group && control->values[i].entity == entity &&
		    control->values[i].field == field)
			value = &control->values[i];
	if (value)
		out->fieldType = value->type;
	blank(out);
	if (!known(field)) {
		out->status = UNKNOWN_FIELD;
	} else if (!live && !(value && value->foreign) && !watched(group, entity, field)) {
		out->status = NOT_WATCHED;
	} else if (!value || !exists(group, entity)) {
		out->status = NO_DATA;
	} else {
		out->status = value->status;
		out->ts = value->time_us ? value->time_us : now.tv_sec * 1000000LL + now.tv_nsec / 1000;
		if (control->profiling_paused && field >= 1000 && field < 1100)
			return; /* "DCGM will save BLANK values while profiling is paused" */
		if (value->type == 'd')
			out->value.dbl = value->dbl;
		else if (value->type == 's')
			memcpy(out->value.str, value->str, sizeof(value->str));
		else
			out->value.i64 = value->i64;
	}
}

static unsigned char dice(void)
{
	control->seed ^= control->seed << 13;
	control->seed ^= control->seed >> 17;
	control->seed ^= control->seed << 5;
	return control->seed >> 11;
}

static void spoil(dcgmFieldValue_v2 *out)
{
	static const char types[] = "idstb?";
	size_t from = control->garbage == 2 ? 0 : offsetof(dcgmFieldValue_v2, fieldType);

	for (size_t i = from; i < sizeof(*out); i++)
		((unsigned char *)out)[i] = dice();
	if (dice() % 4) { /* else nearly all would end at the type and the status */
		out->fieldType = types[dice() % 6];
		out->status = OK;
	}
}

API int dcgmEntitiesGetLatestValues(dcgmHandle_t handle, dcgmGroupEntityPair_t *pairs, unsigned int entities,
				    unsigned short *fields, unsigned int count, unsigned int flags,
				    dcgmFieldValue_v2 *values)
{
	uint32_t total = entities * count;

	ENTER_CONNECTED(CALL_LATEST, handle);
	if (!pairs || !entities || !fields || !count || !values || entities > control->entity_limit || count > 128)
		return BADPARAM;
	if (total > control->value_limit)
		return INSUFFICIENT_SIZE;
	for (uint32_t i = 0; i < total; i++) {
		uint32_t place = control->shuffle ? total - 1 - i : i;

		if (i + control->short_by < total)
			answer(&values[place], pairs[i / count].entityGroupId, pairs[i / count].entityId, fields[i % count],
			       flags & 1);
		if (control->garbage)
			spoil(&values[place]);
	}
	return OK;
}

API int dcgmGetGpuInstanceHierarchy(dcgmHandle_t handle, dcgmMigHierarchy_v2 *out)
{
	ENTER_CONNECTED(CALL_HIERARCHY, handle);
	if (!out)
		return BADPARAM;
	if (out->version != (0x02000000 | 73480))
		return VER_MISMATCH;
	out->count = 0;
	for (uint32_t i = 0; i < control->entity_count && out->count < 32 * 14; i++) {
		const struct entity *entity = &control->entities[i];
		dcgmMigHierarchyInfo_v2 *one = &out->entityList[out->count];

		if (entity->group != FE_GPU_I && entity->group != FE_GPU_CI)
			continue;
		one->entity = (dcgmGroupEntityPair_t){ entity->group, entity->id };
		one->parent = (dcgmGroupEntityPair_t){ entity->parent_group, entity->parent };
		memcpy(one->info.gpuUuid, entity->uuid, sizeof(entity->uuid));
		one->info.nvmlInstanceId = entity->gpu_instance;
		one->info.nvmlComputeInstanceId = entity->compute_instance;
		out->count++;
	}
	return OK;
}

API int dcgmHostengineVersionInfo(dcgmHandle_t handle, dcgmVersionInfo_v2 *out)
{
	ENTER_CONNECTED(CALL_VERSION, handle);
	if (!out || out->version != 0x02000204)
		return VER_MISMATCH;
	strcpy(out->rawBuildInfoString,
	       MAJOR >= 4 ? "version:4.6.0 stand-in;arch:none;buildtype:test" : "version:3.3.9 stand-in;arch:none");
	return OK;
}

API int dcgmProfPause(dcgmHandle_t handle)
{
	ENTER_CONNECTED(CALL_PROF_PAUSE, handle);
	control->profiling_paused = 1;
	return OK;
}

API int dcgmProfResume(dcgmHandle_t handle)
{
	ENTER_CONNECTED(CALL_PROF_RESUME, handle);
	control->profiling_paused = 0;
	return OK;
}

API int dcgmStartEmbedded_v2(void *params)
{
	(void)params;
	ENTER(CALL_START_EMBEDDED);
	return NOT_SUPPORTED;
}

API int dcgmEngineRun(unsigned short port, const char *path, unsigned int type)
{
	(void)port;
	(void)path;
	(void)type;
	ENTER(CALL_ENGINE_RUN);
	return NOT_SUPPORTED;
}

API const char *errorString(int code)
{
	switch (code) {
	case OK:
		return "Success";
	case BADPARAM:
		return "Bad parameter passed to function";
	case VER_MISMATCH:
		return "API version mismatch";
	case CONNECTION_NOT_VALID:
		return "Host engine connection invalid/disconnected";
	case -33:
		return "This request is serviced by a module of DCGM that is not currently loaded";
	case -36:
		return "Profiling is not supported for this group of GPUs or GPU";
	case -37:
		return "The third-party Profiling module returned an unrecoverable error";
	case -38:
		return "The requested profiling metrics cannot be collected in a single pass";
	default:
		return "(an error that the stand-in has no words for)";
	}
}
