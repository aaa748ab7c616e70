/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a test and the stand-in share: a file, mapped by both. The test says what the engine has and how it
 * behaves; the stand-in counts what it was asked. Mirrored by double.py, which checks sizeof(struct control).
 */
#ifndef STANDIN_CONTROL_H
#define STANDIN_CONTROL_H

#include <stdint.h>

#define MAX_CALLS 24
#define MAX_ENTITIES_HELD 2048
#define MAX_VALUES 16384
#define MAX_REFUSED 64

/* The order is double.py's CALLS. */
enum call {
	CALL_INIT,
	CALL_SHUTDOWN,
	CALL_CONNECT_V2,
	CALL_CONNECT_V3,
	CALL_DISCONNECT,
	CALL_ENTITIES,
	CALL_GROUP_CREATE,
	CALL_GROUP_ADD,
	CALL_GROUP_DESTROY,
	CALL_FIELDS_CREATE,
	CALL_FIELDS_DESTROY,
	CALL_WATCH,
	CALL_UNWATCH,
	CALL_LATEST,
	CALL_HIERARCHY,
	CALL_VERSION,
	CALL_PROF_PAUSE, /* from here on: what a well-behaved client never calls */
	CALL_PROF_RESUME,
	CALL_START_EMBEDDED,
	CALL_ENGINE_RUN,
};

struct entity {
	uint32_t group;
	uint32_t id;
	uint32_t parent_group;
	uint32_t parent;
	uint32_t gpu_instance;
	uint32_t compute_instance;
	char uuid[96]; /* of its GPU */
};

struct value {
	uint32_t group;
	uint32_t entity;
	uint16_t field;
	uint16_t type; /* 'i', 'd', 's', 't', 'b' */
	int32_t status;
	uint32_t foreign; /* another client watches it too */
	uint32_t unused;
	int64_t time_us; /* when it says it was read; 0: now */
	int64_t i64;
	double dbl;
	char str[96];
};

struct control {
	uint32_t size; /* sizeof(struct control) */
	uint32_t generation; /* another one: the engine was restarted, what is connected is not any more */
	int32_t refuse; /* code that connecting answers */
	uint32_t profiling_paused;
	uint32_t known_fields; /* field ids from here on are unknown to the engine */
	uint32_t unknown_first; /* and those from here to unknown_last */
	uint32_t unknown_last;
	uint32_t entity_limit; /* of one group and one call: 64 in 3.3, 1024 in 4.x */
	uint32_t value_limit; /* of one call; more answers -31 */
	uint32_t hang; /* call number + 1 that does not come back until this changes */
	uint32_t hanging; /* threads in such a call */
	uint32_t shuffle; /* give values in reverse order */
	uint32_t garbage; /* 1: values are random; 2: their keys and version too. The next seed is left here */
	uint32_t seed;
	uint32_t short_by; /* leave so many values at the end untouched */
	int32_t answer[MAX_CALLS]; /* code that a call answers instead of working */
	uint32_t answers[MAX_CALLS]; /* how often; 0: always */
	uint64_t calls[MAX_CALLS];
	/* what clients hold now, and what they left for the disconnect to clear away */
	int32_t libraries;
	int32_t connections;
	int32_t groups;
	int32_t field_groups;
	int32_t watches;
	uint32_t abandoned;
	char address[256]; /* of the last connect, and what came with it */
	uint32_t timeout_ms;
	uint32_t is_unix;
	uint32_t persist;
	char last_name[256]; /* of the last field group */
	int64_t last_interval_us;
	double last_keep;
	int32_t last_samples;
	uint32_t refused_count;
	struct {
		uint32_t field;
		int32_t code;
	} refused[MAX_REFUSED]; /* a watch of this field answers this code */
	uint32_t entity_count;
	uint32_t value_count;
	struct entity entities[MAX_ENTITIES_HELD];
	struct value values[MAX_VALUES];
};

#endif
